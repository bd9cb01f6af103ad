"""Resizing against Pillow, blur against scipy; warps read back and repeated by scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.transforms import (
    Transform,
    blur_image,
    cover_center,
    crop_center,
    limit_short_side,
    make_center_bias,
    make_random_affine,
    make_random_crops,
    resize_bicubic,
    resize_image,
    resize_short_side,
)


def make_noise(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── size ──


@pytest.mark.parametrize("size", [(3, 5), (40, 20), (17, 31), (1, 1)])
@pytest.mark.parametrize(
    ("mode", "resample"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_resizing_agrees_with_pillow(
    size: tuple[int, int], mode: str, resample: Image.Resampling
) -> None:
    image = make_noise(17, 31, 2)
    resized = resize_image(image, *size, mode=mode)  # type: ignore[arg-type]
    channel = np.array(Image.fromarray(image[1, 2].numpy()).resize(size[::-1], resample))
    assert resized.shape == (2, 3, *size)
    assert np.abs(resized[1, 2].numpy() - channel.clip(0, 1)).max() < 1e-5
    assert (resized is image) == (size == (17, 31))


def test_nearest_resizing_repeats_pixels() -> None:
    image = make_noise(3, 4, 2)
    assert torch.equal(
        resize_image(image, 6, 12, mode="nearest"),
        image.repeat_interleave(2, 2).repeat_interleave(3, 3),
    )


def test_bicubic_is_the_same_function_by_size() -> None:
    image = make_noise(9, 12)
    assert torch.equal(resize_bicubic(image, (5, 7)), resize_image(image, 5, 7, mode="bicubic"))
    assert resize_bicubic(image, (9, 12)) is image


def test_resizing_is_differentiable_and_stays_inside() -> None:
    image = torch.rand(1, 3, 8, 10, requires_grad=True)
    resize_image(image, 4, 5).sum().backward()
    torch.testing.assert_close(image.grad.sum(), torch.tensor(3 * 20.0))
    edges = (make_noise(7, 5) > 0.5).float()
    enlarged = resize_image(edges, 23, 11, mode="bicubic")
    assert 0 <= enlarged.min() <= enlarged.max() <= 1


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_sizes_below_one_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(SightlineError, match="at least 1"):
        resize_image(make_noise(8, 9), *size)


@given(height=st.integers(1, 60), width=st.integers(1, 60), pixels=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_short_side(height: int, width: int, pixels: int) -> None:
    rows, columns = resize_short_side(torch.zeros(1, 3, height, width), pixels).shape[-2:]
    assert min(rows, columns) == pixels
    assert abs(rows * width - columns * height) <= max(height, width) / 2 + 1e-9


def test_a_short_side_is_limited_but_not_enlarged() -> None:
    image = make_noise(20, 30)
    assert limit_short_side(image, 20) is image
    assert limit_short_side(image, 25) is image
    assert limit_short_side(image, 10).shape == (1, 3, 10, 15)


def test_center_crop() -> None:
    image = make_noise(7, 8)
    assert torch.equal(crop_center(image, 4, 2), image[..., 1:5, 3:5])
    assert torch.equal(crop_center(image, 7, 8), image)
    for size in [(8, 8), (7, 9), (0, 3)]:
        with pytest.raises(SightlineError, match="an image of 7×8"):
            crop_center(image, *size)


@pytest.mark.parametrize(
    ("size", "resized", "rows", "columns"),
    [
        ((10, 10), (10, 20), slice(None), slice(5, 15)),
        ((5, 20), (10, 20), slice(2, 7), slice(None)),
        ((20, 40), (20, 40), slice(None), slice(None)),
    ],
)
def test_an_image_covers_a_size_from_its_center(
    size: tuple[int, int], resized: tuple[int, int], rows: slice, columns: slice
) -> None:
    image = make_noise(20, 40, 2)
    expected = resize_image(image, *resized)[..., rows, columns]
    assert torch.equal(cover_center(image, *size), expected)


# ── blur ──


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.6, 1.0, 1.5, 2.0, 2.4])
def test_blur_is_scipys(sigma: float) -> None:
    image = make_noise(19, 24, 2)
    blurred = blur_image(image, sigma).numpy()
    radius = max(1, math.ceil(3 * sigma))
    same_radius = gaussian_filter(image.numpy(), sigma, mode="mirror", axes=(2, 3), radius=radius)
    truncated = gaussian_filter(image.numpy(), sigma, mode="mirror", axes=(2, 3), truncate=3)
    assert np.allclose(blurred, same_radius, atol=1e-6)
    assert np.abs(blurred - truncated).max() < 5e-3


@given(st.floats(0.0, 20), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_blur_keeps_a_constant(sigma: float, height: int, width: int, value: float) -> None:
    image = torch.full((2, 3, height, width), value)
    assert torch.allclose(blur_image(image, sigma), image, atol=1e-6)
    noise = make_noise(height, width)
    blurred = blur_image(noise, sigma)
    assert blurred.shape == noise.shape
    assert noise.min() - 1e-6 <= blurred.min()
    assert blurred.max() <= noise.max() + 1e-6


def test_blur_keeps_the_mean_of_what_lies_inside() -> None:
    image = torch.zeros(1, 3, 30, 34)
    image[..., 10:20, 10:24] = make_noise(10, 14)
    assert torch.allclose(blur_image(image, 2.0).mean((2, 3)), image.mean((2, 3)), atol=1e-6)


def test_blur_of_a_point_is_a_gaussian_and_does_not_mix_channels() -> None:
    image = torch.zeros(1, 3, 21, 27)
    image[0, 1, 8, 15] = 1
    blurred = blur_image(image, 1.5)
    assert blurred[0, [0, 2]].abs().max() == 0
    gaussian = np.array([math.exp(-(d**2) / (2 * 1.5**2)) for d in range(-5, 6)])
    gaussian /= gaussian.sum()
    expected = np.outer(gaussian, gaussian)
    assert np.allclose(blurred[0, 1, 3:14, 10:21].numpy(), expected, atol=1e-6)


def test_no_blur_is_the_image_itself() -> None:
    image = make_noise(6, 7)
    assert torch.equal(blur_image(image, 0.0), image)
    for sigma in (1e-3, 1e-12, 1e-200):
        assert torch.allclose(blur_image(image, sigma), image, atol=1e-7), sigma


# ── random warps ──


def make_coordinates(height: int, width: int, count: int = 1) -> Tensor:
    """An image of its own coordinates, measured from the center: channel 0 x, channel 1 y."""
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    channels = [
        x.expand(height, width),
        y[:, None].expand(height, width),
        torch.zeros(height, width),
    ]
    return torch.stack(channels).expand(count, -1, -1, -1)


def read_back(
    warp: Transform, height: int, width: int, count: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The affine maps of a warp: source = matrix · output + offset, for (x, y) from the center.

    Between pixels a linear image is sampled exactly. Only what stays clear of the border is used.
    """
    warped = warp(make_coordinates(height, width, count)).double().numpy()
    x, y = make_coordinates(height, width).double().numpy()[0, :2]
    is_central = (np.abs(x) < width / 5) & (np.abs(y) < height / 5)
    affine_maps = []
    for source_x, source_y, _ in warped:
        is_inside = (np.abs(source_x) < width / 2 - 1) & (np.abs(source_y) < height / 2 - 1)
        used = is_central & is_inside
        outputs = np.stack([x[used], y[used], np.ones(used.sum())], 1)
        sources = np.stack([source_x[used], source_y[used]], 1)
        solution, *_ = np.linalg.lstsq(outputs, sources, rcond=None)
        assert np.abs(outputs @ solution - sources).max() < 1e-4, "not affine"
        affine_maps.append((solution[:2].T, solution[2]))
    return affine_maps


