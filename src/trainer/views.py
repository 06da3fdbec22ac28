"""Hooks that show more than numbers: images, curves, histograms, graphs. TensorBoard draws them; see docs/logging.md.

On request, by name: `hooks: [views.Graph, {type: views.Embedding, args: {module: fc1}}]`.
Axes: N rows, C channels, H W pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from src.data.loading.loader import Loader
from src.logger.pictures import confusion, labelled
from src.logger.settings import LoggerSettings
from src.trainer.evaluate import evaluating
from src.trainer.hooks import Console, Hook
from src.trainer.results.predictions import Meaning, named
from src.utils.device import to_device
from src.utils.errors import ConfigError
from src.utils.seed import forked_rng

if TYPE_CHECKING:
    from src.trainer.trainer import Trainer


class InputImages(Hook):
    """Shows the first training inputs once, as the model gets them, when they look like images."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.progress.step > 0:
            return
        args, _, _ = trainer.task.open(trainer.train_loader.peek(self.num_images))
        images = shown_images(args, trainer.train_loader)
        if images is not None:
            trainer.logger.images("train/inputs", images, step=0)


class PredictedImages(Hook):
    """Shows the first images of every val part with what the model says they are, after each best evaluation."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._meanings: dict[str, Meaning] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        for name, loader in trainer.val_loaders.items():
            self._meanings[name] = Meaning.of(trainer.task.criterion, loader.part.dataset)

    def on_evaluation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        if not trainer.is_best:
            return
        for name, loader in trainer.val_loaders.items():
            args, kwargs, targets = trainer.task.open(loader.peek(self.num_images))
            images, meaning = shown_images(args, loader), self._meanings[name]
            if images is None or not meaning.is_of_classes or not isinstance(targets, Tensor):
                return
            with watching(trainer) as model:
                outputs = model(*to_device(args, trainer.device), **to_device(kwargs, trainer.device))
            probabilities = meaning.probabilities(outputs) if isinstance(outputs, Tensor) else None
            if probabilities is None or targets.numel() != len(images):
                return
            predicted, true = probabilities.argmax(1).tolist(), targets.reshape(-1).long().tolist()
            names = named(meaning.class_names, probabilities.shape[1])
            labels = [
                names[p] if p == t else f"{names[p]}, is {names[t]}" for p, t in zip(predicted, true, strict=True)
            ]
            is_right = [p == t for p, t in zip(predicted, true, strict=True)]
            picture = labelled(images, labels, is_right)
            trainer.logger.images(f"{name}/predictions", picture, step=trainer.progress.step)


class Figures(Hook):
    """Draws what `confusion_matrix` and `pr_curve` counted in an evaluation."""

    def on_evaluation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        for name, (kind, counts) in trainer.figures.items():
            dataset = trainer.val_loaders[name.partition("/")[0]].part.dataset
            names = named(getattr(dataset, "class_names", None), len(counts))
            if kind == "confusion_matrix":
                trainer.logger.images(name, confusion(counts.numpy(), names)[None], step=trainer.progress.step)
            else:
                trainer.logger.pr_curves(name, counts.numpy(), names, step=trainer.progress.step)


class Histograms(Hook):
    """Writes histograms of weights and of their gradients' last values.

    Args:
        every_epochs: How often.
    """

    def __init__(self, every_epochs: int) -> None:
        self.every_epochs = every_epochs

    def on_epoch_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        if trainer.progress.epoch % self.every_epochs == 0:
            for name, parameter in trainer.model.named_parameters():
                self._write(trainer, f"weights/{name}", parameter.detach())
                if parameter.grad is not None:
                    self._write(trainer, f"gradients/{name}", parameter.grad)

    def _write(self, trainer: Trainer, tag: str, values: Tensor) -> None:
        values = getattr(values, "full_tensor", lambda: values)()  # of shards on all processes
        array: np.ndarray[Any, Any] = values.float().cpu().numpy()  # device sync
        trainer.logger.histogram(f"train/{tag}", array, step=trainer.progress.step)


class Graph(Hook):
    """Writes the operations of the model once, for the tab Graphs; `torch.jit.trace` must be able to take it."""

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.progress.step > 0:
            return
        from torch.utils.tensorboard._pytorch_graph import graph

        args, _, _ = trainer.task.open(trainer.train_loader.peek(2))
        with watching(trainer) as model:
            definition, _ = graph(model, tuple(to_device(args, trainer.device)))  # type: ignore[no-untyped-call]
        trainer.logger.graph(definition.SerializeToString())


class Embedding(Hook):
    """Writes what a layer gives for rows of the first val part, for the tab Projector, whenever it is the best so far.

    Args:
        module: Name of the layer in the model; its output must be a tensor [N, ...].
        num_rows: How many rows, at most one batch of them.
    """

    def __init__(self, module: str, num_rows: int = 500) -> None:
        self.module = module
        self.num_rows = num_rows

    def check(self, trainer: Trainer) -> None:
        """Find the layer.

        Raises:
            ConfigError: The model has none of this name, or there is no val part.
        """
        known = [name for name, _ in trainer.model.named_modules() if name]
        if self.module not in known:
            shown = ", ".join(
                get_close_matches(self.module, known, n=8) or [*known[:8], *(["..."] if known[8:] else [])]
            )
            raise ConfigError(f"hooks: views.Embedding: the model has no module {self.module!r}; it has {shown}")
        if not trainer.val_loaders:
            raise ConfigError("hooks: views.Embedding shows rows of a val part, and this run has none")

    def on_evaluation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        if not trainer.is_best:
            return
        name, loader = next(iter(trainer.val_loaders.items()))
        args, kwargs, targets = trainer.task.open(loader.peek(self.num_rows))
        seen: list[Tensor] = []
        with watching(trainer) as model:
            handle = model.get_submodule(self.module).register_forward_hook(lambda *given: seen.append(given[-1]))
            model(*to_device(args, trainer.device), **to_device(kwargs, trainer.device))
            handle.remove()
        vectors = seen[-1].float().flatten(1).cpu().numpy()  # device sync
        labels = targets.tolist() if isinstance(targets, Tensor) and targets.shape == (len(vectors),) else []
        names = list(getattr(loader.part.dataset, "class_names", None) or [])
        if names and all(isinstance(label, int) for label in labels):
            labels = [names[label] for label in labels]
        trainer.logger.embedding(f"{name}/{self.module}", vectors, [str(label) for label in labels])


@contextmanager
def watching(trainer: Trainer) -> Iterator[nn.Module]:
    """Give the model that is judged, in evaluation mode; the block leaves no gradient and no random stream moved."""
    model = trainer.ema.model if trainer.ema else trainer.model
    with evaluating(model), torch.no_grad(), forked_rng(), trainer.step.amp():
        yield model


def shown_images(args: Sequence[Any], loader: Loader) -> np.ndarray[Any, Any] | None:
    """Return the first of the model's arguments as images [N, C, H, W], normalisation undone, or None if it is none."""
    images = args[0] if args else None
    if not (isinstance(images, Tensor) and images.dim() == 4 and images.shape[1] in (1, 3)):
        return None
    images = images.float()
    for transform in reversed(loader.part.transforms):
        if hasattr(transform, "mean") and hasattr(transform, "std"):
            mean, std = (torch.as_tensor(getattr(transform, name)).reshape(-1, 1, 1) for name in ("mean", "std"))
            images = images * std + mean
    pixels: np.ndarray[Any, Any] = images.numpy()
    return pixels


def standard_hooks(settings: LoggerSettings) -> list[Hook]:
    """Return the hooks that the section `logger` asks for."""
    hooks: list[Hook] = [Console(settings.bar)]
    if not settings.tensorboard:
        return hooks
    hooks.append(Figures())
    if settings.num_images:
        hooks += [InputImages(settings.num_images), PredictedImages(settings.num_images)]
    if settings.histograms_every_epochs:
        hooks.append(Histograms(settings.histograms_every_epochs))
    return hooks
