"""Curves, subsets and correlations: derived again slowly, and against captum.

Also on models whose best attribution is known.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from torch import Tensor, nn

import sightline as sl
from sightline.images.transforms import blur_image
from sightline.methods.evaluation.faithfulness import (
    Attribution,
    ClassScorer,
    compute_curve_area,
    compute_infidelity,
    compute_pearson_correlation,
    compute_square_side,
    compute_subset_sizes,
    measure_deletion_insertion,
    measure_score_drops,
    measure_sensitivity_infidelity,
    rank_pixels,
    sample_random_squares,
    sample_square_subsets,
    sum_over_masks,
)

HEIGHT = 14
WIDTH = 18


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contributions(heatmap: Tensor) -> Attribution:
    """An attribution whose heatmap is what its pixels contribute."""
    return Attribution(heatmap, heatmap[None], is_gradient=False)


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=seeded(seed))


class WeightedSum(nn.Module):
    """The first score is a weighted sum of the pixels plus a bias, the second is 0.

    Smaller images, such as a Model's square blank, are padded with zeros.
    """

    def __init__(self, weights: Tensor, bias: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, WIDTH - x.shape[3], 0, HEIGHT - x.shape[2]))
        score = (padded * self.weights).sum((1, 2, 3)) + self.bias
        return torch.stack([score, torch.zeros_like(score)], 1)


def load_weighted_sum(weights: Tensor, bias: float = 0.0) -> sl.Model:
    return sl.load(
        WeightedSum(weights, bias),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        labels=("some", "none"),
        size=HEIGHT,
    )


# ── shifted attributions, which say what chance gives ──


def test_a_shift_moves_rows_by_rows_and_columns_by_columns() -> None:
    attribution = Attribution(
        torch.rand(5, 8, generator=seeded(1)), torch.rand(3, 5, 8, generator=seeded(2)), True
    )
    row_shifts, column_shifts = set(), set()
    for seed in range(60):
        draws = seeded(seed)
        rows = int(torch.randint(5, (), generator=draws))
        columns = int(torch.randint(8, (), generator=draws))
        shifted = attribution.shift_randomly(seeded(seed))
        for y, x in np.ndindex(5, 8):
            target = (y + rows) % 5, (x + columns) % 8
            assert shifted.heatmap[target] == attribution.heatmap[y, x]
            assert torch.equal(shifted.per_channel[:, *target], attribution.per_channel[:, y, x])
        assert shifted.is_gradient
        row_shifts.add(rows)
        column_shifts.add(columns)
    assert row_shifts == set(range(5))
    assert column_shifts == set(range(8))


def test_predicted_drops_are_values_or_gradients_times_the_way_to_gray() -> None:
    image = picture()[0]
    per_channel = torch.randn(3, HEIGHT, WIDTH, generator=seeded(1))
    values = Attribution(per_channel.sum(0), per_channel, is_gradient=False)
    gradients = Attribution(per_channel.sum(0), per_channel, is_gradient=True)
    for y, x in ((0, 0), (3, 17), (13, 4)):
        value_drop = values.predict_pixel_drops(image)[y, x].item()
        assert value_drop == pytest.approx(sum(per_channel[:, y, x].tolist()), abs=1e-5)
        products = [float(per_channel[c, y, x]) * (float(image[c, y, x]) - 0.5) for c in range(3)]
        gradient_drop = gradients.predict_pixel_drops(image)[y, x].item()
        assert gradient_drop == pytest.approx(sum(products), abs=1e-5)


# ── deletion and insertion ──


@pytest.mark.parametrize("steps", [1, 5, 16])
def test_curves_are_those_made_pixel_by_pixel(
    tiny: sl.Model, wide_photo: Tensor, steps: int
) -> None:
    height, width = wide_photo.shape[-2:]
    heatmap = torch.rand(height, width, generator=seeded(3))  # no two values are equal
    scores = measure_deletion_insertion(
        ClassScorer(tiny, 2, 7),
        wide_photo[0],
        contributions(heatmap),
        [contributions(-heatmap)],
        steps=steps,
        generator=seeded(),
    )
    order = np.argsort(-heatmap.numpy().ravel())
    gray = torch.full_like(wide_photo, 0.5)
    blurred = blur_image(wide_photo, min(height, width) / 20)
    ends = {"deletion": (wide_photo, gray), "insertion": (blurred, wide_photo)}
    for name, (start, end) in ends.items():
        for suffix, pixels in (("", order), ("_chance", order[::-1])):
            expected = []
            for k in range(steps + 1):
                image = start.clone()
                for pixel in pixels[: round(k * height * width / steps)]:
                    y, x = divmod(int(pixel), width)
                    image[0, :, y, x] = end[0, :, y, x]
                expected.append(float(tiny.probabilities(image)[0, 2]))
            curve = getattr(scores, f"{name}{suffix}")
            area = getattr(scores, f"{name}_auc{suffix}")
            np.testing.assert_allclose(curve, expected, atol=1e-6)
            np.testing.assert_allclose(area, np.trapezoid(expected, dx=1 / steps), atol=1e-6)


def test_areas_are_trapezoids() -> None:
    curves = torch.rand(3, 6, generator=seeded(), dtype=torch.float64)
    expected = [np.trapezoid(curve, dx=1 / 5) for curve in curves.numpy()]
    np.testing.assert_allclose(compute_curve_area(curves), expected)


def test_equal_values_come_in_random_order() -> None:
    heatmap = torch.zeros(20, 26)
    heatmap[3:6, 4:8] = 2.0
    ranks = rank_pixels(heatmap, seeded())
    assert sorted(ranks.flatten().tolist()) == list(range(520))
    assert sorted(ranks[3:6, 4:8].flatten().tolist()) == list(range(12))
    lower_half = ranks[10:].double().mean()
    assert abs(lower_half - (12 + 519) / 2) < 20, "the lower half is not put last"
    assert not torch.equal(ranks, rank_pixels(heatmap, seeded(1)))


def test_no_attribution_beats_the_perfect_one_on_a_linear_model() -> None:
    weights = torch.randn(3, HEIGHT, WIDTH, generator=seeded(1)) * 0.05
    image = picture()
    scorer = ClassScorer(load_weighted_sum(weights), 0, 64)

    def measure_deletion(heatmap: Tensor) -> float:
        attribution = contributions(heatmap)
        scores = measure_deletion_insertion(
            scorer, image[0], attribution, [attribution], steps=16, generator=seeded()
        )
        return float(scores.deletion_auc)

    perfect = (weights * (image[0] - 0.5)).sum(0)
    best = measure_deletion(perfect)
    worst = measure_deletion(-perfect)
    random_areas = [
        measure_deletion(torch.rand(HEIGHT, WIDTH, generator=seeded(seed))) for seed in range(20)
    ]
    assert best < min(random_areas)
    assert worst > max(random_areas)


def test_deletion_of_planted_evidence_is_that_of_the_closed_form() -> None:
    """The evidence is a patch of 18 pixels, as many as each of 14 steps removes of 14×18."""
    patch = torch.zeros(HEIGHT, WIDTH)
    patch[5:8, 2:8] = 1
    mirrored = patch.flip(0, 1)
    # A gray patch says nothing: the bias takes its score away.
    model = load_weighted_sum(0.1 * patch.expand(3, -1, -1), bias=-0.1 * 3 * 18 / 2)
    image = torch.where(patch.bool(), 1.0, picture()[0])

    def measure_deletion(heatmap: Tensor) -> float:
        attribution = contributions(heatmap)
        scores = measure_deletion_insertion(
            ClassScorer(model, 0, 64),
            image,
            attribution,
            [attribution],
            steps=14,
            generator=seeded(),
        )
        return float(scores.deletion_auc)

    clean, half, gone = (1 / (1 + np.exp(-score)) for score in (2.7, 1.35, 0.0))
    perfect = measure_deletion(patch)
    wrong = measure_deletion(-patch)
    late = measure_deletion(patch + 2 * mirrored)
    columns = torch.arange(WIDTH)
    # One step removes the left half of the patch and the right half of its mirror image.
    split = measure_deletion(patch * (columns < 5) + mirrored * (columns >= 13) + 0.5 * patch)
    assert perfect == pytest.approx(((clean + gone) / 2 + 13 * gone) / 14)
    assert wrong == pytest.approx((13 * clean + (clean + gone) / 2) / 14)
    assert late == pytest.approx((clean + (clean + gone) / 2 + 12 * gone) / 14), (
        "one step after the perfect attribution"
    )
    assert split == pytest.approx(((clean + half) / 2 + (half + gone) / 2 + 12 * gone) / 14)
    assert perfect < split < late < wrong


# ── removal of sets of pixels ──


@pytest.mark.parametrize("is_gradient", [False, True])
def test_the_perfect_attribution_of_a_linear_model_explains_everything(is_gradient: bool) -> None:
    weights = torch.randn(3, HEIGHT, WIDTH, generator=seeded(1)) * 0.05
    image = picture()[0]
    per_channel = weights if is_gradient else weights * (image - 0.5)
    attribution = Attribution(per_channel.sum(0), per_channel, is_gradient)
    scores = measure_sensitivity_infidelity(
        ClassScorer(load_weighted_sum(weights), 0, 16),
        image,
        attribution,
        [attribution.shift_randomly(seeded(seed)) for seed in range(8)],
        samples=12,
        generator=seeded(),
    )
    np.testing.assert_allclose(scores.sensitivity, [1, 1, 1], atol=1e-5)
    assert scores.sensitivity_chance.abs().max() < 0.5
    assert float(scores.infidelity) < 1e-6
    assert float(scores.unexplained) < 1e-6
    assert float(scores.unexplained_chance) > 0.3


def test_sensitivity_is_that_of_loops(tiny: sl.Model, wide_photo: Tensor) -> None:
    heatmap = torch.randn(32, 44, generator=seeded(5))
    scores = measure_sensitivity_infidelity(
        ClassScorer(tiny, 1, 5),
        wide_photo[0],
        contributions(heatmap),
        [contributions(heatmap)],
        samples=9,
        generator=seeded(4),
    )
    draws = seeded(4)
    expected = []
    for n in (35, 106, 176):  # of 16×22 squares of 2×2 pixels
        is_removed = torch.rand(9, 16 * 22, generator=draws).argsort(1) < n
        sums, drops = [], []
        for row in is_removed.tolist():
            image, total = wide_photo.clone(), 0.0
            for square in (number for number, removed in enumerate(row) if removed):
                y, x = square // 22 * 2, square % 22 * 2
                image[0, :, y : y + 2, x : x + 2] = 0.5
                total += float(heatmap[y : y + 2, x : x + 2].double().sum())
            sums.append(total)
            drops.append(float(tiny.logits(wide_photo)[0, 1] - tiny.logits(image)[0, 1]))
        expected.append(np.corrcoef(sums, drops)[0, 1])
    np.testing.assert_allclose(scores.sensitivity, expected, atol=1e-4)
    np.testing.assert_allclose(scores.sensitivity_chance, expected, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (16, 16), (33, 20), (40, 70)])
def test_subsets_are_whole_squares(height: int, width: int) -> None:
    side = compute_square_side(height, width)
    for n in compute_subset_sizes(height, width):
        for mask in sample_square_subsets(height, width, n, 3, seeded()):
            padded = nn.functional.pad(mask[None].double(), (0, -width % side, 0, -height % side))
            squares = nn.functional.max_pool2d(padded, side)
            assert int(squares.sum()) == n
            enlarged = squares.repeat_interleave(side, 1).repeat_interleave(side, 2)
            assert torch.equal(enlarged[0, :height, :width] > 0, mask)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (33, 20), (40, 70)])
def test_random_squares_are_squares_anywhere(height: int, width: int) -> None:
    masks = sample_random_squares(height, width, 1000, seeded())
    for mask in masks:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert rows == columns
        assert rows * columns == mask.sum()
        assert 1 <= rows <= round(min(height, width) / 2)
    assert masks.any(2).any(0).all(), "every row is reached"
    assert masks.any(1).any(0).all(), "every column is reached"


def test_infidelity_is_captums(tiny: sl.Model, wide_photo: Tensor) -> None:
    masks = sample_random_squares(32, 44, 25, seeded())
    heatmap = torch.rand(32, 44, generator=seeded(2))
    drops = measure_score_drops(ClassScorer(tiny, 3, 8), wide_photo[0], masks)
    predicted = sum_over_masks(heatmap, masks)
    if (drops * predicted).mean() < 0:
        heatmap, predicted = -heatmap, -predicted

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        removed = masks[:, None].expand(-1, 3, -1, -1)
        return removed.float(), torch.where(removed, torch.full_like(inputs, 0.5), inputs)

    attribution = torch.stack([heatmap, torch.zeros_like(heatmap), torch.zeros_like(heatmap)])
    expected = captum_infidelity(
        lambda x: tiny.logits(x)[:, 3].unsqueeze(1),
        perturb,
        wide_photo,
        attribution[None],
        target=0,
        n_perturb_samples=25,
        normalize=True,
    )
    torch.testing.assert_close(
        compute_infidelity(predicted, drops).float(), expected[0].detach(), atol=1e-6, rtol=1e-4
    )
    torch.testing.assert_close(compute_infidelity(-predicted, drops), drops.square().mean())
    torch.testing.assert_close(
        compute_infidelity(torch.zeros(25).double(), drops), drops.square().mean()
    )


def test_correlation_is_numpys() -> None:
    for seed in range(5):
        first = torch.randn(9, generator=seeded(seed))
        second = first + torch.randn(9, generator=seeded(seed + 100))
        expected = np.corrcoef(first.double().numpy(), second.double().numpy())[0, 1]
        correlation = compute_pearson_correlation(first, second)
        assert float(correlation) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("make_constant", [torch.zeros, lambda n: torch.full((n,), 0.1)])
def test_correlation_of_what_does_not_vary_is_zero(
    make_constant: Callable[[int], Tensor],
) -> None:
    assert compute_pearson_correlation(make_constant(9), torch.arange(9.0)) == 0
    assert compute_pearson_correlation(torch.arange(9.0), make_constant(9)) == 0


def test_correlation_of_tiny_numbers_is_that_of_large_ones() -> None:
    correlation = compute_pearson_correlation(torch.arange(9.0) * 1e-20, torch.arange(9.0))
    assert correlation == pytest.approx(1)
