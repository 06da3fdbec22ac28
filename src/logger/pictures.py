"""Arrays to pictures. Axes: N images, C channels, H W pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MIN_SIDE = 96
"""Pixels that a shown image has at least; smaller ones are enlarged without smoothing."""

CARD_WIDTH = 340
"""Pixels that TensorBoard shows a picture in. A wider one is shrunk by leaving pixels out, which no text survives."""

LABELLED_SIDE = 96
MIN_CELL_WITH_TEXT, MAX_NAME = 18, 20
GOOD, BAD, INK, GRID = (26, 127, 55), (207, 34, 46), (36, 41, 47), (208, 215, 222)


def grid(images: Array) -> Array:
    """Lay images out in rows: as many side by side as a card is wide, or about a square.

    Args:
        images: [N, C, H, W], [N, H, W, C] or [N, H, W] with 1, 3 or 4 channels; bytes, or any real range, which is
            stretched to black and white unless it lies in [0, 1].

    Returns:
        Bytes [rows, columns, 3].

    Raises:
        ValueError: The shape is none of these.
    """
    pixels = _enlarged(_to_bytes(_channels_last(images)), MIN_SIDE)
    count, height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    columns = min(count, max(1, CARD_WIDTH // (width + 2), round(math.sqrt(count * height / width))))
    rows = math.ceil(count / columns)
    blank = np.full((rows * columns - count, *pixels.shape[1:]), 255, dtype=np.uint8)
    cells = np.concatenate([pixels, blank]).reshape(rows, columns, *pixels.shape[1:])
    _, _, cell_height, cell_width, channels = cells.shape
    picture: Array = cells.swapaxes(1, 2).reshape(rows * cell_height, columns * cell_width, channels)
    return picture


def labelled(images: Array, labels: Sequence[str], good: Sequence[bool]) -> Array:
    """Write a line of text below each image: green where `good`, red elsewhere.

    Args:
        images: As for `grid`.
        labels: A text for each; what is too long is cut.
        good: Whether the text tells of success.

    Returns:
        Bytes [N, H, W, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    pixels = _enlarged(_to_bytes(_channels_last(images)), LABELLED_SIDE)
    _, _, width, _ = pixels.shape
    size = max(11, width // 9)  # still large enough when three wide images are shrunk into a card
    font = ImageFont.load_default(size)
    cells = []
    for image, label, is_good in zip(pixels, labels, good, strict=True):
        strip = Image.new("RGB", (width, size + 6), "white")
        while label and font.getlength(label) > width - 2:
            label = label[:-1]
        ImageDraw.Draw(strip).text((2, 1), label, fill=GOOD if is_good else BAD, font=font)
        cells.append(np.concatenate([image, np.asarray(strip)]))
    return np.stack(cells)


def confusion(counts: Array, names: Sequence[str]) -> Array:
    """Draw rows of each class by predicted class: the share of its row as shade, the count as text where it fits.

    Args:
        counts: Whole numbers [K, K], true class down, predicted class across.
        names: Of the K classes.

    Returns:
        Bytes [H, W, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    K = len(counts)
    font = ImageFont.load_default(max(8, min(11, 700 // K // 3)))
    names = [name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names]
    margin = 28 + round(max(map(font.getlength, names)))
    side = min(44, (CARD_WIDTH - 1 - margin) // K)
    if side < MIN_CELL_WITH_TEXT:
        side = max(4, min(44, 700 // K))
    has_text = side >= MIN_CELL_WITH_TEXT
    margin = margin if has_text else 22
    picture = Image.new("RGB", (margin + K * side + 1, margin + K * side + 1), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, 2), "predicted across, true down", fill=INK, font=ImageFont.load_default(12))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for true in range(K):
        for predicted in range(K):
            share, x, y = float(shares[true, predicted]), margin + predicted * side, margin + true * side
            full = GOOD if true == predicted else BAD
            shade = tuple(round(255 + (part - 255) * share) for part in full)
            draw.rectangle((x, y, x + side, y + side), fill=shade, outline=GRID)
            if has_text and counts[true, predicted]:
                middle = (x + side / 2, y + side / 2)
                ink = "white" if share > 0.6 else INK
                draw.text(middle, str(int(counts[true, predicted])), fill=ink, font=font, anchor="mm")
    if has_text:
        for k, name in enumerate(names):
            draw.text((margin - 4, margin + (k + 0.5) * side), name, fill=INK, font=font, anchor="rm")
            across = Image.new("RGB", (margin - 26, side - 2), "white")
            ImageDraw.Draw(across).text((0, side / 2), name, fill=INK, font=font, anchor="lm")
            picture.paste(across.rotate(90, expand=True), (margin + k * side + 1, 22))
    return np.asarray(picture)


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


def _enlarged(pixels: Array, side: int) -> Array:
    """Whole multiples of [N, H, W, 3], the longer side at least `side`."""
    scale = max(1, math.ceil(side / max(pixels.shape[1:3])))
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _to_bytes(images: Array) -> Array:
    if images.dtype == np.uint8:
        return images
    values = np.nan_to_num(images.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    pixels: Array = np.round(values * 255).astype(np.uint8)
    return pixels
