"""Pages whose commands are about a run one has already: each line is run on runs made for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.compat_kit import write_config, write_project
from tests.test_readme import blocks, commands, run

pytestmark = pytest.mark.full
TABLE = """
name: table
data: {type: table.Table, args: {file: new.csv, target: z}, split: {val: 0.2, test: 0.2}}
loader: {batch_size: 8}
model: {type: mlp.MLP, args: {in_features: 2, hidden: [4], out_features: 1}}
loss: mse
optimizer: {type: SGD, args: {lr: 0.01}}
trainer: {epochs: 1, device: cpu}
"""


@pytest.fixture(scope="module")
def project(copy_project: Callable[[], Path]) -> Path:
    """A copy of the project with a run of images, one of a table, and what the page predicts."""
    image = pytest.importorskip("PIL.Image")
    folder = copy_project()
    rows = np.random.default_rng(0).normal(size=(60, 3)).round(3)
    np.savetxt(folder / "new.csv", rows, "%.3f", ",", header="x,y,z", comments="")
    pictures = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.save(folder / "images.npy", pictures)
    (folder / "photos").mkdir()
    for number, picture in enumerate(pictures[:, 0]):
        image.fromarray((picture * 255).astype(np.uint8)).save(folder / "photos" / f"{number}.png")
    (folder / "configs" / "table.yaml").write_text(TABLE, encoding="utf-8")
    for name in ("table", "digits"):
        done = run(f"python train.py -c configs/{name}.yaml -d cpu trainer.epochs=1", folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_every_command_of_using_a_model_works(project: Path) -> None:
    runs = {name: next((project / "saved" / name).iterdir()) for name in ("table", "digits")}
    lines = [line for block in blocks("docs/using_a_model.md") if block.language == "sh" for line in commands(block)]
    assert len(lines) >= 12
    for line in lines:
        used = runs["table" if "new.csv" in line else "digits"]
        if "onnx" in line and "onnx" not in sys.modules:
            pytest.importorskip("onnxscript", reason='pip install -e ".[export]"')
        done = run(line.replace("RUN", str(used.relative_to(project))), project)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_line_that_loads_a_model_works(project: Path) -> None:
    (code,) = (block.text for block in blocks("docs/using_a_model.md") if block.language == "python")
    used = next((project / "saved" / "digits").iterdir()).relative_to(project)
    code = re.sub(r"saved/digits/\d+_\d+", str(used), code) + "\nprint(type(model).__name__, model.training)\n"
    (project / "use.py").write_text(code, encoding="utf-8")
    assert run("python use.py", project).stdout == "LeNet False\n"


def test_the_parts_that_the_page_of_models_shows_train(project: Path) -> None:
    shown = blocks("docs/models.md")
    model, *metrics = (block.text for block in shown if block.language == "python")
    (project / "configs" / "two_layers.py").write_text(model, encoding="utf-8")
    imports = "from torch import Tensor\n\nfrom src.model.metric import whole_split\n\n\n"
    (project / "configs" / "shown.py").write_text(imports + "\n\n".join(metrics), encoding="utf-8")
    sections = [yaml.safe_load(block.text) for block in shown if block.language == "yaml"]
    for section in sections:
        if "from_pretrained" in str(section):
            continue  # tests/test_transfer.py
        text = yaml.safe_dump({**section, "base": "digits.yaml" if "metrics" not in section else "table.yaml"})
        text = text.replace(" within", " shown.within")
        (project / "configs" / "page.yaml").write_text(text, encoding="utf-8")
        done = run("python train.py -c configs/page.yaml -d cpu trainer.max_steps=2", project)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"


def test_every_command_of_migrating_works(copy_project: Callable[[], Path], tmp_path: Path) -> None:
    write_project(tmp_path)
    keel, placed = copy_project(), {"epoch10": "epoch2", "-d 0": "-d cpu", "trainer.epochs=5": "trainer.epochs=4"}
    write_config(tmp_path / "finetune.json", trainer={"epochs": 5})
    theirs, ours = (block.text for block in blocks("docs/migrating.md") if block.language == "sh")
    first, *lines = theirs.splitlines()
    assert first == "cd their/project" and len(lines) == 5
    overrides = re.search(r"also: (.*)", theirs)
    assert overrides
    lines.append(lines[0].partition("#")[0] + overrides[1].replace(",", ""))
    for line in lines:
        for shown, used in placed.items():
            line = line.replace(shown, used)
        runs = sorted((tmp_path / "saved" / "models" / "Blobs").glob("*/model_best.pth"))
        if runs:
            run_folder = str(runs[0].parent.relative_to(tmp_path))
            line = line.replace("saved/models/NAME/RUN", run_folder).replace("...", run_folder)
        done = run(line.replace("/path/to/keel", f"'{keel}'"), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    done = run(ours.replace("their/project", f"'{tmp_path}'"), keel)
    assert done.returncode == 0 and (keel / "configs" / "theirs.yaml").stat().st_size > 100, done.stderr
