"""A model cut into shards, through torch's FSDP2; and states of shards as those of one process, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from src.trainer.optimizers import parameters_of
from src.trainer.recompute import has_forward, matching_modules, outermost
from src.trainer.settings import TrainerSettings
from src.utils.errors import ConfigError
from src.utils.nested import with_parts
from src.utils.processes.ranks import Ranks

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WHERE = "trainer.parallel.shard"


def find_units(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules whose weights are gathered and let go together, inner ones first, by name.

    The last ones are the model itself, or, where it is a mere container of models, each of these: they hold what the
    others leave.

    Raises:
        ConfigError: A pattern matches nothing, or the model cannot be cut like this.
    """
    if patterns:
        chosen = {n: each for pattern in patterns for n, each in matching_modules(model, pattern, WHERE).items()}
    else:
        numbered = {
            name: module
            for name, module in model.named_modules()
            if name.rpartition(".")[2].isdigit() and has_forward(module) and any(True for _ in module.parameters())
        }
        chosen = outermost(numbered)
    units = {**{name: chosen[name] for name in reversed(chosen)}, **dict(_roots(model))}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise ConfigError(
                f"trainer.parallel: fsdp shards parameters of at least one dimension, and the model's {name} has none; "
                "make it torch.ones(1) instead of torch.tensor(1.0), or use ddp"
            )
    _check_tied(model, units)
    return units


def _roots(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    if has_forward(model):
        yield name, model
        return
    own = next((each for each, _ in model.named_parameters(prefix=name, recurse=False)), None)
    if own is not None:
        raise ConfigError(
            f"trainer.parallel: fsdp gathers weights when the module that holds them is called; {own} is held by a "
            f"{type(model).__name__}, which has no forward; put it into a module that has one, or use ddp"
        )
    for child, module in model.named_children():
        yield from _roots(module, f"{name}.{child}" if name else child)


def _check_tied(model: nn.Module, units: Mapping[str, nn.Module]) -> None:
    """Refuse a weight that two units hold: each would have a shard of its own."""
    owner: dict[str, str] = {}
    for unit, module in units.items():
        for name, _ in module.named_parameters(prefix=unit, remove_duplicate=False):
            owner.setdefault(name, unit)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if owner[other] != owner[name]:
            raise ConfigError(
                f"{WHERE}: {other} and {name} are one weight, and would be in different shards "
                f"({owner[other] or 'the model'}, {owner[name] or 'the model'}); name modules that hold both or neither"
            )


def cut(
    model: nn.Module, units: Mapping[str, nn.Module], mesh: DeviceMesh, settings: TrainerSettings, ranks: Ranks
) -> None:
    """Divide the weights of `model` among the processes of `mesh`, in place, with the values that rank 0 has.

    One unit after the other comes to the device and is cut, so that no more than one is ever there whole.
    """
    device = torch.device(mesh.device_type)
    _fill(model, "_buffers", device, ranks)
    chosen = settings.parallel_settings
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if chosen.cpu_offload else OffloadPolicy()
    computed = TYPES[settings.amp_dtype] if settings.amp_dtype else None
    sent = TYPES[chosen.compress] if chosen.compress else torch.float32 if computed else None
    for module in units.values():
        _fill(module, "_parameters", device, ranks)
        has_norm = any(isinstance(each, _BatchNorm) for each in module.modules())  # its weights are as its mean: float
        policy = MixedPrecisionPolicy(None if has_norm else computed, sent, cast_forward_inputs=False)
        name = type(module).__name__
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
        type(module).__name__ = name  # torch makes a class `FSDPLeNet`, which nobody has written
        module.register_forward_hook(_let_go)


def _fill(model: nn.Module, kind: str, device: torch.device, ranks: Ranks) -> None:
    """Give the tensors of `model` that are not cut new places on `device`, with the values that rank 0 has."""
    filled: dict[int, Tensor] = {}
    for module in model.modules():
        for name, old in [*getattr(module, kind).items()]:
            if old is None or isinstance(old, DTensor):
                continue
            if id(old) not in filled:
                new = _from_main(old, device, ranks)
                filled[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(module, name, filled[id(old)])


def _from_main(value: Tensor, device: torch.device, ranks: Ranks) -> Tensor:
    """Return a copy on `device` of rank 0's `value`; that of other ranks only has its shape."""
    copied = torch.empty(value.shape, dtype=value.dtype, device=device)
    if ranks.is_main:
        copied.copy_(value.detach())
    ranks.copy_from_main([copied] if copied.numel() else [])
    return copied


def _let_go(module: nn.Module, inputs: Any, outputs: Any) -> None:
    """Without a backward pass nothing else would let the outermost unit's weights go."""
    if not torch.is_grad_enabled():
        assert isinstance(module, FSDPModule)
        module.reshard()


def adopt(optimizer: Optimizer, moved: Mapping[Tensor, nn.Parameter], ranks: Ranks) -> None:
    """Let an optimizer train shards in place of the parameters it was made with, and shard what it keeps of them."""
    for group in optimizer.param_groups:
        old = group["params"]
        group["params"] = [moved.get(each, each) for each in old]
        for parameter in [each for each in old if each in moved and each in optimizer.state]:
            new, kept = moved[parameter], optimizer.state.pop(parameter)
            is_on_device = bool(group.get("fused") or group.get("capturable"))
            optimizer.state[new] = {key: _adopted(value, new, is_on_device, ranks) for key, value in kept.items()}


def _adopted(value: Any, like: nn.Parameter, is_on_device: bool, ranks: Ranks) -> Any:
    """Return what rank 0 keeps of a parameter, in shards as `like`; counters stay on the host where torch has them."""
    if not isinstance(value, Tensor):
        return value
    device = like.device if value.dim() or is_on_device else torch.device("cpu")
    return _as_shard(_from_main(value, device, ranks), like)


def whole(value: Any, keep: bool = True) -> Any:
    """Return plain data with whole tensors in place of shards; all processes must call this.

    Args:
        value: State of a model or optimizer.
        keep: Whether this process wants them; they come to its host's memory.
    """
    if isinstance(value, DTensor):
        full: Tensor = value.full_tensor()
        return _trimmed(full.cpu()) if keep else None
    return with_parts(value, lambda part: whole(part, keep))


def _trimmed(tensor: Tensor) -> Tensor:
    """Return a tensor without what filled up the last shard; a file would hold that, too."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def shard_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole `weights` cut as those of `model` are."""
    own = model.state_dict()
    return {name: _as_shard(value, own.get(name)) for name, value in weights.items()}


def shard_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole `state` of an optimizer with what it keeps of each parameter cut as that is."""
    parameters = parameters_of(optimizer)
    kept = {
        index: {key: _as_shard(value, parameters[index]) for key, value in entry.items()}
        if isinstance(index, int) and index < len(parameters)
        else entry
        for index, entry in state["state"].items()
    }
    return {**state, "state": kept}


def _as_shard(value: Any, like: Any) -> Any:
    """Return the shard of a whole tensor that belongs to `like`; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    if value.shape != like.shape:
        return value
    value = value.detach().to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
