"""The test report: its numbers are right, nothing in it can run, and a browser shows what a person needs."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import test as test_command
import train
from src.data.parts.part import Part
from src.logger.report.chart import Series, chart
from src.logger.report.classes import calibration, class_sections, wilson
from src.logger.report.html import element, joined, readable, table
from src.logger.report.page import write_page
from src.logger.report.samples import Sample, sample_cards
from src.logger.report.values import value_sections
from src.model.metric import MetricSet, accuracy
from src.trainer.results.pictures import draw_classes, draw_values
from src.trainer.results.predictions import Meaning, told_by
from src.trainer.results.report import KeptMeters, _shower, bootstrap, write_report
from src.trainer.results.slices import groups, slice_sections
from src.trainer.task import StepOutput, Task
from tests.conftest import ROOT

EVIL = '<script>document.title = "owned"</script><img src=x onerror=alert(1)>"\'&'


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def nothing(position: int) -> Sample:
    return Sample(position)


def test_text_is_escaped_everywhere() -> None:
    page = Page(element("p", EVIL, element("b", EVIL), title=EVIL))
    assert [tag for tag, _ in page.tags] == ["p", "b"]
    assert page.tags[0][1] == {"title": EVIL} and page.text == EVIL * 2
    assert "\x1b" not in element("p", "\x1b[2J")


def test_numbers_are_shown_as_people_compare_them() -> None:
    shown = [readable(value) for value in (191_050.06, -12_388.4, 9999.4, 0.94351, 2e12)]
    assert shown == ["191,050", "-12,388", "9999", "0.9435", "2.000e+12"]
    page = Page(table(["class", "samples"], [["a", 3], ["b", 4]]))
    assert [given.get("class") for tag, given in page.tags if tag == "th"] == [None, "number"]
    assert "th" not in [tag for tag, _ in Page(table(["", ""], [["seed", "0"]])).tags]


def test_a_long_text_stands_below_its_name() -> None:
    card = sample_cards(
        [0], lambda position: Sample(7, cells={"size": 3, "text": "a parcel that never came back"}), str
    )
    assert [given.get("class") for tag, given in Page(card).tags if tag == "dd"] == [None, "long"]


def test_calibration_is_that_of_the_paper() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    error, bins = calibration(confidence, right)
    assert error == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.05)
    assert [count for _, _, count in bins] == [2, 4]
    assert calibration(np.array([1.0]), np.array([True]))[0] == 0


def test_wilsons_interval() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Newcombe 1998
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == pytest.approx(1) and wilson(0, 0) == (0, 1)


def test_the_bootstrap_interval_is_about_two_standard_errors_wide() -> None:
    outputs = torch.zeros(400, 2)
    outputs[:, 1] = 1.0
    targets = (torch.arange(400) % 4 != 0).long()
    task = Task(nn.CrossEntropyLoss())
    intervals, num_resamples = bootstrap(task, MetricSet({"accuracy": accuracy}), outputs, targets)
    low, high = intervals["accuracy"]
    expected = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert num_resamples == 1000
    assert 0.75 - low == pytest.approx(expected, rel=0.15) and high - 0.75 == pytest.approx(expected, rel=0.15)
    assert intervals["loss"][0] < float(task.loss(outputs, targets)[0]) < intervals["loss"][1]


def test_class_sections_say_what_is_wrong_and_what_is_too_little() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.51, 0.49]])
    targets = np.array([0, 1, 1, 0])
    text = Page(joined(class_sections(probabilities, targets, ["cat", EVIL], nothing))).text
    assert "Too few samples" in text and "cat (2)" in text and f"{EVIL} (2)" in text
    assert f"row 1is {EVIL}, predicted cat (80%)" in text  # the only wrong one
    assert "Mean area under ROC 0.7500" in text


def test_a_class_that_is_missing_does_no_harm() -> None:
    probabilities = np.full((3, 3), 1 / 3)
    text = Page(joined(class_sections(probabilities, np.zeros(3, dtype=int), ["a", "b", "c"], nothing))).text
    assert "Only one class is among the samples" in text and "b (0)" in text


def test_value_sections_are_in_the_targets_own_units() -> None:
    true = np.arange(100.0)[:, None]
    predicted = true + np.where(np.arange(100) == 70, 50.0, 1.0)[:, None]
    text = Page(joined(value_sections(predicted, true, ["price"], nothing))).text
    assert "mean absolute error1.490" in text and "row 70price is 70.00, predicted 120.0" in text
    assert "0.000 to 19.00" in text or "0 to 19.00" in text
    constant = np.ones((5, 1))
    assert Page(joined(value_sections(constant, constant, ["x"], nothing))).text


def test_a_chart_survives_any_numbers() -> None:
    for x, y in [([], []), ([1.0], [1.0]), ([0.0, 1.0], [float("nan"), 2.0]), ([1e-12, 1e12], [-1e-300, 1e30])]:
        for kind in ("line", "points", "bars"):
            drawn = chart(EVIL, EVIL, EVIL, [Series(EVIL, x, y, kind), Series("b", x, y, kind)])
            assert "nan" not in drawn and "script" not in [tag for tag, _ in Page(drawn).tags]


def test_outputs_that_are_not_rows_still_make_a_report(tmp_path: Path) -> None:
    meters = KeptMeters(MetricSet({}), torch.device("cpu"))
    meters.update(StepOutput(torch.tensor(1.0), torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), 2.0))
    part = Part("test", torch.utils.data.TensorDataset(torch.zeros(2, 1)))
    path = tmp_path / "report" / "index.html"
    assert write_report(path, tmp_path, "t", "s", part, Task(), meters, {"loss": 1.0}, Meaning(None)) == {}
    assert "No intervals" in Page(path.read_text()).text


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        (torch.tensor([1.0, 2.0]), {"input 0": 1.0, "input 1": 2.0}),
        ((torch.tensor([1.0, 2.0]), 7), {"input 0": 1.0, "input 1": 2.0}),
        ("a text", {"text": "a text"}),
        ((), {}),
    ],
    ids=["bare", "with a target", "text", "empty"],
)
def test_of_a_sample_its_inputs_are_shown(sample: Any, shown: dict[str, Any]) -> None:
    assert _shower(Part("test", [sample]))(0).cells == shown  # type: ignore[arg-type]


def test_rows_of_outputs_that_are_no_rows_of_the_part_are_not_told_as_samples(tmp_path: Path) -> None:
    meters = KeptMeters(MetricSet({}), torch.device("cpu"))
    meters.update(StepOutput(torch.tensor(1.0), torch.randn(6, 2), torch.zeros(6, dtype=torch.long), 6.0))
    part = Part("test", torch.utils.data.TensorDataset(torch.zeros(1, 6, 2)))
    path, task = tmp_path / "report" / "index.html", Task(nn.CrossEntropyLoss())
    assert write_report(path, tmp_path, "t", "s", part, task, meters, {"loss": 1.0}, Meaning("classes")) == {}


@pytest.mark.parametrize("criterion", [None, lambda outputs, batch: outputs.mean()], ids=["own loss", "batch"])
def test_a_loss_that_needs_more_than_outputs_and_targets_has_no_interval(criterion: Any) -> None:
    outputs, targets = torch.randn(40, 2), torch.arange(40) % 2
    intervals, _ = bootstrap(Task(criterion), MetricSet({"accuracy": accuracy}), outputs, targets)
    assert set(intervals) == {"accuracy"}


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.trainer.results.report.NUM_RESAMPLES", 100)


def reported(tmp_path: Path, criterion: nn.Module, outputs: torch.Tensor, targets: torch.Tensor, **given: Any) -> str:
    meters = KeptMeters(MetricSet({}), torch.device("cpu"))
    meters.update(StepOutput(criterion(outputs, targets), outputs, targets, float(len(outputs))))
    dataset: Any = torch.utils.data.TensorDataset(torch.arange(3.0 * len(outputs)).reshape(-1, 3), targets)
    vars(dataset).update(given.pop("dataset", {}))
    path = tmp_path / "report" / "index.html"
    part, task, values = Part("test", dataset), Task(criterion), meters.compute()
    meaning = Meaning(told_by(criterion), class_names=given.get("class_names"))
    write_report(path, tmp_path, "t", "s", part, task, meters, values, meaning)
    return Page(path.read_text()).text


@pytest.mark.usefixtures("few_resamples")
def test_one_logit_is_two_classes(tmp_path: Path) -> None:
    outputs, targets = torch.tensor([[2.0], [-1.0], [3.0], [0.1]]), torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    text = reported(tmp_path, nn.BCEWithLogitsLoss(), outputs, targets, class_names=["healthy", "ill"])
    assert "row 2is healthy, predicted ill (95%)input 06.000" in text
    assert "Only 4 samples" in text


@pytest.mark.usefixtures("few_resamples")
def test_several_labels_at_once_have_a_row_each(tmp_path: Path) -> None:
    outputs = torch.tensor([[3.0, -3.0], [3.0, 1.0], [-1.0, -4.0], [2.0, -2.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    text = reported(tmp_path, nn.BCEWithLogitsLoss(), outputs, targets, class_names=["rain", "wind"])
    assert "Every label is right in 50.0% of the samples" in text
    assert "rain330.66670.66670.208 to 0.9390.6667" in text and "wind111.0001.0000.207 to 1.0001.000" in text
    assert "rain: 0.667" in text and "wind: 1.000" in text  # areas under ROC
    assert text.index("row 3is none, predicted rain") < text.index("row 2is rain, predicted none")
    assert "Labels" not in reported(tmp_path, nn.BCEWithLogitsLoss(), outputs, targets / 2)


@pytest.mark.usefixtures("few_resamples")
def test_labels_that_the_loss_ignores_are_left_out(tmp_path: Path) -> None:
    outputs, targets = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, -100, 1, 1])
    text = reported(tmp_path, nn.CrossEntropyLoss(), outputs, targets)
    assert "0 (1), 1 (3), 2 (1)" in text and "row 5is 1, predicted 2" in text


@pytest.mark.usefixtures("few_resamples")
def test_several_targets_are_undone_by_the_dataset(tmp_path: Path) -> None:
    outputs, targets = torch.zeros(5, 2), torch.ones(5, 2)
    given = {"decode": lambda values: values * 100, "target_names": ["x", "y"]}
    text = reported(tmp_path, nn.MSELoss(), outputs, targets, dataset=given)
    assert "Predicted and true: x" in text and "y is 100.0, predicted 0" in text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    write_page(tmp_path / "report" / "index.html", EVIL, EVIL, [])
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert {tag for tag, _ in page.tags} == {"html", "head", "meta", "title", "style", "body", "h1", "p"}
    assert any("default-src 'none'" in (given.get("content") or "") for _, given in page.tags)


@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.integers(0, 9).map(str)), min_size=1
    )
)
def test_slices_of_texts_hold_every_row_once(values: list[str | None]) -> None:
    masks = [mask for _, mask in groups(np.array(values, dtype=object))]
    assert torch.stack(masks).sum(0).tolist() == [1] * len(values)


@given(st.lists(st.one_of(st.integers(-5, 5), st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=60))
def test_slices_of_numbers_hold_every_row_once(values: list[float]) -> None:
    masks = [mask for _, mask in groups(np.array(values, dtype=float))]
    assert torch.stack(masks).sum(0).tolist() == [1] * len(values)


class Coloured(Dataset[Any]):
    """Rows of two colours; `colour` may be sliced by."""

    colour = np.array(["red", "blue", "red", "blue", "blue", "red"])

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1), 0


def test_a_slice_has_the_metric_of_its_own_rows() -> None:
    part = Part("test", Coloured(), indices=torch.tensor([5, 0, 1, 3]))  # red, red, blue, blue
    outputs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([1, 0, 0, 0])
    (html,) = slice_sections(part, ["colour"], MetricSet({"accuracy": accuracy}), outputs, targets)
    assert Page(html).text.split("By colour")[1].startswith("colourrowsaccuracyred20.5000blue20.5000")
    (html,) = slice_sections(part, ["colour"], MetricSet({"accuracy": accuracy}), outputs, torch.tensor([1, 1, 0, 0]))
    assert "red21.000blue20.5000" in Page(html).text


def test_figures_are_written_as_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    random = np.random.default_rng(0)
    scores = random.random((60, 3))
    draw_classes(tmp_path, scores / scores.sum(1, keepdims=True), random.integers(0, 3, 60), ["a", "b", "c, long"])
    draw_values(tmp_path, random.random((60, 1)), random.random((60, 1)), ["y"])
    names = {"confusion", "roc", "precision_recall", "calibration", "predicted", "residuals"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    for path in tmp_path.iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 500 and pixels.std() > 10


# In a browser.


def shapes(num_rows: int = 240) -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"width": random.uniform(0, 1, num_rows), "height": random.uniform(0, 1, num_rows)})
    table["note"] = random.choice(["plain", EVIL], num_rows)
    table["shape"] = np.where(table["width"] > table["height"], "wide", EVIL)
    table["area"] = 1000 * (table["width"] + table["height"]) + random.normal(0, 60, num_rows)
    return table


def report_of(folder: Path, target: str, rest: str, *words: str) -> Path:
    """Train and test on a small table; return the report."""
    shapes().drop(columns={"shape", "area"} - {target}).to_csv(folder / "shapes.csv", index=False)
    config = f"""
