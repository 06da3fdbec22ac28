"""A trained run, opened again: by `test.py`, `predict.py`, `export.py`, and by your own programs.

from src.run.saved_run import load_model
model = load_model("saved/digits/1121_051302")
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from src.config.build import build, build_dataset
from src.config.load import config_from_dict
from src.config.loaders import evaluation_loader
from src.config.mistakes import placed
from src.config.registry import find, trust, use_folder, use_recorded_folder, vouched_for
from src.config.settings import Component
from src.config.signatures import check_components
from src.data.arrays import Arrays
from src.data.loading.loader import Loader
from src.data.parts.content import data_changes, keep_rows
from src.data.parts.facts import count_classes
from src.data.parts.part import Part
from src.data.unlabelled import input_arrays, standard_input
from src.run.experiment import Experiment, build_criterion, build_experiment, build_model
from src.trainer.checkpoints.resume import best_weights, load_weights, open_checkpoint
from src.trainer.evaluate import autocast
from src.trainer.results.predictions import Meaning, told_by
from src.trainer.task import Task
from src.utils.device import find_device
from src.utils.errors import ConfigError
from src.utils.paths import shown_path
from src.utils.seed import forked_rng

log = logging.getLogger(__name__)


def load_model(run: str | Path, which: str = "best", device: str = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """Return the trained model of a run, ready to be called: in evaluation mode, on the CPU unless you say otherwise.

    Args:
        run: Run directory or checkpoint file.
        which: Of a run directory: `best`, `last`, or a file name.
        device: `cpu`, `cuda`, `auto`, ...
        trust: Packages, or folders such as `theirs/`, outside the project whose classes the run's config may name.

    Raises:
        CheckpointError: No such run, or it is damaged. Nothing but tensors and plain data is ever read from it.
    """
    _, folders = vouched_for()
    try:
        return SavedRun(run, which, (f"trainer.device={device}",), trust).model.eval()
    finally:
        use_folder(next(iter(folders), None))  # a task that asks for its teacher still lies where it did


class SavedRun:
    """What a run left behind, with its config read and checked. Objects are built when they are first asked for.

    Args:
        path: Run directory or checkpoint file.
        which: Of a run directory: `best` (else the newest), `last`, or a file name.
        overrides: Keys of its config to change, `key.path=value`.
        trusted: Packages that its config may name classes of, besides the known ones.

    Attributes:
        path: The run's folder.
        state: Content of the checkpoint.
    """

    def __init__(
        self, path: str | Path, which: str = "best", overrides: Sequence[str] = (), trusted: Sequence[str] = ()
    ) -> None:
        self.path, self.state = open_checkpoint(Path(path), which)
        reached = self.state["progress"]
        log.debug("run    %s, %s: epoch %d, step %d", shown_path(self.path), which, reached["epoch"], reached["step"])
        self._rows_then = 0  # of a dataset that has grown since
        use_recorded_folder(self.state.get("config_folder"))
        trust(trusted)
        where = f"checkpoint of {shown_path(self.path)}"
        self.config = config_from_dict(self.state["config"], overrides, where, whole_report=True)
        check_components(self.config)
        self.device = find_device(self.config.trainer.device)

    @property
    def amp(self) -> Callable[[], AbstractContextManager[Any]]:
        """Makes the context that the model computes in."""
        return autocast(self.config.trainer.amp_dtype, self.device)

    @cached_property
    def experiment(self) -> Experiment:
        """The run's data, task and metrics, and its model with the trained weights."""
        with forked_rng(self.config.seed), placed(self.config.places):
            experiment = build_experiment(self.config, self.device, self.state["data"])
        load_weights(experiment.model, best_weights(self.state), shown_path(self.path))
        split = self.config.data.split
        if self._has_own_data and split is not None and not split.stable:
            self._rows_then = keep_rows(self.state.get("parts", {}), experiment.parts)
        return experiment

    @property
    def _has_own_data(self) -> bool:
        """Whether the data are those that the run was trained on, as far as its config says."""
        return self.config.data == config_from_dict(self.state["config"]).data

    def data_changes(self, part: str) -> list[str]:
        """Return how the data differ from those that the run was trained on, and what follows for testing `part`.

        Nothing is said when other data were asked for.
        """
        if not self._has_own_data:
            return []
        parts, split = self.experiment.parts, self.config.data.split
        changes = data_changes(self.state.get("parts", {}), parts)
        told = [f"the data have changed since the run: {'; '.join(changes)}"] if changes else []
        if self._rows_then:
            told.append(
                f"the data have grown since the run, from {self._rows_then:,} rows: {part} is the "
                f"{len(parts[part]):,} rows it was then"
            )
        if changes and split is not None and part in split.part_names and not split.stable:
            told.append(f"{part} may hold rows that it was trained on; data.split.stable: true keeps each in its part")
        return told

    @cached_property
    def _model_and_task(self) -> tuple[nn.Module, Task]:
        """Without the run's data, which need not be at hand, unless the config takes values from them."""
        if "experiment" in vars(self):
            return self.experiment.model, self.experiment.task
        try:
            with forked_rng(self.config.seed):
                model = build_model(self.config.model, {}).to(self.device)
                criterion = build_criterion(self.config.loss, self.device, {})
                task = build("task", self.config.task, criterion=criterion)
        except ConfigError:
            return self.experiment.model, self.experiment.task
        load_weights(model, best_weights(self.state), shown_path(self.path))
        return model, task

    @property
    def model(self) -> nn.Module:
        """The model with the trained weights."""
        return self._model_and_task[0]

    @property
    def task(self) -> Task:
        """What one batch means."""
        return self._model_and_task[1]

    @cached_property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes: from the checkpoint; one of an older version leaves them to the dataset."""
        data = self.state["data"]
        known: Sequence[str] | None = data.get("class_names") or self.state.get("class_names")
        if known is not None or "numbers" in data or "class_names" in self.state:
            return known
        known = getattr(find("data", self.dataset.type), "class_names", None)
        if not isinstance(known, (list, tuple)):
            known = getattr(self.experiment.parts["train"].dataset, "class_names", None)
        return known

    @cached_property
    def meaning(self) -> Meaning:
        """What the outputs mean; the data need not be at hand where the loss or the checkpoint tells."""
        told, num_classes = told_by(self.task.criterion), self.state.get("num_classes")
        if told is None and "num_classes" not in self.state:  # of an older version
            num_classes = count_classes(self.experiment.parts["train"].dataset)
        meaning = Meaning(told, num_classes, decode=self.decode)
        return replace(meaning, class_names=self.class_names) if meaning.is_of_classes else meaning

    @property
    def dataset(self) -> Component:
        """The dataset that the run was trained on."""
        data = self.config.data
        source = data.source or data.parts["train"].type
        assert source is not None  # a config without training data is refused
        return source

    @cached_property
    def decode(self) -> Callable[[Any], Any] | None:
        """Undoes target scaling, where that takes the run's own data; tables do it from the checkpoint alone."""
        if "numbers" in self.state["data"] or not hasattr(find("data", self.dataset.type), "decode"):
            return None
        return self.experiment.parts["train"].dataset.decode  # type: ignore[attr-defined, no-any-return]

    def inputs(self, file: str) -> Arrays:
        """Return the rows of a `.npy` file or `file.npz:name` as this model takes them."""
        is_image = bool(getattr(find("data", self.dataset.type), "is_image", False))
        return input_arrays(file, self.dataset.args.get("dtype"), is_image)

    def texts(self, path: Path) -> Any:
        """Return the texts of a file, `-` for standard input, with the vocabulary of the training data."""
        own = self.dataset.args
        if str(path) == "-":
            with standard_input(own.get("text")) as copy:
                return self.texts(copy)
        column = own.get("text") if path.suffix in (".csv", ".tsv") else None
        args = {**own, "file": str(path.absolute()), "text": column, "target": None}
        texts = build_dataset(replace(self.dataset, args=args))
        texts.load_state_dict(self.state["data"])
        return texts

    @property
    def transform_settings(self) -> Sequence[Component]:
        """What the run does to the inputs of its test part, or of its val part, when it evaluates."""
        data = self.config.data
        own = [data.parts[name].transforms for name in ("test", "val") if name in data.parts]
        return next((each for each in own if each is not None), data.transforms)

    def transforms(self) -> list[Any]:
        """Return these transforms, built."""
        return [build("transforms", each) for each in self.transform_settings]

    def loader(self, part: Part, **changes: Any) -> Loader:
        """Return a loader that gives each row of `part` once, in order.

        Args:
            part: Its settings are those of its name in the config, else of `test`.
            **changes: Other values for some of these settings.
        """
        config, name = self.config, part.name if part.name in self.config.part_loaders else "test"
        settings = {**config.part_loaders, part.name: replace(config.loader_of(name), **changes)}
        return evaluation_loader(replace(config, part_loaders=settings), part, self.device)
