"""Fuzz some targets, or all: `python -m tests.fuzz [--runs N] [TARGET ...]`.

With the package atheris inputs are chosen by the code they reach; without it, they are mutated at random. Each target
has a process of its own, with limited memory. An input that is found is written to `build/fuzz/`.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import ROOT
from tests.fuzz import TARGETS

MORE_BYTES = 2 << 30
"""What a target may take besides what is there when it begins; libraries reserve more than they use."""
FOUND = ROOT / "build" / "fuzz"


def limit_memory() -> None:
    """Let this process have no more than a little over what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fuzz(target: str, runs: int, seed: int) -> None:
    """Fuzz one target in this process."""
    FOUND.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if find_spec("atheris") is None:
        fuzz_at_random(target, runs, seed)
        return
    import atheris

    with atheris.instrument_imports(include=["src", "yaml", "zipfile", "gzip"]):
        from tests.fuzz import targets
    corpus = FOUND / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(targets.seeds(target)):
        (corpus / f"seed{number}").write_bytes(data)
    limit_memory()
    options = [
        f"-runs={runs}",
        f"-seed={seed or 1}",
        f"-artifact_prefix={FOUND}/{target}-",
        "-rss_limit_mb=0",
        "-timeout=0",
    ]
    options += [f"-max_len={targets.MAX_BYTES}", "-verbosity=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: targets.run(target, data))
    atheris.Fuzz()


def fuzz_at_random(target: str, runs: int, seed: int) -> None:
    """Fuzz one target with mutations of good inputs."""
    from tests.fuzz import targets

    good = targets.seeds(target)
    draw = random.Random(f"{target} {seed}")
    targets.run(target, good[0])
    limit_memory()
    for number in range(runs):
        data = targets.mutated(draw.choice(good), draw)
        try:
            targets.run(target, data)
        except BaseException:
            path = FOUND / f"{target}-{seed}-{number}"
            path.write_bytes(data)
            print(f"{target}: run {number} fails on {path}", file=sys.stderr)
            raise


def main() -> int:
    """Fuzz each target in a process of its own; 1 if something was found."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="start of the random choices")
    parser.add_argument("--here", action="store_true", help="in this process; needs one target")
    options = parser.parse_args()
    if unknown := [target for target in options.targets if target not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if options.here:
        fuzz(options.targets[0], options.runs, options.seed)
        return 0
    failed = []
    for target in options.targets or TARGETS:
        words = ["--here", target, f"--runs={options.runs}", f"--seed={options.seed}"]
        ran = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, check=False)
        print(
            f"{target}: {options.runs} inputs, {'something was found' if ran.returncode else 'nothing found'}",
            flush=True,
        )
        failed += [target] if ran.returncode else []
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
