"""A project written for pytorch-template runs as it is. Rules have their numbers in docs/migrating.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import export
import predict
import test as test_script
import train as train_script
from src.compat.__main__ import as_yaml
from src.compat.checkpoint import load_theirs
from src.compat.detect import is_classical
from src.compat.dialect import modernised, patience
from src.compat.project import open_project
from src.compat.standins.base import BaseDataLoader, BaseTrainer
from src.compat.their_config import ConfigParser, read_json
from src.config.load import load_config
from src.logger.run_index import list_runs
from src.utils.errors import CheckpointError, ConfigError, DataError
from src.utils.paths import PROJECT_ROOT
from tests.compat_kit import CONFIG, train_as_the_original, write_config, write_project


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in the current folder, forgotten afterwards."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def train(*words: str | Path) -> Path:
    """Train and return the newest run directory."""
    assert train_script.main([str(word) for word in words]) == 0
    return max(Path("saved/models/Blobs").iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name))


def epoch_of(path: Path) -> int:
    return int(load_theirs(path)["epoch"])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_theirs(path)["state_dict"])


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def save_as_the_original(path: Path, epochs: int, **changes: Any) -> None:
    """Train with the plain loop and save its checkpoint, the pickled config object included."""
    model, optimizer = train_as_the_original(epochs)
    module = types.ModuleType("parse_config")
    parser = type("ConfigParser", (), {"__module__": "parse_config"})
    module.ConfigParser = parser  # type: ignore[attr-defined]
    sys.modules["parse_config"] = module
    config = parser()
    held = OrderedDict({**CONFIG, **changes.pop("config", {})})
    config.__dict__.update(_config=held, resume=None, _save_dir=Path("saved") / "x", log_levels={0: 30})
    best = np.float64(0.75)
    state = {"arch": "BlobModel", "epoch": epochs, "state_dict": model.state_dict(), "config": config}
    torch.save({**state, "optimizer": optimizer.state_dict(), "monitor_best": best, **changes}, path)
    del sys.modules["parse_config"]


# The command line and the config (1 to 7).


def test_rule_1_a_config_or_a_checkpoint_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Add '-c config\.json'"):
        train_script.main(["--project", "."])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    train("-c", "config.json", "-d", "", "trainer.epochs=1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_rule_2_a_new_config_replaces_whole_sections() -> None:
    run = train("-c", "config.json", "trainer.epochs=1")
    Path("fine.json").write_text('{"arch": {"type": "BlobModel", "args": {}}, "trainer": {"epochs": 2}}')
    tuned = train("-r", run / "model_best.pth", "-c", "fine.json")
    config = read_json(tuned / "config.json")
    assert tuned != run and config["trainer"] == {"epochs": 2, "monitor": "off"}
    assert config["optimizer"] == CONFIG["optimizer"]  # a section that the new file does not have stays


@pytest.mark.parametrize("flags", [("--lr", "--bs"), ("--learning_rate", "--batch_size")])
def test_rule_3_options(flags: tuple[str, str]) -> None:
    run = train("-c", "config.json", flags[0], "0.5", flags[1], "8", "trainer;epochs=1", "arch.args.num_classes=3")
    config = read_json(run / "config.json")
    assert config["optimizer"]["args"]["lr"] == 0.5 and config["data_loader"]["args"]["batch_size"] == 8
    assert weights(run / "model_best.pth")["fc.bias"].shape == (3,)
    with pytest.raises(ConfigError, match=r"#1 arch;arg;x: the config has no section arch\.arg; did you mean `args`"):
        train("-c", "config.json", "arch;arg;x=1")


def test_rule_4_json_is_read_as_json_and_unknown_keys_reach_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.json").write_text('{"b": 1e-4,\t"a": NaN, "c": Infinity, "b": 2e-4}')
    odd = read_json(Path("odd.json"))
    assert list(odd) == ["b", "a", "c"] and odd["b"] == 2e-4 and odd["c"] == float("inf")
    Path("odd.json").write_text('{"arch": 1,\n "b": }')
    with pytest.raises(ConfigError, match=r"odd\.json:2:7: not JSON"):
        train_script.main(["-c", "odd.json"])
    own = {"vocabulary": {"words": 31}, "trainer": {"own_key": "kept", "epochs": 1}}
    path = write_config(Path("c.json"), arch={"type": "KnowingModel"}, **own)
    run = train("-c", path)
    assert "the vocabulary is 31 kept" in capsys.readouterr().out
    assert read_json(run / "config.json")["vocabulary"] == {"words": 31}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arch": {"type": "BlobModle"}}, "arch: no `BlobModle` in model.model; did you mean `BlobModel`?"),
        ({"arch": {"type": "system"}}, "arch: system of model.model is no class or function of the project"),
        ({"loss": "nll_los"}, "loss: no `nll_los` in model.loss, torch.nn; did you mean `nll_loss`?"),
        ({"metrics": ["acuracy"]}, "metrics: no `acuracy` in model.metric; did you mean `accuracy`?"),
        ({"optimizer": {"type": "Adm"}}, "optimizer: no `Adm` in torch.optim"),
        ({"lr_scheduler": {"type": "load"}}, "lr_scheduler: no `load` in torch.optim.lr_scheduler"),
        ({"arch": {"args": {"width": 3}}}, "arch.args.width: unknown argument; BlobModel takes num_classes"),
    ],
)
def test_rule_5_names_mean_what_they_mean_there(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        train("-c", write_config(Path("c.json"), **changes))
    assert told in str(error.value)
    assert not Path("saved").exists()


def test_one_report_holds_all_mistakes_with_lines_and_suggestions() -> None:
    wrong: dict[str, Any] = json.loads(json.dumps(CONFIG))
    wrong["arch"]["type"], wrong["loss"] = "BlobModle", "nll_los"
    wrong["optimizer"]["args"] = {"lrr": 0.1}
    wrong["trainer"] = {"epochs": "3", "montor": "min val_loss"}
    Path("wrong.json").write_text(json.dumps(wrong, indent="\t"))
    with pytest.raises(ConfigError) as error:
        train("-c", "wrong.json")
    text = Path("wrong.json").read_text().splitlines()
    lines = str(error.value).splitlines()
    assert len(lines) == 5, lines
    for key, told in {
        "type": "arch: no `BlobModle` in model.model; did you mean `BlobModel`?",
        "loss": "loss: no `nll_los` in model.loss, torch.nn; did you mean `nll_loss`?",
        "lrr": "optimizer.args.lrr: unknown argument; did you mean `lr`?",
        "montor": "trainer.montor: unknown key; did you mean `monitor`?",
        "epochs": "trainer.epochs: a whole number above 0 is needed, found '3'; leave out the quotes",
    }.items():
        number, line = next((n, line) for n, line in enumerate(text, start=1) if f'"{key}": ' in line)
        assert f"wrong.json:{number}:{line.index(chr(34)) + 1} {told}" in lines


def test_a_misspelt_key_is_never_silent_and_an_own_key_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"^command line #1 trainer\.montor: unknown key; did you mean `monitor`\?$"):
        train("-c", "config.json", "trainer.montor=min loss")
    path = write_config(Path("c.json"), optimizers=["mine"], arch_2={"width": 3}, trainer={"own_key": 1, "epochs": 1})
    assert train_script.main(["-c", str(path), "--check"]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1, warnings
    assert warnings[0].endswith("optimizers: is kept for the project's own code, or did you mean `optimizer`?")


def test_print_config_prints_what_would_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_script.main(["-c", "config.json", "trainer.epochs=7", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config == {**CONFIG, "trainer": {**CONFIG["trainer"], "epochs": 7}}
    with pytest.raises(ConfigError, match=r"--folds: train\.py does not know it for a project of pytorch-template"):
        train_script.main(["-c", "config.json", "--folds", "3"])


def test_rule_5_an_argument_comes_from_one_place() -> None:
    config = ConfigParser({"arch": {"type": "OrderedDict", "args": {"a": 1}}})
    module = types.SimpleNamespace(OrderedDict=OrderedDict)
    assert config.init_obj("arch", module, b=2) == {"a": 1, "b": 2} == config.init_ftn("arch", module)(b=2)
    with pytest.raises(ConfigError, match="Overwriting kwargs given in config file is not allowed"):
        config.init_obj("arch", module, a=2)


@pytest.mark.parametrize("schedule", [None, {}, "null"])
def test_rule_6_what_may_be_left_out(schedule: Any) -> None:
    changes = {"lr_scheduler": json.loads(schedule) if isinstance(schedule, str) else schedule}
    path = write_config(Path("c.json"), **changes)
    config = read_json(path)
    config["lr_scheduler"] = schedule if schedule != "null" else None
    config["trainer"] = {"epochs": 1, "early_stop": 0}
    path.write_text(json.dumps(config))
    run = train("-c", path)
    assert not (run / "model_best.pth").exists()  # monitor is off
    assert not list(Path("saved/log").rglob("events*"))
    assert [patience({"early_stop": stop}) for stop in (0, -1, None, float("inf"), 10)] == [0, 0, 0, 0, 10]


def test_rule_7_old_spellings_are_translated() -> None:
    old: dict[str, Any] = json.loads(json.dumps(CONFIG))
    del old["n_gpu"], old["trainer"]["monitor"], old["trainer"]["save_period"], old["trainer"]["tensorboard"]
    old |= {"cuda": True, "gpu": 0, "optimizer_type": "SGD", "optimizer": {"lr": 0.1}, "lr_scheduler_type": "StepLR"}
    old |= {"lr_scheduler": {"step_size": 3}, "visualization": {"tensorboardX": True, "log_dir": "x"}}
    old["valid_loader"] = old["data_loader"]
    old["trainer"] |= {"save_freq": 5, "monitor": "val_loss", "monitor_mode": "min"}
    new, notes = modernised(old, "config.json")
    assert new["n_gpu"] == 1 and new["optimizer"] == {"type": "SGD", "args": {"lr": 0.1}}
    assert new["lr_scheduler"] == {"type": "StepLR", "args": {"step_size": 3}}
    assert new["trainer"]["save_period"] == 5 and new["trainer"]["monitor"] == "min val_loss"
    assert new["trainer"]["tensorboard"] is True and "valid_data_loader" in new and len(notes) == 7
    assert modernised(new, "again") == (new, [])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arch": "BlobModel", "model": {}}, 'arch: write {"type": NAME, "args": {...}}, found \'BlobModel\''),
        ({"optimizer_G": {"type": "Adam"}}, "optimizer_G: several of a kind need a task of their own"),
        ({"validation": {"validation_split": 0.1}}, "validation: write data_loader.args.validation_split"),
        ({"trainer": {"monitor": "val_loss"}}, "trainer.monitor: 'val_loss'; write 'min val_loss'"),
        ({"trainer": {"monitor": "least val_loss"}}, "write 'min val_loss', 'max val_accuracy' or 'off'"),
        ({"trainer": {"epochs": "10"}}, "trainer.epochs: a whole number above 0 is needed, found '10'"),
        ({"trainer": {"len_epoch": 5}}, "trainer.len_epoch: epochs of a fixed length are trainer.max_steps"),  # rule 21
        ({"name": None}, "name: a name of the experiment is needed"),
    ],
)
def test_rule_7_or_refused_with_the_right_spelling(changes: dict[str, Any], told: str) -> None:
    changes["loss"] = ""
    with pytest.raises(ConfigError) as error:
        train_script.main(["-c", str(write_config(Path("c.json"), **changes))])
    assert told in str(error.value) and "loss: name a function of model/loss.py" in str(error.value)  # all at once
    assert not Path("saved").exists()


def test_a_config_of_ours_in_json_is_not_taken_for_one_of_theirs(project: Path) -> None:
    (project / "ours.json").write_text('{"name": "x", "model": {"type": "x", "args": {"arch": 1}}}')
    (project / "ours.yaml").write_text("arch: 1")
    assert not is_classical(["-c", "ours.json"]) and not is_classical(["-c", "ours.yaml", "a.b=c.pt", "a.b=c.pth"])
    assert is_classical(["-c", "config.json"]) and is_classical(["-r", "x.pth"]) and is_classical(["--project=."])


def test_check_builds_everything_and_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_script.main(["-c", "config.json", "--check"]) == 0
    assert "data     train 60, val 15 rows" in capsys.readouterr().out
    with pytest.raises(DataError, match="the model BlobModel fails on a batch"):
        text = (project / "model" / "model.py").read_text().replace("nn.Linear(64", "nn.Linear(65")
        (project / "model" / "model.py").write_text(text)
        for name in [name for name in sys.modules if name.split(".")[0] == "model"]:
            del sys.modules[name]
        train_script.main(["-c", "config.json", "--check"])
    assert not Path("saved").exists()


# Training (8 to 14).


def test_rules_8_9_11_12_the_weights_are_those_of_the_original_bit_by_bit() -> None:
    """Seeds, split, order of rows, order of operations and schedule: one difference and the bits differ."""
    run = train("-c", "config.json")
    model, optimizer = train_as_the_original(epochs=3)
    assert equal(weights(run / "checkpoint-epoch3.pth"), model.state_dict())
    ours = load_theirs(run / "checkpoint-epoch3.pth")["optimizer"]
    assert ours["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_rule_9_which_rows_are_held_out() -> None:
    rows = torch.utils.data.TensorDataset(torch.arange(50))
    expected = np.arange(50)
    np.random.seed(0)
    np.random.shuffle(expected)
    for split in (0.3, 15):
        loader = BaseDataLoader(rows, 4, True, split, 0)
        valid = loader.split_validation()
        assert valid is not None and loader.n_samples == 35 == len(loader.sampler)  # type: ignore[arg-type]
        assert {int(row) for (batch,) in valid for row in batch} == set(expected[:15].tolist())
        assert [int(row) for (batch,) in valid for row in batch] != expected[:15].tolist()  # drawn in a new order
    assert BaseDataLoader(rows, 4, True, 0.0, 0).split_validation() is None
    with pytest.raises(ConfigError, match="both parts need at least one row"):
        BaseDataLoader(rows, 4, True, 50, 0)


@pytest.mark.parametrize("split", [75, 5000, 1.5, -3])
def test_rule_9_a_split_that_leaves_no_rows_is_told_at_its_place(split: float) -> None:
    args = {**CONFIG["data_loader"]["args"], "validation_split": split}
    config = write_config(Path("c.json"), data_loader={"args": args})
    with pytest.raises(ConfigError) as error:
        train_script.main(["-c", str(config), "--check"])
    told = f"data_loader.args.validation_split: {split} of 75 rows; both parts need at least one row: a share below 1"
    assert re.match(rf"c.json:\d+:\d+ {re.escape(told)}", str(error.value)) and "from 1 to 74" in str(error.value)


def test_rule_10_gpus_that_are_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    train("-c", write_config(Path("c.json"), n_gpu=2, trainer={"epochs": 1}))
    assert "n_gpu is 2, this machine has 0; training on the CPU" in capsys.readouterr().out


def test_rule_10_several_gpus_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, DataParallel hands batches on as they are; weights keep the names of the bare model."""
    import src.compat.run as run_module

    calls: list[tuple[int, ...]] = []

    class Recorder(torch.nn.DataParallel):  # type: ignore[type-arg]
        def forward(self, *inputs: Any, **named: Any) -> Any:
            calls.append(tuple(inputs[0].shape))
            return super().forward(*inputs, **named)

    monkeypatch.setattr(run_module, "find_devices", lambda n_gpu: (torch.device("cpu"), [0, 1]))
    monkeypatch.setattr(torch.nn, "DataParallel", Recorder)
    run = train("-c", write_config(Path("c.json"), n_gpu=2, trainer={"epochs": 1}))
    assert len(calls) == 5  # 4 batches to train on, 1 to validate
    assert "conv.weight" in torch.load(run / "model_best.pth", weights_only=True)["state_dict"]


