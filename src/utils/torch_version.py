"""The oldest torch that may read files of others."""

from __future__ import annotations

import re

from src.utils.errors import ConfigError

OLDEST = (2, 10)
"""Before, a file made for it could change memory even with `weights_only=True`: CVE-2026-24747."""


def check_torch(version: str) -> None:
    """Refuse a torch that is too old.

    Raises:
        ConfigError: Says which is needed.
    """
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise ConfigError(f"torch {version}: 2.10 or newer is needed to read checkpoints safely; pip install -U torch")
