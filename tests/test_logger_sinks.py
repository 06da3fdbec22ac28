"""Laws of the sinks: nothing is written twice, nothing is lost, and no sink stops a training."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer.record_writer import RecordWriter

from src.logger.csv_file import CSVFile
from src.logger.event_records import WORTH_ARRAYS, as_records, checksums
from src.logger.logger import Logger, check_sinks, standard_sinks
from src.logger.pictures import grid
from src.logger.scalar_events import ScalarEvents, part_and_tag
from src.logger.settings import LoggerSettings
from src.logger.tensorboard import TensorBoard, _cell
from src.utils.errors import ConfigError


def new_logger(folder: Path) -> Logger:
    return Logger(standard_sinks(LoggerSettings(), folder))


def train(logger: Logger, first: int, last: int) -> None:
    """Log steps first..last: each step, and an epoch every five steps; a new metric comes up at step 15."""
    for step in range(first, last + 1):
        logger.scalars({"step/loss": 1 / step, "step/lr": 0.1}, step=step)
        if step % 5 == 0:
            values = {"train/loss": 1 / step, "val/loss": 2 / step, "lr": 0.1, "time/epoch_s": time.time()}
            logger.scalars(values | ({"val/late": 0.1 * step} if step >= 15 else {}), step=step, epoch=step // 5)


def events(folder: Path) -> dict[str, list[tuple[str, int, float]]]:
    """Per part, (tag, step, value) of every scalar in the order TensorBoard reads them."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    found[path.parent.name].append((value.tag, event.step, value.tensor.float_val[0]))
    return found


@given(kills=st.lists(st.tuples(st.integers(1, 29), st.integers(0, 12), st.booleans()), max_size=5))
@settings(max_examples=25, deadline=None)
def test_after_any_kills_files_hold_what_an_uninterrupted_run_writes(kills: list[tuple[int, int, bool]]) -> None:
    """Each kill is (step of the last checkpoint, steps done after it that are lost, whether they were written out)."""
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        for path in (whole, broken):
            path.mkdir()
        logger = new_logger(whole)
        train(logger, 1, 30)
        logger.close()
        done, state = 0, new_logger(broken).state_dict()
        for saved_at, lost, is_written in sorted(kills):
            logger = new_logger(broken)
            logger.load_state_dict(state)
            train(logger, done + 1, saved_at)
            state, done = logger.state_dict(), max(done, saved_at)
            train(logger, done + 1, min(30, done + lost))
            if is_written:
                logger.flush()
            # killed here
        logger = new_logger(broken)
        logger.load_state_dict(state)
        train(logger, done + 1, 30)
        logger.close()
        assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
        expected, found = events(whole / "events"), events(broken / "events")
        for part in ("train", "val"):
            assert [point for point in found[part] if "time" not in point[0]] == [
                point for point in expected[part] if "time" not in point[0]
            ]
            assert len({point[:2] for point in found[part]}) == len(found[part])


