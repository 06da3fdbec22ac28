"""What a user is told when `trainer.deterministic` meets an operation that has no deterministic form."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from src.utils.errors import ConfigError
from src.utils.paths import shown_path

ALTERNATIVES = {
    r"upsample|interpolate": "interpolate with mode: nearest, or a ConvTranspose2d",
    r"adaptive_(avg|max)_pool": "AvgPool2d or MaxPool2d with a fixed kernel, or a mean over the axes",
    r"(avg|max)_pool3d|fractional_max_pool": "a convolution with a stride",
    r"max_unpool": "ConvTranspose2d, or interpolate with mode: nearest",
    r"(reflection|replication)_pad": "zero padding, or torch.cat of slices",
    r"nll_loss2d": "flatten the pixels: outputs [N * H * W, C], targets [N * H * W]",
    r"ctc_loss": "the loss of cuDNN: targets on the CPU, of type int32, blank 0; or compute it on the CPU",
    r"embedding_bag": "mode: sum or mean instead of max",
    r"grid_sampl": "sample on the CPU, in the dataset",
    r"put_": "index_put_ with accumulate=True, or scatter",
    r"histc|bincount": "scatter_add_ of ones, or count on the CPU",
    r"kthvalue|median": "torch.sort and an index",
    r"cumsum|cumprod": "a matrix product with a triangle of ones",
    r"scatter|index_(add|copy|reduce)|gather": "index_put_ with accumulate=True",
}
"""By a pattern of the operation's name: what does the same, or much the same, and is deterministic."""


def no_deterministic_form(error: BaseException) -> ConfigError | None:
    """Return what a user is told when `error` is torch's refusal of an operation; None for any other error."""
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    if found is None or not isinstance(error, RuntimeError):
        return None
    name = re.sub(r"(_(forward|backward|out|frame|cuda|gpu|template|kernel))+$", "", found[1])
    advice = next((text for pattern, text in ALTERNATIVES.items() if re.search(pattern, name)), "")
    lines = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    is_backward = "backward" in found[1] or not lines
    where = "the backward pass" if is_backward else f"{shown_path(Path(lines[-1].filename))}:{lines[-1].lineno}"
    instead = f"; instead: {advice}" if advice else ""
    return ConfigError(f"trainer.deterministic: {name} in {where} has no deterministic form{instead}; or leave it out")
