"""A run that was stopped and resumed ends as if it had not been, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from src.trainer.checkpoints.resume import open_checkpoint
from src.trainer.hooks import Hook
from src.trainer.trainer import Trainer
from src.utils.errors import CheckpointError
from tests.trainer_kit import assert_same_weights, make_trainer, weights


def run_straight(folder: Path, **options: object) -> tuple[dict[str, torch.Tensor], str]:
    trainer = make_trainer(folder, **options)  # type: ignore[arg-type]
    trainer.fit()
    trainer.logger.close()
    return weights(trainer), (folder / "metrics.csv").read_text()


def run_with_stops(
    folder: Path, stops: list[int], workers: list[int], **options: object
) -> tuple[dict[str, torch.Tensor], str]:
    """Stop after each of `stops`, and resume with the streams seeded otherwise: all must come from the file."""
    for turn, stop in enumerate([*stops, None]):
        num_workers = workers[turn % len(workers)]
        trainer = make_trainer(folder, kill_at=stop, num_workers=num_workers, **options)  # type: ignore[arg-type]
        if turn > 0:
            torch.manual_seed(1000 + turn)
            trainer.load_state_dict(open_checkpoint(folder)[1])
        trainer.fit()
        trainer.logger.close()
        assert (trainer.signal is not None) == (stop is not None)
    return weights(trainer), (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("stops", [[3], [7], [14, 16], [1, 20, 34]])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, stops: list[int]) -> None:
    straight, curve = run_straight(tmp_path / "a", ema_decay=0.9)
    stopped, resumed_curve = run_with_stops(tmp_path / "b", stops, [0], ema_decay=0.9)
    assert_same_weights(straight, stopped)
    assert curve == resumed_curve


@pytest.mark.parametrize("schedule", ["OneCycleLR", "CosineAnnealingLR", "ReduceLROnPlateau"])
def test_resume_is_exact_with_accumulation_clipping_and_every_kind_of_schedule(tmp_path: Path, schedule: str) -> None:
    options = {"schedule": schedule, "accumulate_steps": 2, "max_grad_norm": 0.5, "num_steps": 20}
    straight, curve = run_straight(tmp_path / "a", **options)
    stopped, resumed_curve = run_with_stops(tmp_path / "b", [2, 9, 12], [0], **options)
    assert_same_weights(straight, stopped)
    assert curve == resumed_curve


def test_resume_is_exact_with_workers_and_when_their_number_changes(tmp_path: Path) -> None:
    straight, curve = run_straight(tmp_path / "a", epochs=2)
    stopped, resumed_curve = run_with_stops(tmp_path / "b", [5], [2, 0], epochs=2)
    again, _ = run_with_stops(tmp_path / "c", [5], [0, 1], epochs=2)
    assert_same_weights(straight, stopped)
    assert_same_weights(straight, again)
    assert curve == resumed_curve


def test_resume_is_exact_with_evaluation_and_saving_by_steps(tmp_path: Path) -> None:
    options = {"eval_every_steps": 5, "save_every_steps": 4, "max_steps": 23, "epochs": None}
    straight, curve = run_straight(tmp_path / "a", **options)
    stopped, resumed_curve = run_with_stops(tmp_path / "b", [5, 18], [0], **options)
    assert_same_weights(straight, stopped)
    assert curve == resumed_curve


def test_an_extended_run_equals_one_that_was_planned_longer(tmp_path: Path) -> None:
    straight, curve = run_straight(tmp_path / "a", schedule="none", epochs=5)
    run_straight(tmp_path / "b", schedule="none", epochs=3)
    trainer = make_trainer(tmp_path / "b", schedule="none", epochs=5)
    trainer.load_state_dict(open_checkpoint(tmp_path / "b")[1])
    trainer.fit()
    assert_same_weights(straight, weights(trainer))
    assert curve == (tmp_path / "b" / "metrics.csv").read_text()


def test_patience_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    def stopping_epoch(stops: list[int], folder: Path) -> int:
        for turn, stop in enumerate([*stops, None]):
            trainer = make_trainer(folder, kill_at=stop, schedule="none", epochs=40, patience=3, min_delta=10.0)
            if turn > 0:
                trainer.load_state_dict(open_checkpoint(folder)[1])
            trainer.fit()
        return trainer.progress.epoch

    assert stopping_epoch([], tmp_path / "a") == 4  # the first evaluation, and three without an improvement
    assert stopping_epoch([10, 15, 22], tmp_path / "b") == 4


def test_an_epoch_of_which_only_the_end_was_left_logs_no_speed(tmp_path: Path) -> None:
    class Speeds(Hook):
        of: dict[int, float | None] = {}

        def on_log(self, trainer: Trainer, values: Mapping[str, float], epoch: int | None = None) -> None:
            if epoch is not None:
                self.of[epoch] = values.get("time/samples_per_s")

    make_trainer(tmp_path, kill_at=7, epochs=2).fit()  # after the last of the first pass's batches
    trainer = make_trainer(tmp_path, epochs=2, hooks=(Speeds(),))
    trainer.load_state_dict(open_checkpoint(tmp_path)[1])
    trainer.fit()
    assert Speeds.of[1] is None
    assert Speeds.of[2]


def test_a_run_that_is_finished_is_left_as_it_is(tmp_path: Path) -> None:
    straight, curve = run_straight(tmp_path / "a")
    trainer = make_trainer(tmp_path / "a")
    trainer.load_state_dict(open_checkpoint(tmp_path / "a")[1])
    trainer.fit()
    assert_same_weights(straight, weights(trainer))
    assert curve == (tmp_path / "a" / "metrics.csv").read_text()


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    run_straight(tmp_path / "a", epochs=1)
    state = open_checkpoint(tmp_path / "a")[1]
    state["optimizer"]["type"] = "SGD"
    with pytest.raises(CheckpointError, match=r"optimizer does not fit this run: is of SGD there, AdamW here"):
        make_trainer().load_state_dict(state)


def test_a_checkpoint_of_another_model_names_the_differences_and_changes_nothing(tmp_path: Path) -> None:
    run_straight(tmp_path / "a", epochs=1)
    state = open_checkpoint(tmp_path / "a")[1]
    state["model"]["0.weight"] = torch.zeros(16, 7)
    del state["model"]["4.bias"]
    trainer = make_trainer()
    before = weights(trainer)
    with pytest.raises(CheckpointError, match=r"4.bias is missing there; 0.weight is \[16, 7\] there, \[16, 6\] here"):
        trainer.load_state_dict(state)
    assert_same_weights(before, weights(trainer))


def test_a_checkpoint_with_one_difference_says_so(tmp_path: Path) -> None:
    run_straight(tmp_path, epochs=1)
    state = open_checkpoint(tmp_path)[1]
    del state["model"]["4.bias"]
    with pytest.raises(CheckpointError, match=r"of another model, 1 difference: 4.bias is missing there\. Nothing"):
        make_trainer().load_state_dict(state)
