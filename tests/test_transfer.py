"""Pretrained models by path: parts of a model in its arguments, encoders from a local folder, low-rank adapters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from src.config.build import build
from src.config.load import config_from_dict
from src.config.registry import use_folder
from src.config.settings import Component
from src.config.signatures import check_components
from src.logger.logger import Logger
from src.run.experiment import build_experiment, build_trainer
from src.trainer.checkpoints.init_from import init_weights
from src.trainer.freezing import Freezing
from src.trainer.groups import parameter_groups
from src.trainer.settings import InitFrom, ParameterSettings
from src.utils.errors import CheckpointError, ConfigError
from tests.commands_kit import called
from tests.conftest import ROOT

CONFIG: dict[str, Any] = {
    "name": "transfer",
    "data": {"type": "digits.Digits", "split": {"val": 0.2}},
    "loss": "CrossEntropyLoss",
    "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
}
LAYERS = {
    "type": "TransformerEncoder",
    "args": {
        "encoder_layer": {"type": "torch.nn.TransformerEncoderLayer", "args": {"d_model": 8, "nhead": 2}},
        "num_layers": 2,
        "norm": {"type": "LayerNorm", "args": {"normalized_shape": 8}},
        "enable_nested_tensor": False,
    },
}


def test_arguments_of_a_model_may_be_models() -> None:
    config = config_from_dict({**CONFIG, "model": LAYERS})
    check_components(config)
    assert config_from_dict(config.as_dict()) == config
    assert isinstance(config.model, Component)
    model = build("model", config.model)
    assert isinstance(model.norm, nn.LayerNorm) and len(model.layers) == 2


def test_a_mistake_in_a_part_of_a_model_is_told_where_it_stands() -> None:
    args = {**LAYERS["args"], "norm": {"type": "LayerNrom"}}  # type: ignore[dict-item]
    args["encoder_layer"] = {"type": "TransformerEncoderLayer", "args": {"d_model": 8, "heads": 2}}
    config = config_from_dict({**CONFIG, "model": {"type": "TransformerEncoder", "args": args}})
    with pytest.raises(ConfigError) as caught:
        check_components(config)
    text = str(caught.value)
    assert "model.args.norm.type: unknown part of a model `LayerNrom`; did you mean `LayerNorm`?" in text
    assert "model.args.encoder_layer.args.heads: unknown argument; did you mean `nhead`?" in text
    assert "model.args.encoder_layer.args.nhead: missing" in text


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "torch.load", "builtins.eval"])
def test_a_part_of_a_model_may_name_no_more_than_a_model(name: str) -> None:
    layers = {"type": "Flatten", "args": {"start_dim": {"type": name, "args": {"command": "true"}}}}
    with pytest.raises(ConfigError, match=f"neither in this project nor on the short list|{name}"):
        check_components(config_from_dict({**CONFIG, "model": layers}))
    with pytest.raises(ConfigError):
        build("model", Component("Flatten", layers["args"]))  # type: ignore[arg-type]


# --- encoders from a local folder -------------------------------------------------------------------------------------

SENTENCES = """
import torch
from torch.utils.data import Dataset


class Sentences(Dataset):
    num_classes = 2

    def __len__(self):
        return 40

    def __getitem__(self, row):
        ids = torch.randint(1, 50, (6,), generator=torch.Generator().manual_seed(row))
        return {"ids": ids, "label": int(ids[0] > 25)}
"""


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The folder of a tiny encoder, as one has it from a hub; a dataset for it stands beside."""
    transformers = pytest.importorskip("transformers", reason="pip install -e .[transfer]")
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(settings).save_pretrained(tmp_path / "encoder")
    (tmp_path / f"{tmp_path.name}.py").write_text(SENTENCES)  # modules of one name would be one module
    return tmp_path / "encoder"


def fine_tune(model: dict[str, Any], folder: Path, parameters: dict[str, Any]) -> tuple[dict[str, Tensor], nn.Module]:
    """Return the weights before, and the model after three epochs: all by config, the loss is the model's own."""
    config = config_from_dict(
        {
            "name": "sentences", "data": {"type": f"{folder.name}.Sentences", "split": {"val": 0.2}}, "model": model,
            "task": {"inputs": {"input_ids": "ids", "labels": "label"}, "targets": "label", "outputs": "logits"},
            "metrics": ["accuracy"], "optimizer": {"type": "AdamW", "args": {"lr": 0.01}}, "parameters": parameters,
            "loader": {"batch_size": 8}, "trainer": {"epochs": 3, "device": "cpu"},
        }
    )  # fmt: skip
    use_folder(folder)
    check_components(config)
    experiment = build_experiment(config, torch.device("cpu"))
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    values = build_trainer(config, experiment, torch.device("cpu"), Logger([]), folder).fit()
    assert 0 <= values["val/accuracy"] <= 1 and values["val/loss"] > 0
    return before, experiment.model


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_an_encoder_from_a_local_folder_is_fine_tuned_by_config_alone(encoder: Path) -> None:
    name = "transformers.AutoModelForSequenceClassification.from_pretrained"
    model = {"type": name, "args": {"pretrained_model_name_or_path": str(encoder), "num_labels": 2}}
    before, tuned = fine_tune(model, encoder.parent, {"freeze": ["bert.embeddings.*", "bert.encoder.layer.0.*"]})
    changed = moved(before, tuned)
    assert {"classifier.weight", "bert.encoder.layer.1.output.dense.weight"} <= changed
    assert not any(name.startswith(("bert.embeddings", "bert.encoder.layer.0")) for name in changed)


