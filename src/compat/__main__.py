"""Write the native form of their config: `python -m src.compat their/config.json > configs/theirs.yaml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from src.compat.dialect import modernised, patience
from src.compat.their_config import read_json
from src.utils.command import run_command
from src.utils.errors import ConfigError
from src.utils.paths import shown_path

KNOWN = ("name", "n_gpu", "arch", "data_loader", "optimizer", "loss", "metrics", "lr_scheduler", "trainer", "save_dir")
LOADER_KEYS = ("batch_size", "shuffle", "num_workers", "pin_memory", "drop_last")

HEAD = """\
# Written from {path} by `python -m src.compat`. Before it runs:
#   1. Copy model/model.py into src/model/, and the functions of model/loss.py and model/metric.py into
#      src/model/loss.py and src/model/metric.py.
#   2. Replace the loader class {loader} by the dataset it builds: a class in src/data/ with __len__ and
#      __getitem__. Batches, order and the split are made from the sections `data` and `loader` below.
#   3. python train.py -c THIS_FILE --check
"""

COMMENTS = {
    "seed": "the seed that their train.py fixed",
    "data": "name the file and class of your dataset: `file.Class` in src/data/; args are those of the old loader",
    "loader": "the rest of data_loader.args",
    "model": "was `arch`",
    "loss": "function of src/model/loss.py, or a class of torch.nn",
    "metrics": "functions (outputs, targets); values are weighted by rows",
    "lr_scheduler": "moves once per epoch, as theirs; its state is resumed",
    "trainer": "monitor `val_loss` is `val/loss`; patience N stops after exactly N evaluations without improvement",
    "logger": "where numbers go",
}


def native(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return their config, in the newest spelling, as sections of ours."""
    args = dict(config["data_loader"]["args"])
    loader = {key: args.pop(key) for key in LOADER_KEYS if key in args}
    split = args.pop("validation_split", 0)
    args.pop("training", None)
    data = {"type": f"data_loaders.{config['data_loader']['type']}", "args": args}
    theirs = config["trainer"]
    trainer: dict[str, Any] = {"epochs": theirs["epochs"]}
    if theirs["monitor"] != "off":
        mode, _, name = theirs["monitor"].partition(" ")
        part, prefix = ("val", "val_") if name.startswith("val_") else ("train", "")
        trainer |= {"monitor": f"{mode} {part}/{name.removeprefix(prefix)}", "patience": patience(theirs)}
    trainer["save_every_epochs"] = theirs.get("save_period", 1)
    trainer |= {"device": "cpu"} if config.get("n_gpu") == 0 else {}
    return {
        "name": config["name"],
        "seed": 123,
        "data": data if not split else {**data, "split": {"val": split}},
        **({"loader": loader} if loader else {}),
        "model": _component(config["arch"], "model."),
        "loss": _component(config["loss"]),
        "metrics": [_component(metric) for metric in config.get("metrics") or []],
        "optimizer": _component(config["optimizer"]),
        **({"lr_scheduler": {**_component(config["lr_scheduler"]), "every": "epoch"}} if _has_schedule(config) else {}),
        "trainer": trainer,
        "logger": {"tensorboard": bool(theirs.get("tensorboard", False))},
    }


def _has_schedule(config: Mapping[str, Any]) -> bool:
    return bool(config.get("lr_scheduler"))


def _component(written: Any, module: str = "") -> Any:
    if isinstance(written, str):
        return written
    return {"type": module + written["type"], "args": dict(written.get("args") or {})}


def as_yaml(config: Mapping[str, Any], notes: Sequence[str], path: Path) -> str:
    """Return the text of the native config with a comment above every section that is not as it was."""
    lines = [HEAD.format(path=shown_path(path), loader=config["data_loader"]["type"])]
    lines += [f"# {note}\n" for note in notes]
    dropped = sorted(set(config) - set(KNOWN))
    if dropped:
        lines.append(f"# Left out, make them arguments of what uses them: {', '.join(dropped)}\n")
    for name, section in native(config).items():
        text = yaml.safe_dump({name: section}, sort_keys=False, allow_unicode=True, width=120)
        lines.append((f"\n# {name}: {COMMENTS[name]}\n" if name in COMMENTS else "\n") + text)
    return "".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    if len(argv) != 1 or argv[0].startswith("-"):
        raise ConfigError("usage: python -m src.compat their/config.json > configs/theirs.yaml")
    path = Path(argv[0])
    config, notes = modernised(read_json(path), shown_path(path))
    sys.stdout.write(as_yaml(config, notes, path))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
