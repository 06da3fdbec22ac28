"""Take a model elsewhere: `python export.py -r saved/<name>/<run> --format torch_export`.

Writes a folder with the model, the names of its classes, its preprocessing, samples to try it on, and a README. The
written model is run on real samples first: one that does not give what the original gives is not kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.command_line import Parser, add_common_options, add_run_options, collect_overrides
from src.utils.command import run_command
from src.utils.errors import ConfigError
from src.utils.processes.launched import refuse_several

if TYPE_CHECKING:
    from torch import Tensor

    from src.run.saved_run import SavedRun

FORMAT_NAMES = ("weights", "safetensors", "torch_export", "onnx")
NUM_SAMPLES = 8
LOADING = {
    "weights": """from src.run.saved_run import load_model  # the code of the model: run this in the project

model = load_model("{run}")
model.load_state_dict(torch.load("weights.pt", weights_only=True))
outputs = model(*(torch.from_numpy(samples[name]) for name in {names})).detach().numpy()""",
    "safetensors": """from safetensors.torch import load_file

from src.run.saved_run import load_model  # the code of the model: run this in the project

model = load_model("{run}")
model.load_state_dict(load_file("model.safetensors"))
outputs = model(*(torch.from_numpy(samples[name]) for name in {names})).detach().numpy()""",
    "torch_export": """model = torch.export.load("model.pt2").module()
outputs = model(*(torch.from_numpy(samples[name]) for name in {names})).detach().numpy()""",
    "onnx": """model = onnxruntime.InferenceSession("model.onnx")
outputs = model.run(None, {{name: samples[name] for name in {names}}})[0]""",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("export.py", "export.py -r RUN --format FORMAT [--out FOLDER]", __doc__)
    add_run_options(parser)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--format", choices=FORMAT_NAMES, help="what to write")
    chosen.add_argument(
        "--weights-only", dest="format", action="store_const", const="weights", help="the same as --format weights"
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: export/FORMAT in the run directory")
    add_common_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    refuse_several("export.py")
    from src.compat.detect import refuse_classical

    refuse_classical(argv, "export.py")
    options = parse(argv)

    from src.logger.console import say, setup_console
    from src.run.saved_run import SavedRun
    from src.trainer.results.export import export_model

    setup_console(options.quiet, options.verbose, "stderr")
    overrides = (*collect_overrides(options), "trainer.device=cpu")
    run = SavedRun(options.run, options.checkpoint, overrides, options.trust)
    folder = Path(options.out) if options.out else run.path / "export" / options.format
    if folder.exists() and not (folder / "preprocessing.json").exists():
        raise ConfigError(f"--out {folder}: is there already and was not made by export.py; name a new folder")
    model = run.experiment.model.eval()
    inputs = real_inputs(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        difference = export_model(model, inputs, made, options.format)
        write_companions(made, run, inputs, options.format)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    say(f"{folder}: agrees with the run on {len(inputs[0])} real samples to {difference:.1e}; see its README.md")
    return 0


def real_inputs(run: SavedRun) -> tuple[Tensor, ...]:
    """Return the model's inputs for the first samples of the test part, or of another one.

    Raises:
        ConfigError: The model takes something else than tensors by position, or there are too few samples.
    """
    from torch import Tensor

    parts = run.experiment.parts
    part = next(parts[name] for name in ("test", "val", "train") if name in parts)
    args, kwargs, _ = run.experiment.task.open(run.loader(part).peek(NUM_SAMPLES))
    if kwargs or not all(isinstance(each, Tensor) for each in args):
        raise ConfigError("export: the model must take tensors by position, task.inputs says otherwise")
    if len(args[0]) < 3:
        raise ConfigError(f"export: {part.name} has {len(args[0])} rows; at least 3 are needed to compare results")
    return tuple(each.contiguous() for each in args)


def write_companions(folder: Path, run: SavedRun, inputs: tuple[Tensor, ...], chosen: str) -> None:
    """Write what one needs besides the model: labels, preprocessing, samples with their outputs, and how to use it."""
    import numpy as np
    import torch

    from src.trainer.results.export import input_names

    with torch.no_grad():
        outputs = run.experiment.model(*inputs)
    first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    names = input_names(inputs)
    arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    np.savez(folder / "samples.npz", **arrays, outputs=first.numpy())  # type: ignore[arg-type]
    labels = run.class_names
    preprocessing = {
        "inputs": {
            name: {"shape": ["rows", *value.shape[1:]], "type": str(value.dtype)} for name, value in arrays.items()
        },
        "data": {"type": run.dataset.type, "args": run.config.as_dict()["data"].get("args", {})},
        "transforms": [{"type": each.type, "args": dict(each.args)} for each in run.transform_settings],
        "learned_from_training_rows": plain(run.state["data"]),
    }
    config = run.path / "config.yaml"
    if config.exists():
        shutil.copyfile(config, folder / "config.yaml")
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False) + "\n", encoding="utf-8")
    text = json.dumps(preprocessing, indent=2, ensure_ascii=False, default=str)
    (folder / "preprocessing.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(run, chosen, names), encoding="utf-8")


def plain(value: Any) -> Any:
    """Return tensors within plain data as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, (list, tuple)) else value


def readme(run: SavedRun, chosen: str, names: Sequence[str]) -> str:
    """Return the README of an exported folder; its program runs as it stands."""
    progress = run.state["progress"]
    loading = LOADING[chosen].format(run=run.path.resolve(), names=list(names))
    packages = {
        "onnx": "numpy and onnxruntime",
        "safetensors": "torch, safetensors and this project",
        "weights": "torch and this project",
    }
    module = "onnxruntime" if chosen == "onnx" else "torch"
    return f"""# {run.config.name}

Run {run.path.name}, epoch {progress["epoch"]}, step {progress["step"]}, as {chosen}. Needs
{packages.get(chosen, "numpy and torch")}. Run this in the folder of this file:

```python
import json

import numpy as np
import {module}

samples = np.load("samples.npz")
{loading}
print(abs(outputs - samples["outputs"]).max())  # about 0
labels = json.load(open("labels.json"))
if labels:
    print([labels[k] for k in outputs.argmax(1)])
```

- `labels.json`: names of the classes, in the order of the outputs; `null` if there are none.
- `preprocessing.json`: shapes of the inputs, the transforms, and what was learned from the training rows: columns in
  their order, scaling, categories. Inputs must be prepared so; `samples.npz` holds some that are.
- Outputs are what the model returns: scores before softmax for classes; scaled values where the target was scaled.
"""


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
