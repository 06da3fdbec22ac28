"""What `trainer.compile` may say. No torch here: a config is checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from src.utils.errors import ConfigError


@dataclass(frozen=True)
class CompileSettings:
    """How `torch.compile` compiles; `true` alone is short for `{}`."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """`reduce-overhead` and `max-autotune` replay CUDA graphs: no kernel is launched one by one, which helps small
    models on a GPU. Default: replay a whole step of a model of up to 1,048,576 parameters, else `default`."""

    dynamic: bool | None = None
    """Compile for any size of batch from the start. Default: a graph for each of the two sizes there are, so that a
    resumed run has the same bits; where `collate_fn` or `batch_sampler` make many, one for all from the second on."""

    fullgraph: bool = False
    """Refuse a model that cannot be compiled in one piece."""

    backend: str = "inductor"
    """What makes the code; `torch.compiler.list_backends()` names all."""

    options: Mapping[str, Any] | None = None
    """Options of the backend, in place of `mode`."""

    def __post_init__(self) -> None:
        """Refuse what excludes each other.

        Raises:
            ConfigError: There are a mode and options.
        """
        if self.mode is not None and self.options is not None:
            raise ConfigError("trainer.compile: mode and options exclude each other; leave one out")

    @property
    def is_open(self) -> bool:
        """Whether nothing says if CUDA graphs are to be replayed."""
        return self.mode is None and self.options is None and self.backend == "inductor"

    @property
    def args(self) -> dict[str, Any]:
        """What `torch.compile` is given."""
        options = None if self.options is None else dict(self.options)
        return {
            "mode": self.mode, "dynamic": self.dynamic, "fullgraph": self.fullgraph, "backend": self.backend,
            "options": options,
        }  # fmt: skip
