"""What a user is told when a metric fails."""

from __future__ import annotations

import re
from typing import NoReturn

from src.utils.command import shortage
from src.utils.deterministic import no_deterministic_form
from src.utils.errors import DataError, KeelError, first_line
from src.utils.own_line import own_line

_CALLERS = [f"src/model/{name}.py" for name in ("metric", "accumulate", "object_metric", "sklearn_metric", "merge")]
_NO_NUMBER = r"Could not infer dtype of (\w+)|new\(\): invalid data type '(\w+)'"


def raise_named(name: str, error: Exception) -> NoReturn:
    """Raise the error of metric `name` anew, with its name and its line.

    Raises:
        DataError: It failed. What is told in another way, want of memory say, stays as it is.
    """
    if isinstance(error, KeelError) or shortage(error) or no_deterministic_form(error):
        raise error
    returned = re.match(_NO_NUMBER, str(error))
    if returned:
        raise DataError(f"metric {name}: a number is needed, it returns {returned[1] or returned[2]}") from error
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise DataError(f"metric {name} fails: {kind}{first_line(error)}{own_line(error, _CALLERS)}") from error