name: shapes
data:
  type: table.Table
  args: {{file: '{folder}/shapes.csv', target: {target}, scale_inputs: StandardScaler}}
  split: {{val: 0.1, test: 0.4}}
loader: {{batch_size: 16}}
trainer: {{epochs: 15, device: cpu}}
optimizer: {{type: AdamW, args: {{lr: 0.05}}}}
{rest}
"""
    (folder / "shapes.yaml").write_text(config)
    assert train.main(["-c", str(folder / "shapes.yaml"), f"trainer.save_dir={folder}"]) == 0
    (run,) = (folder / "shapes").iterdir()
    assert test_command.main(["-r", str(run), *words]) == 0
    return run / "report" / "index.html"


CLASSES = """
model: {type: linear.Linear, args: {in_features: 4, out_features: 2}}
loss: CrossEntropyLoss
metrics: [accuracy]
"""
VALUES = """
model: {type: linear.Linear, args: {in_features: 4}}
loss: mse
metrics: [mae]
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver_path:
        pytest.skip("no chromium with its driver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ["headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"]:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


def opened(browser: Any, report: Path, name: str) -> str:
    """Open a report, keep a screenshot of all of it, and return its text."""
    browser.set_window_size(1100, 1000)
    browser.get(report.as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.set_window_size(1100, min(height + 100, 9000))
    screenshots = ROOT / "build" / "screenshots"
    screenshots.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(screenshots / f"report_{name}.png"))
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.title.startswith("shapes: test"), "a class name ran as a script"
    assert not browser.get_log("browser")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    return str(browser.execute_script("return document.body.innerText"))


@pytest.mark.browser
def test_a_classifiers_report_in_a_browser(browser: Any, tmp_path: Path) -> None:
    text = opened(browser, report_of(tmp_path, "shape", CLASSES, "--slice", "note"), "classes")
    for words in ("96 samples", "Only 96 samples", "95 % interval", "Classes", "Confusion", "ROC", "Calibration", EVIL,
                  "Expected calibration error", "Most confused samples", "Learning curves", "By note"):  # fmt: skip
        assert words in text, words
    assert browser.execute_script("return document.querySelectorAll('svg').length") >= 6
    assert "width" in text and "note" in text  # cells of the samples


@pytest.mark.browser
def test_a_regressions_report_in_a_browser(browser: Any, tmp_path: Path) -> None:
    text = opened(browser, report_of(tmp_path, "area", VALUES), "values")
    for words in ("Predicted and true: area", "Residuals", "mean absolute error", "Error by size", "Worst samples",
                  "R², share of the variance explained", "always saying the median", "Learning curves"):  # fmt: skip
        assert words in text, words
    assert browser.execute_script("return document.querySelectorAll('svg circle').length") >= 180


@pytest.mark.browser
def test_a_text_models_report_in_a_browser(browser: Any, tmp_path: Path) -> None:
    config = ROOT / "examples" / "start" / "text" / "text.yaml"
    words = [f"trainer.save_dir={tmp_path}", "name=shapes", "trainer.epochs=8", "trainer.device=cpu"]
    assert train.main(["-c", str(config), *words]) == 0
    (run,) = (tmp_path / "shapes").iterdir()
    assert test_command.main(["-r", str(run)]) == 0
    text = opened(browser, run / "report" / "index.html", "text")
    for word in ("60 samples", "delivery", "payment", "product", "Worst samples", "Most confused samples"):
        assert word in text, word
    messages = pd.read_csv(config.with_name("messages.csv"))["message"]
    assert sum(message in text for message in messages) >= 12  # the texts themselves


def test_a_slice_without_a_class_has_no_value_and_says_nothing_on_the_screen() -> None:
    def auc(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        warnings.warn("only one class is present", UserWarning, stacklevel=1)
        return math.nan

    outputs, targets = torch.eye(2)[[0, 0, 0, 1, 1, 1]], torch.tensor([0, 0, 0, 1, 1, 1])
    metrics = MetricSet({"auc": auc})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (html,) = slice_sections(Part("test", Coloured()), ["colour"], metrics, outputs, targets)
        bootstrap(Task(nn.CrossEntropyLoss()), metrics, outputs, targets)
    assert ">-<" in html
