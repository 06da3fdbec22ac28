"""Compiled by torch: the model, and a step as far as its gradient in one graph where the task can be traced."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from src.data.loading.loader import Loader
from src.trainer.compile_settings import CompileSettings
from src.trainer.compiled_call import CompiledCall
from src.trainer.faults.out_of_memory import is_out_of_memory
from src.trainer.optimizers import drop_gradients
from src.trainer.settings import TrainerSettings
from src.trainer.step import Step, Update, needs_closure
from src.trainer.task import StepOutput
from src.utils.device import to_device
from src.utils.errors import ConfigError, first_line
from src.utils.nested import with_parts

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""In these, CUDA replays what it has recorded, and writes its results over those of the time before."""
MAX_REPLAYED = 1 << 20
"""Parameters of a model whose steps are replayed unasked."""
log = logging.getLogger(__name__)


def compiled(model: nn.Module, settings: TrainerSettings, loader: Loader) -> Any:
    """Return the compiled form of `model`, for batches as of `loader`, or `model` where `trainer.compile` is off.

    Raises:
        ConfigError: There is no such backend.
    """
    if not settings.compile:
        return model
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # hooks may be registered, or removed, at any time
    try:
        return torch.compile(model, **compiler_args(settings.compile_settings, loader))
    except torch._dynamo.exc.InvalidBackend as error:
        backend, known = settings.compile_settings.backend, ["inductor", *torch.compiler.list_backends()]
        raise ConfigError(
            f"trainer.compile.backend: there is no {backend!r}; choose of {', '.join(dict.fromkeys(known))}"
        ) from error


def compiler_args(settings: CompileSettings, loader: Loader) -> dict[str, Any]:
    """Return what `torch.compile` is given.

    Unasked, torch makes a graph for the first size of batch, and one for every size when it meets a second. Which of
    the two computes a batch then depends on those before it, and their last bits differ: a resumed run would end
    otherwise. So where there are but two sizes, that of the last batch and that of the others, each has its own graph.
    """
    has_two_sizes = loader.has_one_size and loader.batch_size > 1  # single rows may differ in their shapes
    dynamic = False if settings.dynamic is None and has_two_sizes else settings.dynamic
    return {**settings.args, "dynamic": dynamic}


def choose_mode(num_parameters: int, has_one_size: bool) -> tuple[str, str]:
    """Return the mode of a compiled step on a GPU, and why it is that.

    A small model computes for less time than it takes to launch its kernels one by one, and CUDA graphs launch them
    all at once. They are recorded for each size of batch anew.
    """
    size = f"the model has {num_parameters:,} parameters"
    if num_parameters > MAX_REPLAYED:
        return "default", f"no CUDA graphs: {size}, more than {MAX_REPLAYED:,}"
    if not has_one_size:
        return "default", "no CUDA graphs: collate_fn or batch_sampler make batches of many sizes"
    return "reduce-overhead", f"steps are replayed from CUDA graphs: {size}, no more than {MAX_REPLAYED:,}"


