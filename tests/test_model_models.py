"""Laws of the shipped models and losses."""

from __future__ import annotations

import pytest
import torch

from src.model.lenet import LeNet
from src.model.linear import Linear
from src.model.loss import focal_loss, mae, mse
from src.model.mlp import MLP


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (1, [10, 23]), (1, 4)])
def test_lenet_makes_one_logit_per_class_of_any_image_size(channels: int, size: int | list[int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    model = LeNet(num_classes=7, in_channels=channels, image_size=size)
    assert model(torch.randn(2, channels, height, width)).shape == (2, 7)


def test_lenet_refuses_images_that_pooling_would_make_empty() -> None:
    with pytest.raises(ValueError, match="at least 4 pixels, received 3"):
        LeNet(image_size=3)


def test_mlp_flattens_and_an_empty_list_of_layers_is_a_linear_model() -> None:
    assert MLP(12, [5, 4], 3, dropout=0.1, activation="Tanh")(torch.randn(2, 3, 4)).shape == (2, 3)
    assert sum(p.numel() for p in MLP(12, [], 3).parameters()) == 12 * 3 + 3
    assert Linear(12, 3)(torch.randn(2, 3, 4)).shape == (2, 3)


@pytest.mark.parametrize("loss", [mse, mae])
def test_a_regression_loss_refuses_to_broadcast(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match=r"received \[5, 1\] and \[5\]; reshape the targets to \[5, 1\]"):
        loss(torch.zeros(5, 1), torch.zeros(5))
    assert loss(torch.zeros(5, 1), torch.full((5, 1), 2.0)) == (4 if loss is mse else 2)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, targets = torch.randn(6, 3), torch.randint(3, (6,))
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(focal_loss(logits, targets, gamma=0.0), expected)
    assert focal_loss(logits, targets) < expected
