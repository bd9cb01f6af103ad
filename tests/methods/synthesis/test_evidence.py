"""Evidence for a synthesis: ranks, ratios and spectra against literal derivations."""

import math

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.methods.synthesis.evidence import (
    SynthesisEvidence,
    compute_ring_spectrum,
    compute_unit_means,
    gather_evidence,
    rank_among_all,
    rank_units_on_images,
    score_best_photos,
)
from sightline.optim.objectives.objective import channel


def literal_rank(scores: list[float], own: int) -> int:
    """One more than the number of entries that are strictly larger."""
    return 1 + sum(score > scores[own] for score in scores)


def test_ties_share_the_better_rank() -> None:
    scores = torch.tensor([[2.0, 5.0, 5.0, 1.0], [3.0, 3.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    own = torch.tensor([1, 2, 0])
    expected = [
        literal_rank(row, index) for row, index in zip(scores.tolist(), own.tolist(), strict=True)
    ]
    assert expected == [1, 1, 4]
    assert rank_among_all(scores, own).tolist() == expected


def test_units_are_ranked_by_their_deviation_from_the_photographs(tiny: sl.Model) -> None:
    photos = torch.cat([smooth(3, side=32, seed=seed) for seed in (4, 5)])
    images = smooth(2, side=32, seed=9)
    units = (7, 2)
    ranks, unit_count = rank_units_on_images(tiny, "conv2", units, images, photos)
    assert unit_count == 12

    def literal_means(image: Tensor) -> list[float]:
        feature = tiny.features(image[None], "conv2")["conv2"][0]
        return [float(feature[unit].mean()) for unit in range(12)]

    with torch.no_grad():
        on_photos = [literal_means(photo) for photo in photos]
        for image, unit, rank in zip(images, units, ranks.tolist(), strict=True):
            means = literal_means(image)
            deviations: list[float] = []
            for index in range(12):
                column = [row[index] for row in on_photos]
                center = sum(column) / len(column)
                spread = math.sqrt(
                    sum((value - center) ** 2 for value in column) / (len(column) - 1)
                )
                deviations.append((means[index] - center) / spread)
            assert rank == literal_rank(deviations, unit)


def test_an_objective_of_no_unit_has_no_rank(tiny: sl.Model) -> None:
    ranks, unit_count = rank_units_on_images(tiny, "conv2", (), smooth(3), smooth(2, seed=1))
    assert (ranks.tolist(), unit_count) == ([0, 0, 0], 0)


def test_the_best_photograph_is_that_of_each_unit(tiny: sl.Model) -> None:
    photos = smooth(5, side=32, seed=3)
    units = (1, 7)
    fast = score_best_photos(tiny, channel("conv2", units), ("conv2", units), photos, 2)
    means = compute_unit_means(tiny, "conv2", photos)
    assert torch.equal(fast, torch.stack([means[:, 1].max(), means[:, 7].max()]))
    # With another term each photograph is scored by the whole objective.
    whole = channel("conv2", units) - 0.0 * sl.tv()
    slow = score_best_photos(tiny, whole, ("conv2", units), photos, 2)
    torch.testing.assert_close(slow, fast)


def test_the_share_under_warps_is_of_the_own_score(tiny: sl.Model) -> None:
    flat = torch.full((2, 3, 32, 32), 0.3)
    flat[1] = 0.8
    evidence = gather_evidence(tiny, sl.l1(), ("", ()), flat)
    # A flat image is the same under every warp, whatever its score.
    torch.testing.assert_close(evidence.robust, torch.sign(evidence.score), rtol=1e-4, atol=1e-4)


def test_a_wave_stands_in_its_ring() -> None:
    height, width = 48, 64
    columns = torch.arange(width)
    waves = [torch.sin(2 * torch.pi * columns * count / width) for count in (4, 16)]
    images = torch.stack([wave.expand(3, height, width) * 0.4 + 0.5 for wave in waves])
    curve = compute_ring_spectrum(images, ring_count=8)
    edges = torch.logspace(math.log10(2 / width), math.log10(0.5), 9)
    for row, count in zip(curve, (4, 16), strict=True):
        frequency = count / width
        strongest = int(row.argmax())
        assert edges[strongest] <= frequency < edges[strongest + 1]
    torch.testing.assert_close(curve.mean(1), torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("natural", "words"), [(2.0, "1.5 times the best"), (-1.0, "the best has -1.00")]
)
def test_words(natural: float, words: str) -> None:
    one = torch.ones(1)
    evidence = SynthesisEvidence(
        score=one * 3,
        natural=one * natural,
        robust=one * 0.5,
        rank=torch.tensor([4]),
        spectrum=one * 0,
        unit_count=12,
        photo_count=9,
        transfer=torch.tensor([2]),
        judge="resnet18",
    )
    text = evidence.describe_evidence()
    assert f"the score is 3.00 ({words} of 9 photographs)" in text
    assert "leave 50% of it" in text
    assert "the unit ranks 4 of 12 on its own image" in text
    assert "resnet18, which had no part in it, ranks the class 2" in text
    assert text.endswith("by a factor of 1.0.")
