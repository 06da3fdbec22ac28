"""Mistaken configs: each is refused with its place and the right spelling."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import train
from src.config import Component, Config, ScheduleSettings, load_config
from src.config.signatures import check_components
from src.utils.command import run_command
from src.utils.errors import ConfigError

GOOD = """\
name: digits
data: {type: digits.Digits, split: {val: 0.1, test: 0.1}}
model: mlp.MLP
loss: CrossEntropyLoss
metrics: [accuracy]
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 3}
"""


def with_line(number: int, text: str) -> str:
    """GOOD with another line in place of line `number`."""
    lines = GOOD.splitlines()
    lines[number - 1] = text
    return "\n".join(lines) + "\n"


def load(folder: Path, text: str | bytes, overrides: Sequence[str] = (), name: str = "x.yaml") -> Config:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, overrides)


def mistakes_of(folder: Path, text: str | bytes, overrides: Sequence[str] = (), name: str = "x.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, overrides, name)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "").splitlines()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

SYNTAX = {
    "B04 empty": ("", "x.yaml: is empty"),
    "B04 comments only": ("# nothing\n", "x.yaml: is empty"),
    "B05 list": ("- 1\n", "x.yaml:1:1: a mapping is needed, found a list"),
    "B05 scalar": ("hello\n", "x.yaml:1:1: a mapping is needed, found 'hello'"),
    "B06 tab": ("name: x\ntrainer:\n\tepochs: 3\n", "x.yaml:3:1: tab used for indentation; use spaces"),
    "B07 broken": ("name: x\nmodel: {type: a\n", "x.yaml:3:1: did not find expected ',' or '}'"),
    "B07 colon": ("name: a: b\n", "x.yaml:1:8: mapping values are not allowed in this context: `name: a: b`"),
    "B08 binary": (b"\x89PNG\r\n", "x.yaml: not UTF-8 text (byte 0x89 at 0)"),
    "B08 control": ("name: a\x00b\n", "x.yaml: control characters are not allowed"),
    "B09 duplicate": (GOOD + "seed: 1\nseed: 2\n", "x.yaml:9:1: `seed` given twice (first at x.yaml:8:1)"),
    "B09 duplicate below": (with_line(7, "trainer: {epochs: 1, epochs: 2}"), "x.yaml:7:22: `epochs` given twice"),
    "B23 key null": (GOOD + "~: 1\n", "x.yaml:8:1: a key must be text, found nothing (null); quote it"),
    "B23 key true": (GOOD + "true: 1\n", "x.yaml:8:1: a key must be text, found true; quote it"),
    "B24 leading zero": (GOOD + "seed: 010\n", "x.yaml:8:7: 010 has a leading zero; write 10, or quote it"),
    "underscores": (GOOD + "seed: 1_000\n", "x.yaml:8:7: 1_000 is not a number in YAML; write 1000, or quote it"),
    "B27 bomb": (BOMB, "more than 10,000 values (aliases counted)"),
    "B28 recursion": ("a: &a [*a]\n", "x.yaml:1:8: *a refers to itself"),
    "unknown alias": ("a: *b\n", "x.yaml:1:4: *b refers to nothing"),
    "B29 tag": (GOOD + "hooks: [!!python/object/apply:os.system [ls]]\n", "x.yaml:8:9: tag tag:yaml.org,2002:python"),
    "B29 own tag": (GOOD + "seed: !int 3\n", "x.yaml:8:7: tag !int is not allowed"),
    "B30 deep": ("a: " + "[" * 200_000, "nested deeper than 50"),
    "B30 large": ("a: " + "x" * 2_000_000, "x.yaml: larger than 1 MB"),
    "two documents": (GOOD + "---\nname: y\n", "x.yaml:8:1: a second document starts here"),
    "merge key": ("a: &a 3\nb: {<<: *a}\n", "x.yaml:2:9: `<<` needs a mapping"),
}


@pytest.mark.parametrize("case", SYNTAX)
def test_broken_text(case: str, tmp_path: Path) -> None:
    text, expected = SYNTAX[case]
    start = time.process_time()
    found = mistakes_of(tmp_path, text)
    assert any(expected in line for line in found), found
    assert time.process_time() - start < 0.5


VALUES = {
    "B10 unknown key": ("sead: 1", "x.yaml:8:1 sead: unknown key; did you mean `seed`?"),
    "B10 other word": (with_line(6, "optimizer: {type: SGD, learning_rate: 1}"), "optimizer.args.lr"),
    "B10 args": (with_line(6, "optimizer: {type: SGD, lr: 1}"), "x.yaml:6:24 optimizer.lr: unknown key; arguments of"),
    "B11 section": ("batch_size: 3", "x.yaml:8:1 batch_size: unknown key; `batch_size` belongs to `loader`"),
    "B11 top level": (with_line(7, "trainer: {seed: 1}"), "trainer.seed: unknown key; `seed` belongs to the top level"),
    "B11 trainer": ("loader: {epochs: 1}", "x.yaml:8:10 loader.epochs: unknown key; `epochs` belongs to `trainer`"),
    "template arch": ("arch: x", "x.yaml:8:1 arch: unknown key; write `model`"),
    "template early_stop": (with_line(7, "trainer: {early_stop: 1}"), "unknown key; write `trainer.patience`"),
    "B12 type": (with_line(3, "model: {args: {a: 1}}"), "x.yaml:3:1 model.type: missing; text is needed"),
    "B12 name": (with_line(1, ""), "x.yaml name: missing"),
    "B12 model": (with_line(3, ""), "x.yaml model: missing"),
    "B12 data": (with_line(2, ""), "x.yaml data: missing"),
    "B14": (with_line(6, "optimizer: {type: SGD, args: {lr: abc}}"), "x.yaml:6:31 optimizer.args.lr: a number > 0 is"),
    "B15 negative": (with_line(6, "optimizer: {type: SGD, args: {lr: -0.1}}"), "args.lr: must be > 0, found -0.1"),
    "B15 zero": (with_line(6, "optimizer: {type: SGD, args: {lr: 0}}"), "optimizer.args.lr: must be > 0, found 0"),
    "B16 nan": (with_line(6, "optimizer: {type: SGD, args: {lr: .nan}}"), "optimizer.args.lr: must be finite"),
    "B16 inf": (with_line(7, "trainer: {min_delta: .inf}"), "x.yaml:7:11 trainer.min_delta: must be finite, found inf"),
    "B16 overflow": (with_line(7, "trainer: {min_delta: 1e999}"), "trainer.min_delta: must be finite"),
    "B17": (
        with_line(7, "trainer: {epochs: 3.5}"),
        "x.yaml:7:11 trainer.epochs: a whole number >= 1 is needed, found 3.5",
    ),
    "B17 3.0": (with_line(7, "trainer: {epochs: 3.0}"), "trainer.epochs: a whole number >= 1 is needed, found 3.0"),
    "B18": (with_line(7, "trainer: {epochs: true}"), "trainer.epochs: a whole number >= 1 is needed, found true"),
    "bool from 1": (with_line(7, "trainer: {deterministic: 1}"), "deterministic: true or false is needed, found 1"),
    "bool from yes": (with_line(7, "trainer: {deterministic: yes}"), "true or false is needed, found 'yes'"),
    "B19": ("loader: {batch_size: 0}", "x.yaml:8:10 loader.batch_size: must be >= 1, found 0"),
    "B20": ("loader: {num_workers: -1}", "loader.num_workers: must be >= 0, found -1"),
    "B21": ("loader: {num_workers: 10000}", "loader.num_workers: must be <= "),
    "B22": (with_line(1, "name: false"), "x.yaml:1:1 name: text is needed, found false"),
    "B25 no date type": ("seed: 2026-01-01", "x.yaml:8:1 seed: a whole number is needed, found '2026-01-01'"),
    "B26": ("seed: 4294967296", "seed: must be >= 0 and < 4294967296, found 4294967296"),
    "B26 negative": ("seed: -1", "seed: must be >= 0"),
    "literal": (
        with_line(7, "trainer: {amp_dtype: bf61}"),
        "bf16 or fp16 is needed, found 'bf61'; did you mean `bf16`?",
    ),
    "compile mode": (
        with_line(7, "trainer: {compile: {mode: reduce-overhaed}}"),
        "x.yaml:7:21 trainer.compile.mode: default or reduce-overhead or max-autotune or max-autotune-no-cudagraphs is "
        "needed, found 'reduce-overhaed'; did you mean `reduce-overhead`?",
    ),
    "compile key": (
        with_line(7, "trainer: {compile: {mod: default}}"),
        "x.yaml:7:21 trainer.compile.mod: unknown key; did you mean `mode`?",
    ),
    "compile twice": (
        with_line(7, "trainer: {compile: {mode: default, options: {max_autotune: true}}}"),
        "trainer.compile: mode and options exclude each other; leave one out",
    ),
    "every": (
        "lr_scheduler: {type: StepLR, every: steps}",
        "lr_scheduler.every: step or epoch is needed, found 'steps'",
    ),
    "scheduler key": (
        "lr_scheduler: {type: StepLR, evry: step}",
        "lr_scheduler.evry: unknown key; did you mean `every`?",
    ),
    "B43 metric": (with_line(7, "trainer: {monitor: min val/los}"), "logs no metric `los`; did you mean `loss`?"),
    "B43 part": (with_line(7, "trainer: {monitor: min vall/loss}"), "evaluates no part `vall`; did you mean `val`?"),
    "B43 test": (with_line(7, "trainer: {monitor: min test/loss}"), "this run evaluates no part `test`"),
    "B43 form": (with_line(7, "trainer: {monitor: val_loss}"), "e.g. `min val/loss`, found 'val_loss'"),
    "B43 scheduler": ("lr_scheduler: {type: X, monitor: val/acuracy}", "lr_scheduler.monitor: this run logs no metric"),
    "B45": (with_line(7, "trainer: {monitor: mim val/loss}"), "min or max is needed, found 'mim'; did you mean `min`?"),
    "B46": (with_line(7, "trainer: {patience: -1}"), "x.yaml:7:11 trainer.patience: must be >= 0, found -1"),
    "B67 monitor": (
        with_line(2, "data: {type: a.B, split: {val: 1.5}}").replace("epochs: 3", "monitor: max vl/loss"),
        "trainer.monitor: this run evaluates no part `vl`; did you mean `val`?",
    ),
    "B67 sum": (with_line(2, "data: {type: a.B, split: {val: 0.6, test: 0.6}}"), "split: val and test sum to 1.2"),
    "B67 one": (with_line(2, "data: {type: a.B, split: {val: 1.0}}"), "data.split.val: a share below 1"),
    "part": (
        with_line(2, "data: {type: a.B, trian: b.C}"),
        "x.yaml:2:19 data.trian: unknown key; did you mean `train`?",
    ),
    "part loader": ("loader: {vall: {batch_size: 3}}", "loader.vall: unknown key; did you mean `val`?"),
    "no such part": ("loader: {val_x: {batch_size: 3}}", "loader.val_x: there is no such part; did you mean"),
    "empty part": (
        with_line(2, "data: {type: a.B, val: {transforms: [x]}}"),
        "data.val: has no dataset; give it a `type`",
    ),
    "twice": (with_line(2, "data: {type: a.B, train: c.D}"), "data.train: training data given twice"),
    "val twice": (with_line(2, "data: {type: a.B, split: {val: .1}, val: c.D}"), "data.val: given twice"),
    "no data": (with_line(2, "data: {val: c.D}"), "x.yaml:2:1 data: no training data"),
    "metrics name": (with_line(5, "metrics: [{name: loss, type: a}]"), "metrics.0.name: text without `/`"),
    "metrics twice": (with_line(5, "metrics: [a.f, b.f]"), "x.yaml:5:16 metrics.1: two metrics are logged as `f`"),
    "metrics map": (with_line(5, "metrics: {a: b}"), "x.yaml:5:1 metrics: a list of names or mappings is needed"),
    "section": (with_line(7, "trainer: 3"), "x.yaml:7:1 trainer: a mapping is needed, found 3"),
    "component": (with_line(3, "model: 3"), "x.yaml:3:1 model: a name or a mapping with `type`"),
    "hooks": ("hooks: x", "x.yaml:8:1 hooks: a list is needed, found 'x'"),
    "sampler": ("loader: {sampler: {typ: x}}", "loader.sampler.typ: unknown key; did you mean `type`?"),
    "sampler and shuffle": ("loader: {sampler: x, shuffle: true}", "loader.shuffle: `sampler` decides the order"),
    "code": (with_line(3, "model: {type: a, args: {b: {trust_remote_code: true}}}"), "a config must not load code"),
    "escape": ('"\\e[2Jx": 1', "unknown key"),
}


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values(case: str, tmp_path: Path) -> None:
    text, expected = VALUES[case]
    found = mistakes_of(tmp_path, text if text.count("\n") > 1 else GOOD + text + "\n")
    assert any(expected in line for line in found), found
    assert all(line.isprintable() for line in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.yaml"]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a b", "-rf", "", "CON", "nul.txt", "..", "x" * 65, "ü", "a/b"])
def test_unsafe_names(name: str, tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, with_line(1, f"name: '{name}'"))
    assert len(found) == 1 and found[0].startswith("x.yaml:1:1 name: ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lr", "command line #1: KEY=VALUE is needed, found 'lr'"),
        ("=3", "command line #1: KEY=VALUE is needed"),
        ("trainer..epochs=3", "command line #1: KEY=VALUE is needed"),
        ("trainer.epocs=3", "command line #1 trainer.epocs: unknown key; did you mean `epochs`?"),
        ("trainer.epochs=abc", "command line #1 trainer.epochs: a whole number >= 1 is needed, found 'abc'"),
        ("optimizer.args.lr=-1", "command line #1 optimizer.args.lr: must be > 0, found -1"),
        ("trainer.epochs=[1", "command line #1: did not find expected ',' or ']'"),
        ("seed=010", "command line #1: 010 has a leading zero"),
        ("metrics.4.args.k=1", "command line #1 metrics.4: no such item; the list has 1, counted from 0"),
        ("base=x.yaml", "command line #1 base: unknown key"),
    ],
)
def test_wrong_overrides(override: str, expected: str, tmp_path: Path) -> None:
    found = mistakes_of(tmp_path, GOOD, [override])
    assert any(line.startswith(expected) for line in found), found


def test_one_report_holds_mistakes_of_keys_values_and_signatures_from_file_base_and_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "below.yaml").write_text(with_line(6, "optimizer: {type: SGD, args: {lr: '1e-4', momentm: 0.9}}"))
    (tmp_path / "x.yaml").write_text(
        "base: below.yaml\nloader: {batch_size: '64', suffle: true}\nmodel: {type: mlp.MPL}\n"
        "metrics: [acuracy]\nlr_scheduler: {type: StepLR, args: {gama: 0.1}}\ntrainer: {monitor: max val/accurac}\n"
    )
    words = ["-c", str(tmp_path / "x.yaml"), "optimizer.args.lrr=3", "seed=x", f"trainer.save_dir={tmp_path / 'runs'}"]
    assert run_command(lambda: train.main(words)) == 2
    lines = capsys.readouterr().err.replace(f"{tmp_path}/", "").splitlines()
    for expected in (
        "x.yaml:2:10 loader.batch_size: a whole number is needed, found '64'; leave out the quotes",
        "x.yaml:2:28 loader.suffle: unknown key; did you mean `shuffle`?",
        "x.yaml:3:9 model.type: unknown model `mlp.MPL`|src/model/mlp.py has no `MPL`; did you mean `MLP`?",
        "x.yaml:4:11 metrics.0.type: unknown metric `acuracy`; did you mean `accuracy`?",
        "x.yaml:5:37 lr_scheduler.args.gama: unknown argument; did you mean `gamma`?",
        "x.yaml:5:30 lr_scheduler.args.step_size: missing; StepLR needs it",
        "x.yaml:6:11 trainer.monitor: this run logs no metric `accurac`; did you mean",
        "below.yaml:6:31 optimizer.args.lr: a number > 0 is needed, found '1e-4'; leave out the quotes",
        "below.yaml:6:43 optimizer.args.momentm: unknown argument; did you mean `momentum`?",
        "command line #1 optimizer.args.lrr: unknown argument; did you mean `lr`?",
        "command line #2 seed: a whole number is needed, found 'x'",
    ):
        assert any(part in line for line in lines for part in expected.split("|")), (expected, lines)
    assert len(lines) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below.yaml", "x.yaml"]


def test_what_is_found_out_while_building_has_its_place_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = "{type: mlp.MLP, args: {in_features: 64, hidden: [8], out_features: 10}}"
    (tmp_path / "x.yaml").write_text(with_line(3, f"model: {args}") + "parameters: {freeze: [layer.*]}\n")
    words = ["-c", str(tmp_path / "x.yaml"), f"trainer.save_dir={tmp_path / 'runs'}"]
    assert run_command(lambda: train.main(words)) == 2
    told = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert told.startswith("error: x.yaml:8:14 parameters.freeze: 'layer.*' matches no parameter of the model; did you")


@pytest.mark.parametrize(("key", "value"), [("targets", "z"), ("inputs", "9")])
def test_what_a_batch_lacks_is_told_with_the_place_that_wants_it(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(with_line(3, "model: lenet.LeNet"))
    words = ["-c", str(tmp_path / "x.yaml"), "--check", f"task.{key}={value}"]
    assert run_command(lambda: train.main(words)) == 3
    assert (
        f"error: command line #1 task.{key}: no {value if key == 'inputs' else repr(value)} in a batch"
        in capsys.readouterr().err
    )


def test_names_that_fit_no_model_or_optimizer_are_told_with_every_other_mistake(tmp_path: Path) -> None:
    text = """name: two
