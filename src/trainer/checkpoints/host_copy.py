"""A copy of a run's state that stays as it is while training goes on."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, UntypedStorage


class HostCopy:
    """Copies states into memory of the CPU that the next copy takes again: one state's worth, however many are taken.

    Saved, a copy gives the file that the state itself would give, to the last bit: what shares memory, or is one
    object, still does and is. On a GPU the copying is put in line with the steps and nothing waits for it but `wait`.
    """

    def __init__(self) -> None:
        self._kept: list[UntypedStorage] = []
        self._storages: dict[int, UntypedStorage] = {}
        self._seen: dict[int, Any] = {}
        self._devices: set[torch.device] = set()
        self._events: list[Any] = []

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of `state`, which holds tensors and plain data; the copy taken before is void now."""
        copied = {name: self._copy(value) for name, value in state.items()}
        del self._kept[len(self._storages) :]
        self._events = [torch.cuda.current_stream(device).record_event() for device in self._devices]
        self._storages, self._seen, self._devices = {}, {}, set()
        return copied

    def wait(self) -> None:
        """Return when the copy is whole. Any thread may call this."""
        for event in self._events:
            event.synchronize()  # device sync

    def _copy(self, value: Any) -> Any:
        if id(value) in self._seen:
            return self._seen[id(value)]
        kind = type(value)
        if isinstance(value, Tensor):
            found: Any = self._copy_tensor(value)
        elif kind in (dict, OrderedDict, Counter):
            found = kind()
            for key, part in value.items():
                found[key] = self._copy(part)
            for key, part in getattr(value, "__dict__", {}).items():
                setattr(found, key, self._copy(part))
        elif kind in (list, tuple):
            parts = [self._copy(part) for part in value]
            is_same = kind is tuple and all(one is other for one, other in zip(parts, value, strict=True))
            found = value if is_same else kind(parts)
        elif kind is set:
            found = value.copy()
        else:
            return value
        self._seen[id(value)] = found
        return found

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        is_view = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        if not is_view or vars(tensor):
            found = copy.deepcopy(tensor.detach()).cpu()  # rare kinds, in memory of their own  # device sync
            return found.requires_grad_(tensor.requires_grad)
        storage = self._copy_storage(tensor.untyped_storage())
        found = torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(found, tensor.requires_grad)
        return found.requires_grad_(tensor.requires_grad)

    def _copy_storage(self, storage: UntypedStorage) -> UntypedStorage:
        if storage._cdata not in self._storages:
            place, on_gpu = len(self._storages), storage.device.type == "cuda"
            if place == len(self._kept):
                self._kept.append(_new_storage(storage.nbytes(), on_gpu))
            kept = self._kept[place]
            if (kept.nbytes(), kept.is_pinned()) != (storage.nbytes(), on_gpu):
                kept = self._kept[place] = _new_storage(storage.nbytes(), on_gpu)
            kept.copy_(storage, non_blocking=on_gpu)
            if on_gpu:
                self._devices.add(storage.device)
            self._storages[storage._cdata] = kept
        return self._storages[storage._cdata]


def _new_storage(num_bytes: int, is_pinned: bool) -> UntypedStorage:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned).untyped_storage()