def test_rule_13_a_value_that_is_not_logged_switches_the_monitor_off(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("-c", write_config(Path("c.json"), trainer={"monitor": "max val_f1", "epochs": 2}))
    out = capsys.readouterr().out
    assert "'val_f1' is not logged, only loss, accuracy, top_k_acc, val_loss" in out and "monitoring is off" in out
    assert (run / "checkpoint-epoch2.pth").exists() and not (run / "model_best.pth").exists()


def test_rules_13_14_early_stop_is_exact_and_the_best_is_kept_at_any_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing improves after epoch 1: with early_stop 2 the third epoch is the last, and it is saved."""
    path = write_config(Path("c.json"), loss="flat_loss", trainer={"early_stop": 2, "epochs": 9, "save_period": 5})
    run = train("-c", path)
    assert epoch_of(run / "model_best.pth") == 1
    assert torch.load(run / "checkpoints" / "last.pt", weights_only=True)["progress"]["epoch"] == 3
    assert not list(run.glob("checkpoint-epoch*.pth"))
    assert "on purpose unlike the original" in capsys.readouterr().out


def test_rule_14_save_period_and_last_epoch_number() -> None:
    run = train("-c", write_config(Path("c.json"), trainer={"save_period": 2, "epochs": 4}))
    assert {epoch_of(path) for path in run.glob("checkpoint*.pth")} == {2, 4}
    again = train("-r", run / "checkpoint-epoch2.pth")
    assert {epoch_of(path) for path in again.glob("checkpoint*.pth")} == {4}
    with pytest.raises(CheckpointError, match="it is the number of the last epoch, also after a resume; raise it"):
        train("-r", run / "checkpoint-epoch4.pth")


# What is kept (15 to 19).


def test_rules_15_18_folders_and_log() -> None:
    runs = {train("-c", "config.json", "trainer.epochs=1", "trainer.verbosity=2") for _ in range(2)}
    assert len(runs) == 2  # two starts in one second
    for run in runs:
        names = {path.name for path in run.iterdir()}
        assert {"config.json", "checkpoint-epoch1.pth", "model_best.pth", "checkpoints"} <= names
        lines = (Path("saved/log/Blobs") / run.name / "info.log").read_text()
        assert lines.count("Train Epoch: 1 [") == 1  # 4 batches of 16 rows: a line every 4
    train("-c", "config.json", "trainer.epochs=1", "trainer.verbosity=1")
    assert sum("Train Epoch" in path.read_text() for path in Path("saved/log").rglob("info.log")) == 2


def test_rule_16_checkpoints_have_their_keys_and_no_code() -> None:
    run = train("-c", "config.json")
    state = torch.load(run / "model_best.pth", weights_only=True)  # no stand-in is needed for ours
    assert {"arch", "epoch", "state_dict", "optimizer", "monitor_best", "config"} <= set(state)
    assert state["arch"] == "BlobModel" and state["config"] == read_json(run / "config.json")


def test_rule_16_their_pickled_config_is_read_and_not_run(project: Path) -> None:
    save_as_the_original(project / "theirs.pth", epochs=1)
    (project / "parse_config.py").write_text("raise SystemExit('a checkpoint imported this')")
    state = load_theirs(project / "theirs.pth")
    assert state["config"] == CONFIG and state["epoch"] == 1 and state["monitor_best"] == 0.75
    with pytest.raises(Exception, match="parse_config"):  # the stand-ins were for one read alone
        torch.load(project / "theirs.pth", weights_only=True)


class Hostile:
    """Runs a command when it is unpickled in the usual way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("place", ["config", "monitor_best", "state_dict"])
def test_a_checkpoint_cannot_make_code_run(place: str, project: Path) -> None:
    save_as_the_original(project / "theirs.pth", epochs=1, **({place: Hostile()} if place != "config" else {}))
    if place == "config":
        torch.save({**load_theirs(project / "theirs.pth"), "config": Hostile()}, project / "theirs.pth")
    with pytest.raises(CheckpointError, match="refused or damaged, nothing of it was run"):
        train("-r", project / "theirs.pth")
    assert not (project / "owned").exists()


def test_a_checkpoint_does_not_say_where_code_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole project beside a checkpoint is not imported: only a person names a folder."""
    run = train("-c", "config.json", "trainer.epochs=1").resolve()
    write_config(tmp_path / "config.json")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"no project here: model/model\.py is not in \.; use --project DIR"):
        train_script.main(["-r", str(run / "model_best.pth")])


def test_a_checkpoint_does_not_say_where_to_write(project: Path) -> None:
    run = train("-c", "config.json", "trainer.epochs=1")
    write_config(run / "config.json", trainer={"save_dir": str(project.parent / "elsewhere")})
    with pytest.raises(ConfigError, match="comes with the checkpoint and lies outside of the project"):
        train("-r", run / "model_best.pth")
    write_config(run / "config.json", name="../../../escaped")
    for resume in (run, run / "model_best.pth"):
        with pytest.raises(ConfigError, match="name: a run's name has 1 to 64 letters"):
            train("-r", resume)
    assert not list(project.parent.glob("*e*d*/log")) and not (project.parent / "elsewhere").exists()


def test_rule_17_resume_of_their_checkpoint(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Epoch, best value, weights and optimizer come from it; the schedule, which it lacks, is moved to its epoch."""
    save_as_the_original(project / "theirs.pth", epochs=2)
    run = train("-r", "theirs.pth")
    state = load_theirs(run / "checkpoint-epoch3.pth")
    assert "Resume training from epoch 3" in capsys.readouterr().out
    assert state["keel"]["monitor"]["best"] <= 0.75 and state["optimizer"]["state"][0]["step"] == 12
    assert state["keel"]["lr_scheduler"]["scheduler"]["last_epoch"] == 3
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.005


def test_rule_17_fine_tuning_counts_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = {"type": "BlobModel", "args": {"num_classes": 2}}
    save_as_the_original(project / "theirs.pth", epochs=2, config={"arch": arch, "optimizer": {"type": "SGD"}})
    run = train("-r", "theirs.pth", "-c", "config.json", "trainer.epochs=4")
    out = capsys.readouterr().out
    assert "arch differs from that of the checkpoint" in out and "the optimizer starts afresh" in out
    assert load_theirs(run / "checkpoint-epoch4.pth")["optimizer"]["state"][0]["step"] == 8
    assert not (run / "checkpoint-epoch2.pth").exists()


def test_rules_10_17_weights_of_several_gpus_fit_one(project: Path) -> None:
    model, _ = train_as_the_original(1)
    prefixed = {f"module.{name}": value for name, value in model.state_dict().items()}
    save_as_the_original(project / "several.pth", epochs=1, state_dict=prefixed)
    save_as_the_original(project / "one.pth", epochs=1, state_dict=model.state_dict())
    several, one = (weights(train("-r", name) / "checkpoint-epoch3.pth") for name in ("several.pth", "one.pth"))
    assert equal(several, one)


@pytest.mark.parametrize("checkpoint", ["checkpoint-epoch2.pth", "run"])
def test_our_checkpoints_go_on_bit_by_bit(checkpoint: str) -> None:
    """Better than rule 17: schedule and random streams go on too, from a `.pth` file or the run's own folder."""
    straight = weights(train("-c", "config.json") / "checkpoint-epoch3.pth")
    short = train("-c", write_config(Path("c.json"), trainer={"epochs": 2}))
    resumed = train("-r", short if checkpoint == "run" else short / checkpoint, "trainer.epochs=3")
    assert (resumed == short) == (checkpoint == "run")
    assert equal(weights(resumed / "checkpoint-epoch3.pth"), straight)


def test_rule_19_charts() -> None:
    run = train("-c", write_config(Path("c.json"), trainer={"tensorboard": True, "epochs": 2}))
    events = EventAccumulator(str(Path("saved/log/Blobs") / run.name / "train")).Reload()
    tags = events.Tags()
    assert {"loss/train", "loss/valid", "accuracy/train", "accuracy/valid"} <= set(tags["scalars"])
    assert all(event.value > 0 for part in ("train", "valid") for event in events.Scalars(f"steps_per_sec/{part}"))
    assert {"input/train", "input/valid"} <= set(tags["images"]) and {"conv.weight", "fc.bias"} <= set(
        tags["histograms"]
    )
    assert [event.step for event in events.Scalars("loss/valid")] == [4, 8]


# Testing (20), and around.


def test_rule_18_their_own_setup_of_the_log_is_used(project: Path) -> None:
    (project / "logger").mkdir()
    log = {
        "version": 1,
        "formatters": {"mine": {"format": "<%(levelname)s> %(message)s"}},
        "handlers": {
            "out": {"class": "logging.StreamHandler", "formatter": "mine", "stream": "ext://sys.stdout"},
            "file": {"class": "logging.handlers.RotatingFileHandler", "formatter": "mine", "filename": "own.log"},
        },
        "root": {"level": "INFO", "handlers": ["out", "file"]},
    }
    (project / "logger" / "logger_config.json").write_text(json.dumps(log))
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), "-c", "config.json", "trainer.epochs=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = project.glob("saved/log/Blobs/*/*.log")
    assert file.name == "own.log"
    for text in (done.stdout, file.read_text()):
        assert "<INFO> data    train 60, val 15 rows" in text and "<INFO> epoch 1/1" in text
    log["handlers"]["out"]["class"] = "logging.Nowhere"  # type: ignore[index]
    (project / "logger" / "logger_config.json").write_text(json.dumps(log))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "logger/logger_config.json: cannot set the log up: Unable to configure handler 'out'" in done.stderr


def test_what_knows_the_native_form_alone_says_so(project: Path) -> None:
    run = train("-c", "config.json", "trainer.epochs=1")
    for script, words in ((predict, ["--input", "x.npy"]), (export, ["--format", "onnx"])):
        for named in (run, run / "model_best.pth"):
            with pytest.raises(ConfigError, match=r"python -m src.compat THEIR/config.json"):
                script.main(["-r", str(named), *words])


def test_rule_20_testing(capsys: pytest.CaptureFixture[str]) -> None:
    run = train("-c", "config.json")
    capsys.readouterr()
    assert test_script.main(["-r", str(run / "model_best.pth")]) == 0
    assert "20 rows" in capsys.readouterr().out
    values = json.loads((run / "test_metrics.json").read_text())["test"]
    theirs = open_project(Path.cwd())
    net = theirs.model.BlobModel()
    net.load_state_dict(weights(run / "model_best.pth"))
    inputs, targets = theirs.data.BlobDataLoader("data", 512, training=False).dataset.tensors
    outputs = net.eval()(inputs)
    assert values["loss"] == pytest.approx(torch.nn.functional.nll_loss(outputs, targets).item(), rel=1e-6)
    assert values["accuracy"] == pytest.approx(float((outputs.argmax(1) == targets).float().mean()))


def test_the_projects_own_base_comes_first(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "base").mkdir()
    (project / "base" / "__init__.py").write_text(
        "print('their own base')\nfrom torch.nn import Module as BaseModel\n"
        "from src.compat.standins.base import BaseDataLoader"
    )
    train("-c", "config.json", "trainer.epochs=1")
    assert "their own base" in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_line(project: Path) -> None:
    (project / "model" / "loss.py").write_text("\nimport nonexistent_vision.ops\n")
    with pytest.raises(ConfigError, match=r"model/loss\.py:2: .*; `pip install nonexistent_vision`"):
        train("-c", "config.json")


def test_a_trainer_of_ones_own_is_not_run_and_said_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "trainer").mkdir()
    (project / "trainer" / "trainer.py").write_text("from base import BaseTrainer\n")
    train("-c", "config.json", "trainer.epochs=1")
    assert "trainer/trainer.py is not run" in capsys.readouterr().out
    with pytest.raises(NotImplementedError, match="goes into a task"):
        BaseTrainer()


def test_from_another_folder_as_a_process(project: Path) -> None:
    command = [sys.executable, PROJECT_ROOT / "train.py", "-c", project / "config.json", "--project", project]
    ended = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(list((project / "saved" / "models" / "Blobs").glob("*/model_best.pth"))) == 1


