"""Laws of the shipped datasets: a batch equals its samples, values are what the source says, damage is named."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.data import idx, synthetic
from src.data.arrays import Arrays
from src.data.digits import Digits
from src.data.idx import IDX, read_idx
from src.data.parts.part import Part
from src.data.scikit import ScikitLearn
from src.utils.errors import ConfigError, DataError
from tests.conftest import ROOT

MNIST = ROOT.parent / "shared" / "data" / "mnist"


def write_idx(path: Path, values: np.ndarray[Any, Any], pack: bool = False) -> Path:
    content = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if pack else content)
    return path


def write_mnist(folder: Path, num_images: int = 7, pack: bool = False) -> None:
    end = ".gz" if pack else ""
    generator = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = generator.integers(0, 256, (num_images, 5, 4), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", images, pack)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", np.arange(num_images, dtype=np.uint8), pack)


def assert_batch_is_its_samples(dataset: Any, rows: list[int]) -> None:
    batch = dataset.read_batch(torch.tensor(rows))
    samples = [dataset[row] for row in rows]
    if isinstance(batch, Tensor):
        assert torch.equal(batch, torch.stack(samples))
    else:
        assert all(torch.equal(x, torch.stack(list(y))) for x, y in zip(batch, zip(*samples, strict=True), strict=True))


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits, source = Digits(), load_digits()
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.dtype == torch.float32
    assert np.array_equal(digits.images[:, 0].numpy() * 16, source.images)
    assert np.array_equal(digits.targets.numpy(), source.target)
    assert_batch_is_its_samples(digits, [5, 0, 1796, 5])


@pytest.mark.parametrize("pack", [False, True])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, pack: bool) -> None:
    write_mnist(tmp_path, pack=pack)
    data = IDX(str(tmp_path), "test", download=False)
    image, target = data[3]
    assert (
        image.shape == (1, 5, 4) and image.dtype == torch.float32 and 0 <= float(image.min()) <= float(image.max()) <= 1
    )
    assert target == 3 and data.num_classes == 7 and len(data) == 7
    assert_batch_is_its_samples(data, [2, 2, 6])
    assert not torch.equal(IDX(str(tmp_path), "train", download=False).images, data.images)


@pytest.mark.skipif(not MNIST.exists(), reason="no MNIST files beside the project")
def test_the_real_mnist_test_files_are_read_without_those_for_training() -> None:
    data = IDX(str(MNIST), "test", download=False)
    assert data.images.shape == (10_000, 1, 28, 28)
    assert data.targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(float(data.images.float().mean()) / 255 - 0.1325) < 1e-3


def test_missing_idx_files_are_named_with_their_folder(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(DataError) as caught:
        IDX(str(tmp_path), "test", download=False)
    assert str(caught.value) == (
        f"{tmp_path}: no t10k-images-idx3-ubyte[.gz]; put the files there, or let them be fetched with download: true"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file: starts with nothing"),
        (b"<html>not found", "is not an IDX file: starts with 3c 68 74 6d"),
        (b"\0\0\x0d\x03" + bytes(12), "IDX values of type 0x0d with 3 axes; expected unsigned bytes"),
        (b"\0\0\x08\x01" + bytes(4), "with 1 axes; expected unsigned bytes .* with 3"),
        (b"\0\0\x08\x03" + bytes(6), "is cut short within its header"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(7), "is cut short: .* 2 x 2 x 2, which is 8 bytes"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(9), "goes on behind its end"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(50), "claims 4294967295 x .* more than a file of its size can hold"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(8), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b" + bytes(40), "cannot be read"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, num_axes=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.integers(0, 10**6), byte=st.integers(0, 255), pack=st.booleans())
def test_a_changed_byte_never_gives_anything_but_an_array_or_a_data_error(
    tmp_path: Path, damage: int, byte: int, pack: bool
) -> None:
    path = write_idx(tmp_path / "images", np.arange(60, dtype=np.uint8).reshape(3, 5, 4), pack)
    content = bytearray(path.read_bytes())
    content[damage % len(content)] = byte
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert read_idx(path, num_axes=3).size <= 60


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 2, 2), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    with pytest.raises(DataError, match="3 images, but train-labels-idx1-ubyte has 2 labels"):
        IDX(str(tmp_path))


# --- download ----------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server with four small files, whose checksums are the expected ones."""
    served = tmp_path / "served"
    served.mkdir()
    write_mnist(served, pack=True)
    sums = {path.stem: hashlib.md5(path.read_bytes()).hexdigest() for path in served.iterdir()}
    monkeypatch.setattr(idx, "MNIST_MD5", sums)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", served
    server.shutdown()
    server.server_close()


def test_missing_files_are_fetched_once_from_the_first_mirror_that_has_them(
    tmp_path: Path, mirror: tuple[str, Path]
) -> None:
    folder = tmp_path / "data"
    mirrors = [f"{mirror[0]}nowhere/", mirror[0]]
    assert len(IDX(str(folder), "test", mirrors=mirrors)) == 7
    assert sorted(path.name for path in folder.iterdir()) == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    assert len(IDX(str(folder), "test", mirrors=["http://127.0.0.1:9/"])) == 7


