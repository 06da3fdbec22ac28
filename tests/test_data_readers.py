"""Laws of images, texts and saved datasets: read lazily, named when bad, alike one by one and in batches."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

import predict
import test as test_script
import train
from src.data.arrays import Arrays
from src.data.images import ImageFolder
from src.data.loading.loader import Loader
from src.data.parts.part import Part
from src.data.parts.split import fit_parts, make_parts
from src.data.settings import LoaderSettings, SplitSettings
from src.data.text import Texts, characters, pad
from src.data.transforms import Resize
from src.utils.errors import ConfigError, DataError


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two folders of images: cats are dark, dogs are bright; every size is another."""
    for name, level in (("cats", 40), ("dogs", 200)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(12):
            size = (6 + number, 8)
            pixels = np.random.default_rng(number).integers(level - 30, level + 30, (*size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number:02}.png")
    return tmp_path / "pets"


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_each_folder_of_images_is_a_class(pets: Path) -> None:
    data = ImageFolder(str(pets))
    assert (len(data), data.class_names, data.num_classes) == (24, ["cats", "dogs"], 2)
    assert data.targets.tolist() == [0] * 12 + [1] * 12 and data.row_id(13) == "dogs/01.png"
    image, target = data[13]
    assert image.shape == (3, 7, 8) and image.dtype == torch.float32 and 0.6 < float(image.mean()) < 0.95
    assert int(target) == 1
    assert ImageFolder(str(pets), num_channels=1)[0][0].shape == (1, 6, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_read_by_workers_and_need_one_size(pets: Path, workers: int) -> None:
    data = ImageFolder(str(pets))
    settings = LoaderSettings(batch_size=10, num_workers=workers)
    batches = list(Loader(Part("train", data, None, [Resize(5)]), settings, shuffle=False, seed=0).batches())
    assert [len(images) for images, _ in batches] == [10, 10, 4] and batches[0][0].shape[1:] == (3, 5, 5)
    with pytest.raises(DataError, match=r"sizes .* in one batch; add the transform Resize"):
        list(Loader(Part("train", data), settings, shuffle=False, seed=0).batches())


def test_a_bad_image_is_named_when_it_is_read(pets: Path) -> None:
    (pets / "cats" / "03.png").write_bytes(b"no image")
    data = ImageFolder(str(pets))
    with pytest.raises(
        DataError, match=r"train row 3 \(dataset ImageFolder\): .*cats/03.png: cannot be read as an image"
    ):
        Part("train", data, None, [Resize(5)]).read(0, [2, 3])


def test_labels_may_stand_in_a_file_with_columns_to_split_by(pets: Path) -> None:
    files = sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.png"))
    rows = [f"{name},{name.split('/')[0][:-1]},{number // 3},{number / 2}" for number, name in enumerate(files)]
    labels = pets / "labels.csv"
    labels.write_text("file,label,owner,age\n" + "\n".join(reversed(rows)) + "\n")
    data = ImageFolder(str(pets), str(labels))
    assert data.class_names == ["cat", "dog"] and data.row_id(0) == "dogs/11.png" and int(data.targets[0]) == 1
    parts = make_parts({"train": data}, SplitSettings(val=0.25, groups="owner"))
    owners = [set(data.column("owner")[part.row_ids().numpy()].tolist()) for part in parts.values()]
    assert not owners[0] & owners[1]
    ages = ImageFolder(str(pets), str(labels), label_column="age", classify=False)
    assert ages[0][1].tolist() == [11.5] and ages.class_names is None
    labels.write_text("file,label\ncats/00.png,cat\ncats/77.png,cat\n")
    with pytest.raises(DataError, match=r"labels.csv row 2 column file: no image cats/77.png in"):
        ImageFolder(str(pets), str(labels))


def test_folders_that_are_no_classes_are_refused(pets: Path) -> None:
    (pets / "birds").mkdir()
    with pytest.raises(DataError, match="birds: no image in it"):
        ImageFolder(str(pets))
    (pets / "cats" / "00.png").rename(pets / "00.png")
    with pytest.raises(DataError, match=r"00.png: is in no folder of a class"):
        ImageFolder(str(pets))
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        ImageFolder(str(pets / "nowhere"))


def test_a_part_with_fewer_classes_numbers_them_as_training_does(pets: Path) -> None:
    other = pets.parent / "other"
    (other / "dogs").mkdir(parents=True)
    (pets / "dogs" / "00.png").rename(other / "dogs" / "00.png")
    parts = make_parts({"train": ImageFolder(str(pets)), "test": ImageFolder(str(other))})
    fit_parts(parts)
    assert parts["test"].targets().tolist() == [1]
    (other / "dogs").rename(other / "wolves")
    wolves = make_parts({"train": ImageFolder(str(pets)), "test": ImageFolder(str(other))})
    with pytest.raises(DataError, match=r"wolves/00.png: 'wolves' is none of the classes of the training data: cats"):
        fit_parts(wolves)


def test_a_stable_split_of_files_goes_by_their_names(pets: Path) -> None:
    split = SplitSettings(val=0.4, stable=True)

    def held() -> set[str]:
        part = make_parts({"train": ImageFolder(str(pets))}, split)["val"]
        return {part.dataset.row_id(row) for row in part.row_ids().tolist()}  # type: ignore[attr-defined]

    before = held()
    for number in range(8):
        Image.new("RGB", (4, 4)).save(pets / "cats" / f"a{number}.png")
    after = held()
    assert before <= after and all(name.startswith("cats/a") for name in after - before)


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "dd", "e!"]), max_size=6).map(" ".join), min_size=2, max_size=12
)


