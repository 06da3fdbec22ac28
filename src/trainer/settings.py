"""What the section `trainer` of a config may say. No torch here: a config is checked before torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from src.trainer.compile_settings import CompileSettings
from src.trainer.parallel.settings import ParallelSettings
from src.utils.bounds import Above, AtLeast, Between
from src.utils.errors import ConfigError

DEFAULT_EPOCHS = 10


@dataclass(frozen=True)
class InitFrom:
    """Which ready weights a model starts from. Names are as in `model.state_dict()`, after `rename`."""

    path: str
    """Run directory, checkpoint, or a file of weights of another program: `.pth`, `.safetensors`."""

    include: tuple[str, ...] = ()
    """Take only these, e.g. `["backbone.*"]`; all when empty."""

    exclude: tuple[str, ...] = ()
    """Leave these out, e.g. `["head.*"]`."""

    rename: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of names there, and what they are here: `{encoder.: backbone.}`; `{"": body.}` is put before all."""

    strict: bool = True
    """Refuse to start when anything chosen is missing, unexpected or of another shape."""


@dataclass(frozen=True)
class ProfileSettings:
    """Which steps torch's profiler traces, in all that they do. Those steps are slower."""

    steps: tuple[Annotated[int, AtLeast(1)], ...]
    """First and last, counted from 1 over the whole run: `[10, 15]`."""

    def __post_init__(self) -> None:
        """Refuse what the types cannot.

        Raises:
            ConfigError: These are not a first and a last step.
        """
        if len(self.steps) != 2 or self.steps[0] > self.steps[1]:
            raise ConfigError(
                f"trainer.profile.steps: a first and a last step such as [10, 15] are needed, found {list(self.steps)}"
            )


