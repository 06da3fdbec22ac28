"""A small DCGAN (Radford et al. 2015). Axes: N batch, D noise; images [N, 1, 8, 8] in 0..1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from src.trainer.hooks import Hook
from src.trainer.task import StepOutput, Task
from src.trainer.trainer import Trainer


class Generator(nn.Module):
    """Noise [N, D] to images."""

    def __init__(self, noise: int = 32, width: int = 32) -> None:
        super().__init__()
        self.noise = noise
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(noise, 2 * width, 2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise[:, :, None, None])


class Discriminator(nn.Module):
    """Images to logits [N]: how real they look."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 2), nn.Flatten(0),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class GANTask(Task):
    """One update of the discriminator on real and made images, then one of the generator."""

    def update(self, model: Any, batch: Any, optimizers: Mapping[str, Optimizer]) -> StepOutput:
        real = batch[0]
        generator, discriminator = model["generator"], model["discriminator"]
        fake = generator(torch.randn(len(real), generator.noise, device=real.device))

        told_real, told_fake = discriminator(real), discriminator(fake.detach())
        d_loss = _is(told_real, 1.0) + _is(told_fake, 0.0)
        optimizers["discriminator"].zero_grad()
        d_loss.backward()
        optimizers["discriminator"].step()

        g_loss = _is(discriminator(fake), 1.0)
        optimizers["generator"].zero_grad()
        g_loss.backward()
        optimizers["generator"].step()

        scalars = {
            "loss_d": d_loss.detach(),
            "real": told_real.detach().sigmoid().mean(),
            "fake": told_fake.detach().sigmoid().mean(),
        }
        return StepOutput(g_loss.detach(), fake.detach(), None, float(len(real)), scalars)


def _is(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


class ImageGrid(Hook):
    """Shows after each epoch what the generator makes of the same noise."""

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        generator: Any = trainer.model.get_submodule("generator")
        noise = torch.randn(64, generator.noise, generator=torch.Generator().manual_seed(0))
        generator.eval()
        with torch.no_grad():
            images = generator(noise.to(trainer.device))
        generator.train()
        trainer.logger.images("train/grid", images.cpu().numpy(), step=trainer.progress.step)
