"""What people see: a real TensorBoard on a short run, in a real browser. Screenshots go to build/screenshots.

Needs chromium and chromium-driver (Debian's packages) and `pip install selenium`; skipped without them.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from sklearn.datasets import load_digits

from src.logger.logger import Logger, standard_sinks
from src.logger.run_dir import RunDir
from src.logger.settings import LoggerSettings
from tests.conftest import ROOT

pytestmark = pytest.mark.browser

SCREENSHOTS = ROOT / "build" / "screenshots"
ALL_TEXT = """
const words = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE) words.push(node.textContent);
  if (['SCRIPT', 'STYLE', 'TEMPLATE'].includes(node.nodeName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return words.join(' ');
"""
PICTURES = """
const found = [];
const walk = (node) => {
  if (node.nodeName === 'IMG' && node.naturalWidth > 90)
    found.push([node.naturalWidth, node.naturalHeight, node.clientWidth]);
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found;
"""
OPEN_GROUP = """
const walk = (node) => {
  if (node.nodeName === 'BUTTON' && node.textContent.includes(arguments[0])) node.click();
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
"""


def config(lr: float) -> dict[str, Any]:
    model = {"type": "lenet.LeNet", "args": {"num_classes": 10}}
    return {"name": "digits", "model": model, "optimizer": {"type": "AdamW", "args": {"lr": lr}}, "token": "S1"}


def epochs(logger: Logger, lr: float, first: int, last: int) -> None:
    """Log epochs first..last of 20 steps each, the way the trainer does."""
    for epoch in range(first, last + 1):
        for step in range(20 * epoch - 19, 20 * epoch + 1):
            if step % 5 == 0:
                logger.scalars({"step/loss": 2 / (1 + lr * step), "step/lr": lr}, step=step)
        step = 20 * epoch
        loss = 2 / (1 + lr * step)
        values = {"train/loss": loss, "train/accuracy": 1 - loss / 2, "val/loss": 1.1 * loss, "val/accuracy": 1 - loss}
        logger.scalars(values | {"lr": lr, "time/samples_per_s": 5000.0 + step}, step=step, epoch=epoch)
        logger.histogram("train/weights/conv1", np.random.default_rng(epoch).normal(size=500), step)


def start_run(save_dir: Path, lr: float) -> tuple[RunDir, Logger]:
    run = RunDir.create(save_dir, "digits")
    run.write_config(config(lr))
    logger = Logger(standard_sinks(LoggerSettings(), run.path))
    logger.hparams(config(lr))
    logger.text("config", f"```yaml\n{(run.path / 'config.yaml').read_text()}```")
    logger.images("train/inputs", load_digits().images[:8, None] / 16.0, 0)
    return run, logger


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Start the server, wait until it answers, yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--reload_interval", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(address + "/data/runs"), 60)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def get(address: str) -> Any:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)
    except (OSError, urllib.error.URLError):
        return None


def wait_for(ready: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()) and time.monotonic() < end:
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if not chromium or not driver_path:
        pytest.skip("no chromium with its driver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in [*quiet.split(), "disable-component-update", "disable-sync", "window-size=1500,1100"]:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard on two runs, one of which was stopped after its third epoch and resumed from its second."""
    save_dir = tmp_path_factory.mktemp("saved")
    _, logger = start_run(save_dir, 0.1)
    epochs(logger, 0.1, 1, 5)
    logger.close()
    run, logger = start_run(save_dir, 0.01)
    epochs(logger, 0.01, 1, 2)
    state = logger.state_dict()
    epochs(logger, 0.01, 3, 3)
    logger.close()
    logger = Logger(standard_sinks(LoggerSettings(), run.path))
    logger.load_state_dict(state)
    epochs(logger, 0.01, 3, 5)
    logger.close()
    with tensorboard(save_dir) as address:
        yield address


def show(browser: Any, address: str, tab: str, *words: str) -> str:
    """Open a tab, wait until all words are on it, keep a screenshot, return its text."""
    browser.get(f"{address}/?darkMode=false#{tab}")
    browser.refresh()  # the part after the number sign alone loads nothing

    def text_with_words() -> str:
        text = " ".join(browser.execute_script(ALL_TEXT).split())
        return text if all(word in text for word in words) else ""

    text = wait_for(text_with_words)
    time.sleep(1.5)  # charts are drawn a moment after their titles
    keep(browser, tab)
    assert text, f"{tab} lacks some of {words}: {browser.execute_script(ALL_TEXT)[:2000]}"
    return str(text)


def keep(browser: Any, name: str) -> None:
    """Keep a screenshot for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def test_scalars_shows_train_and_val_of_each_metric_in_one_chart(browser: Any, address: str) -> None:
    show(browser, address, "scalars", "accuracy", "loss", "events/train", "events/val")
    show(browser, address, "timeseries", "accuracy", "loss", "events/train", "events/val")
    show(browser, address, "custom_scalars", "Train and val", "loss", "accuracy", "Matches (4)")


def test_images_shows_the_inputs(browser: Any, address: str) -> None:
    show(browser, address, "images", "inputs", "events/train")
    assert wait_for(lambda: len(browser.execute_script(PICTURES)) >= 2)
    assert {(width, height) for width, height, _ in browser.execute_script(PICTURES)} == {(294, 294)}


def test_hparams_compares_the_runs_by_settings_and_results(browser: Any, address: str) -> None:
    settings = ("optimizer.args.lr", "0.10000", "0.010000", "model.type", "lenet.LeNet")
    show(browser, address, "hparams", *settings, "val.accuracy", "0.81818")  # of the first run's last epoch


def test_text_shows_the_config_and_no_secret(browser: Any, address: str) -> None:
    text = show(browser, address, "text", "config", "lenet.LeNet", "num_classes: 10")
    assert "***" in text and "S1" not in text


def test_histograms_shows_the_weights(browser: Any, address: str) -> None:
    show(browser, address, "histograms", "weights", "conv1")


def test_a_running_tensorboard_sees_no_point_twice_when_a_run_is_resumed(tmp_path: Path) -> None:
    run, logger = start_run(tmp_path, 0.1)
    epochs(logger, 0.1, 1, 2)
    state = logger.state_dict()
    epochs(logger, 0.1, 3, 4)
    logger.flush()
    with tensorboard(tmp_path) as address:
        query = urllib.parse.urlencode({"run": f"digits/{run.path.name}/events/val", "tag": "loss"})

        def steps() -> list[int]:
            return [step for _, step, _ in get(f"{address}/data/plugin/scalars/scalars?{query}") or []]

        assert wait_for(lambda: steps() == [20, 40, 60, 80])
        logger.close()
        logger = Logger(standard_sinks(LoggerSettings(), run.path))
        logger.load_state_dict(state)
        epochs(logger, 0.1, 3, 6)
        logger.close()
        assert wait_for(lambda: len(steps()) >= 6)
        assert steps() == [20, 40, 60, 80, 100, 120]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    save_dir = tmp_path_factory.mktemp("trained")
    asked = ["metrics=[accuracy, confusion_matrix, pr_curve]", "trainer.epochs=3", "lr_scheduler.warmup_steps=20"]
    hooks = "hooks=[views.Graph, {type: views.Embedding, args: {module: classifier.3, num_rows: 100}}]"
    command = [sys.executable, "train.py", "-c", "configs/digits.yaml", *asked, hooks, f"trainer.save_dir={save_dir}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tensorboard(save_dir) as address:
        yield address


def test_images_shows_the_inputs_the_predictions_and_the_confusion_matrix(browser: Any, trained: str) -> None:
    browser.set_window_size(1500, 1500)
    show(browser, trained, "images", "confusion_matrix", "inputs", "predictions", "events/val")
    browser.execute_script(OPEN_GROUP, "predictions")  # only two groups are open at first
    pictures = wait_for(lambda: found if len(found := browser.execute_script(PICTURES)) >= 3 else None)
    assert all(width <= shown_width for width, _, shown_width in pictures), "text is lost in a picture that is shrunk"
    keep(browser, "predictions")
    browser.set_window_size(1500, 1100)


def test_pr_curves_shows_a_curve_for_each_class(browser: Any, trained: str) -> None:
    show(browser, trained, "pr_curves", "pr_curve/0", "pr_curve/9", "events/val")


def test_graphs_shows_the_model(browser: Any, trained: str) -> None:
    show(browser, trained, "graphs", "LeNet")


def test_projector_shows_the_embedding_with_its_labels(browser: Any, trained: str) -> None:
    (run,) = wait_for(lambda: get(f"{trained}/data/plugin/projector/runs"))
    (embedding,) = get(f"{trained}/data/plugin/projector/info?run={quote(run)}")["embeddings"]
    assert (embedding["tensorName"], embedding["tensorShape"]) == ("val_classifier.3", [100, 84])
    assert embedding["metadataPath"] == "projector/val_classifier.3.labels.tsv"
    browser.get(f"{trained}/#projector")
    browser.refresh()
    time.sleep(5)  # its page is in a frame of its own, and draws on a canvas
    keep(browser, "projector")
