"""Who chooses the values of the next trial: chance, or Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from src.config.tune import Distribution, TuneSettings
from src.sweep.record import CRASHED, PRUNED, Trial
from src.sweep.space import Values, draw, rounded
from src.utils.errors import ConfigError
from src.utils.packages import not_installed


class Draws(Protocol):
    """Chooses values."""

    def ask(self, number: int) -> Values:
        """Return the values of a new trial."""

    def tell(self, trial: Trial, measured: Sequence[float]) -> None:
        """Take in how a trial ended, and the metric after each of its evaluations."""


class RandomDraws:
    """Draws independently; what was found changes nothing."""

    def __init__(self, tune: TuneSettings, seed: int) -> None:
        self.tune, self.seed = tune, seed

    def ask(self, number: int) -> Values:
        return draw(self.tune, self.seed, number)

    def tell(self, trial: Trial, measured: Sequence[float]) -> None:
        del trial, measured


class OptunaDraws:
    """Bayesian search: the tree-structured Parzen estimator (Bergstra et al. 2011), https://optuna.org.

    Args:
        tune: The section; it holds no grid.
        seed: Of the sampler.
        mode: Whether a smaller or a larger value is better: `min` or `max`.
    """

    def __init__(self, tune: TuneSettings, seed: int, mode: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.tune, self.mode = tune, mode
        sampler = optuna.samplers.TPESampler(seed=seed)
        self.study = optuna.create_study(direction={"min": "minimize", "max": "maximize"}[mode], sampler=sampler)
        self.distributions = {key: self._distribution(each) for key, each in tune.space.items()}
        self.asked: dict[int, Any] = {}

    def ask(self, number: int) -> Values:
        asked = self.asked[number] = self.study.ask(self.distributions)
        return {key: self._value(each, asked.params[key]) for key, each in self.tune.space.items()}

    def tell(self, trial: Trial, measured: Sequence[float]) -> None:
        import optuna

        states = optuna.trial.TrialState
        failed = trial.outcome == CRASHED or not measured
        best = None if failed else (min if self.mode == "min" else max)(measured)
        if trial.number in self.asked:
            asked = self.asked.pop(trial.number)
            for evaluation, value in enumerate(measured, start=1):
                asked.report(value, evaluation)
            if failed or trial.outcome == PRUNED:
                self.study.tell(asked, state=states.FAIL if failed else states.PRUNED)
            else:
                self.study.tell(asked, best)
            return
        state = states.FAIL if failed else states.PRUNED if trial.outcome == PRUNED else states.COMPLETE
        known = optuna.trial.create_trial(
            params={key: self._parameter(each, trial.values[key]) for key, each in self.tune.space.items()},
            distributions=self.distributions,
            value=best if state != states.FAIL else None,
            intermediate_values=dict(enumerate(measured, start=1)),
            state=state,
        )
        self.study.add_trial(known)

    def _distribution(self, each: Distribution) -> Any:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if each.kind == "choice":  # by position: a value may be a list
            return CategoricalDistribution(range(len(each.values)))
        low, high = each.values
        if each.kind == "randint":
            return IntDistribution(low, high - 1)
        return FloatDistribution(low, high, log=each.kind == "loguniform")

    def _value(self, each: Distribution, parameter: Any) -> Any:
        if each.kind == "choice":
            return each.values[parameter]
        return parameter if each.kind == "randint" else rounded(parameter, *each.values)

    def _parameter(self, each: Distribution, value: Any) -> Any:
        return each.values.index(value) if each.kind == "choice" else value


def check_installed(tune: TuneSettings) -> None:
    """Say what to install before anything is begun.

    Raises:
        ConfigError: Ray, or Optuna where it is asked for, is not installed.
    """
    if find_spec("ray") is None:
        raise ConfigError(not_installed("tune:", "ray"))
    if tune.search == "optuna" and find_spec("optuna") is None:
        raise ConfigError(f"{not_installed('tune.search: optuna', 'optuna')}, or search: random")


def make_draws(tune: TuneSettings, seed: int, mode: str, known: Sequence[tuple[Trial, Sequence[float]]]) -> Draws:
    """Return who chooses the values; `known` are the trials that ended before, with what they measured."""
    draws: Draws = RandomDraws(tune, seed) if tune.search == "random" else OptunaDraws(tune, seed + len(known), mode)
    for trial, values in known:
        draws.tell(trial, values)
    return draws
