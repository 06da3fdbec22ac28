"""Names to classes: what may be named, what is refused without being looked at, and what a failing file says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401  # what it imports itself is not what is looked for

from src.config.registry import HOMES, find, known_names, trust, use_folder
from src.utils.errors import ConfigError
from tests.conftest import ROOT

_DOTTED = """os.system os.popen posix.system subprocess.run subprocess.Popen builtins.eval builtins.exec
builtins.__import__ eval exec __import__ logging.os.system pdb.run pdb.runcall code.interact timeit.timeit
torch.load torch.hub.load torch.hub.load_state_dict_from_url torch.nn.os.system torch.nn.modules.module.torch.load
torch.utils.cpp_extension.load torch.utils.data.dataset.os torch.serialization.load torch.optim.torch.hub.load
torch.nn.functional.torch torch.nn.functional.importlib torch.nn.functional.boolean_dispatch pickle.loads
importlib.import_module runpy.run_path shutil.rmtree marker marker.Marker marker.run lenet.nn lenet.torch
lenet.LeNet.__init__ lenet.LeNet.__class__ lenet.LeNet.__subclasses__ lenet.__builtins__ lenet.__loader__
src.model.lenet.torch src.utils.errors.KeelError src.config.registry.trust src.config.registry.find train.main
a.__class__ ../../x ../lenet.LeNet /etc/passwd lenet/LeNet lenet.LeNet() lenet..LeNet .lenet.LeNet lenet.LeNet.
numpy.load joblib.load pandas.read_pickle yaml.unsafe_load sklearn.utils.os sklearn.metrics.pairwise.os ctypes.CDLL
transformers.pipeline transformers.AutoModel transformers.Trainer torchvision.io.read_file timm.models.os"""
HOSTILE = _DOTTED.split()
HOSTILE += [
    "",
    " ",
    "lenet.LeNet\n",
    "lenet\u2024LeNet",
    "\uff4csenet.LeNet",
    "os\u200b.system",
    "lenet.LeNet; import os",
]
HOSTILE += ["__import__('os').system('touch marker')", "lambda: 0", "!!python/name:os.system", "lenet.LeNet\x00"]


def test_there_are_at_least_forty_of_them() -> None:
    assert len(set(HOSTILE)) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: str) -> None:
    before = set(sys.modules)
    for kind in HOMES:
        with pytest.raises(ConfigError):
            find(kind, name)
    new = {module.split(".")[0] for module in set(sys.modules) - before}
    assert not new - {"src", "torch", "sympy", "mpmath", "numpy", "sklearn", "scipy", "pandas", "joblib"}, new


def test_nothing_is_imported_to_find_out(tmp_path: Path) -> None:
    package = tmp_path / "marker"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w').close()\nclass Marker: pass\n")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from src.config.registry import find, HOMES
from src.utils.errors import ConfigError
for name in ("marker", "marker.Marker", "marker.x.y"):
    for kind in HOMES:
        try: find(kind, name)
        except ConfigError: pass
        else: raise SystemExit(f"{{kind}} {{name}} was found")
heavy = {{"marker", "torch", "pandas", "sklearn", "tensorboard", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert not (tmp_path / "made").exists()


def test_what_is_imported_elsewhere_is_not_a_component(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from os import system\nfrom subprocess import Popen, run\nfrom torch import load\n"
    )
    use_folder(tmp_path)
    for name in ("mine.system", "mine.Popen", "mine.run", "mine.load", "system"):
        for kind in HOMES:
            with pytest.raises(ConfigError):
                find(kind, name)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("model", "LeNet", "src.model.lenet.LeNet"),
        ("model", "lenet.LeNet", "src.model.lenet.LeNet"),
        ("model", "src.model.lenet.LeNet", "src.model.lenet.LeNet"),
        ("model", "torch.nn.Linear", "torch.nn.modules.linear.Linear"),
        ("model", "Bilinear", "torch.nn.modules.linear.Bilinear"),
        ("optimizer", "AdamW", "torch.optim.adamw.AdamW"),
        ("optimizer", "torch.optim.SGD", "torch.optim.sgd.SGD"),
        ("lr_scheduler", "OneCycleLR", "torch.optim.lr_scheduler.OneCycleLR"),
        ("lr_scheduler", "ReduceLROnPlateau", "torch.optim.lr_scheduler.ReduceLROnPlateau"),
        ("loss", "CrossEntropyLoss", "torch.nn.modules.loss.CrossEntropyLoss"),
        ("loss", "cross_entropy", "torch.nn.functional.cross_entropy"),
        ("loss", "mse", "src.model.loss.mse"),
        ("metrics", "accuracy", "src.model.metric.accuracy"),
        ("metrics", "roc_auc_score", "sklearn.metrics._ranking.roc_auc_score"),
        ("metrics", "sklearn.metrics.f1_score", "sklearn.metrics._classification.f1_score"),
        ("sampler", "WeightedRandomSampler", "torch.utils.data.sampler.WeightedRandomSampler"),
        ("task", "Task", "src.trainer.task.Task"),
        ("data", "digits.Digits", "src.data.digits.Digits"),
    ],
)
def test_homes(kind: str, name: str, expected: str) -> None:
    part = find(kind, name)
    assert f"{part.__module__}.{part.__qualname__}" == expected


def test_the_folder_of_the_config_comes_first(tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\nclass LeNet(nn.Module):\n    def forward(self, x): ...\n"
    )
    use_folder(tmp_path)
    assert find("model", "LeNet").__module__ == "my_net"
    assert find("model", "my_net.LeNet").__module__ == "my_net"
    assert known_names("model")[0] == "my_net.LeNet"
    (tmp_path / "json.py").write_text("class Model: ...\n")
    with pytest.raises(ConfigError, match=r"another module is called `json`; rename the file"):
        find("model", "json.Model")


def test_one_name_in_two_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("from torch import nn\nclass Twin(nn.Module): ...\n")
    use_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"defined in several files; write one\.Twin or two\.Twin"):
        find("model", "Twin")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import os\nimport no_such_package\nclass Net: ...\n", "broken.py:2: ModuleNotFoundError: No module named"),
        ("class Net: ...\nx = 1 / 0\n", "broken.py:2: ZeroDivisionError: division by zero"),
        ("class Net: ...\nraise SystemExit(3)\n", "broken.py:2: SystemExit: 3"),
        ("class Net:\n  def f(self:\n", "broken.py:2: SyntaxError:"),
    ],
)
def test_a_file_that_fails_says_where(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(text)
    use_folder(tmp_path)
    sys.modules.pop("broken", None)
    with pytest.raises(ConfigError) as caught:
        find("model", "broken.Net")
    assert expected in str(caught.value)


def test_trusted_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package.py").write_text(
        "from torch import nn\nclass Net(nn.Module): ...\ndef net(): return Net()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="--trust my_package"):
        find("model", "my_package.Net")
    trust(["my_package"])
    assert find("model", "my_package.Net").__name__ == "Net"
    assert find("model", "my_package.net").__name__ == "net"
    with pytest.raises(ConfigError, match="cannot be used as optimizer"):
        find("optimizer", "my_package.Net")


def test_known_names_import_nothing() -> None:
    code = """
import sys
from src.config.registry import HOMES, known_names
names = {kind: known_names(kind) for kind in HOMES}
assert "lenet.LeNet" in names["model"] and "Linear" in names["model"] and "AdamW" in names["optimizer"]
assert "accuracy" in names["metrics"] and "f1_score" in names["metrics"] and "CrossEntropyLoss" in names["loss"]
assert "StepLR" in names["lr_scheduler"] and "Task" in names["task"]
heavy = {"torch", "pandas", "sklearn", "tensorboard", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
