"""Compare runs: `python runs.py saved/`, and free their disk space: `python runs.py prune saved/`.

Lists every run below a folder: its status, best value, epochs, time, and the config keys in which runs differ.
`compare A B` says whether two configs, each trained with several seeds, differ by more than seeds make them differ.
`prune` lists what could be deleted, and deletes it with --yes. The best and the last checkpoint always stay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from src.config.command_line import Parser
from src.utils.command import run_command
from src.utils.errors import ConfigError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    usage = "runs.py [prune] FOLDER [--sort KEY] [--filter KEY=VALUE] [--csv FILE], or: runs.py compare A B"
    parser = Parser("runs.py", usage, __doc__)
    parser.add_argument("words", nargs="*", metavar="FOLDER", help="where the runs are; default: saved")
    parser.add_argument("--sort", metavar="KEY", help="column or config key, e.g. lr; --sort=-lr has the largest first")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="COND", help="e.g. status=finished, 'lr<0.01'; may be repeated"
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table, all its columns, to a file")
    parser.add_argument("--html", metavar="FILE", help="write a page with the table and the curves of the best runs")
    parser.add_argument("--yes", action="store_true", help="of prune: delete what it lists")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(argv)
    if options.words[:1] == ["compare"]:
        return compare_seeds([Path(word) for word in options.words[1:]])
    is_prune = options.words[:1] == ["prune"]
    words = options.words[1:] if is_prune else options.words
    folder = Path(words[0] if words else "saved")
    if len(words) > 1:
        raise ConfigError(f"runs.py: one folder at a time, received {', '.join(words)}")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name the one that holds your runs, usually saved")
    return prune(folder, options.yes) if is_prune else compare(folder, options)


def compare_seeds(folders: Sequence[Path]) -> int:
    """Print in what two configs differ, and whether their results do."""
    from src.logger.seed_noise import compare_lines, find_repeats

    if len(folders) != 2:
        raise ConfigError("runs.py compare: two folders are needed, e.g. saved/a/seeds-5_... saved/b/seeds-5_...")
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; name one that train.py --seeds made")
    a, b = map(find_repeats, folders)
    print(*compare_lines(a, b), sep="\n")
    return 0


def compare(folder: Path, options: argparse.Namespace) -> int:
    """Print the leaderboard, and write it if asked to."""
    from src.logger.leaderboard import runs_table, table_text
    from src.logger.run_index import list_runs

    runs = list_runs(folder)
    if not runs:
        print(f"no runs in {folder}")
        return 0
    table = runs_table(runs, options.filter, options.sort)
    if options.csv:
        table.to_csv(options.csv, index=False)
        print(f"{len(table)} runs written to {options.csv}")
    if options.html:
        from src.logger.report.compare import write_comparison

        write_comparison(Path(options.html), folder, table, is_by_result=options.sort is None)
        print(f"{len(table)} runs written to {options.html}")
    if options.csv or options.html:
        return 0
    if len(table):
        width = shutil.get_terminal_size((160, 50)).columns
        print(table_text(table, width, is_by_result=options.sort is None))
    else:
        print(f"none of {len(runs)} runs in {folder} fits {' and '.join(options.filter)}")
    return 0


def prune(folder: Path, is_confirmed: bool) -> int:
    """List what could be deleted; delete it when that is confirmed."""
    from src.logger.run_index import list_runs
    from src.trainer.checkpoints.prune import delete, spare_files

    num_files = num_bytes = 0
    for name, (_, is_running) in list_runs(folder).items():
        spare = [] if is_running else spare_files(folder / name)
        for each in spare:
            print(f"{each.num_bytes / 2**20:9.1f} MiB  {each.path}  ({each.why})")
        if is_confirmed and spare:
            delete(folder / name, spare)
        num_files += len(spare)
        num_bytes += sum(each.num_bytes for each in spare)
    done = "deleted" if is_confirmed else "could be deleted; add --yes to do so"
    print(f"{num_files} item{'' if num_files == 1 else 's'}, {num_bytes / 2**20:.1f} MiB {done}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