def texts(folder: Path, lines: list[str], **args: Any) -> Texts:
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Texts(str(folder / "lines.txt"), **args)


@given(train_texts=TEXTS, held=TEXTS, others=TEXTS)
def test_the_vocabulary_is_that_of_the_training_rows(
    tmp_path_factory: pytest.TempPathFactory, train_texts: list[str], held: list[str], others: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    rows, learned = torch.arange(len(train_texts)), []
    for rest in (held, others):
        data = texts(folder, train_texts + rest)
        data.fit(rows)
        learned.append(through_file(data.state_dict()))
    assert learned[0] == learned[1]
    assert set(data.words) == {word for text in train_texts for word in data._tokenize(text)}
    again = texts(folder, held)
    again.load_state_dict(learned[0])
    assert again.num_tokens == data.num_tokens and int(again.tokens.max() if len(again.tokens) else 0) < data.num_tokens
    for rows in (torch.arange(len(held)), torch.arange(len(held)).flip(0)):
        batch = again.read_batch(rows)
        padded = pad([again[int(row)] for row in rows])
        assert torch.equal(batch[:, : padded.shape[1]], padded) and not batch[:, padded.shape[1] :].any()


def test_the_vocabulary_has_its_limits_and_rare_words_are_unknown(tmp_path: Path) -> None:
    data = texts(tmp_path, ["The cat, the cat", "the dog's", "a bird"], min_count=2, max_length=3)
    data.fit(torch.arange(2))
    assert data.words == ["the", "cat"] and data.num_tokens == 4
    assert [data[row].tolist() for row in range(3)] == [[2, 3, 1], [2, 1], [1, 1]]
    data = texts(tmp_path, ["abc", "ab", "a"], tokenizer=characters, max_words=4)
    data.fit(torch.arange(3))
    assert data.words == ["a", "b"] and data.read_batch(torch.tensor([0, 2])).tolist() == [[2, 3, 1], [2, 0, 0]]


class Ascii:
    """A tokenizer with ids of its own."""

    pad_token_id = 7
    vocab_size = 300

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def encode(self, text: str) -> list[int]:
        return [ord(sign) + self.shift for sign in text]


def test_a_tokenizer_may_bring_its_own_ids(tmp_path: Path) -> None:
    data = texts(tmp_path, ["ab", "a"], tokenizer=Ascii(1))
    assert data.read_batch(torch.tensor([1, 0])).tolist() == [[98, 7], [98, 99]] and data.num_tokens == 300


REVIEWS = """
name: reviews
data:
  type: text.Texts
  args: {file: 'FOLDER/reviews.csv', text: review, target: mood, tokenizer: TOKENIZER}
  split: {val: 0.2, test: 0.2, stratify: true}
model: {type: EmbeddingBag, args: {num_embeddings: "${data.num_tokens}", embedding_dim: "${data.num_classes}"}}
loss: CrossEntropyLoss
metrics: [accuracy]
optimizer: {type: Adam, args: {lr: 0.1}}
trainer: {epochs: 10, device: cpu, save_dir: 'FOLDER/saved'}
logger: {bar: false, tensorboard: false}
"""


def module(folder: Path) -> str:
    """A name of its own: modules are imported once in a process."""
    return f"tokens_{folder.name}"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    good, bad, rng = ["good", "great", "fine"], ["bad", "awful", "poor"], np.random.default_rng(0)
    lines = ["review,mood"]
    for row in range(60):
        lines.append(f'"A {rng.choice(bad if row % 2 else good)}, {rng.choice(["long", "short"])} film",{row % 2}x')
    (tmp_path / "reviews.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / f"{module(tmp_path)}.py").write_text(
        "class Letters:\n    def __init__(self, first=0):\n        self.first = first\n\n"
        "    def encode(self, text):\n        return [ord(sign) + self.first for sign in text]\n\n\n"
        "def pairs(text):\n    return [text[i:i + 2] for i in range(len(text) - 1)]\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("tokenizer", "least"), [("words", 1.0), ("tokens.pairs", 0.9), ("{type: tokens.Letters, args: {first: 1}}", 0.5)]
)
def test_texts_train_test_and_predict_with_a_tokenizer_by_path(reviews: Path, tokenizer: str, least: float) -> None:
    tokenizer = tokenizer.replace("tokens", module(reviews))
    (reviews / "reviews.yaml").write_text(REVIEWS.replace("FOLDER", str(reviews)).replace("TOKENIZER", tokenizer))
    assert train.main(["-c", str(reviews / "reviews.yaml")]) == 0
    (run,) = (reviews / "saved" / "reviews").glob("*")
    trusted = ["-r", str(run), "--trust", f"{reviews}/"]
    assert test_script.main([*trusted, "--split", "val"]) == 0
    (reviews / "new.txt").write_text("an awful film\na great, great film\n")
    assert predict.main([*trusted, "--input", str(reviews / "new.txt"), "--out", str(reviews / "out.csv")]) == 0
    rows = (reviews / "out.csv").read_text().splitlines()
    assert rows[0] == "row,prediction,probability" and len(rows) == 3
    if least == 1.0:
        assert [row.split(",")[1] for row in rows[1:]] == ["1x", "0x"]


def test_a_misspelt_tokenizer_is_found_before_anything_is_read(reviews: Path) -> None:
    (reviews / "reviews.yaml").write_text(REVIEWS.replace("FOLDER", str(reviews)).replace("TOKENIZER", "word"))
    with pytest.raises(ConfigError, match=r"data.args.tokenizer.*did you mean `words`"):
        train.main(["-c", str(reviews / "reviews.yaml")])


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ("", {}, "is empty"),
        ("a,b\nx,\n", {"name": "a.csv", "text": "b"}, "a.csv row 1 column b: empty"),
        ("a,b\nx,y\n", {"name": "a.csv"}, "name the column of the texts; .*a.csv has a, b"),
        ("a,b\nx,y\n", {"name": "a.csv", "text": "c"}, "no column 'c'"),
        ("x\n", {"text": "c"}, "is read line by line"),
        ("x\n", {"tokenizer": 3}, "a function or an object with `encode` is needed, found 3"),
    ],
)
def test_texts_that_cannot_be_read_are_named(tmp_path: Path, content: str, args: dict[str, Any], message: str) -> None:
    path = tmp_path / args.pop("name", "lines.txt")
    path.write_text(content)
    with pytest.raises((DataError, ConfigError), match=message):
        Texts(str(path), **args)


