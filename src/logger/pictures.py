"""Arrays to pictures. Axes: N images, C channels, H W pixels."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MIN_SIDE = 96
"""Pixels that a shown image has at least; smaller ones are enlarged without smoothing."""


def grid(images: Array) -> Array:
    """Lay images out in rows, about twice as wide as high.

    Args:
        images: [N, C, H, W], [N, H, W, C] or [N, H, W] with 1, 3 or 4 channels; bytes, or any real range, which is
            stretched to black and white unless it lies in [0, 1].

    Returns:
        Bytes [rows, columns, 3].

    Raises:
        ValueError: The shape is none of these.
    """
    pixels = _to_bytes(_channels_last(images))
    count, height, width, _ = pixels.shape
    scale = max(1, math.ceil(MIN_SIDE / max(height, width)))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    pixels = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    columns = min(count, math.ceil(math.sqrt(2 * count * height / width)))
    rows = math.ceil(count / columns)
    blank = np.full((rows * columns - count, *pixels.shape[1:]), 255, dtype=np.uint8)
    cells = np.concatenate([pixels, blank]).reshape(rows, columns, *pixels.shape[1:])
    _, _, cell_height, cell_width, channels = cells.shape
    picture: Array = cells.swapaxes(1, 2).reshape(rows * cell_height, columns * cell_width, channels)
    return picture


def png(picture: Array) -> bytes:
    """Encode bytes [H, W, 3] as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png", compress_level=1)
    return file.getvalue()


def _channels_last(images: Array) -> Array:
    """[N, H, W, 3]."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.size == 0:
        raise ValueError(f"images must be [N, C, H, W], [N, H, W, C] or [N, H, W], received {list(images.shape)}")
    if images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.shape[3] not in (1, 3, 4):
        images = images[..., :1]  # e.g. two channels of a spectrum: show the first
    if images.shape[3] == 1:
        images = images.repeat(3, axis=3)
    return images[..., :3]


def _to_bytes(images: Array) -> Array:
    if images.dtype == np.uint8:
        return images
    values = np.nan_to_num(images.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    pixels: Array = np.round(values * 255).astype(np.uint8)
    return pixels
