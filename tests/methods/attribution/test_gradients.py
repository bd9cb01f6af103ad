"""Probes near an image, baselines, and sums of gradients: written out, on wide images."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.images.transforms import blur_image
from sightline.methods.attribution.gradients import (
    GradientProbe,
    blur_image_by_share,
    compute_class_scores,
    compute_score_gradient,
    make_baseline,
    sample_baseline_lines,
    sample_blur_path,
    sample_noisy_copies,
    sample_quarter_crops,
    sample_straight_path,
    sum_gradient_powers,
)

HEIGHT = 10
WIDTH = 14


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> Tensor:
    return torch.rand(3, HEIGHT, WIDTH, generator=seeded(seed))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return sl.load(network, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), size=HEIGHT, device="cpu")


def test_noise_is_a_share_of_the_range_of_values() -> None:
    image = 0.2 + 0.5 * picture()
    probes = list(sample_noisy_copies(image, 0.3, 2000, seed=4))
    noise = torch.stack([probe.point for probe in probes]) - image
    deviation = 0.3 * float(image.max() - image.min())
    assert float(noise.std()) == pytest.approx(deviation, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01 * deviation)
    assert sum(float(probe.factor) for probe in probes) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_straight_path_integrates_polynomials_exactly(count: int) -> None:
    """Gauss-Legendre with n nodes is exact up to degree d = 2n - 1: here for ∫ x^d dx."""
    image, baseline = picture(0).double(), picture(1).double()
    degree = 2 * count - 1
    probes = sample_straight_path(image, baseline, count)
    integral = sum(probe.factor * probe.point**degree for probe in probes)
    expected = (image ** (degree + 1) - baseline ** (degree + 1)) / (degree + 1)
    torch.testing.assert_close(integral, expected)


def test_a_blur_path_runs_from_the_blurred_image_to_the_sharp_one() -> None:
    image, count = picture(), 4
    corners = [blur_image(image[None], HEIGHT / 6 * (1 - k / count) ** 2)[0] for k in range(count)]
    corners.append(image)
    probes = list(sample_blur_path(image, count))
    assert len(probes) == count
    for k, probe in enumerate(probes):
        torch.testing.assert_close(probe.point, (corners[k] + corners[k + 1]) / 2)
        torch.testing.assert_close(probe.factor, corners[k + 1] - corners[k])


def test_baseline_lines_have_one_point_in_every_interval() -> None:
    image, count = picture(), 6
    baselines = [picture(seed) for seed in range(1, count + 1)]
    intervals: list[int] = []
    for probe, baseline in zip(sample_baseline_lines(image, baselines, 3), baselines, strict=True):
        positions = (probe.point - baseline) / (image - baseline)
        position = float(positions.median())
        torch.testing.assert_close(probe.point, baseline + position * (image - baseline))
        torch.testing.assert_close(probe.factor, (image - baseline) / count)
        intervals.append(math.floor(position * count))
    assert sorted(intervals) == list(range(count))


def test_baselines_are_what_they_are_called() -> None:
    image = picture()
    for kind, gray in (("black", 0.0), ("gray", 0.5), ("white", 1.0)):
        assert torch.equal(make_baseline(image, kind, 0), torch.full_like(image, gray))
    # A sixth of the short side, which is the height here.
    torch.testing.assert_close(
        make_baseline(image, "blur", 0), blur_image(image[None], HEIGHT / 6)[0]
    )
    torch.testing.assert_close(
        blur_image_by_share(image, 0.5), blur_image(image[None], HEIGHT / 12)[0]
    )
    noise = make_baseline(image, "random", 5)
    assert torch.equal(noise, torch.rand(image.shape, generator=seeded(5)))


def test_quarter_crops_lie_anywhere_in_the_image() -> None:
    """On a ramp along each axis, a crop's mean says where it lies, its order if it is mirrored."""
    rows = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH) / (HEIGHT - 1)
    columns = torch.arange(WIDTH)[None].expand(HEIGHT, WIDTH) / (WIDTH - 1)
    image = torch.stack([rows, columns, torch.zeros(HEIGHT, WIDTH)])
    crops = torch.stack(list(sample_quarter_crops(image, 400, 0)))
    assert crops.shape == (400, 3, HEIGHT, WIDTH)
    row_means = crops[:, 0].mean((1, 2)) * (HEIGHT - 1)
    column_means = crops[:, 1].mean((1, 2)) * (WIDTH - 1)
    # Crops of 5×7 pixels: their centres lie from 2 to 7 and from 3 to 10.
    assert sorted(set(row_means.round().int().tolist())) == list(range(2, 8))
    assert sorted(set(column_means.round().int().tolist())) == list(range(3, 11))
    mirrored = crops[:, 1, 0, 0] > crops[:, 1, 0, -1]
    assert 0.4 < float(mirrored.float().mean()) < 0.6


def test_gradient_powers_are_their_loop(model: sl.Model) -> None:
    probes = [
        GradientProbe(picture(seed), torch.rand(3, HEIGHT, WIDTH, generator=seeded(seed + 50)))
        for seed in range(7)
    ]
    for batch in (1, 3, 7):
        sums = sum_gradient_powers(model, probes, 2, batch, (2, 1))
        for power, total in zip((2, 1), sums, strict=True):
            expected = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
            for point, factor in probes:
                leaf = point[None].clone().requires_grad_()
                (gradient,) = torch.autograd.grad(model.logits(leaf)[0, 2], leaf)
                expected += (factor * gradient[0] ** power).double()
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-7)


def test_class_scores_do_not_depend_on_the_batch(model: sl.Model) -> None:
    images = [picture(seed) for seed in range(5)]
    expected = model.logits(torch.stack(images))[:, 1].detach()
    for batch in (1, 2, 99):
        scores = compute_class_scores(model, iter(images), 1, batch)
        torch.testing.assert_close(scores, expected)


def test_the_score_gradient_is_for_each_images_own_class(model: sl.Model) -> None:
    images = torch.stack([0.2 + 0.6 * picture(seed) for seed in range(4)])
    gradient, index = compute_score_gradient(model, images)
    assert index.tolist() == model.logits(images).argmax(1).tolist()
    step = 1e-2
    direction = torch.randn(images.shape, generator=seeded(9))
    higher = model.logits(images + step * direction)
    lower = model.logits(images - step * direction)
    change = ((higher - lower) / (2 * step)).gather(1, index[:, None])[:, 0].detach()
    predicted = (gradient * direction).sum((1, 2, 3))
    np.testing.assert_allclose(predicted.numpy(), change.numpy(), atol=5e-3)