def test_without_ranges_nothing_moves() -> None:
    for height, width in ((9, 14), (1, 1), (1, 6)):
        image = make_noise(height, width, 3)
        assert torch.allclose(make_random_affine(0, 0, 0, seeded())(image), image, atol=1e-5)


def test_turns_are_rotations_also_of_a_wide_image() -> None:
    angles = []
    for height, width in ((40, 60), (60, 40)):
        warp = make_random_affine(0, 0, 20, seeded())
        for matrix, offset in read_back(warp, height, width, 150):
            assert np.allclose(matrix @ matrix.T, np.eye(2), atol=1e-4), "sheared or scaled"
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
        warp = make_random_affine(5, 0, 0, seeded(1))
        for matrix, offset in read_back(warp, height, width, 150):
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
    warp = make_random_affine(0, 0.5, 0, seeded(2))
    for matrix, offset in read_back(warp, 41, 60, 300):
        assert np.allclose(matrix, matrix[0, 0] * np.eye(2), atol=1e-4)
        assert np.abs(offset).max() < 1e-3
        sizes.append(1 / matrix[0, 0])
    assert 0.5 - 1e-3 <= min(sizes) < 0.55
    assert 1.45 < max(sizes) <= 1.5 + 1e-3


@pytest.mark.parametrize(("height", "width"), [(24, 36), (36, 24), (25, 25)])
def test_a_warp_samples_as_scipy_does(height: int, width: int) -> None:
    """The warp is read back and then done by scipy, mirrored borders included."""
    affine_maps = read_back(make_random_affine(3, 0.15, 25, seeded(4)), height, width, 4)
    image = make_noise(height, width, 4)
    warped = make_random_affine(3, 0.15, 25, seeded(4))(image).numpy()
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    for number, (matrix, offset) in enumerate(affine_maps):
        by_row = matrix[::-1, ::-1]  # scipy counts (row, column)
        start = center + offset[::-1] - by_row @ center
        for channel in range(3):
            source = image[number, channel].double().numpy()
            expected = affine_transform(source, by_row, start, order=1, mode="reflect")
            assert np.abs(warped[number, channel] - expected).max() < 2e-3


