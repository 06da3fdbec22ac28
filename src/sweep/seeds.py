"""`--seeds N`: the same run with N seeds, and how much of a result is luck.

saved/NAME/seeds-5_1121_072233/seed-0 ... seed-4      each a run like any other
                               summary.json           mean, standard deviation and 95 % interval of every metric
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from src.config.command_line import Arguments
from src.config.settings import Config
from src.logger.run_index import read_run
from src.logger.seed_noise import summarise, summary_lines, values_at_best
from src.sweep.series import series_folder, train_series
from src.utils.paths import project_path, shown_path
from src.utils.whole_file import write_file

log = logging.getLogger(__name__)


def train_seeds(config: Config, arguments: Arguments, command: Sequence[str]) -> int:
    """Train with every seed that is not done yet, print what comes out, and return the exit code.

    Args:
        config: Of the first run; the others have the seeds after its own. The split keeps its seed.
        arguments: With `seeds`. `resume` is a folder of seeds, `auto` the newest one.
        command: The command line, for the record.
    """
    saved = project_path(config.trainer.save_dir) / config.name
    folder = series_folder(saved, arguments.resume, f"seeds-{arguments.seeds}", "seeds-*", "seed-*")
    seeds = range(config.seed, config.seed + arguments.seeds)
    configs = {f"seed-{seed}": replace(config, seed=seed) for seed in seeds}
    code = train_series(folder, configs, arguments, command)
    if code:
        return code
    paths = [folder / name for name in configs]
    summary = summarise([values_at_best(path, read_run(path)) for path in paths])
    plain = {
        name: {"mean": each.mean, "std": each.std, "low": each.mean - each.half, "high": each.mean + each.half}
        for name, each in summary.items()
        if math.isfinite(each.half)
    }
    write_file(folder / "summary.json", json.dumps({"seeds": arguments.seeds, "metrics": plain}, indent=2) + "\n")
    log.info("%d seeds, each where it was best: %s", arguments.seeds, shown_path(folder))
    for line in summary_lines(summary):
        log.info("%s", line)
    return 0
