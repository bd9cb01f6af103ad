"""A patch reaches its class more often than a gray disc, and changes nothing outside its circle."""

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.attacks.universal import (
    paste_round_patch,
    sample_patch_positions,
)
from sightline.methods.adversarial.patch import choose_patch_target, measure_patch_success


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Eight images 26×32."""
    return torch.cat([smooth(seed=seed) for seed in range(8)])[:, :, :26]


def test_it_persuades_more_than_a_gray_disc(tiny: sl.Model, photos: Tensor) -> None:
    target = 4  # a class that none of them is predicted as
    values = sl.adversarial_patch(tiny, photos, target=target, share=0.7, steps=30).values
    assert values["reached"] > values["reached_gray"] + 0.2
    assert values["patch"].shape == (1, 3, 18, 18)
    assert 0 <= values["patch"].min() <= values["patch"].max() <= 1
    assert torch.equal(values["success"], tiny.logits(values["image"]).argmax(1) == target)
    changed_shares = (values["image"] != photos).any(1).float().mean((1, 2))
    assert (changed_shares < 0.6).all(), "outside its circle nothing changes"


def test_success_is_a_count_over_images_and_positions(tiny: sl.Model, photos: Tensor) -> None:
    """Without the images that have the class already."""
    predicted = tiny.logits(photos).argmax(1)
    target = int(predicted[0])
    candidates = photos[predicted != target]
    assert 0 < len(candidates) < 8
    patch = photos[:1, :, 2:17, 5:20]
    generator = torch.Generator().manual_seed(1)
    reached: list[bool] = []
    for _ in range(16):
        positions = sample_patch_positions(candidates, 0.7, generator)
        for image in paste_round_patch(candidates, patch, positions):
            reached.append(int(tiny.logits(image[None]).argmax()) == target)
    share = measure_patch_success(tiny, photos, patch, target, 0.7)
    assert share == pytest.approx(sum(reached) / len(reached))
    assert 0 < share < 1
    assert measure_patch_success(tiny, photos[predicted == target], patch, target, 0.7) == 1


def test_the_least_likely_class_is_that_of_the_mean_log_probability(
    tiny: sl.Model, photos: Tensor
) -> None:
    probability = tiny.logits(photos).softmax(1)
    products = [float(probability[:, index].double().prod()) for index in range(len(LABELS))]
    predicted, target = choose_patch_target(tiny, photos, "least")
    assert target == products.index(min(products))
    assert torch.equal(predicted, probability.argmax(1))


def test_a_target_that_all_have_is_refused(tiny: sl.Model, photos: Tensor) -> None:
    label = LABELS[int(tiny.logits(photos[:1]).argmax())]
    with pytest.raises(sl.SightlineError, match=f"{label} is what the network already predicts"):
        sl.adversarial_patch(tiny, photos[:1], target=label)
