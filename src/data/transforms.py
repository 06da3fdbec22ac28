"""Transforms of one image, without torchvision: `data.transforms: [ToFloat, {type: RandomCrop, args: {pad: 2}}]`.

Shapes: C channels, H height, W width, N batch. Input and output are tensors [C, H, W]. Those that say
`takes_batch` draw nothing at random and do the same to a whole batch [N, C, H, W], which is much faster.
Random ones draw from torch's global stream, which the reader of a row has seeded for that row and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = float | Sequence[float]


class ToFloat:
    """Bytes 0..255 become float32 0..1; other types become float32 as they are."""

    takes_batch = True

    def __call__(self, image: Tensor) -> Tensor:
        return image.float() / 255 if image.dtype == torch.uint8 else image.float()


class Normalize:
    """`(image - mean) / std`, per channel.

    Args:
        mean: One number, or one per channel.
        std: One number, or one per channel; above 0.
    """

    takes_batch = True

    def __init__(self, mean: Numbers, std: Numbers) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be above 0, received {std}")

    def __call__(self, image: Tensor) -> Tensor:
        num_channels = image.shape[-3]
        for name, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, num_channels):
                raise ValueError(f"{name} has {len(value)} numbers, the image {num_channels} channels")
        return (image - self.mean) / self.std


class Resize:
    """Every image becomes `size`, by interpolation.

    Args:
        size: Height and width in pixels, or one number for both.
        mode: `bilinear` smooths when it shrinks; `nearest` keeps the values, for masks.
    """

    takes_batch = True

    def __init__(self, size: int | Sequence[int], mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear") -> None:
        self.size = _pair(size)
        self.mode = mode

    def __call__(self, image: Tensor) -> Tensor:
        batch = image.unsqueeze(0) if image.dim() == 3 else image
        smooth = self.mode != "nearest"
        resized = F.interpolate(batch.float(), self.size, mode=self.mode, antialias=smooth)
        return resized.squeeze(0) if image.dim() == 3 else resized


class CenterCrop:
    """The middle `size` of each image.

    Args:
        size: Height and width in pixels, or one number for both.
    """

    takes_batch = True

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = _pair(size)

    def __call__(self, image: Tensor) -> Tensor:
        spare_h, spare_w = _spare(image, self.size)
        return _crop(image, spare_h // 2, spare_w // 2, self.size)


class RandomCrop:
    """A piece from a random place; after padding, that shifts the image.

    Args:
        size: Height and width in pixels, or one number for both. None keeps the image's size.
        pad: Pixels of `fill` put around the image first.
        fill: Value of the padding.
    """

    def __init__(self, size: int | Sequence[int] | None = None, pad: int = 0, fill: float = 0.0) -> None:
        self.size = None if size is None else _pair(size)
        self.pad = pad
        self.fill = fill

    def __call__(self, image: Tensor) -> Tensor:
        size = self.size or (image.shape[-2], image.shape[-1])
        padded = F.pad(image, [self.pad] * 4, value=self.fill) if self.pad else image
        spare_h, spare_w = _spare(padded, size)
        top, left = int(torch.randint(spare_h + 1, ())), int(torch.randint(spare_w + 1, ()))
        return _crop(padded, top, left, size)


class RandomFlip:
    """Mirrors an image with probability `p`.

    Args:
        p: 0..1.
        axis: `horizontal` swaps left and right, `vertical` top and bottom.
    """

    def __init__(self, p: float = 0.5, axis: Literal["horizontal", "vertical"] = "horizontal") -> None:
        _check_probability(p)
        if axis not in ("horizontal", "vertical"):
            raise ValueError(f"axis must be horizontal or vertical, received {axis!r}")
        self.p = p
        self.dim = -1 if axis == "horizontal" else -2

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(self.dim) if torch.rand(()) < self.p else image


class RandomShift:
    """Moves an image by up to `pixels` along both axes; what comes in from outside is `fill`.

    Args:
        pixels: Largest distance, in whole pixels.
        fill: Value of what comes in.
    """

    def __init__(self, pixels: int, fill: float = 0.0) -> None:
        self._crop = RandomCrop(pad=pixels, fill=fill)

    def __call__(self, image: Tensor) -> Tensor:
        return self._crop(image)


class RandomErase:
    """Overwrites a random rectangle with `fill`, with probability `p` (https://arxiv.org/abs/1708.04896).

    Args:
        p: 0..1.
        share: Smallest and largest share of each side that the rectangle takes, 0..1.
        fill: Value it is filled with.
    """

    def __init__(self, p: float = 0.5, share: Sequence[float] = (0.1, 0.5), fill: float = 0.0) -> None:
        _check_probability(p)
        if len(share) != 2 or not 0 <= share[0] <= share[1] <= 1:
            raise ValueError(f"share must be two numbers, 0 <= smallest <= largest <= 1, received {list(share)}")
        self.p = p
        self.share = share
        self.fill = fill

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()) >= self.p:
            return image
        low, high = self.share
        sides = [max(1, round(side * (low + (high - low) * float(torch.rand(()))))) for side in image.shape[-2:]]
        top, left = (int(torch.randint(n - side + 1, ())) for n, side in zip(image.shape[-2:], sides, strict=True))
        erased = image.clone()
        erased[..., top : top + sides[0], left : left + sides[1]] = self.fill
        return erased


class AddNoise:
    """Adds normally distributed noise to each value. Works on inputs of any shape.

    Args:
        std: Standard deviation, in the units of the inputs.
    """

    def __init__(self, std: float) -> None:
        if std < 0:
            raise ValueError(f"std must be >= 0, received {std}")
        self.std = std

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs + self.std * torch.randn_like(inputs)


class Flatten:
    """[C, H, W] becomes [C * H * W]."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.flatten()


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be >= 1, received {size}")
    return height, width


def _spare(image: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    spare_h, spare_w = image.shape[-2] - size[0], image.shape[-1] - size[1]
    if spare_h < 0 or spare_w < 0:
        raise ValueError(f"image of {image.shape[-2]} x {image.shape[-1]}, crop of {size[0]} x {size[1]}: too small")
    return spare_h, spare_w


def _crop(image: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    return image[..., top : top + size[0], left : left + size[1]]


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p must be within 0..1, received {p}")