def test_an_encoder_has_a_rate_for_each_of_its_layers(encoder: Path) -> None:
    name = "transformers.AutoModelForSequenceClassification.from_pretrained"
    model = build("model", Component(name, {"pretrained_model_name_or_path": str(encoder), "num_labels": 2}))
    groups = parameter_groups(dict(model.named_parameters()), ParameterSettings(layer_decay=0.5))
    assert [group["lr_factor"] for group in groups] == [0.125, 0.25, 0.5, 1.0]


def test_low_rank_adapters_are_trained_by_config_alone(encoder: Path) -> None:
    pytest.importorskip("peft", reason="pip install -e .[transfer]")
    name = "transformers.AutoModelForSequenceClassification.from_pretrained"
    body = {"type": name, "args": {"pretrained_model_name_or_path": str(encoder), "num_labels": 2}}
    adapter = {"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    lora = {"type": "peft.LoraConfig", "args": adapter}
    model = {"type": "peft.get_peft_model", "args": {"model": body, "peft_config": lora}}
    before, tuned = fine_tune(model, encoder.parent, {})
    changed = moved(before, tuned)
    assert len(changed) == 10 and all("lora_" in name or "classifier" in name for name in changed), changed


def test_the_models_shown_are_made(encoder: Path) -> None:
    pytest.importorskip("peft", reason="pip install -e .[transfer]")
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    shown = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.S) if "from_pretrained" in text]
    assert len(shown) == 2
    for text in shown:
        section = yaml.safe_load(text.replace("data/all-MiniLM-L6-v2", str(encoder)))
        config = config_from_dict({**CONFIG, **section})
        check_components(config)
        assert isinstance(config.model, Component)
        Freezing(build("model", config.model), config.parameters.freeze)


def test_code_of_a_folder_is_never_run(encoder: Path) -> None:
    name = "transformers.AutoModel.from_pretrained"
    args = {"pretrained_model_name_or_path": str(encoder), "trust_remote_code": True}
    with pytest.raises(ConfigError, match="a config must not load code"):
        config_from_dict({**CONFIG, "model": {"type": name, "args": args}})


# --- weights that other programs wrote --------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["plain", "state_dict", "weights", "old format", "safetensors"])
def test_weights_of_other_programs_are_taken(kind: str, tmp_path: Path) -> None:
    there, here = two_layers(), nn.ModuleDict({"body": two_layers(), "head": nn.Linear(2, 2)})
    path, weights = tmp_path / "weights.pth", there.state_dict()
    if kind == "safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        path = path.with_suffix(".safetensors")
        save_file(weights, path)
    else:
        content = {kind: weights, "epoch": 3} if kind in ("state_dict", "weights") else weights
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old format")
    init_weights(here, InitFrom(str(path), rename={"": "body."}, exclude=("head.*",)))
    assert all(torch.equal(here["body"].state_dict()[name], value) for name, value in weights.items())


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": Evil()}, "cannot be read as weights: it holds more than tensors and plain data"),
        ({"epoch": 3}, "holds no weights; names and tensors are needed, alone or under state_dict"),
        (b"no file of torch", "cannot be read as weights"),
    ],
)
def test_a_file_without_weights_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        init_weights(two_layers(), str(path))
    assert not Path("evil").exists()


def test_weights_to_start_from_that_are_not_there_are_told_where_the_key_is(tmp_path: Path) -> None:
    model = {"type": "lenet.LeNet", "args": {"num_classes": 10, "image_size": 8}}
    trainer = {"save_dir": str(tmp_path / "saved"), "init_from": str(tmp_path / "gone.pt")}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**CONFIG, "model": model, "trainer": trainer}, sort_keys=False))
    done = called("train.py", "-c", tmp_path / "x.yaml")
    line = (tmp_path / "x.yaml").read_text().partition("init_from")[0].count("\n") + 1
    assert done.returncode == 4
    assert re.match(rf"error: \S+x\.yaml:{line}:\d+ trainer\.init_from: .*gone\.pt: no such run", done.stderr), (
        done.stderr
    )
    assert not (tmp_path / "saved").exists()
