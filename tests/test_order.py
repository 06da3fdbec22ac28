"""The tests themselves: whatever one does to the process, the next does not see."""

from __future__ import annotations

import gc
import logging
import os
import sys
from importlib import import_module
from pathlib import Path

import torch

from src.config.registry import trust, use_folder, vouched_for
from src.logger.console import LOG, is_quiet, setup_console
from tests.conftest import OF_THE_PROCESS, put_back


def test_what_a_test_sets_for_the_process_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "left_behind").mkdir()
    (tmp_path / "left_behind" / "part.py").write_text("")
    before = [read() for read, _ in OF_THE_PROCESS]
    with put_back(tmp_path):
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        for name in ("benchmark", "deterministic", "allow_tf32"):
            setattr(torch.backends.cudnn, name, not getattr(torch.backends.cudnn, name))
        os.umask(0o071)
        os.environ["LEFT_BEHIND"] = os.environ.pop("HOME", "")
        sys.path.append(str(tmp_path))
        import_module("left_behind.part")
        setup_console(quiet=True, verbose=True)
        trust(["left_behind"])
        use_folder(tmp_path)
        gc.freeze()
        assert is_quiet() and all(read() != value for (read, _), value in zip(OF_THE_PROCESS, before, strict=True))
    assert [read() for read, _ in OF_THE_PROCESS] == before
    assert vouched_for() == ([], []) and not is_quiet() and LOG.level == logging.NOTSET
    assert not {"left_behind", "left_behind.part"} & set(sys.modules) and not gc.get_freeze_count()
    assert logging._warnings_showwarning is None  # type: ignore[attr-defined]  # the next command captures them anew
