"""TensorBoard beside a run: a server on this machine alone, which ends when the program that started it does."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from src.logger.tensorboard import check_installed
from src.utils.paths import PROJECT_ROOT

log = logging.getLogger(__name__)


@contextmanager
def board(folder: Path) -> Iterator[None]:
    """Serve the runs below `folder` during the block, and log the address as soon as there is one.

    On a terminal the block's end waits for Ctrl-C, so that what was trained can be looked at.

    Raises:
        ConfigError: TensorBoard isn't installed.
    """
    check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "src.logger.board", str(folder)],
        cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,  # Ctrl-C is for the training, which still wants to be looked at
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    addresses = server.stdout

    def tell() -> None:
        address = addresses.readline().strip()
        log.info("board  %s", address or "TensorBoard did not start; `tensorboard --logdir` says why")

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
        if sys.stdin is not None and sys.stdin.isatty() and server.poll() is None:
            log.info("TensorBoard goes on until Ctrl-C")
            with suppress(KeyboardInterrupt):
                server.wait()
    finally:
        server.stdin.close()  # its sign to end
        server.wait(20)


def main(folder: str) -> None:
    """Serve `folder` at a free port, print the address, and end when standard input does: with the parent, at most."""
    from tensorboard import program  # type: ignore[import-untyped]

    server = program.TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", folder, "--host", "127.0.0.1", "--port", "0"])
    print(server.launch(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
