"""A word language model with an LSTM whose state is carried from batch to batch. Axes: N rows of text, L words, D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.trainer.task import StepOutput, Task

State = tuple[Tensor, Tensor]


class Sentences(Dataset[Any]):
    """A text made by a grammar of 50 words, cut into N rows that are read side by side, L words at a time.

    Sample i is a whole batch `(words [N, L], next words [N, L])`: it goes on where sample i - 1 ended.
    A word is followed by one of four others, each with its own share: no model gets below a perplexity of 3.6.
    """

    num_words = 50

    def __init__(self, num_tokens: int, seed: int, num_rows: int = 20, length: int = 20) -> None:
        grammar, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        followers = torch.stack([torch.randperm(self.num_words, generator=grammar)[:4] for _ in range(self.num_words)])
        shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
        choices = torch.multinomial(shares, num_tokens, replacement=True, generator=generator).tolist()
        text, table = [0], followers.tolist()
        for choice in choices:
            text.append(table[text[-1]][choice])
        self.text = torch.tensor(text[: num_tokens // num_rows * num_rows]).view(num_rows, -1)
        self.length = length

    def __len__(self) -> int:
        return (self.text.shape[1] - 1) // self.length

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        words = self.text[:, row * self.length : (row + 1) * self.length + 1]
        return words[:, :-1], words[:, 1:]


def whole(samples: list[Any]) -> Any:
    """Collate samples that are batches already, one at a time."""
    (sample,) = samples
    return sample


class WordLSTM(nn.Module):
    """Words [N, L] and a state, to logits [N, num_words, L] and the state after the last word."""

    def __init__(self, num_words: int, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, num_words)

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        hidden, state = self.lstm(self.words(words), state)
        return self.head(hidden).transpose(1, 2), state


class LanguageTask(Task):
    """Carries the state on from the batch before; each pass over a part starts without one."""

    state: State | None = None

    def begin(self, part: str, epoch: int) -> None:
        self.state = None

    def step(self, model: Any, batch: Any) -> StepOutput:
        words, targets = batch
        logits, (hidden, cell) = model(words, self.state)
        self.state = (hidden.detach(), cell.detach())
        loss, _ = self.loss(logits, targets)
        return StepOutput(loss, logits, targets, float(targets.numel()))

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state["state"]
