"""What docs/tasks.md shows works: the tasks train, the files it names exist, the YAML is what the examples have."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from src.config.mistakes import Mistakes
from src.config.schema import read
from src.trainer.freezing import Freezing
from src.trainer.groups import check_groups, parameter_groups
from src.trainer.settings import FreezeSettings, ParameterSettings, TrainerSettings
from src.trainer.step import Step
from src.trainer.task import Task
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
SNIPPETS = {language: re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) for language in ("yaml", "python")}


@pytest.mark.parametrize("text", [text for text in SNIPPETS["python"] if "class " in text])
def test_a_task_shown_trains(text: str) -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(text, namespace)
    task = next(each for name, each in namespace.items() if name.endswith("Task") and name != "Task")(nn.MSELoss())
    torch.manual_seed(0)
    own = hasattr(task, "update")
    model: nn.Module = nn.ModuleDict({n: nn.Linear(3, 1) for n in ("first", "second")}) if own else nn.Linear(3, 1)
    named: Any = dict(model.named_children()) if own else {"": model}
    optimizers: Any = {
        f"optimizer.{name}".rstrip("."): torch.optim.SGD(part.parameters(), lr=0.1) for name, part in named.items()
    }
    losses: list[float] = []
    step = Step(
        task,
        model,
        optimizers,
        TrainerSettings(),
        torch.device("cpu"),
        lambda output, _: losses.append(output.loss.item()),
    )
    batch = (torch.randn(8, 3), torch.randn(8, 1))
    for _ in range(20):
        step.make([batch])
    assert losses[-1] < losses[0]


def test_every_path_named_exists() -> None:
    paths = re.findall(r"`((?:examples|configs|src)/[\w/.]+)`", PAGE)
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_yaml_block_is_yaml_and_names_what_there_is() -> None:
    for text in SNIPPETS["yaml"]:
        for name in re.findall(r"\b(vae|dcgan)\.(\w+)", str(yaml.safe_load(text))):
            assert re.search(rf"(class|def) {name[1]}\b", (ROOT / f"examples/{name[0]}/{name[0]}.py").read_text())


def test_the_parameters_shown_are_accepted_by_a_model_with_a_body_and_a_head() -> None:
    text = next(text for text in SNIPPETS["yaml"] if text.startswith("parameters"))
    given = yaml.safe_load(text)["parameters"]
    given["groups"][0]["lr"] = float(given["groups"][0]["lr"])  # our own reader takes 1e-2 for a number
    mistakes = Mistakes({})
    settings = read(ParameterSettings, given, ("parameters",), mistakes, lambda *_: "")
    mistakes.stop_if_any()
    body = nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 4)})
    model = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    freezing = Freezing(model, settings.freeze)
    check_groups(model, settings)
    groups = parameter_groups(dict(model.named_parameters()), settings)
    assert [group.get("lr") for group in groups] == [1e-4, 1e-4, None, None]
    assert trained(model, freezing, 0) == {"head.weight", "head.bias"}
    assert trained(model, freezing, 3) == {"head.weight", "head.bias", "body.second.weight", "body.second.bias"}


def trained(model: nn.Module, freezing: Freezing, epoch: int) -> set[str]:
    freezing.begin(epoch)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_phases_shown_take_turns() -> None:
    text = next(text for text in SNIPPETS["yaml"] if "every: 2" in text)
    entries = [FreezeSettings(**entry) for entry in yaml.safe_load(text)["parameters"]["freeze"]]
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
    freezing = Freezing(model, entries)
    for epoch in range(4):
        name = "body" if epoch % 2 else "head"
        assert trained(model, freezing, epoch) == {f"{name}.weight", f"{name}.bias"}


def test_the_losses_shown_are_called_as_said() -> None:
    namespace: dict[str, Any] = {}
    exec(next(text for text in SNIPPETS["python"] if "def sparsity" in text), namespace)
    image, mask = torch.randn(4, 3), torch.ones(4, 3)
    terms = {"sparsity": (namespace["sparsity"], 1.0), "masked": (namespace["masked"], 1.0)}
    output = Task(terms, inputs="image").step(nn.Identity(), {"image": image, "mask": mask})
    assert torch.equal(output.loss, image.abs().mean())
