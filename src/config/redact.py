"""Secrets do not belong in the files of a run: their values are replaced before a config is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_KEY = re.compile(r"(?i)(pass(word|wd)?|secret|token|api_?key|credential|private_?key)$")
_VOCABULARY = re.compile(r"(?i)(cls|pad|sep|eos|bos|unk|mask|start|end|special|class)_token$")
_URL_LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def redact(values: Any) -> Any:
    """Returns a copy of plain values in which secrets read `***`: by their key, and logins within URLs.

    References such as `${env:API_KEY}` stay: they name a secret without holding it.
    """
    if isinstance(values, Mapping):
        return {key: "***" if _is_secret(key, value) else redact(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact(value) for value in values]
    return _URL_LOGIN.sub("***", values) if isinstance(values, str) else values


def _is_secret(key: object, value: object) -> bool:
    if value is None or isinstance(value, bool | Mapping) or (isinstance(value, str) and value.startswith("${")):
        return False
    return isinstance(key, str) and bool(_SECRET_KEY.search(key)) and not _VOCABULARY.search(key)