class CompiledStep(Step):
    """Makes forward pass, loss and gradient in one compiled call, where the task can be traced as a whole.

    Whether it can is found out at the first step, before anything is computed. Where it cannot, the model alone is
    compiled, and the log says why.

    Args:
        loader: Gives the batches.
        args, kwargs: As of `Step`.
    """

    def __init__(self, loader: Loader, *args: Any, **kwargs: Any) -> None:
        self._loader = loader
        super().__init__(*args, **kwargs)

    def _choose(self, settings: TrainerSettings) -> tuple[Update, Update]:
        apart = super()._choose(settings)
        has_own_way = hasattr(self.task, "update") or any(map(needs_closure, self.optimizers.values()))
        is_scaled = settings.accumulate_steps > 1 or settings.amp_dtype == "fp16"
        if has_own_way or is_scaled or not hasattr(torch._dynamo.config, "trace_autograd_ops"):  # an older torch
            return apart
        self._apart = apart
        forward: Any = self.forward
        model = getattr(forward, "_orig_mod", forward)
        args = {**compiler_args(settings.compile_settings, self._loader), "fullgraph": True}
        if settings.compile_settings.is_open and self.device.type == "cuda":
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            args["mode"], reason = choose_mode(num_parameters, self._loader.has_one_size)
            log.info("trainer.compile: %s; trainer.compile.mode decides otherwise", reason)
        elif settings.compile_settings.is_open:
            args["options"] = {"guard_filter_fn": can_change, "size_asserts": False}
        self._is_replayed = args["mode"] in GRAPH_MODES and self.device.type == "cuda"
        torch._dynamo.config.trace_autograd_ops = True
        compile_step: Any = CompiledCall if self.device.type == "cpu" else torch.compile
        self._graph = compile_step(self._differentiate(model), **args)
        return self._update_in_one, self._update_in_one

    def _differentiate(self, model: nn.Module) -> Any:
        task, amp, parameters = self.task, self.amp, self._parameters

        def differentiate(batch: Any) -> tuple[StepOutput, list[Tensor | None]]:
            with amp():
                output = task.step(model, batch)
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            found = iter(torch.autograd.grad(output.loss, trained, allow_unused=True))
            gradients = [_laid_out(next(found), each) if each.requires_grad else None for each in parameters]
            scalars = {name: value.detach() for name, value in output.scalars.items()}
            outputs, targets = _detached(output.outputs), output.targets
            return StepOutput(output.loss.detach(), outputs, targets, output.weight, scalars), gradients

        return differentiate

    def _update_in_one(self, batches: Sequence[Any]) -> None:
        if self._progress.micro_batches > 1:
            self._update(batches)
            return
        num_taken = 0
        drop_gradients(self.optimizers)
        self._mark("optimizer")
        try:
            batch = to_device(batches[0], self.device)
            self._mark("copy")
            if self._is_replayed:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            output, gradients = self._graph(batch)
            self._mark("gradient")
            self.take(_kept(output) if self._is_replayed else output, batch)
            num_taken = 1
            self._mark("metrics")
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            self._give_up(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._micro_batches.num_taken = num_taken
            self._micro_batches.halve(batches, error)
            batch = output = None
        else:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            self._apply(self.optimizers.values())
            self._mark("optimizer")
            return
        self._update(batches)

    def _give_up(self, error: Exception) -> None:
        """Compile the model alone from now on."""
        told = "trainer.compile: the model alone is compiled, the step as a whole cannot be traced: %s"
        log.info(told, first_line(error))
        self._make, self._watched = self._apart
        self.make = self._make


def can_change(guards: Sequence[Any]) -> list[bool]:
    """Say of each thing that torch looks at before a step whether it may have changed since it was compiled.

    Modules, and what torch and Python define, do not, under the names they were given there: looking at them takes 4 %
    of a tiny step. All that a model, a task, a loss or a variable of a module holds may.
    """
    return [not (guard.is_global and guard.has_value and _is_lasting(guard.name, guard.value)) for guard in guards]


def _is_lasting(place: str, value: object) -> bool:
    name: str = re.findall(r"\w+", place)[-1]
    if isinstance(value, ModuleType):
        return name.startswith("__import_") or name == value.__name__.split(".")[-1]
    if not isinstance(value, (FunctionType, BuiltinFunctionType, type)):
        return False
    return name == value.__name__ and str(value.__module__).split(".")[0] in ("torch", "builtins")


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """Return a gradient that lies in memory as its parameter does; kernels rely on what a backward pass leaves so."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else with_parts(value, _detached)


def _kept(output: StepOutput) -> StepOutput:
    """Return `output` with numbers that the next replay does not write over. Outputs are used before it."""
    weight = output.weight.clone() if isinstance(output.weight, Tensor) else output.weight
    scalars = {name: value.clone() for name, value in output.scalars.items()}
    return StepOutput(output.loss.clone(), output.outputs, output.targets, weight, scalars)