def test_the_native_form_is_a_config_of_ours(project: Path) -> None:
    config, notes = modernised(read_json(project / "config.json") | {"vocabulary": {}}, "config.json")
    text = as_yaml(config, notes, project / "config.json")
    (project / "native.yaml").write_text(text)
    ours = load_config(project / "native.yaml")
    assert ours.trainer.monitor == "min val/loss" and ours.trainer.patience == 10 and ours.trainer.epochs == 3
    assert ours.data.split is not None and ours.data.split.val == 0.2 and ours.loader.batch_size == 16
    assert "# model: was `arch`" in text and "Left out, make them arguments of what uses them: vocabulary" in text


def test_a_run_stopped_in_mid_epoch_goes_on_bit_by_bit(project: Path) -> None:
    """Their loader draws from the run's own streams: the epoch is read again from its beginning, up to where it was."""
    loaders = project / "data_loader" / "data_loaders.py"
    text = loaders.read_text()
    stop = """
    def __iter__(self):
        import os, signal
        for number, batch in enumerate(super().__iter__()):
            if number == 2 and os.path.exists("stop"):
                os.remove("stop")
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch
"""
    loaders.write_text(text + stop)
    straight = weights(train("-c", "config.json") / "checkpoint-epoch3.pth")
    before = set(Path("saved/models/Blobs").iterdir())
    Path("stop").touch()
    assert train_script.main(["-c", "config.json"]) == 128 + 15
    (run,) = set(Path("saved/models/Blobs").iterdir()) - before
    assert torch.load(run / "checkpoints" / "last.pt", weights_only=True)["progress"]["batch"] == 3
    assert train_script.main(["-r", str(run)]) == 0
    assert equal(weights(run / "checkpoint-epoch3.pth"), straight)


def test_workers_give_the_weights_of_none() -> None:
    runs = [train("-c", "config.json", "trainer.epochs=2", f"data_loader.args.num_workers={n}") for n in (0, 2)]
    alone, other = (weights(run / "checkpoint-epoch2.pth") for run in runs)
    assert equal(alone, other)


def test_the_leaderboard_knows_how_their_runs_ended(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("-c", "config.json", "trainer.epochs=2")
    record, running = list_runs(Path("saved"))[f"models/Blobs/{run.name}"]
    assert (record.end, record.epochs, record.monitor, running) == ("finished", 2, "min val/loss", False)
    assert record.best is not None and record.best_epoch in (1, 2)
    assert record.config["optimizer.args.lr"] == 0.01
    assert record.time_s is not None and record.time_s > 0
    train("-r", run, "trainer.epochs=3")
    both = list_runs(Path("saved"))[f"models/Blobs/{run.name}"][0].time_s
    assert both is not None and both > record.time_s, "all its starts together"
    (run / "status.json").unlink()  # of before there was one
    assert list_runs(Path("saved"))[f"models/Blobs/{run.name}"][0].end == "unknown"
