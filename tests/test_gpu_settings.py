"""Settings that make a GPU faster, as far as a CPU can see them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.device import use_tf32


def image_trainer(**settings: Any) -> Trainer:
    """Return a trainer of 20 small images."""
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    model = nn.Sequential(*body)
    images = TensorDataset(torch.randn(20, 3, 8, 8), torch.randint(2, (20,)))
    loader = Loader(Part("train", images), LoaderSettings(batch_size=5), shuffle=True, seed=0)
    optimizers = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}
    return Trainer(Task(nn.CrossEntropyLoss()), model, loader, optimizers, TrainerSettings(**{"epochs": 2, **settings}))


def is_channels_last(tensor: Tensor) -> bool:
    """Say whether a tensor of several channels is laid out so."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def test_with_channels_last_weights_gradients_and_activations_are_so_and_the_numbers_are_the_same() -> None:
    plain, laid_out = image_trainer(), image_trainer(channels_last=True)
    seen: list[Tensor] = []
    laid_out.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))  # type: ignore[index]
    assert laid_out.fit() == pytest.approx(plain.fit(), rel=1e-4)
    weight = laid_out.model[0].weight  # type: ignore[index, union-attr]
    momentum = laid_out.optimizers["optimizer"].state[weight]["momentum_buffer"]
    assert seen and all(map(is_channels_last, [*seen, weight, momentum]))  # type: ignore[list-item]
    assert not is_channels_last(plain.model[0].weight)  # type: ignore[index, union-attr, arg-type]


def test_a_run_goes_on_with_or_without_channels_last() -> None:
    whole = image_trainer().fit()
    for first, then in ((True, False), (False, True)):
        begun = image_trainer(channels_last=first, epochs=1)
        begun.fit()
        going_on = image_trainer(channels_last=then)
        going_on.load_state_dict(begun.state_dict())
        assert is_channels_last(going_on.model[0].weight) == then  # type: ignore[index, union-attr, arg-type]
        assert going_on.fit() == pytest.approx(whole, rel=1e-4)


def test_tf32_is_what_the_setting_says_in_matrices_and_convolutions_alike_and_left_alone_without_it() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    use_tf32(TrainerSettings().tf32)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    for wanted in (True, False):
        use_tf32(wanted)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (wanted, wanted)
