"""Which network is fooled by what was made on which: against a literal count."""

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.registry import Attack
from sightline.methods.adversarial.transfer import add_equal_noise


def count_fooled(model: sl.Model, photos: torch.Tensor, changed: torch.Tensor) -> float:
    """The share of images whose prediction changes, one by one."""
    changes = [
        int(model.logits(clean[None]).argmax()) != int(model.logits(image[None]).argmax())
        for clean, image in zip(photos, changed, strict=True)
    ]
    return sum(changes) / len(changes)


def test_the_table_is_a_count(tiny: sl.Model) -> None:
    photos = torch.cat([smooth(seed=seed) for seed in range(4)])[:, :, :26]
    values = sl.transfer(tiny, photos, others=("sightnet",), eps=0.1, steps=3).values
    models = (tiny, sl.load())
    attack = Attack("pgd", eps=0.1, steps=3, early=False)
    for row, attacked in enumerate(models):
        goal = AttackGoal(attacked.logits(photos).argmax(1))
        changed, _ = attack(attacked, photos, goal)
        for column, network in enumerate(models):
            share = count_fooled(network, photos, changed)
            assert float(values["fooled"][row, column]) == pytest.approx(share)
    assert values["fooled"].diag().min() >= 0.75

    noise = add_equal_noise(photos, values["image"], seed=0)
    for column, network in enumerate(models):
        share = count_fooled(network, photos, noise)
        assert float(values["random"][column]) == pytest.approx(share)


def test_noise_is_as_large_as_the_change_with_random_signs() -> None:
    image = torch.full((2, 3, 20, 26), 0.5)
    change = 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    noise = add_equal_noise(image, image + change, seed=3) - image
    torch.testing.assert_close(noise.abs(), change)
    assert 0.45 < float((noise > 0).float().mean()) < 0.55
    assert not torch.equal(noise, add_equal_noise(image, image + change, seed=4) - image)
    white = add_equal_noise(torch.ones_like(image), torch.ones_like(image) - change, seed=3)
    assert white.max() <= 1


def test_the_same_network_twice_is_fooled_alike() -> None:
    model, photos = sl.load(), torch.cat([smooth(seed=seed) for seed in range(2)])
    values = sl.transfer(model, photos, others=("sightnet",), steps=2).values
    assert values["names"] == ["sightnet 1", "sightnet 2"]
    assert (values["fooled"] == values["fooled"][0, 0]).all()


def test_a_network_that_is_none_is_refused(tiny: sl.Model) -> None:
    for wrong in ("nosuchnet", "=weights.pt", "resnet18=nosuchfile.pt"):
        with pytest.raises(sl.SightlineError) as error:
            sl.transfer(tiny, smooth(), others=(wrong,))
        assert "\n" not in str(error.value)
