"""Is a sentence friendly? A pretrained encoder with a new head. Axes: N batch, L tokens, D embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset


class Sentences(Dataset[dict[str, Tensor]]):
    """The rows of sentences.csv: a sample is `{ids [L], mask [L], label}`.

    Args:
        folder: Of the encoder; its tokenizer is used.
    """

    class_names = ("negative", "positive")

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer  # takes seconds to import

        table = pd.read_csv(Path(__file__).with_name("sentences.csv"))
        tokenizer = AutoTokenizer.from_pretrained(folder)  # from this disk  # nosec B615
        tokens = tokenizer(list(table["text"]), padding=True, return_tensors="pt")
        self.ids, self.mask = tokens["input_ids"], tokens["attention_mask"]
        self.targets = torch.tensor(table["positive"])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"ids": self.ids[row], "mask": self.mask[row], "label": self.targets[row]}


class SentenceClassifier(nn.Module):
    """The mean of the encoder's tokens (Reimers and Gurevych 2019), then a linear layer: logits [N, C]."""

    def __init__(self, body: Any, num_classes: int = 2) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(body.config.hidden_size, num_classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        tokens = self.body(input_ids=ids, attention_mask=mask).last_hidden_state  # [N, L, D]
        weights = mask.unsqueeze(-1) / mask.sum(1)[:, None, None]
        return self.head(F.normalize((tokens * weights).sum(1)))
