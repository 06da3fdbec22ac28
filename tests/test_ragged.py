"""A loss over batches of any sizes is the loss over one batch, whatever its form; so are its gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from src.model.metric import MetricSet
from src.trainer.evaluate import evaluate
from src.trainer.hooks import Hook
from src.trainer.meters import Mean, Meters
from src.trainer.settings import TrainerSettings
from src.trainer.task import Task
from src.trainer.trainer import Trainer
from src.utils.errors import ConfigError

CPU = torch.device("cpu")
WEIGHT = torch.tensor([0.5, 10.0, 2.0], dtype=torch.float64)
NUM_ROWS = 60


def size_of(outputs: Tensor) -> Tensor:
    return outputs.square().mean()


def of_batch(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1].clamp(min=0))


class Probabilities(nn.Module):
    """A mean over rows, as a module that torch does not know."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - outputs.softmax(1)[torch.arange(len(targets)), targets.clamp(min=0)].mean()


SINGLE: dict[str, Any] = {
    "plain": Probabilities(),
    "weight": nn.CrossEntropyLoss(weight=WEIGHT),
    "ignore_index": nn.CrossEntropyLoss(ignore_index=2),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "function with a weight": functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=1),
    "function that sums": functools.partial(F.cross_entropy, reduction="sum"),
    "outputs alone": size_of,
    "batch": of_batch,
}
NAMED: dict[str, Any] = {
    "rows": {"plain": (Probabilities(), 0.5), "size": (size_of, 2.0)},
    "weight": {"ce": (nn.CrossEntropyLoss(weight=WEIGHT), 1.0)},
    "all": {name: (term, 0.1 + 0.3 * k) for k, (name, term) in enumerate(SINGLE.items())},
}
FORMS = {**SINGLE, **{f"terms: {name}": terms for name, terms in NAMED.items()}}


class OwnLoss(nn.Module):
    """Returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 3)

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        outputs = self.body(inputs)
        return {"loss": Probabilities()(outputs, targets), "logits": outputs}


def data(num_rows: int = NUM_ROWS) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_rows, 5, generator=generator, dtype=torch.float64)
    rare = torch.randint(20, (num_rows,), generator=generator)
    targets = torch.where(rare == 0, 1, torch.where(rare < 8, 2, 0))
    targets[:8] = 2  # a whole batch of what some losses leave out
    targets[8] = 1
    return TensorDataset(inputs, targets)


def loader(batch_size: int, name: str = "train") -> Loader:
    return Loader(Part(name, data()), LoaderSettings(batch_size=batch_size), shuffle=False, seed=0)


def model_and_task(form: str) -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    if form == "of the model":
        return OwnLoss().double(), Task(inputs=[0, 1], targets=1, outputs="logits")
    return nn.Linear(5, 3).double(), Task(FORMS[form])


class Values(Hook):
    """Keeps what an epoch gave."""

    def on_epoch_end(self, trainer: Trainer, values: Any) -> None:
        self.values = {name: value for name, value in values.items() if name.startswith("train/")}


def train(form: str, batch_size: int, accumulate_steps: int, **settings: Any) -> tuple[dict[str, float], Tensor]:
    model, task = model_and_task(form)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hook = Values()
    given = TrainerSettings(epochs=1, accumulate_steps=accumulate_steps, **settings)
    trainer = Trainer(task, model, loader(batch_size), {"optimizer": optimizer}, given, hooks=[hook])
    trainer.fit()
    return hook.values, torch.cat([each.detach().flatten() for each in model.parameters()])


@pytest.mark.parametrize("form", [*FORMS, "of the model"])
def test_a_loss_over_ragged_batches_is_that_over_one_batch(form: str) -> None:
    values = []
    for batch_size in (NUM_ROWS, 7, 8):
        model, task = model_and_task(form)
        values.append(evaluate(task, model, loader(batch_size, "val"), Meters(MetricSet({}), CPU)))
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert values[2] == pytest.approx(values[0], rel=1e-9)


@pytest.mark.parametrize("form", [*FORMS, "of the model"])
def test_ragged_micro_batches_make_the_step_of_one_batch(form: str) -> None:
    whole, ragged = train(form, NUM_ROWS, 1), train(form, 13, 5)
    assert ragged[0] == pytest.approx(whole[0], rel=1e-9)
    assert torch.allclose(ragged[1], whole[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", [lambda loss, terms: loss, lambda loss, terms: loss + 3.0 * terms["size"]])
def test_a_step_of_ones_own_is_evaluated_alike_and_does_not_accumulate_what_it_cannot_weigh(
    change: Callable[..., Tensor],
) -> None:
    class Own(Task):
        def step(self, model: Any, batch: Any) -> Any:
            output = super().step(model, batch)
            output.scalars["size"] = size_of(output.outputs)
            output.loss = change(output.loss, output.scalars)
            return output

    values = []
    for batch_size in (NUM_ROWS, 7):
        model, _ = model_and_task("plain")
        task = Own(NAMED["weight"])
        values.append(evaluate(task, model, loader(batch_size, "val"), Meters(MetricSet({}), CPU)))
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    trainer = Trainer(
        task, model, loader(7), {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        TrainerSettings(epochs=1, accumulate_steps=2),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"trainer.accumulate_steps.*use 1"):
        trainer.fit()


def test_the_mean_of_terms_goes_through_a_checkpoint() -> None:
    model, task = model_and_task("terms: all")
    meters, again = Meters(MetricSet({}), CPU), Meters(MetricSet({}), CPU)
    for batch in loader(7).batches():
        with torch.no_grad():
            meters.update(task.step(model, batch))
            again.load_state_dict(meters.state_dict())
    assert again.compute() == meters.compute()
    assert again.loss.lap() == meters.loss.lap()


def test_a_term_without_a_single_label_is_nothing_beside_the_others() -> None:
    terms = {"labelled": (nn.CrossEntropyLoss(ignore_index=2), 1.0), "size": (size_of, 0.5)}
    outputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss, told = Task(terms).loss(outputs, torch.full((4,), 2))
    assert told["labelled"] == 0 and torch.equal(loss, 0.5 * size_of(outputs))
    loss.backward()
    assert outputs.grad is not None and torch.allclose(outputs.grad, outputs.detach() / 12)


def test_a_mean_that_stays_on_its_device_passes_over_what_weighs_nothing() -> None:
    mean = Mean(torch.device("meta"))
    mean.total = torch.zeros((), dtype=torch.float64)  # the meta device has no values; its way of adding is every GPU's
    for value, weight in ((math.nan, torch.tensor(0.0)), (2.0, torch.tensor(3.0)), (6.0, 1.0)):
        mean.update(torch.tensor(value), weight)
    assert mean.compute() == 3.0
