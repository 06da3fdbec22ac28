"""Texts as numbers: `data: {type: text.Texts, args: {file: data/reviews.csv, text: review, target: stars}}`.

Axes: N batch, L length of the longest text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.parts.classes import renumbered
from src.utils.errors import ConfigError, DataError
from src.utils.paths import project_path, shown_path

PAD, UNKNOWN = 0, 1
"""Ids of what fills the end of a short text, and of words that are in no training row."""

_PIECES = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def words(text: str) -> list[str]:
    """Return the words and signs of a text, in lower case."""
    return _PIECES.findall(text.lower())


def characters(text: str) -> list[str]:
    """Return the characters of a text."""
    return list(text)


def pad(samples: Sequence[Any], value: int = PAD) -> Any:
    """Make a batch of texts of different lengths, [N, L]: a `loader.collate_fn` for datasets of your own.

    Args:
        samples: Texts, int64 [length], or tuples that begin with one; what follows is stacked as usual.
        value: What is put behind a short text.
    """
    from torch.utils.data import default_collate

    if isinstance(samples[0], (tuple, list)):
        rest = [tuple(sample[1:]) for sample in samples]
        return (pad([sample[0] for sample in samples], value), *default_collate(rest))
    tensors = [torch.as_tensor(sample) for sample in samples]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


class Texts(Dataset[Any]):
    """The lines of a text file, or a column of a CSV file, as `(tokens, target)`, or `tokens` alone without a target.

    Tokens are int64 [length], in a batch [N, L] with 0 behind short texts. A target is a class, int64 [], if the column
    is text or `classify` says so, else float32 [1]. The vocabulary is that of the training rows; it goes with the
    checkpoint. It numbers words from 2, the most frequent first; 1 is any other word.

    Args:
        file: `.csv` or `.tsv` with a header, else one text per line; relative to the project.
        text: Column of the texts. None is right for lines.
        target: Column to predict; None if there is none.
        tokenizer: Makes pieces of a text: a function such as `words`; or an object whose `encode` returns its own ids.
        max_length: Pieces of a text that are kept; None keeps all.
        min_count: A word that is in the training rows less often is unknown.
        max_words: Size of the vocabulary at most; None has no limit.
        classify: Whether the target is a class; default: if it is text.

    Attributes:
        num_tokens: One more than the largest id: the size of an embedding.

    Raises:
        DataError: The file or a column is missing, or a text is.
    """

    def __init__(
        self,
        file: str,
        text: str | None = None,
        target: str | None = None,
        tokenizer: Any = words,
        max_length: int | None = None,
        min_count: int = 1,
        max_words: int | None = None,
        classify: bool | None = None,
    ) -> None:
        path = project_path(file)
        self.where = shown_path(path)
        self._frame, self.texts = _read(path, text)
        self._set_tokenizer(tokenizer)
        self._limits = (max_length, min_count, max_words)
        self.class_names: list[str] | None = None
        self.targets: Tensor | None = None
        if target is not None:
            self._take_target(target, classify)
        self.words: list[str] = []
        self._tokens: Tensor | None = None
        if self._encode is not None:
            self._number()

    def _set_tokenizer(self, tokenizer: Any) -> None:
        encode = getattr(tokenizer, "encode", None)
        if isinstance(tokenizer, str) or not (callable(encode) or callable(tokenizer)):
            raise ConfigError(f"tokenizer: a function or an object with `encode` is needed, found {tokenizer!r}")
        self._encode: Callable[[str], Any] | None = encode if callable(encode) else None
        self._tokenize = tokenizer
        pad_id = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = PAD if self._encode is None or pad_id is None else int(pad_id)

    def _take_target(self, name: str, classify: bool | None) -> None:
        values = self.column(name)
        if any(value != value or value is None for value in values):
            row = next(row for row, value in enumerate(values, start=1) if value != value or value is None)
            raise DataError(f"{self.where} row {row} column {name}: empty")
        if classify is None:
            classify = values.dtype.kind not in "iuf"
        if not classify:
            self.targets = torch.from_numpy(values.astype(np.float32)).unsqueeze(1)
            return
        names, codes = np.unique(values.astype(str), return_inverse=True)
        self.class_names, self.num_classes = names.tolist(), len(names)
        self.targets = torch.from_numpy(codes)

    def fit(self, rows: Tensor) -> None:
        """Make the vocabulary of these rows, and no others."""
        if self._encode is not None:
            return
        _, min_count, max_words = self._limits
        counts = Counter(word for row in rows.tolist() for word in self._tokenize(self.texts[row]))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        self.words = kept if max_words is None else kept[: max(0, max_words - 2)]
        self._number()

    def _number(self) -> None:
        """Turn all texts into ids, one behind the other."""
        limit = self._limits[0]
        codes = {word: code for code, word in enumerate(self.words, start=UNKNOWN + 1)}

        def ids(text: str) -> Iterable[int]:
            if self._encode is None:
                return (codes.get(word, UNKNOWN) for word in self._tokenize(text))
            return (int(number) for number in self._encode(text))

        numbered = [list(ids(text))[:limit] for text in self.texts]
        lengths = torch.tensor([len(each) for each in numbered])
        self._tokens = torch.tensor([number for each in numbered for number in each], dtype=torch.int64)
        self._ends = lengths.cumsum(0)
        self._starts = self._ends - lengths
        if self._encode is None:
            self.num_tokens = len(self.words) + UNKNOWN + 1
        else:
            sizes = (getattr(self._tokenize, name, None) for name in ("vocab_size", "n_vocab"))
            size = next((size for size in sizes if isinstance(size, int)), 0)
            self.num_tokens = max(size, int(self._tokens.max()) + 1 if len(self._tokens) else 1, self.pad_id + 1)

    @property
    def tokens(self) -> Tensor:
        """The ids of all texts, one behind the other."""
        if self._tokens is None:
            raise DataError(f"{self.where}: call fit(rows) with the training rows first")
        return self._tokens

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> Any:
        tokens = self.tokens[self._starts[row] : self._ends[row]]
        return tokens if self.targets is None else (tokens, self.targets[row])

    def read_batch(self, rows: Tensor) -> Any:
        """Return tokens [N, L] and, if there is a target, targets [N] or [N, 1]."""
        tokens, starts = self.tokens, self._starts[rows]
        lengths = self._ends[rows] - starts
        places = torch.arange(max(1, int(lengths.max())))
        is_there = places < lengths.unsqueeze(1)
        batch = torch.full(is_there.shape, self.pad_id)
        batch[is_there] = tokens[(starts.unsqueeze(1) + places)[is_there]]
        return batch if self.targets is None else (batch, self.targets.index_select(0, rows))

    def content(self, rows: Tensor) -> Any:
        """Return the texts of these rows: what makes two rows the same."""
        return [self.texts[row] for row in rows.tolist()]

    def column(self, name: str) -> Any:
        """Return a column of the CSV file, to split by.

        Raises:
            DataError: There is none of this name.
        """
        from src.data.tables.cells import column_in

        if self._frame is None:
            raise DataError(
                f"{self.where}: no column {name!r}: it is read line by line; columns are those of a .csv file"
            )
        return column_in(self._frame, name, self.where).to_numpy()

    def cells(self, row: int) -> dict[str, Any]:
        """Return the text of a row, for people to read."""
        return {"text": self.texts[row]}

    def state_dict(self) -> dict[str, Any]:
        """Return the vocabulary and the classes."""
        return {"words": self.words, "class_names": self.class_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over vocabulary and classes of the training data.

        Raises:
            DataError: A class is none of theirs.
        """
        names = state["class_names"]
        if self.class_names is not None and self.targets is not None and names is not None:
            self.targets = renumbered(self.targets, self.class_names, names, lambda row: f"{self.where} row {row + 1}")
            self.class_names, self.num_classes = list(names), len(names)
        self.words = list(state["words"])
        self._number()


def _read(path: Path, column: str | None) -> tuple[Any, list[str]]:
    """Return the table of a CSV file, None for lines, and the texts.

    Raises:
        DataError: See `Texts`.
    """
    where = shown_path(path)
    if path.suffix not in (".csv", ".tsv"):
        if column is not None:
            raise ConfigError(f"Texts text: {column!r}: {where} is read line by line; columns are those of a .csv file")
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: cannot be read as text: {getattr(error, 'strerror', None) or error}") from error
        if not texts:
            raise DataError(f"{where}: is empty")
        return None, texts
    from src.data.tables.cells import column_in
    from src.data.tables.csv_file import read_csv

    frame = read_csv(path, "\t" if path.suffix == ".tsv" else ",")
    if column is None:
        raise ConfigError(f"Texts text: name the column of the texts; {where} has {', '.join(map(str, frame.columns))}")
    values = column_in(frame, column, where)
    if values.isna().any():
        raise DataError(f"{where} row {int(values.isna().to_numpy().argmax()) + 1} column {column}: empty")
    return frame, values.astype(str).tolist()
