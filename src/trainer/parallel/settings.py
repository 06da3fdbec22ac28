"""What `trainer.parallel` may say. No torch here: a config is checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from src.utils.bounds import Above, AtLeast
from src.utils.errors import ConfigError


@dataclass(frozen=True)
class ParallelSettings:
    """How the processes of one run share the work. `ddp` alone is short for `{mode: ddp}`."""

    mode: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """`ddp`: every process holds the whole model. `fsdp`: every process holds a part of each weight, gradient and
    optimizer state. `auto`: ddp, where there are several. `none`: refuse several."""

    shard: tuple[str, ...] = ()
    """With fsdp: modules whose weights are gathered and let go together, `["blocks.*"]`. Default: each element of the
    model's lists, and the rest as one."""

    cpu_offload: bool = False
    """With fsdp: keep weights, gradients and optimizer states in the CPU's memory, where the optimizer steps too."""

    save_shards: bool = False
    """With fsdp: every process saves its own part, into a folder beside the checkpoint, instead of rank 0 all of them.
    Such a checkpoint is read as any other, by any number of processes."""

    sync_batch_norm: bool = False
    """Batch norms take mean and variance over the rows of all processes, not of each; on GPUs."""

    compress: Literal["fp16", "bf16"] | None = None
    """Send gradients in this type: half the bytes, fewer digits."""

    find_unused: bool = False
    """Allow parameters that a step does not use; costs a look at the whole graph in every step."""

    static_graph: bool = False
    """Promise that every step uses the same parameters in the same order, which DDP can make use of."""

    timeout: Annotated[float, Above(0)] = 300.0
    """Seconds after which a process that does not answer the others is given up, with the whole run."""

    max_restarts: Annotated[int, AtLeast(0)] = 0
    """With `-d 0,1`: how often to start all processes again, from the last checkpoint, after one has died."""

    def __post_init__(self) -> None:
        """Refuse what belongs to another mode.

        Raises:
            ConfigError: It would be without effect.
        """
        if self.mode == "fsdp":
            wrong, other = [key for key in ("find_unused", "static_graph") if getattr(self, key)], "ddp"
        else:
            wrong, other = [key for key in ("shard", "cpu_offload", "save_shards") if getattr(self, key)], "fsdp"
        if wrong:
            raise ConfigError(
                f"trainer.parallel.{wrong[0]}: goes with mode: {other}, found mode: {self.mode}; change one of them"
            )
