"""Effects of units that are turned off, against a model without each of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.methods.diagnosis.ablation_effects import (
    AblationEffects,
    ablate,
    measure_ablation_effects,
)
from sightline.models.model import Model

IMAGES = smooth(23, side=40, seed=4)[..., :32, :]
RNG = np.random.default_rng(0)


@pytest.fixture
def model() -> Model:
    return Model(small_network().eval(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def read(ids: Sequence[int]) -> Tensor:
    return IMAGES[list(ids)]


def make_labels(model: Model) -> np.ndarray:
    """The predictions, a few of them wrong on purpose."""
    labels = model.logits(IMAGES).argmax(1).numpy().copy()
    labels[::6] = (labels[::6] + 1) % 5
    return labels


def measure(model: Model, layer: str, **settings: object) -> AblationEffects:
    labels = make_labels(model)
    return measure_ablation_effects(
        model,
        read,
        labels,
        layer,
        ids=range(len(labels)),
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("layer", ["conv1", "relu2", "fc:in"])
def test_each_unit_is_a_model_without_it(model: Model, layer: str) -> None:
    effects = measure(model, layer)
    labels = torch.from_numpy(make_labels(model))
    clean = model.logits(IMAGES)
    assert effects.accuracy == pytest.approx(float((clean.argmax(1) == labels).double().mean()))
    for position, unit in enumerate(effects.units.tolist()):
        logits = model.ablated({layer: [unit]}).logits(IMAGES)
        predicted = logits.argmax(1)
        right = (predicted == labels).double()
        assert effects.unit_accuracy[position] == pytest.approx(float(right.mean()))
        flips = (predicted != clean.argmax(1)).double().mean()
        assert effects.flips[position] == pytest.approx(float(flips))
        change = (logits.softmax(1) - clean.softmax(1)).gather(1, labels[:, None])[:, 0]
        for column, number in enumerate(effects.class_numbers.tolist()):
            members = labels == number
            share = right[members].mean()
            assert effects.unit_class_accuracy[position, column] == pytest.approx(float(share))
            mean = change[members].mean()
            assert effects.probability_change[position, column] == pytest.approx(
                float(mean), abs=1e-6
            )
    assert effects.flips.any()


def test_the_mean_is_the_one_that_is_given(model: Model) -> None:
    means = np.linspace(-1, 2, 12).astype(np.float32)
    effects = measure(model, "relu2", fill="mean", means=means, units=[7])
    feature = model.features(IMAGES, "relu2")["relu2"].clone()
    feature[:, 7] = float(means[7])
    rest = torch.nn.Sequential(*list(model.network.children())[5:])
    with torch.no_grad():
        predicted = rest(feature).argmax(1).numpy()
    assert effects.unit_accuracy[0] == pytest.approx((predicted == make_labels(model)).mean())


def test_the_strongest_come_first(model: Model) -> None:
    effects = measure(model, "relu3")
    order = effects.list_strongest(16)
    drops = effects.accuracy_drops[order]
    assert (np.diff(drops) <= 1e-12).all()
    content = effects.to_json()
    assert len(content["units"]) == 16
    assert content["classes"].keys() == set(effects.class_names)


def test_over_a_scan_of_folders(tmp_path: Path, model: Model) -> None:
    pictures = smooth(12, side=40, seed=9)
    for number in range(12):
        path = tmp_path / "images" / ("bee", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], path)
    scan = sl.scan(model, tmp_path / "images", store=tmp_path / "a.scan", layers=["conv3"])
    effects = ablate(scan, "relu3", model=model, units=[1, 4])
    assert effects.reference == "the true classes"
    assert effects.class_names == ("bee", "dog")
    assert effects.class_counts.tolist() == [6, 6]
    few = ablate(scan, "relu3", model=model, units=[1], images=4)
    assert len(few.images) == 4
    with pytest.raises(sl.SightlineError, match="unit of relu3 is 16; it must lie"):
        ablate(scan, "relu3", model=model, units=[16])
    with pytest.raises(sl.SightlineError, match="images is 1"):
        ablate(scan, "relu3", model=model, images=1)
