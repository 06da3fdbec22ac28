"""What docs/data.md shows works: every config section is accepted, every name exists, every snippet of code runs."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from dataclasses import fields
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from src.data import transforms
from src.data.digits import Digits
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.settings import LoaderSettings
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SNIPPETS = {language: re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) for language in ("yaml", "python")}


def code(start: str) -> dict[str, Any]:
    """What the snippet that begins a class or file called `start` defines."""
    namespace: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "__name__": "docs"}
    exec(next(text for text in SNIPPETS["python"] if start in text), namespace)
    return namespace


def components(value: Any) -> list[dict[str, Any]]:
    """Every `{type, args}` in a section."""
    if isinstance(value, list):
        return [found for each in value for found in components(each)]
    if not isinstance(value, dict):
        return []
    own = [value] if "type" in value else []
    return own + [found for key, each in value.items() if key != "args" for found in components(each)]


@pytest.mark.parametrize("text", [text for text in SNIPPETS["yaml"] if text.startswith("data")])
def test_every_dataset_and_transform_shown_exists_and_takes_its_arguments(text: str) -> None:
    shown = components(yaml.safe_load(text)["data"])
    assert shown
    for component in shown:
        module, _, name = component["type"].rpartition(".")
        if name == "Brighten":
            continue
        home = importlib.import_module(f"src.data.{module}") if module else transforms
        args = component.get("args", {})
        assert set(inspect.signature(getattr(home, name)).bind(**args).arguments) == set(args)


def test_every_loader_option_is_shown_and_none_that_there_is_not() -> None:
    shown = yaml.safe_load(next(text for text in SNIPPETS["yaml"] if text.startswith("loader")))["loader"]
    assert set(shown) - {"val"} == {field.name for field in fields(LoaderSettings)}


def test_every_transform_is_in_the_list() -> None:
    own = {
        name
        for name, each in vars(transforms).items()
        if inspect.isclass(each) and each.__module__ == transforms.__name__
    }
    assert own == set(re.findall(r"^\| `([A-Z]\w+)` \|", PAGE, re.M))


def test_the_dataset_shown_reads_the_same_with_its_fast_method() -> None:
    squares = code("class Squares")["Squares"]
    method: dict[str, Any] = {}
    exec(textwrap.dedent(next(text for text in SNIPPETS["python"] if "read_batch" in text)), method)
    slow = list(Loader(Part("train", squares()), LoaderSettings(), shuffle=True, seed=0).batches())
    squares.read_batch = method["read_batch"]
    fast = list(Loader(Part("train", squares()), LoaderSettings(), shuffle=True, seed=0).batches())
    assert all(torch.equal(a, b) for x, y in zip(slow, fast, strict=True) for a, b in zip(x, y, strict=True))


def test_the_sampler_and_the_transform_shown_work() -> None:
    balanced, brighten = code("class Balanced")["Balanced"], code("class Brighten")["Brighten"]
    digits = Digits()
    part = Part("train", digits, (digits.targets < 2).nonzero()[50:].squeeze(1), [brighten(0.2)])
    of = Loader(
        part, LoaderSettings(), shuffle=False, seed=0, sampler=lambda part, generator: balanced(part, generator, 2000)
    )
    classes = torch.cat([batch[1] for batch in of.batches()])
    assert len(classes) == 2000 and abs(float(classes.float().mean()) - 0.5) < 0.05
