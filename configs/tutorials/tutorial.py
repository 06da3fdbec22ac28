"""What the tutorials add: small models, five words, and a hook. Axes: N batch, F features, L characters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.trainer.hooks import Hook
from src.trainer.trainer import Trainer

WORDS = {"Happy": "Positive", "Amazing": "Positive", "Sad": "Negative", "Unhappy": "Negative", "Glum": "Negative"}
CLASSES = ("Negative", "Positive")


class OnesLine(nn.Linear):
    """`y = weight * x + bias` that starts from weight 1 and bias 1."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        nn.init.ones_(self.weight)
        nn.init.ones_(self.bias)


class LinearCubic(nn.Sequential):
    """`bias + w1 x + w2 x^2 + w3 x^3` as a linear layer over the powers: inputs [N, 3], outputs [N]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 1), nn.Flatten(0, 1))


class Cubic(nn.Module):
    """The same cubic as a module of four scalars: inputs [N], outputs [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.randn(())) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.a + self.b * x + self.c * x**2 + self.d * x**3

    def equation(self) -> str:
        """Return the cubic as text."""
        a, b, c, d = (value.item() for value in (self.a, self.b, self.c, self.d))
        return f"y = {a:.4f} + {b:.4f} x + {c:.4f} x^2 + {d:.4f} x^3"


class PrintEquation(Hook):
    """Prints the model's equation when the run ends."""

    def on_fit_end(self, trainer: Trainer) -> None:
        print(trainer.model.equation())  # type: ignore[operator]


class Words(Dataset[dict[str, str]]):
    """Five words: a sample is `{"Text": "Happy", "Class": "Positive"}`."""

    num_classes = len(CLASSES)

    def __len__(self) -> int:
        return len(WORDS)

    def __getitem__(self, row: int) -> dict[str, str]:
        text, name = list(WORDS.items())[row]
        return {"Text": text, "Class": name}


def collate_words(samples: list[dict[str, str]]) -> dict[str, Tensor]:
    """Return character codes [N, L], 0 where a word has ended, and class ids [N]."""
    codes = [torch.tensor(list(sample["Text"].lower().encode())) for sample in samples]
    return {
        "Text": nn.utils.rnn.pad_sequence(codes, batch_first=True),
        "Class": torch.tensor([CLASSES.index(sample["Class"]) for sample in samples]),
    }


def one_thread(worker: int) -> None:
    """Start a loader's worker with one thread: five words need no more."""
    torch.set_num_threads(1)


class BagOfCharacters(nn.Module):
    """Sums an embedding of each character, then a linear layer: codes [N, L] to logits [N, 2]."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.characters = nn.Embedding(256, width, padding_idx=0)
        self.head = nn.Linear(width, num_classes)

    def forward(self, codes: Tensor) -> Any:
        return self.head(self.characters(codes).sum(1))
