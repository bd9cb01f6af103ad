"""Blur against scipy; warps read back from a picture of coordinates and repeated by scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

from sightline.images.transforms import Transform, blur_image, make_random_affine


def picture(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Blur


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.6, 1.0, 1.5, 2.0, 2.4])
def test_blur_is_scipys(sigma: float) -> None:
    image = picture(19, 24, 2)
    radius = max(1, math.ceil(3 * sigma))
    same = gaussian_filter(image.numpy(), sigma, mode="mirror", axes=(2, 3), radius=radius)
    usual = gaussian_filter(image.numpy(), sigma, mode="mirror", axes=(2, 3), truncate=3)
    assert np.allclose(blur_image(image, sigma).numpy(), same, atol=1e-6)
    assert np.abs(blur_image(image, sigma).numpy() - usual).max() < 5e-3


@given(st.floats(0.0, 20), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_blur_keeps_a_constant(sigma: float, height: int, width: int, value: float) -> None:
    image = torch.full((2, 3, height, width), value)
    assert torch.allclose(blur_image(image, sigma), image, atol=1e-6)
    noise = picture(height, width)
    blurred = blur_image(noise, sigma)
    assert blurred.shape == noise.shape
    assert noise.min() - 1e-6 <= blurred.min()
    assert blurred.max() <= noise.max() + 1e-6


def test_blur_keeps_the_mean_of_what_lies_inside() -> None:
    image = torch.zeros(1, 3, 30, 34)
    image[..., 10:20, 10:24] = picture(10, 14)
    assert torch.allclose(blur_image(image, 2.0).mean((2, 3)), image.mean((2, 3)), atol=1e-6)


def test_blur_of_a_point_is_the_bell_and_does_not_mix_colours() -> None:
    image = torch.zeros(1, 3, 21, 21)
    image[0, 1, 10, 10] = 1
    found = blur_image(image, 1.5)
    assert found[0, [0, 2]].abs().max() == 0
    bell = np.array([math.exp(-(d**2) / (2 * 1.5**2)) for d in range(-5, 6)])
    bell /= bell.sum()
    assert np.allclose(found[0, 1, 5:16, 5:16].numpy(), np.outer(bell, bell), atol=1e-6)


def test_no_blur_is_the_picture_itself() -> None:
    image = picture(6, 7)
    assert torch.equal(blur_image(image, 0.0), image)
    for sigma in (1e-3, 1e-12, 1e-200):
        assert torch.allclose(blur_image(image, sigma), image, atol=1e-7), sigma


# Wobble


def coordinates(height: int, width: int, count: int = 1) -> Tensor:
    """A picture whose pixels say where they are, from the centre: channel 0 x, channel 1 y."""
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    return torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)]
    ).expand(count, -1, -1, -1)


def read_back(
    warp: Transform, height: int, width: int, count: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The affine map from output to source pixels, both from the centre: source = matrix · output + offset, for (x, y).

    Between pixels a linear picture is sampled exactly; only what stays clear of the border is used.
    """
    found = warp(coordinates(height, width, count)).double().numpy()
    places = coordinates(height, width).double().numpy()[0, :2]
    result = []
    for one in found:
        clear = (np.abs(one[0]) < width / 2 - 1) & (np.abs(one[1]) < height / 2 - 1)
        clear &= (np.abs(places[0]) < width / 5) & (np.abs(places[1]) < height / 5)
        design = np.stack([places[0][clear], places[1][clear], np.ones(clear.sum())], 1)
        fit, *_ = np.linalg.lstsq(design, np.stack([one[0][clear], one[1][clear]], 1), rcond=None)
        assert np.abs(design @ fit - np.stack([one[0][clear], one[1][clear]], 1)).max() < 1e-4, (
            "not affine"
        )
        result.append((fit[:2].T, fit[2]))
    return result


def test_without_ranges_nothing_moves() -> None:
    for height, width in ((9, 14), (1, 1), (1, 6)):
        image = picture(height, width, 3)
        assert torch.allclose(make_random_affine(0, 0, 0, generator())(image), image, atol=1e-5)


