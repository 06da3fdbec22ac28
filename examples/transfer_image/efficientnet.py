"""EfficientNet-Lite0 (Tan and Le 2019; Liu 2020), under the names of the weights that are around. Axes: N, C, H, W."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
BLOCKS += ((1, 3, 1, 6, 320),)
"""Repeats, kernel, stride of the first, expansion, channels out."""


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: to ceil(size / stride), the odd pixel at the end."""

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in images.shape[2:]]
        padded = F.pad(images, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return F.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


def conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv:
    """A convolution without bias."""
    return SameConv(channels, out, kernel, stride, groups=groups, bias=False)


def norm(channels: int) -> nn.BatchNorm2d:
    """The batch norm of these weights."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expand, filter each channel, project; with a shortcut where shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = conv(channels, inner, 1), norm(inner)
        self.is_expanding, self.has_shortcut = expansion > 1, stride == 1 and channels == out
        self._depthwise_conv, self._bn1 = conv(inner, inner, kernel, stride, inner), norm(inner)
        self._project_conv, self._bn2 = conv(inner, out, 1), norm(out)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(images))) if self.is_expanding else images
        hidden = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(hidden)))))
        return images + hidden if self.has_shortcut else hidden


class EfficientNetLite0(nn.Module):
    """Images [N, 1 or 3, H, W] in 0..1 to logits [N, num_classes]."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, 32, 3, 2), norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out in BLOCKS:
            for repeat in range(repeats):
                blocks.append(Block(channels, out, kernel, 1 if repeat else stride, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = conv(channels, 1280, 1), norm(1280)
        self._dropout, self._fc = nn.Dropout(dropout), nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.expand(-1, 3, -1, -1) * 2 - 1
        hidden = F.relu6(self._bn0(self._conv_stem(hidden)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = F.relu6(self._bn1(self._conv_head(hidden)))
        return self._fc(self._dropout(hidden.mean((2, 3))))
