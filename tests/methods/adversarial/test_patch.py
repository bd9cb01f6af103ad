"""A sticker: where it lies, that it is round, and that it persuades more than a gray disc."""

import math

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.attacks.universal import (
    PatchPositions,
    paste_round_patch,
    sample_patch_positions,
)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.cat([smooth(seed=seed) for seed in range(8)])


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (5.0, -3.0)])
def test_it_lies_where_it_should(right: float, down: float) -> None:
    image, patch = torch.zeros(1, 3, 30, 40), torch.ones(1, 3, 9, 9)
    at = PatchPositions(*(torch.tensor([value]) for value in (12.0, 0.3, right, down)))
    on = paste_round_patch(image, patch, at)[0, 0]
    rows, columns = torch.meshgrid(
        torch.arange(30) + 0.5 - 15 - down, torch.arange(40) + 0.5 - 20 - right, indexing="ij"
    )
    assert torch.equal(on > 0.5, rows.square() + columns.square() <= 36)


def test_it_turns() -> None:
    """A quarter turn of the patch is a quarter turn of its picture."""
    patch = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(1, 3, 8, 8)
    straight, turned = (
        paste_round_patch(
            image, patch, PatchPositions(*(torch.tensor([v]) for v in (8.0, turn, 0.0, 0.0)))
        )
        for turn in (0.0, math.pi / 2)
    )
    assert torch.allclose(straight, patch * (straight > 0), atol=1e-5)
    assert any(torch.allclose(turned, straight.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3))


def test_random_places_are_inside() -> None:
    image = torch.zeros(200, 3, 20, 32)
    at = sample_patch_positions(image, 0.5, torch.Generator().manual_seed(0))
    assert (at.offset_right.abs() + at.diameter / 2 <= 16 + 1e-4).all()
    assert (at.offset_down.abs() + at.diameter / 2 <= 10 + 1e-4).all()
    assert at.diameter.min() >= 0.4 * 20 - 1e-4
    assert at.diameter.max() <= 0.6 * 20 + 1e-4
    assert at.rotation.abs().max() <= math.radians(22.5)


def test_it_persuades_more_than_a_gray_disc(tiny: sl.Model, photos: Tensor) -> None:
    target = 4  # which none of them is taken for
    values = sl.adversarial_patch(tiny, photos, target=target, share=0.7, steps=30).values
    assert values["reached"] > values["reached_gray"] + 0.2
    assert values["patch"].shape == (1, 3, 22, 22)
    assert 0 <= values["patch"].min() <= values["patch"].max() <= 1
    assert torch.equal(values["success"], tiny.logits(values["image"]).argmax(1) == target)
    assert ((values["image"] != photos).any(1).float().mean((1, 2)) < 0.6).all(), (
        "outside its circle nothing changes"
    )


def test_a_target_that_all_have_is_refused(tiny: sl.Model, photos: Tensor) -> None:
    seen = LABELS[int(tiny.logits(photos[:1]).argmax())]
    with pytest.raises(sl.SightlineError, match=f"{seen} is what the network already predicts"):
        sl.adversarial_patch(tiny, photos[:1], target=seen)
