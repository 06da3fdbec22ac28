"""Laws of the trackers, on their offline forms, skipped where they aren't installed; and a sink of one's own."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
from src.logger.logger import Logger
from src.logger.mlflow import MLflow
from src.logger.run_dir import RunDir
from src.logger.wandb import WandB
from src.utils.errors import ConfigError
from tests.conftest import ROOT


@pytest.mark.parametrize(("sink", "package"), [(WandB, "wandb"), (MLflow, "mlflow")])
def test_a_missing_tracker_is_named_with_how_to_install_it(
    sink: type, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f'the package {package}, .*`pip install -e ".\\[trackers\\]"`'):
        sink(tmp_path)


def test_wandb_offline_writes_into_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = RunDir.create(tmp_path, "digits")
    logger = Logger([WandB(run.path)])
    logger.hparams({"lr": 0.1, "api_key": "S1"})
    logger.images("train/inputs", np.zeros((2, 1, 8, 8)), 0)
    logger.histogram("train/weights", np.arange(9.0), 0)
    for step in range(1, 4):
        logger.scalars({"train/loss": 1 / step}, step=step, epoch=step)
    assert logger.state_dict() == {"WandB": {}}
    logger.close()
    (written,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 10
    while b"train/loss" not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # its own process writes, and says that it is done before the last of it is there
    content = written.read_bytes()
    assert b"train/loss" in content and b"S1" not in content


def test_mlflow_in_sqlite_goes_on_after_a_resume_without_duplicates(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    run = RunDir.create(tmp_path, "digits")
    logger = Logger([MLflow(run.path)])
    logger.hparams({f"p{number}": number for number in range(120)})
    logger.scalars({"train/loss": 1.0, "step/loss": 9.0}, step=10, epoch=1)
    state = logger.state_dict()
    logger.scalars({"train/loss": 0.5}, step=20, epoch=2)  # lost: killed here
    logger = Logger([MLflow(run.path)])
    logger.load_state_dict(state)
    for epoch in (2, 3):
        logger.scalars({"train/loss": 1 / epoch}, step=10 * epoch, epoch=epoch)
    logger.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    history = client.get_metric_history(state["MLflow"]["run_id"], "train/loss")
    assert [(point.step, point.value) for point in history] == [(10, 1.0), (20, 0.5), (30, pytest.approx(1 / 3))]
    found = client.get_run(state["MLflow"]["run_id"])
    assert len(found.data.params) == 120 and "step/loss" not in found.data.metrics
    assert found.info.status == "FINISHED"


NOBODY = "http://127.0.0.1:9"  # the port where everything is thrown away; nothing listens there


def test_an_mlflow_server_that_is_gone_holds_training_up_for_seconds_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    logger = Logger([MLflow(RunDir.create(tmp_path, "digits").path, NOBODY)])
    for step in range(3):
        logger.scalars({"train/loss": 1.0}, step, step)
    logger.close()
    assert [record.name for record in caplog.records] == ["src.logger.logger"]
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 3


@pytest.mark.full
def test_a_run_is_kept_offline_when_wandb_cannot_be_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setattr("src.logger.wandb.WAIT_S", 3)
    run = RunDir.create(tmp_path, "digits")
    logger = Logger([WandB(run.path, mode="online")])
    logger.scalars({"train/loss": 1.0}, 1, 1)
    logger.close()
    assert "kept offline" in caplog.text and "left out" not in caplog.text
    assert list(run.path.glob("wandb/offline-run-*/run-*.wandb"))


def test_the_sink_that_the_page_shows_takes_numbers_of_a_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (settings,) = re.findall(r"^logger: .*my_sink.*$", page, re.M)
    (tmp_path / "my_sink.py").write_text(code)
    (tmp_path / "own.yaml").write_text(f"base: {ROOT}/configs/line.yaml\n{settings}\n")
    assert train.main(["-c", str(tmp_path / "own.yaml"), "trainer.epochs=1", f"trainer.save_dir={tmp_path}/runs"]) == 0
    (written,) = (tmp_path / "runs").glob("*/*/last_loss.txt")
    assert float(written.read_text()) > 0
