"""How several processes make one step, so that it is the step that one process would make of the whole batch.

Each computes the gradient of its share of a batch; DistributedDataParallel averages them while they are computed.
Shares may differ in rows, which all know, and rows in weight (class weights, ignored targets), so during each backward
pass the processes add up what their losses weigh, too, and with it the loss to log and whether anybody wants to stop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.data.loading.share import SharedBatch
from src.trainer.criterion import TermWeights, Weight
from src.trainer.optimizers import drop_gradients, parameters_of
from src.trainer.parallel.replica import Replica, TaskModule, Told
from src.trainer.parallel.shared_meters import SharedOutput
from src.trainer.settings import TrainerSettings
from src.trainer.step import Step, Update, missing_factor, needs_closure
from src.trainer.task import StepOutput, Task
from src.utils.device import to_device
from src.utils.errors import ConfigError
from src.utils.processes.ranks import Ranks

LAG = 2
"""On a GPU, steps after which a wish to stop is looked at: reading it at once would wait for the device."""


class SharedStep(Step):
    """Makes optimizer updates together with other processes.

    Args:
        task: As of `Step`.
        model: Whose parameters are kept equal.
        forward: The model, or its compiled form.
        optimizers: By name.
        settings: Of the trainer.
        device: Where batches go.
        take: Called with what the whole batch gave, and this process's share of it.
        ranks: The processes.
        wants_to_stop: Asked once for each batch.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        forward: Callable[..., Any],
        optimizers: Mapping[str, Optimizer],
        settings: TrainerSettings,
        device: torch.device,
        take: Callable[[StepOutput, Any], None],
        ranks: Ranks,
        wants_to_stop: Callable[[], bool],
    ) -> None:
        super().__init__(task, forward, optimizers, settings, device, take)
        self.ranks, self.model, self.wants_to_stop = ranks, model, wants_to_stop
        self._settings = settings.parallel_settings
        self._is_host = device.type == "cpu"
        self._row_weight: Weight | None = None
        """What a row weighs, about: a power of two, so that no result depends on it."""
        self._must_stop, self._is_agreed = False, False
        self._on_their_way: deque[tuple[Tensor, Any]] = deque()
        self._own_rows = 1.0
        self._every, self._has_buffers = [*model.parameters()], any(True for _ in model.buffers())
        self._trained: list[bool] = []
        if hasattr(task, "update"):
            ranks.copy_from_main([parameter.detach() for parameter in self._every])
            for optimizer in optimizers.values():
                optimizer.register_step_pre_hook(self._average_gradients)

    def _choose(self, settings: TrainerSettings) -> tuple[Update, Update]:
        """Return how updates are made.

        Raises:
            ConfigError: An optimizer asks for the loss when it likes; the processes could not keep pace. Or there is
                none, at whose steps they could agree.
        """
        super()._choose(settings)
        if not self.optimizers:
            raise ConfigError(
                "optimizer: is missing; a task that changes weights by itself trains in one process only: the others "
                "would not know of it"
            )
        if any(map(needs_closure, self.optimizers.values())):
            names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers.values())
            raise ConfigError(
                f"optimizer: {names} asks for the loss several times a step; it trains in one process only"
            )
        update = self._update_by_task if hasattr(self.task, "update") else self._update
        return update, update

    def agree(self, wants_to_stop: Any) -> bool:
        """Return whether all stop: what was exchanged with the newest batch, or is exchanged now where none was."""
        if not self._is_agreed:
            return bool(self.ranks.largest(bool(wants_to_stop)))
        self._is_agreed = False
        return self._must_stop

    def meet(self, output: StepOutput, given: SharedBatch) -> SharedOutput:
        """Return what the whole batch gave, of which `output` is this process's share."""
        if isinstance(output.weight, TermWeights):
            return self._meet_terms(output, output.weight, given)
        return self._whole(self._sum(self._told(output, given)), output, given)

    def _sum(self, told: Told) -> Any:
        """Return the sum over the processes, in a message of its own."""
        return self.ranks.sum(torch.as_tensor(told, dtype=torch.float64))

    def _told(self, output: StepOutput, given: SharedBatch) -> Told:
        """Return what to add up over the processes, where the loss has one weight."""
        own: Weight = 0.0 if given.num_own == 0 else 1.0 if is_sum(output) else output.weight  # type: ignore[assignment]
        return self._masses(own, [output.loss, *output.scalars.values()])

    def _whole(self, sums: Tensor, output: StepOutput, given: SharedBatch) -> SharedOutput:
        """Return what the whole batch gave, from what was told."""
        total, masses = self._heard(sums)
        weight, divisor = (0.0, 1.0) if is_sum(output) else (total, total)
        loss, *scalars = self._means(masses, divisor)
        named = dict(zip(output.scalars, scalars, strict=True))
        return SharedOutput(loss, output.outputs, output.targets, weight, named, given.num_rows, given.num_own == 0)

    def _means(self, masses: Sequence[Weight], divisor: Weight) -> list[Tensor]:
        return [torch.as_tensor(mass / divisor, dtype=torch.float64, device=self.device) for mass in masses]

    def _meet_terms(self, output: StepOutput, own: TermWeights, given: SharedBatch) -> SharedOutput:
        """Do what `meet` does where each term of the loss has its own weight; all else counts by rows."""
        others = {name: value for name, value in output.scalars.items() if name not in own.factors}
        values = [own.rest(output.loss, output.scalars), *others.values()]
        total, masses = self._heard(self._sum(self._masses(own.rows if given.num_own else 0.0, values)))
        loss, *scalars = self._means(masses, total)
        named = dict(zip(others, scalars, strict=True))
        weights = own.tensor(self.device)
        terms = torch.stack([output.scalars[name].detach().double() for name in own.factors])
        is_sum = torch.tensor([type(each) is float and each == 0.0 for each in own.terms.values()]).to(self.device)
        sums = self.ranks.sum(torch.cat([weights, terms * torch.where(is_sum, 1.0, weights[1:])]) * (given.num_own > 0))
        whole = own.of(sums[: len(weights)])
        means = sums[len(weights) :] / torch.where(sums[1 : len(weights)] > 0, sums[1 : len(weights)], 1.0)
        for (name, factor), value in zip(own.factors.items(), means, strict=True):
            loss, named[name] = loss + factor * value, value
        in_order = {name: named[name] for name in output.scalars}
        return SharedOutput(loss, output.outputs, output.targets, whole, in_order, given.num_rows, given.num_own == 0)

    def _weigh_ahead(self, batches: Sequence[SharedBatch]) -> TermWeights | None:
        """Return what all shares of `batches` weigh, where each term of the loss has its own weight."""
        if len(batches) == 1:
            return None  # meeting tells
        weights = self.task.weigh_ahead([given.batch for given in batches], self.device)
        if weights is None:
            return None
        own = self.task.weigh_ahead([given.batch for given in batches if given.num_own], self.device)
        tensor = weights.tensor(self.device)
        return weights.of(self.ranks.sum(torch.zeros_like(tensor) if own is None else own.tensor(self.device)))

    def _masses(self, weight: Weight, values: Sequence[Tensor]) -> Told:
        """Return [2 + K]: whether this process wants to stop, the weight, and each value times it."""
        wish = float(self.wants_to_stop())
        if self._is_host:
            weight = float(weight)
            return [wish, weight, *(value.item() * weight if weight else 0.0 for value in values)]
        weights = torch.as_tensor(weight, dtype=torch.float64, device=self.device)
        several = torch.stack([value.detach().double() for value in values]) * weights
        wishes = torch.tensor([wish], dtype=torch.float64).to(self.device, non_blocking=True)
        return torch.cat([wishes, weights[None], torch.where(weights > 0, several, 0.0)])

    def _heard(self, sums: Tensor) -> tuple[Weight, Sequence[Weight]]:
        """Return the sums over all processes of the weight and of the values times it, and note the wishes."""
        if self._is_host:
            wishes, weight, *masses = sums.tolist()
            self._must_stop, self._is_agreed = wishes > 0, True
            return weight or math.nan, masses
        self._send_to_host(sums[:1])
        return sums[1].double(), sums[2:].double().unbind()

    def _send_to_host(self, wishes: Tensor) -> None:
        """Look at the wishes of an earlier batch: they have arrived, so nothing is waited for."""
        arriving, arrived = torch.empty(1, dtype=wishes.dtype, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        arriving.copy_(wishes, non_blocking=True)
        arrived.record()
        self._on_their_way.append((arriving, arrived))
        if len(self._on_their_way) > LAG:
            old, event = self._on_their_way.popleft()
            with self.ranks.waiting():
                event.synchronize()  # device sync
            self._must_stop = self._must_stop or bool(old[0] > 0)
        self._is_agreed = True

    def _fitting_gradients(self, batches: Sequence[SharedBatch]) -> tuple[Weight, Tensor]:
        """Make the gradients of the mean loss over all rows of `batches`, those of other processes included.

        What the shares of the others weigh comes with the gradients, so these go by what they should weigh; the factor
        returned makes them exact.
        """
        self._renew_replica()
        self._share_buffers()
        drop_gradients(self.optimizers)
        self._mark("optimizer")
        weights: list[Weight | TermWeights] = []
        total, num_rows = self._weigh_ahead(batches), sum(given.num_rows for given in batches)
        losses: list[Tensor] = []
        for number, given in enumerate(batches, start=1):
            batch = to_device(given.batch, self.device)
            self._mark("copy")
            with nullcontext() if number == len(batches) else self._replica.no_sync():
                with self.amp():
                    loss, output = self._replica(batch)
                self._mark("forward")
                if isinstance(output.weight, TermWeights):  # no one factor could make its gradients exact
                    whole = self.meet(output, given)
                    known = whole.weight if len(batches) == 1 else total
                    assert not isinstance(known, float | Tensor)
                    loss = output.weight.scaled(loss, output.scalars, known) * float(given.num_own > 0)
                    self._backward(loss, 1.0, None)
                else:
                    told = self._told(output, given)
                    share = self._own_share(told[1], output, num_rows)
                    sums = self._backward(loss, share, told if number == len(batches) else None)
                    whole = self._whole(self._sum(told) if sums is None else sums, output, given)
                self._mark("backward")
                self.take(whole, batch)
                self._mark("metrics")
            weights.append(whole.weight)
            losses.append(loss.detach())
        return missing_factor(self._expected(num_rows), weights), sum(losses[1:], start=losses[0])

    def _backward(self, loss: Tensor, share: Weight, told: Told | None) -> Tensor | None:
        """Make gradients of `loss` times `share`, and return the sum of `told` if it could travel with them."""
        seed = torch.as_tensor(share * self.ranks.world_size, dtype=loss.dtype, device=loss.device)  # a mean is taken
        with self.ranks.waiting():
            sums: Tensor | None = self._replica.backward(loss, self.scaler.scale(seed), told)
        return sums

    def _own_share(self, weight: Weight, output: StepOutput, num_rows: int) -> Weight:
        """Return the factor of a loss that weighs `weight`, in a step of `num_rows`."""
        if is_sum(output):
            return weight
        if self._row_weight is None:
            per_row = self.ranks.sum(torch.as_tensor(weight, dtype=torch.float64).clone()) / num_rows
            self._row_weight = power_of_two(float(per_row) if self._is_host else per_row)
        return weight / self._expected(num_rows)

    def _expected(self, num_rows: int) -> Weight:
        """Return what so many rows should weigh."""
        return float(num_rows) * (1.0 if self._row_weight is None else self._row_weight)

    def _renew_replica(self) -> None:
        """Let DDP know when other parameters are trained than before, as in a phase that freezes some."""
        trained = [parameter.requires_grad for parameter in self._every]
        if trained != self._trained:
            self._trained = trained
            module = TaskModule(self.task, self.model, self.forward)
            self._replica: Any = Replica(module, self._settings, self.ranks)

    def _share_buffers(self) -> None:
        """Begin a pass with the buffers of rank 0."""
        if self._has_buffers:
            self.ranks.copy_from_main(list(self.model.buffers()))

    def _update_by_task(self, batches: Sequence[SharedBatch]) -> None:
        """Let the task make its update; before an optimizer steps, it averages gradients over the processes."""
        for given in batches:
            self._share_buffers()
            batch = to_device(given.batch, self.device)
            self._mark("copy")
            self._own_rows = given.num_own / given.num_rows
            with self.amp():
                output = self.task.update(self.forward, batch, self._named)  # type: ignore[attr-defined]
            self._mark("update")
            self.take(self.meet(output, given), batch)
            self._mark("metrics")

    def _average_gradients(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Replace the gradients of an optimizer by their mean over all rows."""
        parameters = parameters_of(optimizer)
        for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
            gradients = [each.grad for each in parameters if each.grad is not None and each.dtype == dtype]
            if gradients:
                flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) * self._own_rows
                parts = self.ranks.sum(flat).split([gradient.numel() for gradient in gradients])
                for gradient, part in zip(gradients, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))


def is_sum(output: StepOutput) -> bool:
    """Return whether the loss of a batch is a sum, which counts once however many rows there are."""
    return type(output.weight) is float and output.weight == 0.0


def power_of_two(value: Weight) -> Weight:
    """Return the power of two near `value`; 1 where that is 0 or nan."""
    if isinstance(value, Tensor):
        return torch.where(value > 0, torch.exp2(torch.round(torch.log2(value))), 1.0)
    return 2.0 ** round(math.log2(value)) if value > 0 else 1.0
