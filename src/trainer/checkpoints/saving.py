"""How a run is saved; what is forgiven when that fails, what ends the run, and finding out before it begins."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from src.trainer.checkpoints.host_copy import HostCopy
from src.trainer.checkpoints.plain import check_plain
from src.trainer.checkpoints.shard_files import RECORD
from src.trainer.checkpoints.store import CheckpointStore, load_checkpoint
from src.trainer.faults.nonfinite import tensors_in
from src.trainer.settings import TrainerSettings
from src.utils.errors import ResourceError
from src.utils.paths import shown_path
from src.utils.processes.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

State = Callable[[], Mapping[str, Any]]
Shards = Mapping[str, "DTensor"]
Bring = Callable[[State], tuple[Mapping[str, Any], Shards]]
SPARE_BYTES = 1 << 20
"""For logs and manifests."""
log = logging.getLogger(__name__)


class Saver:
    """Saves a run's state into its folder, or nowhere. A context: what is being written at its end is waited for.

    Args:
        folder: For checkpoints; None keeps none.
        keep: How many of the newest stay, besides the best.
        in_background: Copy the state and let a thread write it. The first save of a process is waited for all the
            same, so that `max_time` knows how long one takes, and so is the last one.
        ranks: All of them bring their part of the state; rank 0 writes.
        bring: Returns what rank 0 is to write, and by name what every rank writes a shard of.
        max_failed: Saves in a row that fail before one raises.
    """

    def __init__(
        self,
        folder: Path | None,
        keep: int,
        in_background: bool = False,
        ranks: Ranks = ALONE,
        bring: Bring = lambda state: (state(), {}),
        max_failed: int = 3,
    ) -> None:
        self.store = CheckpointStore(folder, keep) if folder else None
        self.ranks, self._bring = ranks, bring
        self.saved_step = -1
        """The step whose state is on disk."""
        self._max_failed = max_failed
        self._in_background, self._num_saved, self._num_failed, self._lost_best_step = in_background, 0, 0, -1
        self._copy = HostCopy()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: tuple[Callable[[], object], int, bool] | None = None

    @classmethod
    def of(cls, settings: TrainerSettings, folder: Path | None, ranks: Ranks, bring: Bring) -> Saver:
        """Return one that saves as `settings` say."""
        return cls(folder, settings.keep, settings.save_in_background, ranks, bring, settings.max_failed_saves)

    def prepare(self, state: State) -> None:
        """Tidy up after a killed save, and look whether two states fit on the disk.

        Args:
            state: Makes it as it would be saved now. Optimizers that have made no step yet are counted as Adam's.

        Raises:
            CheckpointError: It holds what no checkpoint can.
            ResourceError: They do not fit.
        """
        content, _ = self._bring(state)
        if self.store is not None:
            self.ranks.by_main(partial(self._prepare, self.store, content))

    def _prepare(self, store: CheckpointStore, content: Mapping[str, Any]) -> None:
        check_plain(content)
        store.recover()
        num_bytes, free = state_bytes(content), shutil.disk_usage(store.folder).free
        if free < 2 * num_bytes + SPARE_BYTES:
            raise ResourceError(
                f"{shown_path(store.folder)}: checkpoints need about {2 * num_bytes / 2**20 + 1:.0f} MiB, "
                f"{free / 2**20:.0f} MiB are free; free some, or name another trainer.save_dir"
            )

    def save(self, state: Callable[[], Mapping[str, Any]], step: int, is_best: bool, is_last_chance: bool) -> None:
        """Save; a failure is reported and forgiven, but not for ever, nor at the end. All ranks learn how it went.

        In the background: one that is still being written is waited for, and its failure told now.

        Raises:
            CheckpointError: The state holds what no checkpoint can.
            ResourceError: Three saves in a row failed, or the last one.
        """
        store = self.store
        if store is None:
            return
        self._finish()
        is_best = is_best or step == self._lost_best_step  # the same weights once more
        content, shards = self._bring(state)
        self.ranks.by_main(partial(check_plain, content))
        if self._in_background and self._num_saved and not is_last_chance:
            self._writing = self._begin_copy(store, content, shards, step, is_best), step, is_best
        else:
            self._writing = partial(self._write, store, content, shards, step, is_best, self.ranks), step, is_best
            self._finish(is_last_chance)

    def has_saved(self, step: int) -> bool:
        """Return whether the state of a step is on disk, after waiting for what is being written.

        Raises:
            ResourceError: Three saves in a row failed.
        """
        self._finish()
        return self.saved_step == step

    def newest(self) -> dict[str, Any]:
        """Return the newest checkpoint that is whole; rank 0 says which.

        Raises:
            CheckpointError: There is none.
        """
        assert self.store is not None
        store = self.store
        found: dict[str, dict[str, Any]] = {}

        def find() -> str:
            path, found["state"] = store.newest()
            return path.name

        name = self.ranks.by_main(find)
        return found["state"] if found else load_checkpoint(store.folder / name)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is being written, or give it up when the process was told to leave at once."""
        try:
            if error and not isinstance(error, Exception):
                raise error
            self._finish(ranks=ALONE if error else self.ranks)  # a rank that fails meets nobody any more
        except Exception as failure:
            if error is None:
                raise
            log.warning("%s", failure)
        except BaseException:  # a second Ctrl-C, now or before
            if self.store:
                self.store.give_up.set()
            raise
        finally:
            if self._thread:
                self._thread.shutdown()
                self._thread = None

    @cached_property
    def _aside(self) -> Ranks:
        """The ranks as the threads of `_begin_copy` meet them, while the main threads meet each other."""
        return self.ranks.aside()

    def _begin_copy(
        self, store: CheckpointStore, content: Mapping[str, Any], shards: Shards, step: int, is_best: bool
    ) -> Callable[[], object]:
        """Let a thread of each rank that has something to write do so; return what waits for it."""
        if shards:
            from src.trainer.checkpoints.shard_saving import copy_shards

            content, shards = copy_shards(content if self.ranks.is_main else {}, shards, self._copy)
        elif self.ranks.is_main:
            content = self._copy.take(content)
        else:
            return _wait_for_nothing
        self._thread = self._thread or ThreadPoolExecutor(1, "save")
        ranks = self._aside if shards else self.ranks
        writing = self._thread.submit(self._write, store, content, shards, step, is_best, ranks)

        def wait() -> None:
            with self.ranks.waiting() if shards else nullcontext():  # for all the threads, which meet
                writing.result()

        return wait

    def _write(
        self, store: CheckpointStore, content: Mapping[str, Any], shards: Shards, step: int, is_best: bool, ranks: Ranks
    ) -> None:
        """Write this rank's shards, if there are any; then rank 0 writes what makes them count."""
        self._copy.wait()
        if shards:
            from src.trainer.checkpoints.shard_saving import save_shards

            try:
                record = save_shards(shards, store.folder, step, ranks)
            except ResourceError:
                if ranks.is_main:
                    store.drop_shards()
                raise
            if ranks.is_main:
                content = {**content, RECORD: content[RECORD] | record}
        if ranks.is_main:
            store.save(content, step, is_best)

    def _finish(self, is_last_chance: bool = False, ranks: Ranks | None = None) -> None:
        """Wait for what is being written, and count whether that went well: alike on all `ranks`."""
        if self._writing is None:
            return
        (result, step, is_best), self._writing = self._writing, None
        ranks = ranks or self.ranks
        try:
            if not ranks.is_main:
                with suppress(ResourceError):  # rank 0 has met it too, and tells
                    result()
            ranks.by_main(result)
        except ResourceError as error:
            self._num_failed += 1
            self._lost_best_step = step if is_best else self._lost_best_step
            if is_last_chance or self._num_failed >= self._max_failed:
                raise
            also = " best.pt does not hold the newest best;" if is_best else ""
            log.warning("%s;%s training goes on and saves again later", error, also)
        else:
            self.saved_step, self._num_failed, self._num_saved = step, 0, self._num_saved + 1


def _wait_for_nothing() -> None:
    """Rank 0 is the one that writes."""


def state_bytes(state: Mapping[str, Any]) -> int:
    """Return about how many bytes a state has on disk once every optimizer has made a step."""
    elsewhere = int(state.get(RECORD, {}).get("bytes", 0))
    num_bytes = elsewhere + sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(state))
    weights = elsewhere + sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(state["model"]))
    has_moments = any(tensors_in(value) for name, value in state.items() if name.split(".")[0] == "optimizer")
    return num_bytes + (0 if has_moments else 2 * weights)
