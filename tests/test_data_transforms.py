"""Laws of the transforms: shapes kept as promised, values where they belong, batches like their samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from src.data import transforms as T
from src.data.parts.part import Part

IMAGE = torch.rand(3, 8, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "transform",
    [T.ToFloat(), T.Normalize(0.5, [0.1, 0.2, 0.3]), T.Resize([4, 6]), T.CenterCrop(5), T.Resize(12, mode="nearest")],
)
def test_what_takes_batches_does_to_each_what_it_does_to_one(transform: Any) -> None:
    batch = torch.stack([IMAGE, IMAGE / 2])
    assert transform.takes_batch
    torch.testing.assert_close(transform(batch), torch.stack([transform(IMAGE), transform(IMAGE / 2)]))


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (T.RandomCrop(pad=2), [3, 8, 10]),
        (T.RandomCrop([4, 5]), [3, 4, 5]),
        (T.RandomFlip(1.0), [3, 8, 10]),
        (T.RandomShift(3), [3, 8, 10]),
        (T.RandomErase(1.0), [3, 8, 10]),
        (T.AddNoise(0.1), [3, 8, 10]),
        (T.Flatten(), [240]),
        (T.Resize(5), [3, 5, 5]),
        (T.CenterCrop((8, 4)), [3, 8, 4]),
    ],
)
def test_shapes_are_as_promised_and_the_input_is_left_alone(transform: Any, shape: list[int]) -> None:
    image = IMAGE.clone()
    assert list(transform(image).shape) == shape
    assert torch.equal(image, IMAGE)


def test_bytes_become_zero_to_one() -> None:
    values = T.ToFloat()(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert values.tolist() == [[[0.0, 1.0]]] and values.dtype == torch.float32


def test_normalize_gives_mean_zero_and_deviation_one() -> None:
    image = T.Normalize(IMAGE.mean((1, 2)).tolist(), IMAGE.std((1, 2)).tolist())(IMAGE)
    torch.testing.assert_close(image.mean((1, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(image.std((1, 2)), torch.ones(3))


@given(seed=st.integers(0, 1000), pad=st.integers(0, 3))
def test_a_random_crop_is_a_window_of_the_padded_image(seed: int, pad: int) -> None:
    torch.manual_seed(seed)
    crop = T.RandomCrop([6, 6], pad=pad)(IMAGE)
    padded = torch.nn.functional.pad(IMAGE, [pad] * 4)
    windows = padded.unfold(1, 6, 1).unfold(2, 6, 1)  # [C, tops, lefts, 6, 6]
    assert (windows == crop[:, None, None]).all(dim=(0, 3, 4)).any()  # type: ignore[call-overload]


def test_flips_mirror_about_as_often_as_told() -> None:
    torch.manual_seed(0)
    flip = T.RandomFlip(0.3)
    share = sum(torch.equal(flip(IMAGE), IMAGE.flip(-1)) for _ in range(500)) / 500
    assert 0.24 < share < 0.36
    assert torch.equal(T.RandomFlip(1.0, axis="vertical")(IMAGE), IMAGE.flip(-2))


def test_an_erased_rectangle_is_one_and_of_the_size_asked_for() -> None:
    torch.manual_seed(0)
    erased = T.RandomErase(1.0, share=[0.5, 0.5], fill=7.0)(IMAGE) == 7.0
    assert erased.sum() == 3 * 4 * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Normalize(0, 0), "std must be above 0, received 0"),
        (lambda: T.Normalize([0, 0], 1)(IMAGE), "mean has 2 numbers, the image 3 channels"),
        (lambda: T.Resize(0), "size must be >= 1, received 0"),
        (lambda: T.CenterCrop(9)(IMAGE), "image of 8 x 10, crop of 9 x 9: too small"),
        (lambda: T.RandomFlip(1.5), "p must be within 0..1, received 1.5"),
        (lambda: T.RandomFlip(axis="diagonal"), "axis must be horizontal or vertical, received 'diagonal'"),  # type: ignore[arg-type]
        (lambda: T.RandomErase(share=[0.5, 0.1]), r"received \[0.5, 0.1\]"),
        (lambda: T.AddNoise(-1), "std must be >= 0, received -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_has_the_deviation_asked_for() -> None:
    torch.manual_seed(0)
    noise: Tensor = T.AddNoise(0.5)(torch.zeros(10_000))
    assert abs(float(noise.std()) - 0.5) < 0.02


def test_a_transform_of_albumentations_is_one_of_the_list_and_the_same_in_every_process() -> None:
    A = pytest.importorskip("albumentations")
    flips = [A.HorizontalFlip(p=0.5), T.ToFloat(), A.RandomBrightnessContrast(p=1.0)]
    data = TensorDataset(IMAGE.repeat(40, 1, 1, 1), torch.arange(40))
    part = Part("train", data, None, flips, seed=3)
    images = part.read(0, torch.arange(40))[0]
    assert images.shape == (40, 3, 8, 10) and len({each.numpy().tobytes() for each in images}) > 20
    again = Part("train", data, None, flips, seed=3)
    later = again.read(0, torch.arange(20, 40))[0]
    assert torch.equal(later, images[20:]) and not torch.equal(images, part.read(1, torch.arange(40))[0])


def halve(array: Any) -> Any:
    return array / 2


def test_any_callable_may_stand_in_the_list() -> None:
    part = Part("train", TensorDataset(IMAGE.unsqueeze(0)), None, [halve, torch.nn.Flatten(0), lambda x: x + 1])
    assert torch.equal(part.read(0, [0])[0], (IMAGE / 2).flatten().unsqueeze(0) + 1)
