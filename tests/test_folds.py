"""Laws of `--folds`: every row is predicted once, by a run that did not train on it; what is done stays done."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, r2_score

import test as test_script
import train
from src.data.parts.content import fingerprint
from src.model.metric import MetricSet
from src.run.saved_run import SavedRun
from src.sweep.folds import FoldMeters
from src.trainer.hooks import Hook
from src.trainer.meters import Meters
from src.trainer.results.predictions import Meaning, own_units
from src.trainer.results.report import KeptMeters
from src.trainer.task import StepOutput
from src.utils.errors import CheckpointError, ConfigError

CONFIG = """
name: people
data:
  type: table.Table
  args: {{file: '{folder}/people.csv', target: {target}, features: [x, city], {scale}}}
  split: {split}
loader: {{batch_size: 16}}
model: {{type: mlp.MLP, args: {{in_features: "${{data.num_features}}", hidden: [8], out_features: {outputs}}}}}
loss: {loss}
metrics: {metrics}
optimizer: {{type: Adam, args: {{lr: 0.02}}}}
trainer: {{epochs: 3, device: cpu, save_dir: '{folder}/saved'}}
logger: {{bar: false, tensorboard: false}}
"""
CLASSES = {
    "target": "leaves",
    "outputs": 2,
    "loss": "CrossEntropyLoss",
    "metrics": "[accuracy, f1]",
    "scale": "scale_inputs: StandardScaler",
}
NUMBERS = {"target": "y", "outputs": 1, "loss": "mse", "metrics": "[r2, mae]", "scale": "scale_target: StandardScaler"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    people(90).to_csv(tmp_path / "people.csv", index=False)
    return tmp_path


def people(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"x": rng.normal(size=count), "city": rng.choice(["a", "b", "c"], count), "user": np.arange(count) // 5}
    )
    table["y"] = 3 * table["x"] + (table["city"] == "b") + rng.normal(size=count) / 4 + 100
    table["leaves"] = np.where(table["y"] > 100.3, "yes", "no")
    return table


def run(
    folder: Path, *words: str, kind: dict[str, Any] = CLASSES, split: str = "{val: 0.2, test: 0.2, stratify: true}"
) -> int:
    (folder / "people.yaml").write_text(CONFIG.format(folder=folder, split=split, **kind))
    return train.main(["-c", str(folder / "people.yaml"), *words])


def results(folder: Path) -> tuple[Path, dict[str, Any], pd.DataFrame]:
    (found,) = folder.glob("saved/people/folds-*")
    return found, json.loads((found / "summary.json").read_text())["metrics"], pd.read_csv(found / "predictions.csv")


def test_pooled_metrics_are_those_of_all_predictions_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--folds", "3") == 0
    path, metrics, table = results(folder)
    assert table["row"].tolist() == list(range(90)) and sorted(table["fold"].unique()) == [1, 2, 3]
    assert table["target"].tolist() == people(90)["leaves"].tolist()
    assert metrics["f1"]["pooled"] == pytest.approx(f1_score(table["target"], table["prediction"], average="macro"))
    each = [f1_score(rows["target"], rows["prediction"], average="macro") for _, rows in table.groupby("fold")]
    assert metrics["f1"]["runs"] == pytest.approx(each)
    assert (metrics["f1"]["mean"], metrics["f1"]["std"]) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    for fold, rows in table.groupby("fold"):
        parts = SavedRun(path / f"fold-{fold}").experiment.parts
        assert parts["test"].row_ids().tolist() == rows["row"].tolist()
        assert not set(parts["train"].row_ids().tolist() + parts["val"].row_ids().tolist()) & set(rows["row"])
    assert "90 predictions: " in capsys.readouterr().out


def test_pooled_numbers_are_in_the_targets_own_units(folder: Path) -> None:
    (folder / f"losses_{folder.name}.py").write_text(
        "def own(outputs, targets):\n    return (outputs - targets).abs().mean()\n"
    )
    kind = {**NUMBERS, "loss": f"losses_{folder.name}.own"}
    assert run(folder, "--folds", "3", kind=kind, split="{groups: user}") == 0
    path, metrics, table = results(folder)
    assert np.allclose(table["target"], people(90)["y"], atol=1e-4)
    assert metrics["r2"]["pooled"] == pytest.approx(r2_score(table["target"], table["prediction"]), abs=1e-5)
    assert metrics["mae"]["pooled"] == pytest.approx((table["target"] - table["prediction"]).abs().mean(), abs=1e-4)
    assert all(len(rows["fold"].unique()) == 1 for _, rows in table.assign(user=table["row"] // 5).groupby("user"))
    assert list(SavedRun(path / "fold-1", trusted=[f"{folder}/"]).experiment.parts) == ["train", "val"]


class StopInFold(Hook):
    """Asks the run to stop in the middle of a fold, as a scheduler would."""

    def __init__(self, run_path: str) -> None:
        self.run_path = run_path

    def on_step_end(self, trainer: Any) -> None:
        if str(trainer.saver.store.folder).find(self.run_path) >= 0 and trainer.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_finished_folds_are_kept_and_a_stopped_one_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import src.run.experiment as experiment

    straight = folder / "straight"
    straight.mkdir()
    people(90).to_csv(straight / "people.csv", index=False)
    assert run(straight, "--folds", "3") == 0
    with monkeypatch.context() as patch:
        hooks = experiment.build_hooks
        patch.setattr(experiment, "build_hooks", lambda config: [*hooks(config), StopInFold("fold-2")])
        assert run(folder, "--folds", "3") == 128 + signal.SIGTERM
    (path,) = folder.glob("saved/people/folds-*")
    first = {file: file.stat().st_mtime_ns for file in (path / "fold-1").rglob("*") if file.is_file()}
    assert first and not (path / "fold-3").exists() and not (path / "summary.json").exists()
    assert run(folder, "--folds", "3", "-r", "auto") == 0
    assert all(file.stat().st_mtime_ns == time for file, time in first.items())
    assert results(folder)[1] == results(straight)[1]
    with pytest.raises(CheckpointError, match=r"fold-1: optimizer.args.lr: 0.02 -> 0.5"):
        run(folder, "--folds", "3", "-r", str(path), "optimizer.args.lr=0.5")
    people(100).to_csv(folder / "people.csv", index=False)
    with pytest.raises(CheckpointError, match=r"the data have grown since the run, .*; train all folds anew"):
        run(folder, "--folds", "3", "-r", str(path))


def test_a_fold_is_the_run_that_its_config_makes_alone(folder: Path) -> None:
    assert run(folder, "--folds", "2") == 0
    assert run(folder, "data.split.folds=2", "data.split.fold=2") == 0
    (alone,) = (path for path in folder.glob("saved/people/*") if not path.name.startswith("folds"))
    one, other = (SavedRun(path, "last").state["model"] for path in (alone, results(folder)[0] / "fold-2"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "split", "message"),
    [
        (["--folds", "1"], "{val: 0.1}", "a number of 2 or more is needed, found '1'"),
        (["--folds", "3"], "{val: 0.1, time: x}", "data.split.folds: the split goes by `time`"),
        (["--folds", "3"], "{val: 0.1, time: x, groups: user}", "data.split.time: the split goes by `groups` already"),
        (["--folds", "91"], "{val: 0.1}", "91 folds of 90 rows; use fewer"),
        (["--folds", "3", "-r", "nowhere"], "{val: 0.1}", "nowhere: no folder of folds"),
    ],
)
def test_folds_that_cannot_be_are_refused_and_leave_nothing(
    folder: Path, words: list[str], split: str, message: str
) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        run(folder, *words, split=split)
    assert not (folder / "saved").exists() or not list((folder / "saved").glob("*/*"))


def test_testing_says_that_the_data_have_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 0
    (path,) = folder.glob("saved/people/*")
    assert test_script.main(["-r", str(path)]) == 0
    assert "changed" not in capsys.readouterr().err
    people(100).to_csv(folder / "people.csv", index=False)
    assert test_script.main(["-r", str(path)]) == 0
    assert "warning: the data have grown since the run, from 90 rows: test is the 18 rows" in capsys.readouterr().err
    before = SavedRun(path).state["parts"]["test"]["numbers"]
    assert fingerprint(SavedRun(path).experiment.parts)["test"]["numbers"] == before
    people(100).iloc[::-1].to_csv(folder / "people.csv", index=False)
    assert test_script.main(["-r", str(path)]) == 0
    told = capsys.readouterr().err
    assert "warning: the data have changed since the run: test has the same rows with another content" in told
    assert "test may hold rows that it was trained on; data.split.stable: true keeps each in its part" in told
    with pytest.raises(CheckpointError, match="the data have changed since it began: train has 60 rows, had 54"):
        train.main(["-r", str(path), "trainer.epochs=4"])
    assert train.main(["-r", str(path), "trainer.epochs=4", "--allow-change", "data"]) == 0


def test_testing_and_folds_give_metrics_in_the_same_units(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Thousands:
        def decode(self, values: torch.Tensor) -> object:
            return values.numpy() * 1000

    decode = own_units(Thousands(), Meaning("values"))
    assert own_units(Thousands(), Meaning("classes")) is None
    metrics = MetricSet({"mae": lambda outputs, targets: float((outputs - targets).abs().mean())})
    pool = Meters(copy.deepcopy(metrics), torch.device("cpu"))
    output = StepOutput(loss=torch.tensor(0.5), outputs=torch.zeros(4, 1), targets=torch.ones(4, 1), weight=4)
    tested = KeptMeters(copy.deepcopy(metrics), torch.device("cpu"), decode)
    held_out = FoldMeters(metrics, torch.device("cpu"), pool, decode)
    for meters in (tested, held_out):
        meters.update(output)
        assert meters.compute() == {"loss": 0.5, "mae": 1000}
    assert pool.compute() == {"loss": 0.5, "mae": 1000}
    rows = tested.rows()
    assert rows is not None and torch.equal(rows[1], torch.ones(4, 1))  # as trained: what the loss is of