@dataclass(frozen=True)
class TrainerSettings:
    """How long to train, how one step is made, and what is kept."""

    epochs: Annotated[int, AtLeast(1)] | None = None
    """Passes over the training data, counted from the start of the run. Default: 10, or no limit with `max_steps`."""

    max_steps: Annotated[int, AtLeast(1)] | None = None
    """Optimizer updates after which training ends, in mid-epoch if need be."""

    max_time: str | None = None
    """Time for training, such as `3h50m`, `90m` or `45s`: shortly before it is over, stop and save as on SIGTERM."""

    accumulate_steps: Annotated[int, AtLeast(1)] = 1
    """Micro-batches (batches of the loader) whose gradients make one optimizer update."""

    max_grad_norm: Annotated[float, Above(0)] | None = None
    """Gradients are scaled down so that their L2 norm over all parameters is at most this."""

    amp_dtype: Literal["bf16", "fp16"] | None = None
    """Autocast forward and loss to this type; fp16 scales the loss and needs a GPU."""

    tf32: bool | None = None
    """Let a GPU that trains multiply float32 numbers as TF32: 10 bits of their 23, and faster. Default: that of torch,
    which does so in convolutions and not in products of matrices."""

    channels_last: bool = False
    """Keep the weights of 2D convolutions with their channels last, and so what they compute: faster on a GPU, above
    all with `amp_dtype`. The same to rounding."""

    compile: bool | CompileSettings = False
    """Compile a step as far as its gradient with `torch.compile`, or only the model where the task cannot be traced."""

    recompute: tuple[str, ...] = ()
    """Modules that compute their activations again in the backward pass instead of keeping them, `["blocks.*"]`: less
    memory, about a third more time. The gradients are the same to the bit."""

    ema_decay: Annotated[float, Between(0, 1)] | None = None
    """Keep an exponential moving average of the weights; it is what is evaluated and tested."""

    monitor: str | None = None
    """What `best` means: `max val/accuracy`. Default: `min val/loss` where there is a val part, else nothing."""

    patience: Annotated[int, AtLeast(0)] = 0
    """Stop after exactly this many evaluations in a row without strict improvement; 0 never stops early."""

    min_delta: Annotated[float, AtLeast(0)] = 0.0
    """An improvement must be larger than this."""

    eval_every_epochs: Annotated[int, AtLeast(1)] = 1
    """Evaluate the val parts after every so many epochs."""

    eval_every_steps: Annotated[int, AtLeast(1)] | None = None
    """Evaluate after every so many steps instead of by epochs."""

    save_every_epochs: Annotated[int, AtLeast(1)] = 1
    """Save a checkpoint after every so many epochs. The end of a run is always saved, a new best too."""

    save_every_steps: Annotated[int, AtLeast(1)] | None = None
    """Save after every so many steps, in addition to the epochs."""

    keep: Annotated[int, AtLeast(1)] = 2
    """How many of the newest checkpoints stay on disk, besides the best."""

    save_in_background: bool = False
    """Copy the state and train on while a thread writes it. Takes memory of the CPU for one more copy of the state."""

    max_failed_saves: Annotated[int, AtLeast(1)] = 3
    """The run ends when so many saves in a row have failed; until then it trains on, and saves when the next is due. 1
    ends it with the first."""

    log_every_steps: Annotated[int, AtLeast(1)] = 50
    """Read loss and rate from the device, and log them, after every so many steps."""

    profile: ProfileSettings | None = None
    """Write a trace of a few steps into `profile/` of the run, for TensorBoard or Perfetto: `{steps: [10, 15]}`."""

    nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a loss or gradient of nan or inf: `stop` the run, `skip` the step, or `rollback`: what is trained
    goes back to a copy at most 50 steps old, the data go on. That copy takes as much memory again, checkpoints too."""

    loss_spikes: Literal["stop", "skip", "rollback"] | None = None
    """The same for a loss that jumps: over 6 standard deviations above the mean of the last 128. Default: nothing."""

    max_bad_steps: Annotated[int, AtLeast(0)] = 10
    """How many bad steps may be skipped or rolled back in a run; one more stops it."""

    device: str = "auto"
    """`auto` (cuda, else mps, else cpu), `cpu`, `cuda`, `cuda:1`, `mps`; `0,1`: a process for each of these GPUs."""

    parallel: Literal["auto", "none", "ddp", "fsdp"] | ParallelSettings = "auto"
    """How several processes share the work; see docs/distributed.md."""

    threads: Annotated[int, AtLeast(1)] | None = None
    """CPU threads of one operation; with another number the last bits differ. Default: one for each core."""

    deterministic: bool = False
    """Use only algorithms that give the same bits every time; an operation that has none is an error."""

    save_dir: str = "saved"
    """Folder of all runs, relative to the project: `<save_dir>/<name>/<run id>/`."""

    init_from: str | InitFrom | None = None
    """Run directory, checkpoint or file of weights that the model starts from; all else starts afresh."""

    def __post_init__(self) -> None:
        """Refuse what the types cannot.

        Raises:
            ConfigError: `max_time` is not a time.
        """
        if self.max_time is not None and not self.max_time_s > 0:
            raise ConfigError(f"trainer.max_time: a time such as 3h50m, 90m or 45s is needed, found {self.max_time!r}")

    @property
    def parallel_settings(self) -> ParallelSettings:
        """The settings of `parallel`, spelt out."""
        return self.parallel if isinstance(self.parallel, ParallelSettings) else ParallelSettings(self.parallel)

    @property
    def compile_settings(self) -> CompileSettings:
        """The settings of `compile`, spelt out."""
        return self.compile if isinstance(self.compile, CompileSettings) else CompileSettings()

    @property
    def max_time_s(self) -> float:
        """Seconds that training may take; infinite when nothing limits it."""
        if self.max_time is None:
            return math.inf
        parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.max_time)
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0, 0)
        return 60.0 * (60 * (24 * days + hours) + minutes) + seconds

    @cached_property
    def num_epochs(self) -> float:
        """Epochs at which the run ends; infinite when only steps count."""
        return self.epochs or (DEFAULT_EPOCHS if self.max_steps is None else math.inf)

    @cached_property
    def num_steps(self) -> float:
        """Steps at which the run ends; infinite when only epochs count."""
        return self.max_steps or math.inf


@dataclass(frozen=True)
class FreezeSettings:
    """Parameters that rest in some epochs: from `from_epoch` on, until before `until_epoch`, both counted from 0."""

    match: str
    """Pattern of parameter names, `body.*`."""

    from_epoch: Annotated[int, AtLeast(0)] = 0
    """Epochs before they are frozen."""

    until_epoch: Annotated[int, AtLeast(1)] | None = None
    """Epochs before they are trained again. Default: never."""

    every: Annotated[int, AtLeast(2)] | None = None
    """The count of epochs starts anew after so many: two entries with `every: 2` alternate. Default: it never does."""

    def __post_init__(self) -> None:
        """Refuse an interval that is none.

        Raises:
            ConfigError: It is empty, or does not fit into `every`.
        """
        end = self.every if self.until_epoch is None else self.until_epoch
        if end is not None and end <= self.from_epoch:
            raise ConfigError(f"parameters.freeze: {self.match!r} is frozen from epoch {self.from_epoch} until {end}")
        if end is not None and self.every is not None and end > self.every:
            raise ConfigError(
                f"parameters.freeze: {self.match!r}: until_epoch {end} is beyond `every: {self.every}`, at which the "
                "count starts anew"
            )

    def holds(self, epoch: int) -> bool:
        """Say whether they are frozen in an epoch, counted from 0."""
        position = epoch % self.every if self.every else epoch
        return self.from_epoch <= position and (self.until_epoch is None or position < self.until_epoch)

    @property
    def is_for_good(self) -> bool:
        """Whether they are never trained."""
        return self.from_epoch == 0 and self.until_epoch is None


@dataclass(frozen=True)
class GroupSettings:
    """Parameters that have a rate or a decay of their own."""

    match: str
    """Pattern of parameter names, `body.*`; the first group that matches counts."""

    lr: Annotated[float, AtLeast(0)] | None = None
    """Learning rate. Default: that of the optimizer."""

    weight_decay: Annotated[float, AtLeast(0)] | None = None
    """Weight decay. Default: that of the optimizer."""


@dataclass(frozen=True)
class ParameterSettings:
    """Which parameters are trained, and how. Names are those of `model.named_parameters()`; `*` is any text."""

    freeze: tuple[str | FreezeSettings, ...] = ()
    """Patterns of parameters that stay as they are: `[body.*]`, for a while: `[{match: body.*, until_epoch: 3}]`.
    Batch norms that are frozen keep their statistics.
    """

    groups: tuple[GroupSettings, ...] = ()
    """Rates and decays by pattern: `[{match: head.*, lr: 1e-2}]`."""

    layer_decay: Annotated[float, Above(0)] = 1.0
    """Each layer has this times the rate of the one above it, 0.8 say: the elements of numbered lists
    (`encoder.layer.3`) are layers, what comes before the first is the lowest, what comes after the last the highest.
    As in ELECTRA, Clark et al. 2020, after Howard and Ruder 2018.
    """

    no_decay_on_norms_and_biases: bool = False
    """Decay no parameter of less than two dimensions: biases, and the scales of norms."""
