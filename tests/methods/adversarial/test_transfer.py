"""Which network is fooled by what was made on which: against a literal count."""

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.registry import Attack


def test_the_table_is_a_count(tiny: sl.Model) -> None:
    photos = torch.cat([smooth(seed=seed) for seed in range(4)])
    values = sl.transfer(tiny, photos, others=("sightnet",), eps=0.1, steps=3).values
    models = (tiny, sl.load())
    for row, made in enumerate(models):
        found, _ = Attack("pgd", eps=0.1, steps=3, early=False)(
            made, photos, AttackGoal(made.logits(photos).argmax(1))
        )
        for column, shown in enumerate(models):
            fooled = shown.logits(found).argmax(1) != shown.logits(photos).argmax(1)
            assert float(values["fooled"][row, column]) == pytest.approx(
                float(fooled.float().mean())
            )
    assert values["fooled"].diag().min() >= 0.75
    assert values["random"].shape == (2,)


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