@pytest.mark.parametrize(("height", "width", "window"), [(60, 90, (24, 36)), (90, 60, (30, 20))])
def test_a_window_shows_a_part_at_the_images_scale(
    height: int, width: int, window: tuple[int, int]
) -> None:
    """Shifts reach every place of the image, and by the shift beyond it; turns stay rotations."""
    rows, columns = window
    warp = make_random_affine(3, 0, 10, seeded(3), window=window)
    views = warp(make_coordinates(height, width, 300)).double().numpy()
    assert views.shape == (300, 3, rows, columns)
    x, y = make_coordinates(rows, columns).double().numpy()[0, :2]
    outputs = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1)
    offsets = []
    for source_x, source_y, _ in views:
        if source_x.min() < 1 - width / 2 or source_x.max() > width / 2 - 1:
            continue
        if source_y.min() < 1 - height / 2 or source_y.max() > height / 2 - 1:
            continue
        sources = np.stack([source_x.ravel(), source_y.ravel()], 1)
        solution, *_ = np.linalg.lstsq(outputs, sources, rcond=None)
        assert np.abs(outputs @ solution - sources).max() < 1e-3
        assert np.allclose(solution[:2] @ solution[:2].T, np.eye(2), atol=1e-3)
        offsets.append(solution[2])
    assert len(offsets) > 100
    centers = views[:, :2, rows // 2, columns // 2]
    reach = np.array([(width - columns) / 2 + 3, (height - rows) / 2 + 3])
    assert (np.abs(centers).max(0) > 0.9 * reach).all()
    assert (np.abs(centers).max(0) < reach + 1).all()


def test_every_image_has_its_own_draw_and_the_generator_decides() -> None:
    batch = make_noise(16, 20).expand(4, -1, -1, -1)
    warp, same_warp, another_warp = (
        make_random_affine(4, 0.1, 10, seeded(seed)) for seed in (7, 7, 8)
    )
    warped = warp(batch)
    assert torch.equal(warped, same_warp(batch))
    assert not torch.equal(warped, another_warp(batch))
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(warped[i], warped[j], atol=1e-3)
    assert not torch.allclose(warped, warp(batch)), "a new draw at every call"
    global_state = torch.get_rng_state()
    warp(batch)
    assert torch.equal(global_state, torch.get_rng_state())


def test_a_batch_may_be_warped_alike() -> None:
    batch = make_noise(16, 20, 3)
    together = make_random_affine(4, 0.1, 10, seeded(7), same_for_batch=True)(batch)
    for image, warped in zip(batch, together, strict=True):
        alone = make_random_affine(4, 0.1, 10, seeded(7))(image[None])[0]
        assert torch.allclose(warped, alone, atol=1e-6)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 3.0, 1000.0]),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([0, 180]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_small_images_and_far_shifts(
    height: int, width: int, shift: float, scale: float, angle: float
) -> None:
    image = make_noise(height, width, 2).requires_grad_()
    warped = make_random_affine(shift, scale, angle, seeded(1))(image)
    assert warped.shape == image.shape
    assert torch.isfinite(warped).all()
    assert image.min() - 1e-5 <= warped.min()
    assert warped.max() <= image.max() + 1e-5
    (gradient,) = torch.autograd.grad(warped.sum(), image)
    assert torch.isfinite(gradient).all()
    # Every output pixel is a mean of pixels.
    assert gradient.sum().item() == pytest.approx(image.numel(), rel=1e-3)


# ── random crops ──


def test_crops_lie_inside_and_have_the_sizes_of_the_range() -> None:
    height, width = 41, 60
    crops = make_random_crops(200, (0.25, 0.75), 0.0, seeded())
    sizes = []
    positions = []
    for matrix, offset in read_back(lambda image: crops(image[:1]), height, width):
        assert np.allclose(matrix, matrix[0, 0] * np.eye(2), atol=1e-4), "same aspect, not turned"
        size = matrix[0, 0]
        sizes.append(size)
        room = (1 - size) / 2 * np.array([width, height])
        assert (np.abs(offset) <= room + 1e-3).all()
        positions.append(offset / room)
    assert len(sizes) == 200
    assert 0.25 - 1e-4 <= min(sizes) < 0.3
    assert 0.7 < max(sizes) <= 0.75 + 1e-4
    assert (np.abs(positions).max(0) > 0.95).all(), "they reach the border"
    assert abs(np.corrcoef(np.array(positions).T)[0, 1]) < 0.2


def test_each_image_of_a_batch_gets_the_same_crops_and_noise() -> None:
    batch = make_noise(12, 17, 2)
    crops = make_random_crops(3, (0.4, 0.9), 0.1, seeded(5))(batch)
    assert crops.shape == (6, 3, 12, 17)
    for number in range(2):
        alone = make_random_crops(3, (0.4, 0.9), 0.1, seeded(5))(batch[number : number + 1])
        assert torch.allclose(crops[3 * number : 3 * number + 3], alone, atol=1e-6)


def test_noise_has_its_deviation() -> None:
    gray = torch.full((1, 3, 40, 50), 0.5)
    crops = make_random_crops(8, (0.3, 0.6), 0.2, seeded())(gray)
    assert float((crops - 0.5).std()) == pytest.approx(0.2, rel=0.03)
    assert abs(float(crops.mean()) - 0.5) < 0.005


# ── center bias ──


@pytest.mark.parametrize(("steps", "deviations"), [(3, [0.25, 0.5, 0.75, 0.75]), (1, [0.25, 0.75])])
def test_the_gradient_is_weighted_by_a_growing_gaussian(
    steps: int, deviations: list[float]
) -> None:
    bias = make_center_bias(steps)
    for call, deviation in enumerate(deviations):
        image = make_noise(5, 9, 2).requires_grad_()
        output = bias(image)
        torch.testing.assert_close(output, image)
        (gradient,) = torch.autograd.grad(output.sum(), image)
        for row in range(5):
            for column in range(9):
                squared_distance = (row / 2 - 1) ** 2 + (column / 4 - 1) ** 2
                expected = math.exp(-squared_distance / (2 * deviation**2))
                weights = gradient[:, :, row, column]
                assert torch.allclose(weights, torch.tensor(expected), atol=1e-5), call