data: digits.Digits
model: {first: lenet.LeNet, second: lenet.LeNet}
optimizer:
  frist: {type: SGD, args: {lr: 0.1}}
  second: {type: SGD, args: {lr: -1}}
lr_scheduler:
  secnd: {type: StepLR, args: {step_size: 1}}
"""
    told = "\n".join(mistakes_of(tmp_path, text))
    for words in (":5:3 optimizer.frist: there is no model `frist`; did you mean `first`?",
                  ":8:3 lr_scheduler.secnd: there is no optimizer `secnd`; did you mean `second`?",
                  ":6:30 optimizer.second.args.lr: must be > 0"):  # fmt: skip
        assert words in told, told


def test_ten_mistakes_make_ten_lines(tmp_path: Path) -> None:
    text = "name: a/b\nname: c\nsead: 1\ndata: {type: d.D, split: {vall: 0.1}}\nmodel: {typ: m}\n"
    text += "optimizer: {type: SGD, args: {lr: 0}}\ntrainer: {epochs: 0, keep: x, monitor: min val/loss}\n"
    found = mistakes_of(tmp_path, text + "loader: {batch_size: -1, wokers: 2}\nmetrics: 3\n", ["x"])
    paths = ["name", "sead", "data.split.vall", "model.typ", "model.type", "optimizer.args.lr", "trainer.epochs"]
    for path in [*paths, "trainer.keep", "loader.batch_size", "loader.wokers", "metrics"]:
        assert sum(f" {path}: " in line for line in found) == 1, (path, found)
    assert any("given twice" in line for line in found)
    assert found[-1] == "command line #1: KEY=VALUE is needed, found 'x'; e.g. trainer.epochs=20"
    places = [tuple(map(int, re.findall(r"\d+", line)[:2])) for line in found[:-1]]
    assert places == sorted(places)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "mnist.yaml").write_text(GOOD)
    for path, expected in [
        (tmp_path / "mnst.yaml", f"mnst.yaml: no such file; did you mean {tmp_path}/mnist.yaml?"),
        (tmp_path, "is a folder, a file is needed"),
        (tmp_path / "no" / "x.yaml", "x.yaml: no such file"),
        (Path("/dev/null"), "not a plain file"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert expected in str(caught.value)


def test_bases_are_checked(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: [a.yaml]\n")
    assert "`base:` goes round in a circle: a.yaml -> b.yaml -> a.yaml" in mistakes_of(tmp_path, "base: a.yaml\n")[0]
    assert mistakes_of(tmp_path, "base: no.yaml\n")[0].startswith("x.yaml:1:1 base: no.yaml: no such file")
    assert mistakes_of(tmp_path, "base: [3]\n")[0].startswith("x.yaml:1:8 base: a file name")
    (tmp_path / "c.yaml").write_text(GOOD + "sead: 1\n")
    assert mistakes_of(tmp_path, "base: c.yaml\n") == ["c.yaml:8:1 sead: unknown key; did you mean `seed`?"]


def test_json(tmp_path: Path) -> None:
    assert mistakes_of(tmp_path, '{"name": "x",}', name="x.json")[0].startswith("x.json:1:1")
    assert "NaN is not JSON" in mistakes_of(tmp_path, '{"a": NaN}', name="x.json")[0]
    assert "nested deeper" in mistakes_of(tmp_path, "[" * 100_000, name="x.json")[0]


COMPONENTS = {
    "B36 model": (["model=lenet.LeNt"], "model.type: src/model/lenet.py has no `LeNt`; did you mean `LeNet`?"),
    "B36 file": (["model=lennet.LeNet"], "unknown model `lennet.LeNet`; did you mean `lenet.LeNet`?"),
    "B36 nothing near": (["model=zzzzzz"], "looked in src/model/*.py, torch.nn"),
    "optimizer": (["optimizer=SDG"], "command line #1 optimizer.type: unknown optimizer `SDG`; did you mean `SGD`?"),
    "loss": (["loss=CrossEntropy"], "unknown loss `CrossEntropy`; did you mean `cross_entropy`?"),
    "metric": (
        ["metrics=[acuracy]"],
        "command line #1 metrics.0.type: unknown metric `acuracy`; did you mean `accuracy`?",
    ),
    "scheduler": (["lr_scheduler=StepLr2"], "unknown lr_scheduler `StepLr2`; did you mean `StepLR`?"),
    "words of a name": (
        ["lr_scheduler=CosineLR"],
        "unknown lr_scheduler `CosineLR`; did you mean `CosineAnnealingLR`?",
    ),
    "B37": (["model=os.system"], "`os.system` is neither in this project nor on the short list"),
    "library": (["model=torch.nn.functional.cross_entropy_x"], "torch.nn.functional has no `cross_entropy_x`"),
    "wrong kind": (["optimizer=torch.nn.Linear"], "torch.nn.Linear cannot be used as optimizer: it is class torch.nn"),
    "B39": (["optimizer.args.lrr=1"], "command line #1 optimizer.args.lrr: unknown argument; did you mean `lr`?"),
    "B39 far": (["optimizer.args.zzzzz=1"], "optimizer.args.zzzzz: unknown argument; SGD takes lr, momentum"),
    "B40": (["model=mlp.MLP"], "model.args.in_features: missing; MLP needs it"),
    "twice": (
        ["optimizer.args.params=[]"],
        "optimizer.args.params: given twice: the run itself gives SGD its `params`",
    ),
    "annotation": (["model.args.in_features=abc"], "model.args.in_features: a whole number is needed, found 'abc'"),
    "annotation bool": (
        ["model.args.out_features=true"],
        "model.args.out_features: a whole number is needed, found true",
    ),
    "annotation float": (
        ["model.args.in_features=64.0"],
        "model.args.in_features: a whole number is needed, found 64.0",
    ),
    "scheduler args": (["lr_scheduler=StepLR"], "lr_scheduler.args.step_size: missing; StepLR needs it"),
    "not installed": (["model=timm.create_model"], "timm.create_model needs the package timm"),
}


@pytest.mark.parametrize("case", COMPONENTS)
def test_wrong_components(case: str, tmp_path: Path) -> None:
    overrides, expected = COMPONENTS[case]
    config = load(tmp_path, GOOD, overrides)
    with pytest.raises(ConfigError) as caught:
        check_components(config)
    assert expected in str(caught.value)


def test_a_word_that_torch_reads_in_the_first_step_is_checked_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    optimizer = "optimizer={type: LBFGS, args: {line_search_fn: strong_wolf}}"
    assert run_command(lambda: train.main(["-c", str(tmp_path / "x.yaml"), "--check", optimizer])) == 2
    told = capsys.readouterr().err
    assert "line_search_fn: unknown word 'strong_wolf'; did you mean `strong_wolfe`?" in told
    assert "command line #1" in told


def test_quiet_and_verbose_are_refused_together() -> None:
    with pytest.raises(ConfigError, match="not allowed with argument"):
        train.main(["-c", "configs/digits.yaml", "--quiet", "--verbose"])


NAMED = """\
name: two
data: digits.Digits
model: {first: {type: mlp.MLP}, second: {type: mlp.MLP}}
loss: {ce: {type: CrossEntropyLoss}, other: {type: MSELoss, weight: 2}}
optimizer: {first: {type: SGD, args: {lr: 0.1}}, second: {type: Adam}}
"""


def test_one_of_several_that_is_null_is_told_at_its_own_place(tmp_path: Path) -> None:
    (line,) = mistakes_of(tmp_path, NAMED, ["optimizer.second=null"])
    assert line.startswith("command line #1 optimizer.second: ") and "found nothing (null)" in line


def test_one_component_replaces_several_by_name(tmp_path: Path) -> None:
    config = load(tmp_path, NAMED, ["loss={type: NLLLoss, args: {reduction: sum}}", "optimizer.second.args.lr=0.5"])
    assert config.loss == Component("NLLLoss", {"reduction": "sum"})
    assert isinstance(config.optimizer, Mapping) and config.optimizer["second"] == Component("Adam", {"lr": 0.5})


def test_several_by_name_replace_one_and_another_type_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(
        "name: below\ndata: digits.Digits\nmodel: {type: mlp.MLP, args: {hidden: [3]}}\n"
        "optimizer: {type: SGD, args: {lr: 0.1, momentum: 0.9}}\n"
        "lr_scheduler: {first: {type: StepLR, every: epoch, args: {step_size: 3}}, second: {type: ConstantLR}}\n"
    )
    named = "model: {first: {type: lenet.LeNet}, second: {type: mlp.MLP}}\n"
    named += "optimizer: {first: {type: Adam}, second: {type: SGD}}\n"
    named += "lr_scheduler: {first: {type: OneCycleLR, args: {max_lr: 1}}}\n"
    config = load(tmp_path, "base: below.yaml\n" + named)
    assert config.model == {"first": Component("lenet.LeNet"), "second": Component("mlp.MLP")}
    assert config.optimizer == {"first": Component("Adam"), "second": Component("SGD")}
    assert isinstance(config.lr_scheduler, Mapping)
    assert config.lr_scheduler["first"] == ScheduleSettings("OneCycleLR", {"max_lr": 1})
    assert config.lr_scheduler["second"] == ScheduleSettings("ConstantLR")
    one = load(tmp_path, "base: below.yaml\nlr_scheduler: {type: CosineAnnealingLR}\n")
    assert one.lr_scheduler == ScheduleSettings("CosineAnnealingLR")


def test_a_misspelt_section_that_is_needed_is_one_mistake_and_a_misspelt_word_has_its_nearest(tmp_path: Path) -> None:
    (line,) = mistakes_of(tmp_path, GOOD.replace("model:", "modle:", 1))
    assert "did you mean `model`?" in line
    with pytest.raises(ConfigError, match=r"found 'makro'; did you mean `macro`\?"):
        check_components(load(tmp_path, with_line(5, "metrics: [{type: f1, args: {average: makro}}]")))


@pytest.mark.parametrize("key", ["model.secnd=lenet.LeNet", "model.secnd.args.x=1", "loss.othr={type: L1Loss}"])
def test_the_command_line_adds_no_model_and_no_term_of_the_loss(key: str, tmp_path: Path) -> None:
    (line,) = mistakes_of(tmp_path, NAMED, [key])
    section, _, rest = key.partition(".")
    name, meant = re.split(r"[.=]", rest)[0], {"model": "second", "loss": "other"}[section]
    assert line.startswith(f"command line #1 {section}.{name}: there is no `{name}`; did you mean `{meant}`?")
    assert "only a config file adds one" in line
