"""Passwords and keys are written nowhere: config copies, logs, event files and checkpoints carry `***` for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_WORDS = r"pass(?:word|wd)?|secret|token|api_?key|credentials?|private_?key"
_SECRET_KEY = re.compile(rf"({_WORDS})$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)(?:[^/\s:@]+:[^/\s@]+|[^/\s@:]{16,})(?=@)")
"""A name with a password, or a name alone that is as long as a token."""
_URL_QUERY = re.compile(rf"([?&][\w-]*(?:{_WORDS}|signature)=)[^&#\s]+", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(rf"(\b\w*(?:{_WORDS})[\"']?\s*:\s*)[^,}}\]\s]+", re.IGNORECASE)
"""`{type: x.Y, args: {api_key: sk-1}}` as one word of a command line."""
_INNOCENT = re.compile(r"(cls|pad|mask|unk|bos|eos|sep|sos|start|end|stop|image|special)_token", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{env:\w+\}")
_SPECIAL_TOKEN = re.compile(r"[<\[].{0,30}[>\]]")


def is_secret(key: str) -> bool:
    """Whether what stands behind this key is hidden: `api_key`, `db.password`, but not `cls_token` or `num_tokens`."""
    last = key.rsplit(".", 1)[-1].lstrip("-")
    return bool(_SECRET_KEY.search(last)) and not _INNOCENT.fullmatch(last)


def masked(value: Any, key: str = "") -> Any:
    """A copy of plain data in which secret values, and logins within addresses, are `***`."""
    if isinstance(value, Mapping):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, key) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and (_REFERENCE.fullmatch(value) or _SPECIAL_TOKEN.fullmatch(value)):
        return value  # where the secret is, or a sign of a vocabulary
    if is_secret(key):
        return HIDDEN
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """A copy of a text without the logins and keys that are part of addresses in it."""
    if "://" not in text:
        return text
    return _URL_QUERY.sub(rf"\1{HIDDEN}", _URL_LOGIN.sub(HIDDEN, text))


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
            shown.append(masked_text(_SECRET_IN_TEXT.sub(rf"\1{HIDDEN}", word)))
    return shown


def is_hidden(value: Any) -> bool:
    """Whether some text in plain data has been masked."""
    if isinstance(value, Mapping):
        return any(map(is_hidden, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(is_hidden, value))
    return isinstance(value, str) and (value == HIDDEN or ("://" in value and HIDDEN in value))