def test_train_and_val_share_a_chart_and_one_call_is_one_event_per_part(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.scalars({"train/loss": 1.0, "train/acc": 2.0, "val/loss": 3.0, "lr": 0.1}, step=7, epoch=1)
    sink.close()
    assert events(tmp_path) == {
        "train": [("loss", 7, 1.0), ("acc", 7, 2.0), ("lr", 7, pytest.approx(0.1)), ("time/epoch", 7, 1.0)],
        "val": [("loss", 7, 3.0)],
    }
    (path,) = (tmp_path / "train").iterdir()
    assert sum(len(event.summary.value) > 0 for event in EventFileLoader(str(path)).Load()) == 1


NAMES = st.text(max_size=200).map(lambda text: f"{text}/{text}") | st.sampled_from(["val/a", "train/a", "lr"])


@given(
    names=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    numbers=st.lists(st.floats() | st.integers(-(2**60), 2**60), min_size=5, max_size=5),
    step=st.integers(0, 2**63 - 1),
)
def test_packed_events_are_those_that_tensorboards_own_messages_hold(
    names: list[str], numbers: list[float], step: int
) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    wanted: dict[str, Any] = {}
    for name, number in zip(names, numbers, strict=False):
        part, tag = part_and_tag(name)
        event = wanted.setdefault(part, Event(wall_time=1.5e9 + 1 / 3, step=step))
        event.summary.value.add(tag=tag, simple_value=number)
    for _ in range(2):
        packed = dict(ScalarEvents(names).pack(1.5e9 + 1 / 3, step, numbers))
        assert {part: str(Event.FromString(each)) for part, each in packed.items()} == {
            part: str(each) for part, each in wanted.items()
        }


def test_a_name_says_its_part() -> None:
    assert part_and_tag("val/f1/0") == ("val", "f1/0")
    assert part_and_tag("val_clean/loss") == ("val_clean", "loss")
    assert part_and_tag("step/loss") == ("train", "step/loss")
    assert part_and_tag("valid/loss") == ("train", "valid/loss")
    assert part_and_tag("lr") == ("train", "lr")


def test_a_clock_that_goes_back_does_not_change_the_order_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, now in enumerate((2e9, 1e9, 1e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        sink = TensorBoard(tmp_path)
        sink.scalars({"train/loss": number}, step=number, epoch=None)
        sink.close()
    assert [step for _, step, _ in events(tmp_path)["train"]] == [0, 1, 2]


@pytest.mark.parametrize("count", [1, WORTH_ARRAYS - 1, WORTH_ARRAYS, 200])
def test_checksums_of_records_are_those_of_tensorboard_one_by_one_and_many_at_once(count: int) -> None:
    assert checksums([b"123456789"]) == [0xE3069283]  # the check value of CRC-32C
    random = np.random.default_rng(count)
    contents = [random.bytes(length) for length in (0, 1, 90, 91) for _ in range(count)]
    random.shuffle(contents)
    written = io.BytesIO()
    writer = RecordWriter(written)
    for content in contents:
        writer.write(content)
    assert as_records(contents) == written.getvalue()


def test_numbers_that_come_together_are_events_of_their_own_at_their_own_times(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    for step in range(300):
        sink.scalars({"train/loss": float(step)}, step, step)
    sink.text("note", "written last")
    sink.close()
    events = [event for path in tmp_path.glob("train/*") for event in EventFileLoader(str(path)).Load()][1:]
    assert [event.step for event in events] == list(range(300))
    times = [event.wall_time for event in events]
    assert times == sorted(times) and times[0] < times[-1] <= time.time()


def test_csv_reads_back_bit_for_bit_with_empty_cells_where_a_name_was_not_there(tmp_path: Path) -> None:
    sink = CSVFile(tmp_path / "metrics.csv")
    sink.scalars({"train/loss": 1 / 3, "time/epoch_s": 1.0}, step=10, epoch=1)
    sink.scalars({"step/loss": 0.5}, step=11, epoch=None)
    sink.scalars({"train/loss": math.nan, 'val/"odd", name\n\x1b[2J': 1e-300}, step=20, epoch=None)
    sink.flush()
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table.columns) == ["epoch", "step", "train/loss", 'val/"odd", name??[2J']
    assert table["train/loss"][0] == 1 / 3
    assert table["step"].tolist() == [10, 20]
    assert table.isna().sum().tolist() == [1, 0, 1, 1]


def test_a_csv_that_was_lost_starts_anew(tmp_path: Path) -> None:
    sink = CSVFile(tmp_path / "metrics.csv")
    sink.load_state_dict({"columns": ["epoch", "step", "a"], "rows": 3})
    sink.scalars({"a": 1.0}, step=4, epoch=4)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,a\n4,4,1.0\n"


def test_numbers_that_come_fast_are_written_out_together_and_before_every_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    logger, path = new_logger(tmp_path), tmp_path / "metrics.csv"

    def seen() -> tuple[int, int]:
        logged = sum(tag == "loss" for points in events(tmp_path / "events").values() for tag, _, _ in points)
        return len(path.read_text().splitlines()) - 1, logged

    logger.scalars({"train/loss": 1.0}, step=1, epoch=1)
    assert seen() == (1, 1)  # the first at once
    for epoch in (2, 3):
        logger.scalars({"train/loss": 1.0}, step=epoch, epoch=epoch)
    assert seen() == (1, 1)
    now += 2.1
    logger.scalars({"step/loss": 1.0}, step=4)
    assert seen() == (3, 3)
    logger.scalars({"train/loss": 1.0}, step=5, epoch=5)
    logger.state_dict()
    assert seen() == (4, 4)
    logger.scalars({"train/loss": 1.0}, step=6, epoch=6)
    logger.close()
    assert seen() == (5, 5)


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def scalars(self, values: dict[str, float], step: int, epoch: int | None) -> None:
        self.calls += 1
        raise OSError(28, "No space left on device")


class Mine:
    """A user's sink with the one call it cares for."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def scalars(self, values: dict[str, float], step: int, epoch: int | None) -> None:
        self.seen.append((values, step, epoch))


def test_a_sink_that_fails_is_reported_once_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    broken, mine = Broken(), Mine()
    logger = Logger([broken, mine])
    for step in range(3):
        logger.scalars({"train/loss": 1}, step=step)
    assert broken.calls == 1
    assert mine.seen == [({"train/loss": 1.0}, step, None) for step in range(3)]
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed in scalars and is left out from now on; training goes on "
        "(OSError: [Errno 28] No space left on device)"
    ]
    assert logger.state_dict() == {}
    logger.close()


def test_a_tensor_in_the_logger_is_a_bug_and_numpy_numbers_are_numbers() -> None:
    mine = Mine()
    logger = Logger([mine])
    with pytest.raises(TypeError, match="train/loss must be a number, received Tensor"):
        logger.scalars({"train/loss": torch.tensor(1.0)}, step=0)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="images 'x' must be a NumPy array, received Tensor"):
        logger.images("x", torch.zeros(1, 1, 2, 2), 0)  # type: ignore[arg-type]
    logger.scalars({"a": np.float32(0.5), "b": np.int64(2), "c": True}, step=0)  # type: ignore[dict-item]
    assert mine.seen == [({"a": 0.5, "b": 2.0, "c": 1.0}, 0, None)]


def test_without_tensorboard_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.logger.tensorboard.find_spec", lambda name: None)
    for start in (lambda: check_sinks(LoggerSettings()), lambda: new_logger(tmp_path)):
        with pytest.raises(ConfigError, match=r"not installed; `pip install tensorboard`, or set logger\.tensorboard="):
            start()
    check_sinks(LoggerSettings(tensorboard=False))


def test_texts_settings_histograms_and_images_can_be_read_back(tmp_path: Path) -> None:
    logger = new_logger(tmp_path)
    logger.text("config", "# hello")
    logger.hparams({"model": {"type": "LeNet", "api_key": "S1"}, "lr": 0.1, "none": None, "list": [1, 2]})
    logger.histogram("train/weights", np.array([[1.0, np.nan], [np.inf, 3.0]]), 5)
    logger.histogram("train/nothing", np.array([np.nan]), 5)
    logger.images("val/inputs", np.random.default_rng(0).random((8, 1, 8, 8)), 0)
    logger.close()
    tags = {
        (path.parent.name, value.tag, value.metadata.plugin_data.plugin_name)
        for path in (tmp_path / "events").rglob("events*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }
    assert tags == {
        ("events", "config", "text"),
        ("events", "_hparams_/session_start_info", "hparams"),
        ("train", "weights", "histograms"),
        ("val", "inputs", "images"),
    }
    assert b"S1" not in b"".join(path.read_bytes() for path in tmp_path.rglob("events.out*"))


@given(
    count=st.integers(1, 20),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 2, 3, 4]),
)
@settings(max_examples=50, deadline=None)
def test_any_images_become_one_picture(count: int, height: int, width: int, channels: int) -> None:
    picture = grid(np.random.default_rng(0).normal(size=(count, channels, height, width)))
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert min(picture.shape[:2]) > 0 and max(picture.shape[:2]) >= 96


def test_a_picture_shows_each_image_in_its_cell() -> None:
    images = np.zeros((2, 100, 100, 3), dtype=np.uint8)
    images[1, :, :, 0] = 200
    picture = grid(images)
    assert picture.shape == (102, 204, 3)
    assert picture[50, 50].tolist() == [0, 0, 0]
    assert picture[50, 150].tolist() == [200, 0, 0]
    with pytest.raises(ValueError, match=r"received \[2, 3\]"):
        grid(np.zeros((2, 3)))


def test_a_call_costs_microseconds(tmp_path: Path) -> None:
    logger = new_logger(tmp_path)
    values = {"step/loss": 0.5, "step/lr": 1e-3, "step/grad_norm": 1.0}
    logger.scalars(values, step=0)
    start = time.process_time()  # of a busy machine, only what is our own
    for step in range(1, 1001):
        logger.scalars(values, step=step)
    assert (time.process_time() - start) / 1000 < 500e-6  # 20 microseconds on an idle machine
    logger.close()


def test_settings_of_several_parts_are_cells_that_can_be_read() -> None:
    metrics = [{"name": "accuracy", "type": "accuracy", "args": {}}, {"type": "f1", "args": {"average": "macro"}}]
    assert _cell(metrics) == "accuracy, f1(average=macro)"
    assert (_cell([64, 32]), _cell([]), _cell(0.5), _cell(True)) == ("64, 32", "", 0.5, True)
