"""LeNet for small images. Axes: N batch, C channels, H W space, K classes."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions with pooling, then three linear layers, as LeNet-5 (LeCun et al. 1998, fig. 2).

    Differs from the paper: ReLU for tanh, max pooling, and both convolutions are padded, so that any image of at
    least 4x4 pixels fits. Pooled first and rectified then, which gives the same bits from a quarter of the numbers.

    Args:
        num_classes: K, the number of logits.
        in_channels: C, 1 for grey and 3 for colour images.
        image_size: Side of a square image in pixels, or `[H, W]`.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int | list[int] = 28) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 4:
            raise ValueError(f"LeNet: image_size must be at least 4 pixels, received {image_size}")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(6, 16, kernel_size=5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * (height // 4) * (width // 4), 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, K]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
