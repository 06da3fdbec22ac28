"""`seed`, `data.split.seed` and `trainer.deterministic` do what they say, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from src.config import load_config
from src.config.registry import use_folder
from src.run.experiment import Experiment, build_experiment
from src.utils.command import run_command
from src.utils.deterministic import no_deterministic_form
from src.utils.seed import seed_everything

COMPONENTS = """
import torch
from torch import nn


class Jitter:
    def __call__(self, x):
        return x + torch.rand(())


class Net(nn.Module):
    def __init__(self, puts=False):
        super().__init__()
        self.layer, self.drop, self.puts = nn.Linear(64, 10), nn.Dropout(0.5), puts

    def forward(self, x):
        x = self.drop(x.flatten(1))
        if self.puts:
            x = x.clone().put_(torch.tensor([0]), torch.tensor([1.0]))
        return self.layer(x)
"""
CONFIG = """
name: seeds
data: {type: digits.Digits, split: {val: 0.2, test: 0.1}, transforms: [seeded.Jitter]}
model: {type: seeded.Net}
loss: CrossEntropyLoss
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 1, max_steps: 5}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("seeds")
    (made / "seeded.py").write_text(COMPONENTS)
    (made / "seeds.yaml").write_text(CONFIG)
    return made


@pytest.fixture
def config(folder: Path) -> Path:
    use_folder(folder)
    return folder / "seeds.yaml"


def begun(path: Path, *overrides: str) -> Experiment:
    config = load_config(path, overrides)
    seed_everything(config.seed)
    return build_experiment(config, torch.device("cpu"))


def dropped(of: Experiment) -> torch.Tensor:
    of.model.train()
    return (of.model.drop(torch.ones(99)) == 0).float()  # type: ignore[operator]


RANDOM: dict[str, Callable[[Experiment], torch.Tensor]] = {
    "initial weights": lambda of: of.model.layer.weight.detach(),  # type: ignore[union-attr, operator, return-value]
    "dropout": dropped,
    "order of the rows": lambda of: torch.tensor((of.loaders["train"].rows(0, 0, 3) or [])[0]),
    "augmentation": lambda of: of.parts["train"].read(0, [0])[0],
}
SPLIT = {name: (lambda of, name=name: of.parts[name].row_ids()) for name in ("train", "val", "test")}


def test_the_seed_changes_everything_random_except_the_split(config: Path) -> None:
    for name, look in {**RANDOM, **SPLIT}.items():
        first, again, other = (look(begun(config, f"seed={seed}")) for seed in (1, 1, 2))
        assert torch.equal(first, again), name
        assert torch.equal(first, other) == (name in SPLIT), name


def test_the_seed_of_the_split_changes_the_split_alone(config: Path) -> None:
    for name, look in {**RANDOM, **SPLIT}.items():
        if name not in ("order of the rows", "augmentation"):  # the same draws, of other rows
            first, other = (look(begun(config, f"data.split.seed={seed}")) for seed in (1, 2))
            assert torch.equal(first, other) == (name not in SPLIT), name


def test_deterministic_runs_are_equal_and_an_operation_without_such_a_form_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for turn in "abc":
        words = ["-c", str(config), "trainer.deterministic=true", f"trainer.save_dir={tmp_path / turn}"]
        assert train.main(words) == 0
    last = [next((tmp_path / turn).rglob("last.pt")) for turn in "abc"]
    states = [torch.load(path, weights_only=True)["model"]["layer.weight"] for path in last]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    capsys.readouterr()
    words = [
        "-c",
        str(config),
        "trainer.deterministic=true",
        "model.args.puts=true",
        f"trainer.save_dir={tmp_path}",
    ]
    assert run_command(lambda: train.main(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trainer.deterministic: put_ in " in line
    assert "seeded.py:19 has no deterministic form; instead: index_put_" in line


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ("upsample_bilinear2d_backward_out_cuda", "upsample_bilinear2d in the backward pass .* instead: interpolate"),
        ("adaptive_avg_pool2d_backward_cuda", "adaptive_avg_pool2d in the backward pass .* instead: AvgPool2d"),
        ("nll_loss2d_forward_out_cuda_template", "nll_loss2d .* instead: flatten the pixels"),
        ("cumsum_cuda_kernel", "cumsum .* instead: a matrix product"),
        ("something_new_cuda", "something_new in .* has no deterministic form; or leave it out"),
    ],
)
def test_every_refusal_of_torch_is_told_with_an_alternative_if_there_is_one(operation: str, told: str) -> None:
    text = f"{operation} does not have a deterministic implementation, but you set 'torch.use_determ..."
    error = no_deterministic_form(RuntimeError(text))
    assert error is not None
    assert re.search(told, str(error))
    assert no_deterministic_form(ValueError(text)) is None and no_deterministic_form(RuntimeError("x")) is None
