"""Event files for TensorBoard: `tensorboard --logdir saved` shows every run.

`train` and `val` are folders of their own, so that `train/loss` and `val/loss` are two lines in one chart `loss`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from src.logger.event_file import EventFile, cut_back, sizes
from src.logger.pictures import grid, png
from src.logger.scalar_events import ScalarEvents, part_and_tag
from src.logger.sink import FLUSH_EVERY_S, Sink
from src.utils.errors import ConfigError
from src.utils.packages import not_installed


def check_installed() -> None:
    """Say what to do when TensorBoard isn't there.

    Raises:
        ConfigError: It isn't installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(f"{not_installed('logger.tensorboard:', 'tensorboard')}, or set logger.tensorboard=false")


class TensorBoard(Sink):
    """Writes all numbers of one call and part as one event. Events are made when they are written out, many at a time.

    Every chart counts steps along its axis, so that none folds back however often a run is stopped, extended or
    evaluated, and charts can be linked by step; the chart `time/epoch` tells how many epochs a step is.

    Args:
        folder: Where the folders of the parts go.

    Raises:
        ConfigError: TensorBoard isn't installed.
    """

    def __init__(self, folder: Path) -> None:
        check_installed()
        from tensorboard.compat.proto import summary_pb2, tensor_pb2  # type: ignore[import-untyped]

        self._proto: Any = summary_pb2
        self._tensor: Any = tensor_pb2.TensorProto
        self._folder = folder
        self._files: dict[str, EventFile] = {}
        self._events: dict[tuple[str, ...], ScalarEvents] = {}
        self._charts: list[str] = []
        self._embeddings: dict[str, str] = {}
        self._waiting: list[tuple[float, Mapping[str, float], int, int | None]] = []  # when, and what of which step
        self._flushed_at = -math.inf

    def scalars(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        """Write numbers; they can be seen two seconds after the ones before, or at once if that is past."""
        self._waiting.append((time.time(), values, step, epoch))
        if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
            self.flush()

    def _write_scalars(self, at: float, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        numbers, names = [*values.values(), epoch or 0], (*values, "" if epoch is None else "time/epoch")
        event = self._events.get(names)
        if event is None:
            event = self._events[names] = self._event_of(names)
        for part, packed in event.pack(at, step, numbers):
            self._file(part).write(packed)

    def _event_of(self, names: tuple[str, ...]) -> ScalarEvents:
        """The event of values of these names, and of the epoch as the last, if there is one."""
        is_of_step = any(name.startswith("step/") for name in names)
        shown = names if names[-1] and not is_of_step else names[:-1]
        if not is_of_step:
            self._lay_out(shown)
        return ScalarEvents(shown)

    def text(self, tag: str, text: str) -> None:
        """Write Markdown for the tab Text."""
        self._write_tensor("", tag, "text", text.encode())
        self.flush()

    def images(self, tag: str, images: np.ndarray[Any, Any], step: int) -> None:
        """Write one picture with all images in it."""
        picture = grid(images)
        part, tag = part_and_tag(tag)
        summary = self._proto.Summary()
        height, width, _ = picture.shape
        image = self._proto.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png(picture))
        summary.value.add(tag=tag, image=image)
        self._file(part).write_summary(summary, step)
        self.flush()

    def histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        """Write the distribution of the finite ones of these numbers in 64 bins."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if finite.size == 0:
            return
        counts, edges = np.histogram(finite, bins=64)
        part, tag = part_and_tag(tag)
        summary = self._proto.Summary()
        summary.value.add(
            tag=tag,
            histo=self._proto.HistogramProto(
                min=float(finite.min()), max=float(finite.max()), num=finite.size, sum=float(finite.sum()),
                sum_squares=float(np.square(finite).sum()), bucket_limit=edges[1:].tolist(), bucket=counts.tolist(),
            ),
        )  # fmt: skip
        self._file(part).write_summary(summary, step)

    def pr_curves(self, tag: str, counts: np.ndarray[Any, Any], names: Sequence[str], step: int) -> None:
        """Write a curve for each class, for the tab PR Curves."""
        from tensorboard.plugins.pr_curve.metadata import create_summary_metadata  # type: ignore[import-untyped]

        part, tag = part_and_tag(tag)
        summary = self._proto.Summary()
        for name, (hits, misses) in zip(names, counts.astype(np.float64), strict=True):
            precision, recall = hits / np.maximum(hits + misses, 1), hits / max(hits[0], 1)
            rows = np.stack([hits, misses, misses[0] - misses, hits[0] - hits, precision, recall])
            summary.value.add(
                tag=f"{tag}/{name}",
                metadata=create_summary_metadata(f"{tag}/{name}", "", rows.shape[1]),
                tensor=self._tensor(
                    dtype=1,  # float32
                    tensor_shape={"dim": [{"size": size} for size in rows.shape]},
                    tensor_content=rows.astype(np.float32).tobytes(),
                ),
            )
        self._file(part).write_summary(summary, step)
        self.flush()

    def graph(self, definition: bytes) -> None:
        """Write the operations of the model for the tab Graphs."""
        self._file("train").write_graph(definition)
        self.flush()

    def embedding(self, tag: str, vectors: np.ndarray[Any, Any], labels: Sequence[str]) -> None:
        """Write what the tab Projector reads: vectors, labels, and where they are."""
        folder = self._folder / "projector"
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]", "_", tag)
        lines = ("\t".join(f"{number:.6g}" for number in vector) for vector in vectors)
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._embeddings[tag] = f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "projector/{name}.tsv"\n'
        if labels:
            listed = (re.sub(r"\s+", " ", label) or "-" for label in labels)
            (folder / f"{name}.labels.tsv").write_text("\n".join(listed) + "\n", encoding="utf-8")
            self._embeddings[tag] += f'  metadata_path: "projector/{name}.labels.tsv"\n'
        config = "}\n".join(self._embeddings.values()) + "}\n"
        (self._folder / "projector_config.pbtxt").write_text(config, encoding="utf-8")

    def hparams(self, values: Mapping[str, Any]) -> None:
        """Write the settings for the tab HParams; TensorBoard finds the numbers of the run's parts by itself."""
        from tensorboard.plugins.hparams import summary_v2  # type: ignore[import-untyped]

        run = "/".join(self._folder.resolve().parts[-3:-1])
        plain = {key: _cell(value) for key, value in values.items() if value is not None}
        self._file("").write_summary(
            self._proto.Summary.FromString(_bytes(summary_v2.hparams_pb(plain, trial_id=run))), 0
        )
        self.flush()

    def state_dict(self) -> dict[str, Any]:
        """Bytes of every file so far."""
        self.flush()
        return {"files": sizes(self._folder), "charts": list(self._charts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the files back to those bytes."""
        self.close()
        cut_back(self._folder, state["files"])
        self._charts, self._events = list(state["charts"]), {}

    def flush(self) -> None:
        """Let TensorBoard see what was written."""
        self._write_waiting()
        for file in self._files.values():
            file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Close the files; a later call would start new ones."""
        self._write_waiting()
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._write_scalars(*each)

    def _file(self, part: str) -> EventFile:
        """Return the file of a part, in which all is that was told before."""
        if self._waiting:
            self._write_waiting()
        if part not in self._files:
            self._files[part] = EventFile(self._folder / part)
        return self._files[part]

    def _write_tensor(self, part: str, tag: str, plugin: str, content: bytes) -> None:
        summary = self._proto.Summary()
        metadata = self._proto.SummaryMetadata(
            plugin_data=self._proto.SummaryMetadata.PluginData(plugin_name=plugin),
            data_class=self._proto.DATA_CLASS_TENSOR,
        )
        summary.value.add(tag=tag, metadata=metadata, tensor=self._tensor(dtype=7, string_val=[content]))  # 7: string
        self._file(part).write_summary(summary, 0)

    def _lay_out(self, names: Sequence[str]) -> None:
        """Put each value that parts have in common on the first page of the tab Custom Scalars."""
        charts = list(dict.fromkeys(tag for part, tag in map(part_and_tag, names) if f"{part}/{tag}" in names))
        new = [tag for tag in charts if tag not in self._charts]
        if not new:
            return
        from tensorboard.plugins.custom_scalar import layout_pb2  # type: ignore[import-untyped]

        self._charts += new
        category = layout_pb2.Category(title="Train and val")
        for tag in self._charts:
            multiline = layout_pb2.MultilineChartContent(tag=[f"^{_escaped(tag)}$"])
            category.chart.append(layout_pb2.Chart(title=tag, multiline=multiline))
        layout = layout_pb2.Layout(category=[category])
        self._write_tensor("", "custom_scalars__config__", "custom_scalars", layout.SerializeToString())


def _escaped(tag: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_/- " else f"[{letter}]" for letter in tag)


def _bytes(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _cell(value: Any) -> bool | int | float | str:
    """Return a setting as a cell of a table: components by what they are, `f1(average=macro)`."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return ", ".join(str(_cell(each)) for each in value)
    if isinstance(value, Mapping) and "type" in value:
        arguments = ", ".join(f"{key}={_cell(each)}" for key, each in (value.get("args") or {}).items())
        return f"{value['type']}({arguments})" if arguments else str(value["type"])
    return str(value)
