"""From pictures to what a network is fed: against torchvision's transforms and plain indexing."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth
from torchvision.transforms.v2.functional import center_crop, resize

from sightline.errors import SightlineError
from sightline.images.transforms import resize_image
from sightline.models.network.preprocessing import (
    call_preprocess,
    check_bands,
    check_channel_statistics,
    check_image_size,
    convert_to_luminance,
    fit_image,
    show_as_picture,
)


@pytest.mark.parametrize(
    "values", [[0.5, 0.25], (0.5, 0.25), np.array([0.5, 0.25]), torch.tensor([0.5, 0.25])]
)
def test_statistics_from_any_list_of_numbers(values: Any) -> None:
    assert check_channel_statistics(values, values) == ((0.5, 0.25), (0.5, 0.25))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.5, 0.5], "they have 1 and 2"),
        ([0.5, 0.5], [0.5, 0], "must be above 0"),
        ([0.5, float("nan")], [0.5, 0.5], "all values finite"),
        ([0.5, 0.5], [0.5, float("inf")], "all values finite"),
        ("05", "05", "mean is '05'; give a list"),
        (0.5, [0.5], "mean is 0.5; give a list"),
        ([123.7, 0.5], [58.0, 1.0], r"mean is \(123.7, 0.5\); .*divide mean and std by 255"),
        ([0.5], [], r"std is \[\]; give a list"),
        (["a"], [0.5], "give a list with one number for each channel"),
    ],
)
def test_other_statistics_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        check_channel_statistics(mean, std)


@pytest.mark.parametrize(
    ("size", "expected"), [(7, (7, 7)), ((3, 16_384), (3, 16_384)), ([5, 2], (5, 2))]
)
def test_sizes(size: Any, expected: tuple[int, int]) -> None:
    assert check_image_size(size) == expected


@pytest.mark.parametrize("size", [0, 16_385, True, 7.0, "7", (1, 2, 3), (7,), (7, 0), None])
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(SightlineError, match="from 1 to 16,384, or"):
        check_image_size(size)


@pytest.mark.parametrize(
    ("height", "width", "side", "ratio"),
    [(50, 80, 32, 1.25), (75, 50, 32, 1.0), (33, 77, 32, 1.5), (20, 30, 32, 1.0)],
)
def test_a_square_is_torchvisions_resize_and_crop(
    height: int, width: int, side: int, ratio: float
) -> None:
    """With sizes whose crops are whole pixels on both sides: else torchvision rounds otherwise."""
    image = smooth(side=80)[..., :height, :width]
    fitted = fit_image(image, (side, side), ratio)
    resized = resize(image, [round(side * ratio)], antialias=True)
    expected = center_crop(resized, [side, side])
    assert fitted.shape == expected.shape
    torch.testing.assert_close(fitted, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(60, 41), (41, 60), (25, 90)])
def test_other_shapes_are_covered_with_the_aspect_kept(height: int, width: int) -> None:
    image = smooth(side=90)[..., :height, :width]
    target_height, target_width, ratio = 24, 36, 1.25
    scale = ratio * max(target_height / height, target_width / width)
    resized = resize_image(image, round(height * scale), round(width * scale))
    top = (resized.shape[2] - target_height) // 2
    left = (resized.shape[3] - target_width) // 2
    expected = resized[..., top : top + target_height, left : left + target_width]
    fitted = fit_image(image, (target_height, target_width), ratio)
    torch.testing.assert_close(fitted, expected, rtol=0, atol=2e-3)


def test_of_a_very_long_image_only_the_middle_counts() -> None:
    image = torch.rand(1, 3, 10, 400, generator=torch.Generator().manual_seed(0))
    middle = image[..., 185:215]  # three times as wide as high
    assert fit_image(image, (8, 8), 1.0).equal(fit_image(middle, (8, 8), 1.0))


def test_luminance_is_that_of_rec_601() -> None:
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    torch.testing.assert_close(convert_to_luminance(image), expected[:, None])


def test_bands_as_red_green_and_blue() -> None:
    image = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    assert show_as_picture(image, (4, 0, 2)).equal(image[:, [4, 0, 2]])
    assert show_as_picture(image[:, :1], (0, 1, 2)).equal(image[:, [0, 0, 0]])
    rgb = image[:, :3]
    assert show_as_picture(rgb, (0, 1, 2)) is rgb
    assert show_as_picture(rgb, (2, 1, 0)).equal(rgb.flip(1))


@pytest.mark.parametrize(
    ("bands", "channels", "expected"),
    [
        (None, 1, (0, 0, 0)),
        (None, 2, (0, 1, 1)),
        (None, 7, (0, 1, 2)),
        ([6, 0, 6], 7, (6, 0, 6)),
    ],
)
def test_which_bands_are_shown(bands: Any, channels: int, expected: tuple[int, ...]) -> None:
    assert check_bands(bands, channels) == expected


@pytest.mark.parametrize("bands", [(0, 1), (0, 1, 7), (-1, 0, 1), (0, 1, 1.5), "012", 3])
def test_other_bands_are_refused(bands: Any) -> None:
    with pytest.raises(SightlineError, match="three numbers from 0 to 6"):
        check_bands(bands, 7)


def test_preprocessing_that_returns_nothing() -> None:
    with pytest.raises(SightlineError, match="preprocess returns None; it must return what the"):
        call_preprocess(lambda image: None, torch.rand(1, 3, 4, 4))


def test_what_fails_in_the_callers_own_preprocessing() -> None:
    image = torch.zeros(1, 3, 4, 5)

    def own_refusal(_: Any) -> Any:
        raise SightlineError("no")

    assert call_preprocess(lambda picture: picture + 1, image).eq(1).all()
    with pytest.raises(SightlineError, match=r"\(1, 3, 4, 5\) \(ZeroDivisionError: division"):
        call_preprocess(lambda _: 1 / 0, image)
    with pytest.raises(SightlineError, match=r"^no$"):
        call_preprocess(own_refusal, image)