def test_a_file_larger_than_what_is_read_stays_on_the_disk(tmp_path: Path) -> None:
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(1 << 16, 1 << 8))
    stored[12345] = 7
    stored.flush()
    data = Arrays(str(tmp_path / "x.npy"))
    with Path("/proc/self/statm").open() as file:
        before = int(file.read().split()[1])
    assert float(data.read_batch(torch.tensor([12345, 5])).sum()) == 7 * 256
    with Path("/proc/self/statm").open() as file:
        after = int(file.read().split()[1])
    assert (after - before) * 4096 < stored.nbytes / 4
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects.npy: cannot be read as a NumPy file: .*objects"):
        Arrays(str(tmp_path / "objects.npy"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "x": datasets.Sequence(datasets.Value("float32"), length=3),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "user": datasets.Value("int64"),
        }
    )
    rows = {
        "x": [[row, row + 1, row / 2] for row in range(20)],
        "text": [f"text {row}" for row in range(20)],
        "label": [row % 2 for row in range(20)],
        "user": [row // 4 for row in range(20)],
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(str(tmp_path / "whole"))
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "parts"))
    return tmp_path


def test_a_saved_dataset_is_read_alike_by_row_and_by_batch(saved: Path) -> None:
    from src.data.hugging_face import Saved

    data = Saved(str(saved / "whole"), inputs="x", targets="label")
    assert data.class_names == ["no", "yes"] and data.num_classes == 2 and len(data) == 20
    rows = torch.tensor([3, 0, 7])
    expected = [torch.tensor([[3, 4, 1.5], [0, 1, 0], [7, 8, 3.5]]), torch.tensor([1, 0, 1])]
    for batch in (
        data.read_batch(rows),
        default_collate(data.__getitems__(rows.tolist())),
        default_collate([data[3], data[0], data[7]]),
    ):
        assert all(torch.equal(got, wanted) for got, wanted in zip(batch, expected, strict=True))
    parts = make_parts({"train": data}, SplitSettings(val=0.2, groups="user"))
    assert len({int(row) // 4 for row in parts["val"].row_ids()}) == 1
    both = Saved(str(saved / "parts"), part="train", inputs=["x", "text"], targets="label")
    x, text, label = both.read_batch(torch.tensor([1]))
    assert x.shape == (1, 3) and list(text) == ["text 1"] and label.tolist() == [1]
    everything = Saved(str(saved / "whole"))[2]
    assert set(everything) == {"x", "text", "label", "user"} and isinstance(everything["user"], Tensor)


def test_a_saved_dataset_says_what_is_missing(saved: Path) -> None:
    from src.data.hugging_face import Saved

    for args, message in (
        ({"folder": "nowhere"}, "nowhere: no dataset saved by save_to_disk"),
        ({"folder": "parts"}, "part: None; .*parts has train"),
        ({"folder": "whole", "part": "train"}, "has no parts; leave it out"),
        ({"folder": "whole", "inputs": "z"}, "no column 'z'; there are x, text, label, user"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            Saved(**{**args, "folder": str(saved / args["folder"])})
