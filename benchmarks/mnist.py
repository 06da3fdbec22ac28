"""An epoch over MNIST: our reading of its files, and what a loop by hand with torchvision's dataset does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.steps import ADAMW, Case
from benchmarks.timing import Row
from src.data.idx import IDX, read_idx
from src.data.parts.part import Part
from src.data.transforms import Normalize
from src.model.lenet import LeNet

MEAN, STD = 0.1307, 0.3081


class TorchvisionMNIST(Dataset[Any]):
    """`torchvision.datasets.MNIST`: each image becomes a picture of PIL, then goes through the transforms.

    Torchvision itself is made for one torch only, so it is not asked for. What follows does for an image of MNIST what
    its release 0.22 does, operation by operation; what that only asks about other kinds of images is left out.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        from PIL import Image

        self.data, self.targets, self.transform, self.as_picture = images, labels, transform, Image.fromarray

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image, label = self.data[row], int(self.targets[row])
        return self.transform(self.as_picture(image.numpy(), mode="L")), label


class Compose:
    """`torchvision.transforms.Compose`."""

    def __init__(self, *transforms: Callable[[Any], Any]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """Apply the transforms in turn."""
        for transform in self.transforms:
            image = transform(image)
        return image


def to_tensor(picture: Any) -> Tensor:
    """Do what `torchvision.transforms.ToTensor` does."""
    pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
    pixels = pixels.view(picture.size[1], picture.size[0], len(picture.getbands())).permute(2, 0, 1).contiguous()
    return pixels.to(torch.get_default_dtype()).div(255)


class TorchvisionNormalize(nn.Module):
    """`torchvision.transforms.Normalize`."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        """Normalize a copy of an image."""
        assert image.is_floating_point() and image.ndim >= 3
        image = image.clone()
        mean = torch.as_tensor(self.mean, dtype=image.dtype, device=image.device)
        std = torch.as_tensor(self.std, dtype=image.dtype, device=image.device)
        assert not (std == 0).any()
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


class TutorialLeNet(nn.Module):
    """The network for images of 28x28 in PyTorch's tutorial "Training with PyTorch": LeNet-5 without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 1, 28, 28] to logits [N, 10]."""
        features = self.pool(nn.functional.relu(self.conv1(images)))
        features = self.pool(nn.functional.relu(self.conv2(features))).view(-1, 16 * 4 * 4)
        logits: Tensor = self.fc3(nn.functional.relu(self.fc2(nn.functional.relu(self.fc1(features)))))
        return logits


def lenet_epoch(rounds: int) -> Iterator[Row]:
    """An epoch of LeNet on IDX files; not where pillow is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        print("LeNet epoch from IDX files is left out: it needs pillow")
        return
    with tempfile.TemporaryDirectory() as made:
        folder = find_mnist() or make_idx(Path(made))
        read = [read_idx(next(folder.glob(f"t10k-{kind}*")), axes) for kind, axes in (("images", 3), ("labels", 1))]
        images, labels = (torch.from_numpy(values) for values in read)
        transform = Compose(to_tensor, TorchvisionNormalize((MEAN,), (STD,)))
        by_hand = DataLoader(TorchvisionMNIST(images, labels, transform), batch_size=128, shuffle=True)
        part = Part("train", IDX(str(folder), part="test", download=False), transforms=[Normalize(MEAN, STD)])
        hand = "loop by hand, DataLoader, as torchvision reads: one image of PIL at a time"
        for model, settings, work in (
            (LeNet, {"channels_last": True}, "LeNet epoch from IDX files, `channels_last` as in `configs/mnist.yaml`"),
            (LeNet, {}, "LeNet epoch from IDX files"),
            (TutorialLeNet, {}, "epoch from IDX files of the smaller LeNet of PyTorch's tutorial"),
        ):
            case = Case(model, nn.CrossEntropyLoss(), ADAMW, part, 128, lambda epoch: by_hand, settings=settings)
            yield case.row(f"{work}, 10,000 images", hand, 0.55, min(rounds, 5))


def find_mnist() -> Path | None:
    """Return a folder with MNIST's test images, if one is at hand."""
    root = Path(__file__).resolve().parents[1]
    places = (root / "data" / "mnist", root.parent / "shared" / "data" / "mnist")
    return next((place for place in places if list(place.glob("t10k-images*")) and list(place.glob("t10k-l*"))), None)


def make_idx(folder: Path) -> Path:
    """Write made-up images in MNIST's format, and return the folder."""
    random = np.random.default_rng(0)
    for name, shape, high in (("images-idx3", (10_000, 28, 28), 256), ("labels-idx1", (10_000,), 10)):
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        values = random.integers(high, size=shape, dtype=np.uint8)
        (folder / f"t10k-{name}-ubyte").write_bytes(header + values.tobytes())
    return folder
