"""A variational autoencoder (Kingma and Welling 2013). Axes: N batch, D latent values; images [N, 1, H, W] in 0..1."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.trainer.hooks import Hook
from src.trainer.trainer import Trainer


class Encoded(NamedTuple):
    """What the model returns."""

    logits: Tensor  # [N, 1, H, W]
    mean: Tensor  # [N, D]
    log_variance: Tensor  # [N, D]


class VAE(nn.Module):
    """Encodes to a normal distribution, decodes a draw from it; in evaluation its mean."""

    def __init__(self, image_size: int = 28, hidden: int = 256, latent: int = 16) -> None:
        super().__init__()
        self.latent, self.image_size = latent, image_size
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, hidden), nn.ReLU())
        self.moments = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, image_size**2))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).unflatten(1, (1, self.image_size, self.image_size))

    def forward(self, images: Tensor) -> Encoded:
        mean, log_variance = self.moments(self.encoder(images)).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else 0.0
        return Encoded(self.decode(mean + noise * (0.5 * log_variance).exp()), mean, log_variance)


def reconstruction(outputs: Encoded, images: Tensor) -> Tensor:
    """Cross entropy of all pixels of an image, mean over images."""
    return F.binary_cross_entropy_with_logits(outputs.logits, images, reduction="sum") / len(images)


def kl(outputs: Encoded, images: Tensor) -> Tensor:
    """Divergence of the code from a standard normal (eq. 10), mean over images."""
    mean, log_variance = outputs.mean, outputs.log_variance
    return -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()


class SampledImages(Hook):
    """Shows after each epoch what the decoder makes of the same random codes."""

    def __init__(self, num_images: int = 16) -> None:
        self.num_images = num_images

    def on_epoch_end(self, trainer: Trainer, values: Any) -> None:
        model = trainer.model
        codes = torch.randn(self.num_images, model.latent, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        with torch.no_grad():
            images = model.decode(codes.to(trainer.device)).sigmoid()  # type: ignore[operator]
        trainer.logger.images("val/samples", images.cpu().numpy(), step=trainer.progress.step)
