"""Rank 0 of a group that is not there: to see on one machine what a step of many costs each of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.testing._internal.distributed.fake_pg import FakeStore

from src.utils.ranks import Ranks


class PretendedGroup(Ranks):
    """Answers for all the others as if their share were this one's, and counts what it would have sent them.

    Args:
        world_size: How many ranks there seem to be.
    """

    is_alone = False

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.num_bytes = 0
        """Bytes that were to be added up over the ranks, without gradients."""
        self.gradient_bytes, self.num_messages = 0, 0
        """Of gradients."""

    def start(self, device: torch.device, timeout_s: float) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=self.world_size)

    def sum(self, tensor: Tensor) -> Tensor:
        self.num_bytes += tensor.nbytes
        return tensor.mul_(self.world_size)

    def gradient_hook(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Count a message of gradients, and give it back as it is."""
        self.gradient_bytes += bucket.buffer().nbytes
        self.num_messages += 1
        sent: torch.futures.Future[Tensor] = torch.futures.Future()
        sent.set_result(bucket.buffer())
        return sent

    def leave(self, code: int) -> None:
        dist.destroy_process_group()


def describe_traffic(ranks: Ranks, num_steps: int, compresses: bool) -> str:
    """Return what a step sends, as text.

    Args:
        ranks: The pretended group that made the steps.
        num_steps: How many there were.
        compresses: Whether gradients travel in half their bytes.
    """
    assert isinstance(ranks, PretendedGroup)
    size, sent = ranks.world_size, ranks.gradient_bytes / num_steps / (2 if compresses else 1)
    ring = 2 * (size - 1) / size * sent
    told = f"{sent / 2**20:,.3g} MiB of gradients a step as {ranks.num_messages / num_steps:.0f} message(s)"
    other = f"{ranks.num_bytes / num_steps:,.0f} bytes of losses and the like"
    return f"{told}, in a ring {ring / 2**20:,.3g} MiB out and in for each of {size:,} ranks; {other}"
