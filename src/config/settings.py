"""What a config says, checked and frozen. The string below each field is its manual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from src.config.mistakes import KeyPath
from src.config.references import Reference, escaped
from src.config.tune import Distribution, TuneSettings
from src.data.settings import LoaderSettings, SplitSettings
from src.logger.settings import LoggerSettings
from src.trainer.settings import ParameterSettings, TrainerSettings
from src.utils.bounds import AtLeast, Between


@dataclass(frozen=True)
class Component:
    """A class or function by name, and what to call it with. Without args the bare name will do."""

    type: str
    """`lenet.LeNet` is class LeNet of `src/model/lenet.py`; known packages work too: `AdamW`, `torch.nn.Linear`."""

    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments by name; what they are is said by the signature of `type`."""

    place: str = field(default="", compare=False, repr=False, kw_only=True)
    """Where it was written, for messages; not part of what the config says."""


UNNAMED = Component("unnamed")
"""Stands in for a component that is missing, so that the rest can be checked."""


@dataclass(frozen=True)
class LossTerm(Component):
    """One of several losses that are added up."""

    weight: float = 1.0
    """Factor of this term in the sum."""


@dataclass(frozen=True)
class ScheduleSettings(Component):
    """How the learning rate changes."""

    every: Literal["step", "epoch"] | None = None
    """When the schedule moves on. Default: the usual one for its type."""

    warmup_steps: Annotated[int, AtLeast(0)] = 0
    """Optimizer steps over which the rate first rises linearly from 0."""

    monitor: str | None = None
    """What a plateau schedule watches, e.g. `min val/loss`. Default: `trainer.monitor`."""


@dataclass(frozen=True)
class PartSettings:
    """One named part of the data: a dataset of its own, or a part of the split with transforms of its own."""

    type: Component | None = None
    """The dataset of this part; `None` when the part comes from the split."""

    transforms: tuple[Component, ...] | None = None
    """Applied to this part in place of the common `data.transforms`."""


@dataclass(frozen=True)
class DataSettings:
    """Which data to train, validate and test on."""

    source: Component | None = None
    """The dataset that `split` divides; all of it trains when there is no split."""

    split: SplitSettings | None = None
    """What is held out of this dataset, or of the part `train` where each part has a dataset of its own."""

    transforms: tuple[Component, ...] = ()
    """Applied in this order to every part that has none of its own."""

    parts: Mapping[str, PartSettings] = field(default_factory=dict)
    """`train`, `val`, `test`, and any number of `val_...` and `test_...`."""

    def part_names(self) -> tuple[str, ...]:
        """Returns the parts this config makes, `train` first."""
        names = dict.fromkeys(["train"])
        if self.split is not None:
            names |= dict.fromkeys(self.split.part_names)
        names |= dict.fromkeys(name for name, part in self.parts.items() if part.type is not None)
        return tuple(names)


@dataclass(frozen=True)
class Config:
    """A whole experiment."""

    name: str
    """Names the folder of the runs: letters, digits, `.`, `_`, `-`; at most 64."""

    data: DataSettings
    model: Component | Mapping[str, Component]
    """One model, or several by name."""

    seed: Annotated[int, Between(0, 2**32)] = 0
    """Start of every random stream of the run."""

    loader: LoaderSettings = field(default_factory=LoaderSettings)
    part_loaders: Mapping[str, LoaderSettings] = field(default_factory=dict)
    """Complete settings of the parts that differ: `loader: {batch_size: 64, val: {batch_size: 512}}`."""

    loss: Component | Mapping[str, LossTerm] | None = None
    """One loss, or several weighted terms by name. `None` when the task computes its own."""

    metrics: Mapping[str, Component] = field(default_factory=dict)
    """What is measured besides the loss, by the name it is logged under."""

    optimizer: Component | Mapping[str, Component] | None = None
    """One optimizer, or several by name."""

    parameters: ParameterSettings = field(default_factory=ParameterSettings)
    lr_scheduler: ScheduleSettings | Mapping[str, ScheduleSettings] | None = None
    """Schedule of the learning rate, or one per optimizer by name."""

    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    task: Component = Component("Task")
    """What one batch means. Keys without a `type` are arguments of the default task."""

    hooks: tuple[Component, ...] = ()
    """Watchers of the run."""

    tune: TuneSettings | None = None
    """What `tune.py` searches; a run by itself takes no notice."""

    places: Mapping[KeyPath, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each key was written; not part of what the config says."""

    def loader_of(self, part: str) -> LoaderSettings:
        """Returns the loader settings of a part."""
        return self.part_loaders.get(part) or common_loader(self.loader, part)

    def as_dict(self) -> dict[str, Any]:
        """Returns the resolved config as plain data, in the form `config_from_dict` reads back to an equal `Config`."""
        values = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        del values["places"]
        values["data"] = _data_dict(self.data)
        for name, settings in self.part_loaders.items():
            special = {each.name: getattr(settings, each.name) for each in fields(settings)}
            common = common_loader(self.loader, name)
            values["loader"][name] = {
                key: _plain(value) for key, value in special.items() if value != getattr(common, key)
            }
        del values["part_loaders"]
        if self.tune is None:
            del values["tune"]
        values["metrics"] = [{"name": name, **_plain(metric)} for name, metric in self.metrics.items()]
        return values


def common_loader(loader: LoaderSettings, part: str) -> LoaderSettings:
    """Returns what the common `loader` settings mean for a part: order and left-out rows concern training alone."""
    return (
        loader if part == "train" else replace(loader, shuffle=None, drop_last=False, sampler=None, batch_sampler=None)
    )


def _data_dict(data: DataSettings) -> dict[str, Any]:
    values: dict[str, Any] = _plain(data.source) if data.source is not None else {}
    if data.split is not None:
        values["split"] = _plain(data.split)
    values["transforms"] = _plain(data.transforms)
    for name, part in data.parts.items():
        values[name] = _plain(part.type) if part.type is not None else {}
        if part.transforms is not None:
            values[name]["transforms"] = _plain(part.transforms)
    return values


def _plain(value: Any) -> Any:
    """Turns settings into fresh dictionaries, lists and scalars."""
    if isinstance(value, Reference):
        return value.text
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Distribution):
        return {value.kind: _plain(value.values)}
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.name != "place"}
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value
