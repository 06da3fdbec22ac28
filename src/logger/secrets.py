"""Passwords and keys are written nowhere: config copies, logs, event files and checkpoints carry `***` for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_KEY = re.compile(r"(pass(word|wd)?|secret|token|api_?key|credentials?|private_?key)$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_INNOCENT = {"cls_token", "pad_token", "mask_token", "unk_token", "bos_token", "eos_token", "sep_token"}


def is_secret(key: str) -> bool:
    """Whether what stands behind this key is hidden: `api_key`, `db.password`, but not `cls_token` or `num_tokens`."""
    last = key.rsplit(".", 1)[-1].lstrip("-")
    return bool(_SECRET_KEY.search(last)) and last.lower() not in _INNOCENT


def masked(value: Any, key: str = "") -> Any:
    """A copy of plain data in which secret values, and logins within addresses, are `***`."""
    if isinstance(value, Mapping):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, key) for item in value]
    if value is not None and not isinstance(value, bool) and is_secret(key):
        return HIDDEN
    return _URL_LOGIN.sub(HIDDEN, value) if isinstance(value, str) else value


def masked_command(words: list[str]) -> list[str]:
    """A copy of a command line in which `key=value` and `--key value` are hidden where the key is a secret's."""
    shown: list[str] = []
    for index, word in enumerate(words):
        key, equals, _ = word.partition("=")
        if equals and is_secret(key):
            shown.append(f"{key}={HIDDEN}")
        elif index and words[index - 1].startswith("-") and "=" not in words[index - 1] and is_secret(words[index - 1]):
            shown.append(HIDDEN)
        else:
            shown.append(_URL_LOGIN.sub(HIDDEN, word))
    return shown
