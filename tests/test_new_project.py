"""`new_project.py`: a copy that trains at once, and that can be renewed without losing a line of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import new_project
from src.utils.errors import ConfigError
from tests.conftest import ROOT


@pytest.mark.parametrize("task", new_project.TASKS)
def test_a_new_project_has_the_framework_and_one_example_and_nothing_of_ours_besides(task: str, tmp_path: Path) -> None:
    folder = tmp_path / "my project"
    assert new_project.main([str(folder), "--task", task]) == 0
    top = {path.name for path in folder.iterdir()}
    assert {"train.py", "test.py", "src", "configs", task, "tests", "Makefile", "README.md", ".github"} <= top
    assert not {"docs", "benchmarks", "examples", "CHANGELOG.md"} & top
    assert [path.name for path in (folder / "configs").iterdir()] == ["schema.json"]
    for path in [folder / "README.md", folder / "Makefile", folder / "tests" / "test_project.py"]:
        text = path.read_text()
        assert "TASK" not in text and task in text
    (config,) = (folder / task).glob("*.yaml")
    assert "examples/" not in config.read_text()
    check = [sys.executable, "train.py", "-c", f"{task}/{config.name}", "--check"]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.parametrize("task", new_project.TASKS)
def test_its_own_tests_pass(task: str, tmp_path: Path) -> None:
    new_project.main([str(tmp_path / "mine"), "--task", task])
    tests = [sys.executable, "-m", "pytest", "-q", "tests"]
    done = subprocess.run(tests, cwd=tmp_path / "mine", capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
def test_make_train_sets_it_up_and_trains(tmp_path: Path) -> None:
    new_project.main([str(tmp_path / "mine"), "--task", "regression"])
    make = ["make", "train", "ARGS=trainer.epochs=2", f"PYTHON={sys.executable}"]
    done = subprocess.run(make, cwd=tmp_path / "mine", capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 2/2" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize(("task", "metric", "least"), [
    ("classification", "accuracy", 0.97), ("regression", "r2", 0.9), ("text", "accuracy", 0.85),
])  # fmt: skip
def test_an_example_keeps_the_promise_in_its_first_lines(task: str, metric: str, least: float, tmp_path: Path) -> None:
    config = ROOT / "examples" / "start" / task / f"{task}.yaml"
    train = [sys.executable, "train.py", "-c", str(config), f"trainer.save_dir={tmp_path}"]
    subprocess.run(train, cwd=ROOT, capture_output=True, timeout=600, check=True)
    (run,) = (tmp_path / task).iterdir()
    subprocess.run([sys.executable, "test.py", "-r", str(run)], cwd=ROOT, capture_output=True, timeout=600, check=True)
    assert json.loads((run / "test_metrics.json").read_text())["test"][metric] >= least


def test_an_update_renews_what_was_not_touched_and_keeps_and_names_what_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    new_project.main([str(folder), "--task", "text"])
    manifest = folder / new_project.MANIFEST
    written = json.loads(manifest.read_text())

    own_model, own_line = folder / "src" / "model" / "mine.py", folder / "src" / "model" / "loss.py"
    own_model.write_text("mine = 1\n")
    own_line.write_text(own_line.read_text() + "\n# mine\n")
    older, gone = folder / "src" / "model" / "mlp.py", folder / "src" / "model" / "dropped.py"
    for path in (older, gone):  # as an older clone may have written them
        path.write_text("older = True\n")
        written[path.relative_to(folder).as_posix()] = new_project.digest(path)
    (folder / "train.py").unlink()
    manifest.write_text(json.dumps(written))
    capsys.readouterr()

    assert new_project.main([str(folder), "--update"]) == 0
    assert "kept, changed there: src/model/loss.py" in capsys.readouterr().out
    assert own_model.read_text() == "mine = 1\n" and own_line.read_text().endswith("# mine\n")
    for name in ("src/model/mlp.py", "train.py"):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert not gone.exists()

    new_project.main([str(folder), "--update"])  # once more: what was kept is still known to be the user's
    assert "kept, changed there: src/model/loss.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["there", "--task", "text"], "is not empty"),
        (["there", "--update"], "was not made by this command"),
        (["new"], "say --task"),
        (["new", "--task", "txt"], "invalid choice: 'txt'"),
        ([str(ROOT / "mine"), "--task", "text"], "lies within this clone"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=said):
        new_project.main(words)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"]
    assert not (ROOT / "mine").exists()
