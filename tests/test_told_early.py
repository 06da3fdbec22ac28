"""What a config says of losses, targets and watched values is held against a step before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import train
from src.utils.errors import ConfigError, KeelError

CODE = """
import warnings

import torch
from torch import nn
from src.model.metric import whole_split
from src.trainer.task import StepOutput, Task

class Rows(torch.utils.data.Dataset):
    class_names = ["setosa", "virginica"]

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(40, 3, generator=generator)
        self.labels = (self.inputs[:, 0] > 0).long()

    def __len__(self):
        return 40

    def __getitem__(self, row):
        return {"x": self.inputs[row], "label": self.labels[row]}

class Odd(Rows):
    # wrong labels, in no row that is tried
    def __init__(self):
        super().__init__()
        self.labels[20:30] = 7
        self.targets = self.labels

class ThreeKinds(Rows):
    num_classes = 3

def fussy(outputs, targets):
    if len(targets) < 3:
        warnings.warn("few rows")
    return outputs.mean()

def size(outputs):
    return outputs.abs().mean()

class Stubborn(torch.optim.SGD):
    def step(self, closure=None):
        return 1 / 0

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x):
        logits = self.body(x)
        return {"loss": logits.square().mean(), "logits": logits}

class Scored(Task):
    def step(self, model, batch):
        output = super().step(model, batch)
        output.scalars["spread"] = output.outputs.std()
        return output

class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets):
        return self.scale * outputs.square().mean()

class by_length:
    # a few rows tell nothing of long ones
    def __init__(self):
        self.reset()

    def reset(self):
        self.seen = 0

    def update(self, outputs, targets):
        self.seen += len(outputs)

    def compute(self):
        return {"short": 1.0, **({"long": 2.0} if self.seen > 4 else {})}

def misspelt(outputs, targets):
    return output.mean()

def silent(outputs, targets):
    outputs.mean()

@whole_split
def of_many(outputs, targets):
    if len(targets) < 10:
        raise ValueError("too few rows to say")
    return outputs.mean()

def of_some(outputs, targets):
    assert len(targets) > 2
    return outputs.mean()

class Half:
    def update(self, outputs, targets):
        pass

    def compute(self):
        return 1.0

def each(outputs, targets):
    return (outputs.sum(1) - targets).square()

def number(outputs, targets):
    return (outputs.sum(1) - targets).square().mean().item()

class Silent(nn.Linear):
    def forward(self, x):
        super().forward(x)

class Formless(nn.Module):
    pass

class Bare(Task):
    def step(self, model, batch):
        return super().step(model, batch).loss

class Odder(nn.Module):
    def step(self, model, batch):
        return None

class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(3, 2)]

    def forward(self, x):
        return self.layers[0](x)

