"""The base of their trainers, so that files which import it can be imported."""

from __future__ import annotations

from typing import Any


class BaseTrainer:
    """Can be imported and inherited from, not used: this project trains with its own loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{type(self).__name__}: a trainer of one's own is not run here; what it changes goes into a task "
            "(what one batch means) or a hook (who watches), see docs/migrating.md"
        )
