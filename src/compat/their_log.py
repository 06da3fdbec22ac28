"""Their `logger/logger_config.json`: where the lines of the log go, and how they look."""

from __future__ import annotations

import json
import logging.config
from pathlib import Path

from src.utils.errors import ConfigError
from src.utils.paths import shown_path

FILE = "logger/logger_config.json"


def use_their_log(folder: Path, log_dir: Path) -> bool:
    """Set logging up as the project says, and return whether it does.

    Args:
        folder: Of the project. What the file names is called, as all code of the project is.
        log_dir: Where its log files go.

    Raises:
        ConfigError: The file cannot be used.
    """
    path = folder / FILE
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        for handler in config.get("handlers", {}).values():
            if "filename" in handler:
                handler["filename"] = str(log_dir / handler["filename"])
        logging.config.dictConfig({**config, "disable_existing_loggers": False})
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        raise ConfigError(f"{shown_path(path)}: cannot set the log up: {reason}") from error
    return bool(logging.getLogger().handlers)