def test_turns_are_rotations_also_of_a_wide_picture() -> None:
    angles = []
    for height, width in ((40, 60), (60, 40)):
        for matrix, offset in read_back(
            make_random_affine(0, 0, 20, generator()), height, width, 150
        ):
            assert np.allclose(matrix @ matrix.T, np.eye(2), atol=1e-4), (
                "neither sheared nor scaled"
            )
            assert np.linalg.det(matrix) > 0
            assert np.abs(offset).max() < 1e-3
            angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
    assert max(map(abs, angles)) <= 20 + 1e-3
    assert max(angles) > 18
    assert min(angles) < -18
    assert abs(np.mean(angles)) < 3


def test_shifts_are_in_pixels_in_x_and_in_y() -> None:
    shifts = []
    for height, width in ((36, 60), (60, 36)):
        for matrix, offset in read_back(
            make_random_affine(5, 0, 0, generator(1)), height, width, 150
        ):
            assert np.allclose(matrix, np.eye(2), atol=1e-4)
            shifts.append(offset)
    by_axis = np.array(shifts)
    assert np.abs(by_axis).max() <= 5 + 1e-3
    assert (by_axis.max(0) > 4.5).all()
    assert (by_axis.min(0) < -4.5).all()
    assert abs(np.corrcoef(by_axis.T)[0, 1]) < 0.2


def test_sizes_are_one_plus_or_minus_the_scale() -> None:
    """At size 1.5 a thing is 1.5 times as large: the source is read in steps of 1/1.5."""
    sizes = []
    for matrix, offset in read_back(make_random_affine(0, 0.5, 0, generator(2)), 41, 60, 300):
        assert np.allclose(matrix, matrix[0, 0] * np.eye(2), atol=1e-4)
        assert np.abs(offset).max() < 1e-3
        sizes.append(1 / matrix[0, 0])
    assert 0.5 - 1e-3 <= min(sizes) < 0.55
    assert 1.45 < max(sizes) <= 1.5 + 1e-3


@pytest.mark.parametrize(("height", "width"), [(24, 36), (36, 24), (25, 25)])
def test_a_warp_samples_as_scipy_does(height: int, width: int) -> None:
    """The warp is read back from the picture of coordinates, then done again by scipy, mirrored borders included."""
    maps = read_back(make_random_affine(3, 0.15, 25, generator(4)), height, width, 4)
    image = picture(height, width, 4)
    found = make_random_affine(3, 0.15, 25, generator(4))(image).numpy()
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    for i, (matrix, offset) in enumerate(maps):
        by_row = matrix[::-1, ::-1]  # scipy counts (row, column)
        start = center + offset[::-1] - by_row @ center
        for c in range(3):
            expected = affine_transform(
                image[i, c].double().numpy(), by_row, start, order=1, mode="reflect"
            )
            assert np.abs(found[i, c] - expected).max() < 2e-3


def test_every_image_has_its_own_draw_and_the_generator_decides() -> None:
    one = picture(16, 20).expand(4, -1, -1, -1)
    a, b, c = (make_random_affine(4, 0.1, 10, generator(seed)) for seed in (7, 7, 8))
    first = a(one)
    assert torch.equal(first, b(one))
    assert not torch.equal(first, c(one))
    assert all(
        not torch.allclose(first[i], first[j], atol=1e-3) for i in range(4) for j in range(i)
    )
    assert not torch.allclose(first, a(one)), "a new draw at every call"
    state = torch.get_rng_state()
    a(one)
    assert torch.equal(state, torch.get_rng_state())


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 3.0, 1000.0]),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0, 180]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_small_pictures_and_far_shifts(
    height: int, width: int, shift: float, scale: float, angle: float
) -> None:
    image = picture(height, width, 2).requires_grad_()
    warped = make_random_affine(shift, scale, angle, generator(1))(image)
    assert warped.shape == image.shape
    assert torch.isfinite(warped).all()
    assert image.min() - 1e-5 <= warped.min()
    assert warped.max() <= image.max() + 1e-5
    (gradient,) = torch.autograd.grad(warped.sum(), image)
    assert torch.isfinite(gradient).all()
    assert gradient.sum().item() == pytest.approx(image.numel(), rel=1e-3), (
        "every output pixel is a mean of pixels"
    )
