"""Use a trained model: `python predict.py -r saved/<name>/<run> --input new.csv --out predictions.csv`.

The input needs no labels: a CSV file for a model of tables, a folder of images, or `.npy` and `.npz` arrays.
Each output row is `row,prediction`, with class names, and targets in their own units.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.command_line import Parser, add_common_options, add_run_options, collect_overrides
from src.utils.command import run_command
from src.utils.errors import ConfigError, DataError, KeelError, first_line
from src.utils.processes.launched import refuse_several

if TYPE_CHECKING:
    from src.data.loading.loader import Loader
    from src.run.saved_run import SavedRun

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
ROWS_AT_ONCE = 10_000


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("predict.py", "predict.py -r RUN --input FILE|FOLDER|- [--out FILE] [KEY=VALUE ...]", __doc__)
    add_run_options(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="CSV file, .npy, .npz[:NAME], image or folder; - reads a table or texts",
    )
    parser.add_argument("--out", default="-", metavar="FILE", help=".csv or .jsonl; - (default) is the screen, as CSV")
    add_common_options(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    refuse_several("predict.py")
    from src.compat.detect import refuse_classical

    refuse_classical(argv, "predict.py")
    options = parse(argv)

    from src.logger.console import say, setup_console
    from src.run.saved_run import SavedRun
    from src.trainer.results.predictions import check_format, prediction_tables, write_tables

    setup_console(options.quiet, options.verbose, "stderr")
    out = Path(options.out)
    check_format(out)
    run = SavedRun(options.run, options.checkpoint, collect_overrides(options), options.trust)

    def tables() -> Iterator[Any]:
        for loader in input_loaders(run, options.input):
            yield from prediction_tables(loader.part, predicted(run, loader), run.meaning)

    count = write_tables(out, tables())
    if options.out != "-":
        say(f"{count} predictions written to {out}")
    return 0


def input_loaders(run: SavedRun, text: str) -> Iterator[Loader]:
    """Yield loaders of what the command line calls the input, each for as many rows as fit into memory.

    Raises:
        ConfigError: The input is of another kind than what the run was trained on.
        DataError: There is no such input, or it cannot be read.
    """
    from src.data.images import IMAGE_SUFFIXES, ImageFiles
    from src.data.parts.part import Part
    from src.data.unlabelled import table_chunks

    path, learned = Path(text.rpartition(":")[0] if ".npz:" in text else text), run.state["data"]
    is_table = text == "-" or any(suffix in TABLE_SUFFIXES for suffix in path.suffixes)
    if text != "-" and not path.exists():
        raise DataError(f"--input {text}: no such file or folder")
    if "words" in learned:
        dataset: Any = run.texts(path)
        yield run.loader(Part("input", dataset, None, run.transforms()))
        return
    if is_table != ("numbers" in learned):
        wanted = "a CSV file" if "numbers" in learned else "a folder of images, or an array in a .npy or .npz file"
        raise ConfigError(f"--input {text}: this run was trained on {run.dataset.type}; give {wanted}")
    batch_size = max(256, run.config.loader_of("test").batch_size)
    if is_table:
        separator = run.dataset.args.get("separator", "\t" if path.suffix == ".tsv" else ",")
        for chunk in table_chunks(sys.stdin if text == "-" else path, learned, separator, ROWS_AT_ONCE):
            yield run.loader(Part("input", chunk, None, run.transforms()), batch_size=batch_size, num_workers=0)
        return
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        dataset = ImageFiles(path, num_channels(run))
    elif path.suffix in (".npy", ".npz"):
        dataset = run.inputs(str(Path.cwd() / text))
    else:
        raise ConfigError(f"--input {text}: use .csv, .npy, .npz, an image or a folder of images")
    yield run.loader(Part("input", dataset, None, run.transforms()), batch_size=batch_size)


def num_channels(run: SavedRun) -> int:
    """Return how many channels the model's first convolution takes; 3 where there is none."""
    from torch import nn

    layers = (module for module in run.model.modules() if isinstance(module, nn.Conv2d))
    return next((layer.in_channels for layer in layers), 3)


def predicted(run: SavedRun, loader: Loader) -> Iterator[Any]:
    """Yield the model's outputs, batch by batch.

    Raises:
        DataError: The inputs do not fit the model.
    """
    from src.trainer.evaluate import predict

    try:
        yield from predict(run.task, run.model, loader, run.device, run.amp)
    except (KeelError, MemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        sample = loader.peek(1)
        shape = f"{list(sample.shape[1:])} {sample.dtype}".replace("torch.", "")
        raise DataError(
            f"input: {type(run.model).__name__} fails on inputs of shape {shape}: {first_line(error)}; give "
            f"them as in training, or let the config's transforms make them so"
        ) from error


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
