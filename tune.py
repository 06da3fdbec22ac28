"""Try many values: `python tune.py -c configs/tune_digits.yaml`. The section `tune` of the config says which.

Each trial is a run like any other, below saved/<name>/tune_.../. Killed, `--resume` goes on: what is finished stays.
Needs Ray: pip install -e ".[ray]"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from src.config.command_line import Parser, add_common_options, collect_overrides, find_config
from src.config.load import load_config
from src.config.mistakes import placed
from src.config.registry import trust, use_folder
from src.utils.command import run_command
from src.utils.paths import PROJECT_ROOT, shown_path


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("tune.py", "tune.py -c CONFIG [--resume [FOLDER]] [KEY=VALUE ...]", __doc__)
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="an experiment with a section `tune`")
    parser.add_argument(
        "-r",
        "--resume",
        nargs="?",
        const="auto",
        metavar="FOLDER",
        help="go on with this sweep; without FOLDER the newest one of the config, or a new one where there is none",
    )
    parser.add_argument("--address", help="of a running Ray cluster, e.g. auto; without it Ray starts on this machine")
    parser.add_argument("--check", action="store_true", help="check everything, list the trials; write nothing")
    add_common_options(parser)
    options = parser.parse_intermixed_args(argv)
    if "=" in (options.resume or ""):  # `--resume trainer.epochs=3` names no folder
        options.overrides.insert(0, options.resume)
        options.resume = "auto"
    return options


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(argv)
    path = find_config(options.config)
    use_folder(path.parent)
    trust(options.trust)
    config = load_config(path, collect_overrides(options), whole_report=True)
    from src.logger.console import setup_console
    from src.sweep.run import check_sweep, run_sweep

    setup_console(options.quiet, options.verbose)
    with placed(config.places):
        if options.check:
            print(*check_sweep(config), sep="\n")
            return 0
        return run_sweep(config, path, options.resume, options.address, tuple(options.trust), same_command(options))


def same_command(options: argparse.Namespace) -> list[str]:
    """Return the command line that begins the same sweep."""
    words = [shown_path(PROJECT_ROOT / "tune.py"), "-c", options.config, *collect_overrides(options)]
    words += [word for name in options.trust for word in ("--trust", name)]
    return [*words, "--address", options.address] if options.address else words


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