class Forgetful(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(3, 2)

class Softmaxed(nn.Linear):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Named(Rows):
    def __getitem__(self, row):
        return {"x": self.inputs[row], "label": self.class_names[self.labels[row]]}

class Double(Rows):
    def __getitem__(self, row):
        return {"x": self.inputs[row].double(), "label": self.labels[row]}

class Pixels(Rows):
    def __getitem__(self, row):
        return {"x": self.inputs[row].byte(), "label": self.labels[row]}

class Players(Task):
    def update(self, model, batch, optimizers):
        raise AssertionError("never tried")

class Late(Task):
    # what it carries is not there before the first pass begins
    def begin(self, part, epoch):
        self.seen = 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

class LatePlayers(Late, Players):
    pass

class Lost(Late):
    seen = 0

    def load_state_dict(self, state):
        self.seen = state["sen"]
"""
CONFIG = """
name: told
data: {type: told.Rows, split: {val: 10}}
loader: {batch_size: 10}
model: {type: torch.nn.Linear, args: {in_features: 3, out_features: 2}}
task: {inputs: x, targets: label}
loss: {ce: CrossEntropyLoss}
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: a module is imported once."""
    path = tmp_path_factory.mktemp("told")
    (path / "told.py").write_text(CODE)
    return path


@pytest.fixture
def begin(tmp_path: Path, folder: Path) -> Callable[..., int]:
    """Trains the config with some lines changed."""

    def run(**lines: str) -> int:
        kept = [line for line in CONFIG.splitlines() if line.partition(":")[0] not in lines]
        text = "\n".join([*kept, *(f"{key}: {value}" for key, value in lines.items() if value)])
        (folder / "told.yaml").write_text(text)
        return train.main(
            ["-c", str(folder / "told.yaml"), "-d", "cpu", "logger.bar=false", f"trainer.save_dir='{tmp_path}/saved'"]
        )

    return run


def test_a_term_of_the_loss_may_be_watched(begin: Callable[..., int]) -> None:
    schedule = "{type: ReduceLROnPlateau, monitor: val/ce}"
    assert begin(trainer="{epochs: 1, monitor: min val/ce}", lr_scheduler=schedule) == 0


def test_one_value_of_several_may_be_watched(begin: Callable[..., int]) -> None:
    metrics = "[{type: recall, args: {average: none}}, told.by_length]"
    assert begin(metrics=metrics, trainer="{epochs: 1, monitor: max val/recall/virginica}") == 0
    assert begin(metrics=metrics, trainer="{epochs: 1, monitor: max val/by_length/long}") == 0


def test_a_watched_metric_that_is_tried_on_few_rows_warns_of_none(
    begin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(metrics="[told.fussy]", trainer="{epochs: 1, monitor: max val/fussy}") == 0
    assert "few rows" not in "".join(capsys.readouterr())


def test_a_metric_that_wants_more_rows_than_are_tried_is_let_pass(begin: Callable[..., int]) -> None:
    assert begin(metrics="[told.of_many, told.of_some]", trainer="{epochs: 1}") == 0


def test_what_a_task_of_ones_own_logs_may_be_watched(begin: Callable[..., int]) -> None:
    task = "{type: told.Scored, args: {inputs: x, targets: label}}"
    assert begin(task=task, trainer="{epochs: 1, monitor: min val/spread}") == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"trainer": "{epochs: 1, monitor: min val/cee}"}, r"logs no metric `cee`; did you mean `ce`\?"),
        (
            {
                "task": "{type: told.Scored, args: {inputs: x, targets: label}}",
                "trainer": "{epochs: 1, monitor: min val/spred}",
            },
            r"trainer.monitor: val logs no `spred`; did you mean `spread`\?; it logs loss, ce, spread",
        ),
        (
            {
                "task": "{type: told.Scored, args: {inputs: x, targets: label}}",
                "lr_scheduler": "{type: ReduceLROnPlateau, monitor: val/spred}",
            },
            r"lr_scheduler.monitor: val logs no `spred`",
        ),
        (
            {"task": "{inputs: x, targets: lable}"},
            r"task.targets: no 'lable' in a batch.*x, label; did you mean `label`",
        ),
        (
            {"task": "{inputs: x, targets: lable, outputs: logits}", "loss": "", "model": "told.Own"},
            r"task.targets: no 'lable' in a batch.*x, label; did you mean `label`",
        ),
        (
            {"metrics": "[{type: recall, args: {average: none}}]", "trainer": "{monitor: max val/recall/setsa}"},
            r"trainer.monitor: there is no `recall/setsa`; did you mean `setosa`\?",
        ),
        (
            {
                "metrics": "[{type: recall, args: {average: none}}]",
                "lr_scheduler": "{type: ReduceLROnPlateau, monitor: val/recall}",
            },
            r"lr_scheduler.monitor: `recall` has several values; known: setosa, virginica; write recall/setosa",
        ),
        (
            {
                "metrics": "[{type: recall, args: {average: none}}]",
                "tune": "{space: {seed: {grid: [1, 2]}}, metric: val/recall/setsa, mode: max}",
            },
            r"told.yaml:\d+:\d+ tune.metric: there is no `recall/setsa`; did you mean `setosa`\?",
        ),
        (
            {"data": "{type: told.Odd, split: {val: 10}}", "loss": "{ce: CrossEntropyLoss, l1: told.size}"},
            r"train row \d+: label 7 is out of range: the model has 2 outputs, .*; change model.args.out_features",
        ),
        (
            {"data": "{type: told.ThreeKinds, split: {val: 10}}"},
            r"train: the dataset has 3 classes, and the model 2 outputs; change model.args.out_features from 2 to 3",
        ),
        ({"task": "{inputs: x}"}, r"a batch holds no targets, and the loss needs them"),
        (
            {
                "model": "{a: {type: told.Own}, b: {type: told.Own}}",
                "task": "{type: told.Players, args: {inputs: x}}",
                "optimizer": "{a: {type: SGD, args: {lr: 0.1}}, b: {type: SGD, args: {lr: 0.1}}}",
                "loss": "",
            },
            r"val: .*; the task has an `update` alone: write `step`, which says .*, or leave `val` out",
        ),
        ({"metrics": "[told.misspelt]"}, r"metric misspelt fails: NameError: name 'output' .* \(.*told\.py:\d+\)"),
        ({"metrics": "[told.silent]"}, r"metric silent: a number is needed, it returns NoneType"),
        (
            {"metrics": "[told.Half]"},
            r"told.yaml:\d+:\d+ metrics.0.type: .*class told.Half; .*a class with update, compute and reset is needed",
        ),
        ({"loss": "told.each"}, r"train: loss each has shape \[2\], one number is needed; return its `.mean\(\)`"),
        ({"loss": "told.number"}, r"train: loss number is a float, a tensor of one number is needed; leave out `.item"),
        (
            {"model": "{type: told.Silent, args: {in_features: 3, out_features: 2}}"},
            r"loss CrossEntropyLoss failed: the model returns None; has its `forward` a `return`\?",
        ),
        ({"model": "told.Formless"}, r"the model Formless has no method `forward`"),
        (
            {"model": "{a: {type: told.Own}, b: {type: told.Own}}"},
            r"several models \(a, b\) need a task of your own",
        ),
        (
            {"task": "{type: told.Bare, args: {inputs: x, targets: label}}"},
            r"train: `step` of Bare returns a Tensor; StepOutput\(loss, outputs, targets, weight\) .* is needed",
        ),
        ({"model": "told.Listed"}, r"told.yaml:\d+:\d+ optimizer: the model has no weights .* nn.ModuleList"),
        ({"model": "told.Forgetful"}, r"model told.Forgetful\(...\): AttributeError: .* \(.*told\.py:\d+\)"),
        (
            {"data": "{type: told.Named, split: {val: 10}}"},
            r"loss CrossEntropyLoss failed: targets are texts such as '\w+'; let the dataset give the number",
        ),
        (
            {"data": "{type: told.Double, split: {val: 10}}"},
            r"Linear \(Linear\) computes in float32 and gets float64; let the dataset give float32",
        ),
        ({"data": "{type: told.Pixels, split: {val: 10}}"}, r"in float32 and gets uint8; add the transform ToFloat"),
        ({"data": "{type: told.Rows, split: {val: 10, stratify: true}}"}, r"no `targets`; give it that attribute"),
        ({"data": "{type: told.Scored, split: {val: 10}}"}, r"used as dataset: .*; a class with __len__ and"),
        (
            {"task": "{type: told.Late, args: {inputs: x, targets: label}}"},
            r"told.yaml:\d+:\d+ task: Late.state_dict fails: AttributeError: .* 'seen' \(.*told\.py:\d+\); .* `begin`",
        ),
        (
            {
                "data": "{type: told.Rows}",
                "task": "{type: told.LatePlayers, args: {inputs: x, targets: label}}",
            },
            r"task: LatePlayers.state_dict fails: AttributeError: .* 'seen' \(.*told\.py:\d+\); .* `begin`",
        ),
        (
            {"task": "{type: told.Lost, args: {inputs: x, targets: label}}"},
            r"task: Lost.load_state_dict fails: KeyError: 'sen' \(.*told\.py:\d+\)",
        ),
        ({"task": "told.Odder"}, r"task.type: told.Odder cannot be used as task: .*a class derived from Task of"),
    ],
    ids=["term", "task", "schedule", "targets", "targets of own loss", "class", "no class", "tune", "label", "classes",
         "no targets", "update alone", "metric's code", "metric of none", "half a metric", "loss of rows",
         "loss of no tensor", "no return", "no forward", "no task", "no step output", "no weights", "no init",
         "texts", "double", "bytes", "no classes to stratify by", "no dataset", "state made by begin",
         "the same, update alone", "state not taken back", "no task's class"],
)  # fmt: skip
def test_what_is_wrong_is_told_before_a_run_begins(
    lines: dict[str, str], message: str, begin: Callable[..., int], tmp_path: Path
) -> None:
    with pytest.raises(KeelError, match=message):
        begin(**lines)
    assert not list(tmp_path.glob("saved/*/*"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("SparseAdam", "optimizer: SparseAdam cannot make a step: RuntimeError: SparseAdam does not support dense"),
        ("told.Stubborn", r"Stubborn cannot make a step: ZeroDivisionError: division by zero \(.*told\.py:\d+\)"),
    ],
)
def test_an_optimizer_that_cannot_make_a_step_is_told(kind: str, message: str, begin: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match=message):
        begin(optimizer=f"{{type: {kind}, args: {{lr: 0.1}}}}")


def test_a_term_with_weights_that_nothing_would_train_is_refused(begin: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(KeelError, match=r"loss\.own: Weighted has weights of its own"):
        begin(loss="{ce: CrossEntropyLoss, own: told.Weighted}")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("loss", "model", "warning"),
    [
        (
            "CrossEntropyLoss",
            "told.Softmaxed",
            "makes probabilities itself, and the model gives some: leave its softmax out",
        ),
        ("NLLLoss", "told.Softmaxed", "wants logarithms, and the model gives numbers above 0: use CrossEntropyLoss"),
        ("CrossEntropyLoss", "torch.nn.Linear", None),
    ],
)
def test_outputs_that_a_loss_takes_for_others_are_warned_of(
    loss: str, model: str, warning: str | None, begin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(loss=loss, model=f"{{type: {model}, args: {{in_features: 3, out_features: 2}}}}") == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [warning in line for line in warned] == [True] * (warning is not None)
