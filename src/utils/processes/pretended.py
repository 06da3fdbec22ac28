"""Rank 0 of a group that is not there: to see on one machine what a step of many costs each of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from src.utils.processes.ranks import Ranks


class PretendedGroup(Ranks):
    """Answers for all the others as if their share were this one's, and counts what it would have sent them.

    Args:
        world_size: How many ranks there seem to be.
    """

    is_alone = False

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.traffic = Traffic()

    def start(self, device: torch.device, timeout_s: float) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=self.world_size)

    def sum(self, tensor: Tensor) -> Tensor:
        self.traffic.other_bytes += tensor.nbytes
        return tensor.mul_(self.world_size)

    def gradient_hook(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Count a message of DDP's gradients, and give it back as it is."""
        self.traffic.summed.append(bucket.buffer().nbytes)
        sent: torch.futures.Future[Tensor] = torch.futures.Future()
        sent.set_result(bucket.buffer())
        return sent

    def leave(self, code: int) -> None:
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """A context: what one rank gives to the others in it, and would get from them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.summed: list[int] = []
        """Bytes of each message of gradients that all ranks add up."""
        self.gathered: list[int] = []
        """Of weights that are put together for a while, of which each rank holds a part."""
        self.scattered: list[int] = []
        """Of gradients that are added up, of which each rank then keeps its part."""
        self.other_bytes = 0

    def __enter__(self) -> Traffic:
        self.summed, self.gathered, self.scattered, self.other_bytes = [], [], [], 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered.append(args[0].nbytes)
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.scattered.append(args[1].nbytes)
        return func(*args, **(kwargs or {}))

    def describe(self, world_size: int, compresses: bool) -> str:
        """Return what was counted, as text.

        Args:
            world_size: How many ranks a ring would have.
            compresses: Whether gradients that are added up would travel in half their bytes.
        """
        summed = sum(self.summed) / (2 if compresses else 1)
        ring = (world_size - 1) / world_size * (2 * summed + sum(self.gathered) + sum(self.scattered))
        if self.gathered:
            told = f"{_mib(sum(self.gathered))} of weights gathered a step as {len(self.gathered)} message(s) of at "
            told += f"most {_mib(max(self.gathered))}, {_mib(sum(self.scattered))} of gradients added up and cut"
            told += f" as {len(self.scattered)}"
        else:
            told = f"{_mib(summed)} of gradients a step as {len(self.summed)} message(s)"
        other = f"{self.other_bytes:,} bytes of losses and the like"
        return f"{told}; in a ring {_mib(ring)} out and in for each of {world_size:,} ranks; {other}"


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.3g} MiB"
