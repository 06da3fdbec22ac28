"""Which run is best, as a table: its result, and what of its config is not as in the others."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd

from src.logger.console import duration, number
from src.logger.run_index import RunRecord
from src.utils.errors import ConfigError

FIXED = ["run", "status", "best", "best_epoch", "epochs", "time_s"]
NOT_COMPARED = ("name", "trainer.save_dir")
_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Runs = Mapping[str, tuple[RunRecord, bool]]


def runs_table(runs: Runs, conditions: Sequence[str] = (), sort: str | None = None) -> pd.DataFrame:
    """Return a table of runs, best first within each experiment, with every key in which configs differ.

    Runs that watch different values follow each other by what they watch: no number of one says a thing of another.

    Args:
        runs: What `list_runs` returned.
        conditions: `status=finished`, `lr<0.01`, ...: a column or config key, whole or its last words.
        sort: Column or config key to sort by instead, `-` before it for the largest first.

    Raises:
        ConfigError: There is no such key, or it means several.
    """
    rows = [_row(name, record, running) for name, (record, running) in runs.items()]
    known = list(dict.fromkeys(key for row in rows for key in row))
    for condition in conditions:
        keeps = _condition(condition, known)
        rows = [row for row in rows if keeps(row)]
    differing = [key for key in known if key not in (*FIXED, "monitor") and _differs(key, rows)]
    if sort:
        key = find_key(sort.removeprefix("-"), known)
        rows.sort(key=lambda row: _order(row.get(key), sort.startswith("-")))
        shown = [key] if key not in (*FIXED, "monitor", *differing) else []
    else:
        rows.sort(key=_by_result)
        shown = []
    return pd.DataFrame(rows, columns=[*FIXED, "monitor", *shown, *differing])


def _by_result(row: dict[str, Any]) -> tuple[Any, ...]:
    folder, mode = row["run"].rpartition("/")[0], row["monitor"][:3]
    return folder, row["best"] is None, row["monitor"], _order(row["best"], mode == "max")


def _row(name: str, record: RunRecord, running: bool) -> dict[str, Any]:
    values = {
        "run": name,
        "status": "running" if running else record.end,
        "best": record.best,
        "best_epoch": record.best_epoch,
        "epochs": record.epochs,
        "time_s": record.time_s,
        "monitor": record.monitor,
    }
    return {**record.config, **values}


def _differs(key: str, rows: list[dict[str, Any]]) -> bool:
    if key in NOT_COMPARED or not rows:
        return False
    first = rows[0].get(key)
    return any(row.get(key) != first for row in rows)


def _order(value: Any, is_descending: bool) -> tuple[int, float, str]:
    """Numbers first, then text, then what is missing."""
    if isinstance(value, (int, float)) and value == value:
        return 0, -value if is_descending else value, ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def find_key(words: str, known: Sequence[str]) -> str:
    """Return the column or config key meant by `words`: the whole of it or its last words, `lr` or `args.lr`.

    Raises:
        ConfigError: There is none, or there are several.
    """
    if words in known:
        return words
    found = [key for key in known if key.endswith(f".{words}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{words}: could be {', '.join(found)}; write more of it")
    close = get_close_matches(words, [*known, *(key.rpartition(".")[2] for key in known)], n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FIXED)} and the keys of the config"
    raise ConfigError(f"{words}: no run has this key; {hint}")


def _condition(text: str, known: Sequence[str]) -> Callable[[dict[str, Any]], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(f"--filter {text}: write KEY=VALUE, or with !=, <, <=, >, >=, such as status=finished")
    key, sign, wanted = find_key(match[1], known), match[2], match[3]

    def keeps(row: dict[str, Any]) -> bool:
        value = row.get(key)
        try:
            return _COMPARE[sign](float(value), float(wanted))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            same = str(value).lower() == wanted.lower()
            return same if sign == "=" else not same if sign == "!=" else False

    return keeps


def table_text(table: pd.DataFrame, width: int, is_by_result: bool = True) -> str:
    """Return the table as aligned lines, with as many columns as fit into `width`.

    Args:
        table: What `runs_table` returned.
        width: Of the screen.
        is_by_result: Make one block per experiment and value that is watched, else one per experiment.
    """
    blocks = []
    for name, by, group in comparable_groups(table, is_by_result):
        block, left_out = _block(group, width)
        more = f", {left_out} more columns: --csv FILE has all" if left_out else ""
        where = f"{name}: " if name else ""
        blocks.append(f"{where}{len(group)} run{'s' if len(group) > 1 else ''}{by}{more}\n{block}")
    return "\n\n".join(blocks)


def comparable_groups(table: pd.DataFrame, is_by_result: bool = True) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (folder, what they are ranked by where that differs in it, runs) for what may stand in one table.

    Args:
        table: What `runs_table` returned.
        is_by_result: Part runs of a folder that watch different values; runs without a result stay with those before.
    """
    folders = table["run"].str.rpartition("/")[0]
    watched = table["monitor"].where(table["best"].notna()).groupby(folders).transform(lambda each: each.ffill())
    watched = watched.fillna("") if is_by_result else folders
    several = watched.groupby(folders).transform("nunique") > 1
    for (name, monitor), group in table.groupby([folders, watched], sort=False):
        by = f" by {monitor}, not comparable with other values" if several[group.index[0]] else ""
        yield str(name), by, group


def shown_columns(group: pd.DataFrame) -> dict[str, list[str]]:
    """Return runs of one kind as people compare them, by heading: how far they came, and in what they differ."""
    monitors = group["monitor"].unique()
    best = monitors[0].partition(" ")[2] or "best" if len(monitors) == 1 else "best"
    columns = {
        "run": [name.rpartition("/")[2] for name in group["run"]],
        "status": list(group["status"]),
        best: [_shown(value) for value in group["best"]],
        "at epoch": [_shown(value) for value in group["best_epoch"]],
        "epochs": [_shown(value) for value in group["epochs"]],
        "time": [duration(value) if value == value and value is not None else "" for value in group["time_s"]],
    }
    if len(monitors) > 1:
        columns["best is"] = list(group["monitor"])
    for key in list(group.columns)[len(FIXED) + 1 :]:
        values = [_shown(value) for value in group[key]]
        if len(set(values)) > 1:
            columns[_short(key, list(group.columns))] = values
    return columns


def _block(group: pd.DataFrame, width: int) -> tuple[str, int]:
    columns = shown_columns(group)
    lines, left_out = [""] * (len(group) + 1), 0
    for key, values in columns.items():
        cells = [key, *(value if len(value) <= 40 else value[:37] + "..." for value in values)]
        size = max(map(len, cells))
        if len(lines[0]) + size > width and key != "run":
            left_out += 1
            continue
        lines = [f"{line}{cell:<{size}}  " for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines), left_out


def _short(key: str, known: list[str]) -> str:
    """Return the last words of a key that no other column ends with."""
    words = key.split(".")
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        if end not in ("type", "args") and sum(other == end or other.endswith(f".{end}") for other in known) == 1:
            return end
    return key


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else number(value)
    return str(value)
