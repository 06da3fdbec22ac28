"""Who leaves? A table of numbers and categories with empty cells and one rare class."""

from __future__ import annotations

import numpy as np
import pandas as pd

from src.data.frame import FrameDataset


def make_table(num_rows: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Return made-up customers; about one in seven leaves, and a tenth of incomes and plans is not known."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "age": rng.normal(45, 12, num_rows).round(),
            "income": rng.lognormal(10, 0.5, num_rows).round(),
            "plan": rng.choice(["basic", "family", "premium"], num_rows, p=[0.5, 0.3, 0.2]),
            "region": rng.choice(["north", "south", "west"], num_rows),
        }
    )
    logit = 1.2 * (table["plan"] == "basic") - 0.06 * (table["age"] - 45) - 1.2 * (np.log(table["income"]) - 10)
    logit = 1.5 * (logit + 0.8 * (table["region"] == "west") - 2.6) + rng.logistic(0, 0.7, num_rows)
    table["leaves"] = np.where(logit > 0, "yes", "no")
    table.loc[rng.random(num_rows) < 0.1, "income"] = np.nan
    table.loc[rng.random(num_rows) < 0.1, "plan"] = None
    return table


class Customers(FrameDataset):
    """The table as features and classes; what fills empty cells and scales is learned from the training rows."""

    def __init__(self, num_rows: int = 3000) -> None:
        table = make_table(num_rows)
        table["income"] = np.log(table["income"])
        super().__init__(table, "customers", "leaves", scale_inputs="StandardScaler", missing="fill")