def test_only_the_web_is_a_mirror(tmp_path: Path, mirror: tuple[str, Path]) -> None:
    with pytest.raises(DataError, match=r"not an address that begins with https:// or http://"):
        IDX(str(tmp_path / "data"), "test", mirrors=[f"file://{mirror[1]}/"])
    assert not (tmp_path / "data").exists()


def test_a_file_with_a_wrong_checksum_is_refused_and_nothing_is_left(tmp_path: Path, mirror: tuple[str, Path]) -> None:
    path = mirror[1] / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    folder = tmp_path / "data"
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz cannot be .*wrong checksum: MD5"):
        IDX(str(folder), "train", mirrors=[mirror[0]])
    assert not folder.exists()


def test_offline_all_missing_files_and_the_folder_are_named_and_no_folder_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        IDX(str(tmp_path / "data"), "train", mirrors=["http://127.0.0.1:9/"])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/data: no train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], and ")
    assert "train-images-idx3-ubyte.gz cannot be downloaded (http://127." in message
    assert message.endswith("; fetch the files elsewhere and put them there")
    assert not (tmp_path / "data").exists()


# --- arrays, scikit-learn, synthetic -----------------------------------------------------------------------------


def test_arrays_come_from_tensors_npy_and_npz_alike(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((6, 3)), np.arange(6)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "one.npz", x=x)
    for inputs, targets in [
        (torch.from_numpy(x), y),
        (f"{tmp_path}/x.npy", f"{tmp_path}/both.npz:y"),
        (f"{tmp_path}/one.npz", y),
    ]:
        data = Arrays(inputs, targets, dtype="float32")
        assert torch.equal(data.read_batch(torch.tensor([4, 1]))[0], torch.tensor(x[[4, 1]], dtype=torch.float32))
        assert_batch_is_its_samples(data, [5, 0, 0])
    assert Arrays(x)[2].tolist() == x[2].tolist()


def test_npy_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(500_000, 1000)).flush()  # 2 GB
    data = Arrays(f"{tmp_path}/big.npy")
    assert data[499_999].shape == (1000,) and len(data) == 500_000


def test_arrays_with_python_objects_damage_or_other_lengths_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\0")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    for name, message in [
        ("objects.npy", "cannot be read as a NumPy file: .*Python objects"),
        ("cut.npy", "cannot be read as a NumPy file"),
        ("two.npz", r"no array ''; name one as .*two.npz:NAME, of a, b"),
        ("two.npz:c", r"no array 'c'"),
        ("nothing.npy", "no such file"),
        ("text.npy", "values of type <U1; torch has none such"),
    ]:
        with pytest.raises(DataError, match=message):
            Arrays(f"{tmp_path}/{name}")
    with pytest.raises(DataError, match="inputs have 3 rows, targets 2"):
        Arrays(np.zeros(3), np.zeros(2))
    with pytest.raises(ConfigError, match="dtype: 'float33'"):
        Arrays(np.zeros(3), dtype="float33")


@pytest.mark.parametrize(
    ("name", "shape", "num_classes"),
    [("diabetes", (442, 10), 0), ("iris", (150, 4), 3), ("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2)],
)
def test_tables_of_scikit_learn_have_their_known_shapes(name: Any, shape: tuple[int, int], num_classes: int) -> None:
    data = ScikitLearn(name, scale_inputs="StandardScaler")
    data.fit(torch.arange(100))
    assert data.features.shape == shape and data.features.dtype == torch.float32
    torch.testing.assert_close(data.features[:100].mean(0), torch.zeros(shape[1]), atol=1e-5, rtol=0)
    assert data.targets is not None
    assert data.targets.shape == ((442, 1) if name == "diabetes" else shape[:1])
    assert len(data.class_names or []) == num_classes


def test_an_unknown_table_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'boston'; there are diabetes, iris, wine, breast_cancer"):
        ScikitLearn("boston")  # type: ignore[arg-type]


def test_synthetic_data_follow_their_equations() -> None:
    x, y = synthetic.line().tensors
    assert torch.equal(y, 2 * x + 1) and x.flatten().tolist() == list(range(100))
    x, y = synthetic.sine_cubic().tensors
    assert x.shape == (2000, 3) and torch.equal(y, x[:, 0].sin()) and torch.allclose(x[:, 2], x[:, 0] ** 3)
    assert torch.equal(synthetic.sine().tensors[0], x[:, 0])
    assert [list(t.shape) for t in synthetic.random_regression().tensors] == [[64, 1000], [64, 10]]
    x, y = synthetic.noisy_linear(noise=0.0).tensors
    ones = torch.cat([x, torch.ones(len(x), 1)], 1)
    assert float((ones @ torch.linalg.lstsq(ones, y).solution - y).abs().max()) < 1e-4
    x, y = synthetic.noisy_line(num_rows=5000).tensors
    assert abs(float((y - 2 * x - 1).std()) - 0.1) < 0.01
    before = torch.get_rng_state()
    assert torch.equal(synthetic.noisy_line(seed=3).tensors[0], synthetic.noisy_line(seed=3).tensors[0])
    assert torch.equal(before, torch.get_rng_state())


def test_a_part_reads_every_shipped_dataset_in_whole_batches() -> None:
    for dataset in (Digits(), synthetic.line(), ScikitLearn("iris"), Arrays(np.zeros((5, 2)), np.zeros(5))):
        batch = Part("train", dataset).read(0, torch.tensor([0, 3]))
        assert len(batch[0]) == len(batch[1]) == 2
