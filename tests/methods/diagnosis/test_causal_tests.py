"""Causes that were built into a network are found, and what is no cause is not."""

import pytest
import torch
from torch import Tensor, nn

from sightline.methods.diagnosis.causal_tests import (
    WrongAnswers,
    choose_cause_units,
    measure_class_share,
    measure_specificity,
    run_without_each,
    try_pasting,
    try_removal,
    try_units,
)
from sightline.methods.diagnosis.enriched_units import EnrichedUnit
from sightline.methods.diagnosis.image_patches import locate_patches
from sightline.models.model import Model

SIDE = 40


class SpotNet(nn.Module):
    """Says «spot» (class 1) for a red spot, else what the mean brightness says.

    Unit 2 of `spots` finds the red spot, the others find nothing that matters much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spots = nn.Conv2d(3, 6, 5, padding=2)
        self.relu = nn.ReLU()
        torch.manual_seed(1)
        with torch.no_grad():
            self.spots.weight *= 0.1
            self.spots.bias.zero_()
            self.spots.weight[2] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1) / 25
            self.spots.bias[2] = -0.5

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.spots(x))
        spot = maps[:, 2].amax((1, 2))
        rest = maps[:, [0, 1, 3, 4, 5]].mean((1, 2, 3))
        brightness = x.mean((1, 2, 3)) - 0.5
        return torch.stack([brightness + 0.01 * rest, 20 * spot - 0.5, -brightness], 1)


def make_images(count: int, *, spot: bool) -> Tensor:
    """Gray images with noise; a red square of 6 pixels somewhere in each if asked for."""
    generator = torch.Generator().manual_seed(count)
    images = 0.4 + 0.2 * torch.rand(count, 3, SIDE, SIDE + 8, generator=generator)
    if spot:
        for row in range(count):
            top, left = torch.randint(2, SIDE - 8, (2,), generator=generator).tolist()
            images[row, :, top : top + 6, left : left + 6] = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    return images


@pytest.fixture
def model() -> Model:
    return Model(SpotNet().eval(), size=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3, output_kind="logits")


@pytest.fixture
def wrong(model: Model) -> WrongAnswers:
    images = make_images(16, spot=True)
    truth = model.ablated({"relu": [2]}).logits(images).argmax(1).numpy()
    assert (model.logits(images).argmax(1) == 1).all()
    return WrongAnswers(images, truth, 1, make_images(7, spot=False))


def test_the_unit_behind_the_answers_is_chosen(model: Model, wrong: WrongAnswers) -> None:
    candidates = [EnrichedUnit("relu", unit, 0.8, 4.0) for unit in range(6)]
    assert choose_cause_units(model, wrong, candidates) == [("relu", 2)]
    assert choose_cause_units(model, wrong, []) == []


def test_a_layer_that_other_answers_rest_on_is_not_chosen(
    model: Model, wrong: WrongAnswers
) -> None:
    """Without a convolution's spot unit as much changes as without the ReLU's, and no more."""
    everything = [EnrichedUnit("spots", unit, 0.8, 4.0) for unit in range(6)]
    reference = make_images(9, spot=True)
    mixed = WrongAnswers(wrong.images, wrong.truth, 1, reference)
    assert choose_cause_units(model, mixed, everything) == []
    assert choose_cause_units(model, wrong, everything) == [("spots", 2)]


def test_what_other_answers_lose_is_taken_off(model: Model, wrong: WrongAnswers) -> None:
    assert measure_specificity(model, wrong, [("relu", 2)]) == 1
    spotted = torch.cat([make_images(9, spot=True), make_images(3, spot=False)])
    mixed = WrongAnswers(wrong.images, wrong.truth, 1, spotted)
    assert measure_specificity(model, mixed, [("relu", 2)]) == pytest.approx(0.25)
    assert measure_specificity(model, wrong, [("relu", 4)]) == 0


def test_without_the_unit_answers_are_right(model: Model, wrong: WrongAnswers) -> None:
    test = try_units(model, wrong, [("relu", 2)])
    assert (test.changed, test.corrected, test.images) == (16, 16, 16)
    assert test.random_changed < 1
    assert test.is_passed
    other = try_units(model, wrong, [("relu", 4)])
    assert not other.is_passed


def test_logits_without_units_are_those_of_an_ablated_model(model: Model) -> None:
    images = make_images(5, spot=True)
    results = run_without_each(model, images, "relu", [[2], [0, 3]], images)
    torch.testing.assert_close(results[0], model.logits(images))
    torch.testing.assert_close(results[1], model.ablated({"relu": [2]}).logits(images))
    torch.testing.assert_close(results[2], model.ablated({"relu": [0, 3]}).logits(images))


def test_units_in_front_of_a_relu_have_their_mean(model: Model) -> None:
    images = make_images(5, spot=True)
    reference = make_images(6, spot=False)
    results = run_without_each(model, images, "spots", [[2]], reference)
    twin = model.ablated({"spots": [2]}, fill="mean", images=reference)
    torch.testing.assert_close(results[1], twin.logits(images))


def test_patches_cover_the_spots(model: Model, wrong: WrongAnswers) -> None:
    patches = locate_patches(model, wrong.images, "relu", 2)
    assert (patches.height, patches.width) == (10, 12)
    pieces = patches.cut(wrong.images)
    assert ((pieces[:, 0] - pieces[:, 1]).amax((1, 2)) > 0.9).all()
    for kind in ("patch covered", "patch inpainted"):
        test = try_removal(model, wrong, patches, kind)
        assert test.changed > test.random_changed
        assert test.p_value <= 0.05


def test_a_pasted_patch_makes_others_wrong(model: Model, wrong: WrongAnswers) -> None:
    patches = locate_patches(model, wrong.images, "relu", 2)
    targets = make_images(12, spot=False)
    test = try_pasting(model, wrong, patches, targets)
    assert test.images == 12
    assert test.changed == 12
    assert test.random_changed < 6
    assert test.is_passed


def test_the_share_is_the_lead_that_is_lost(model: Model, wrong: WrongAnswers) -> None:
    right = make_images(9, spot=True)
    others = make_images(11, spot=False)
    share = measure_class_share(model, wrong, right, others, [("relu", 2)])
    assert (share.broken, share.right_images) == (9, 9)
    leads = []
    for images in (wrong.images, right):
        for network in (model, model.ablated({"relu": [2]})):
            logits = network.logits(images)
            leads.append(float((logits[:, 1] - logits[:, [0, 2]].amax(1)).mean()))
    assert share.in_mistakes == pytest.approx((leads[0] - leads[1]) / leads[2], rel=1e-4)
    assert share.in_right == pytest.approx((leads[2] - leads[3]) / leads[2], rel=1e-4)
    assert (share.other_images, share.others_broken) == (11, 0)
    swapped = measure_class_share(model, wrong, right, wrong.images, [("relu", 2)])
    assert (swapped.other_images, swapped.others_broken) == (16, 16)
    other = measure_class_share(model, wrong, right, others[:0], [("relu", 0)])
    assert (other.other_images, other.others_broken) == (0, 0)
    assert other.broken == 0
    assert abs(other.in_mistakes) < 0.05
