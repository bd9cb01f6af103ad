"""The effect of leaving a unit out, against a network whose weights are set to zero by hand."""

import copy
import json

import pytest
import torch
from helpers import small_network
from web_scan import WEB_LABELS

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.effects import (
    add_effect_script,
    compare_scores,
    draw_other_units,
    measure_effect,
)
from sightline.app.web.pages.content.sheets import list_strongest_patches


def load_without(layer: str, unit: int) -> sl.Model:
    """The network of the scan with one filter and its bias set to zero."""
    network = copy.deepcopy(small_network())
    convolution = network.get_submodule(layer)
    with torch.no_grad():
        convolution.weight[unit] = 0  # type: ignore[index]
        convolution.bias[unit] = 0  # type: ignore[index]
    statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return sl.load(network, labels=WEB_LABELS, size=32, **statistics)


def test_the_effect_is_that_of_weights_of_zero(explorer: Explorer) -> None:
    assert explorer.model is not None
    effect = measure_effect(explorer, explorer.model, "conv3", 6)
    ids = [patch.image_id for patch in list_strongest_patches(explorer, "conv3", 6, 16)]
    images = torch.cat([explorer.scan.image(id) for id in ids])
    before = explorer.model.logits(images)
    after = load_without("conv3", 6).logits(images)
    change = (after - before).mean(0)
    for item in effect["classes"]:
        index = WEB_LABELS.index(item["name"])
        assert item["strongest"] == pytest.approx(float(change[index]), abs=1e-3)
        assert item["address"] == explorer.link("class", index=index)
    assert effect["classes"][0]["name"] == WEB_LABELS[int(change.argmin())]
    changed = int((before.argmax(1) != after.argmax(1)).sum())
    assert effect["strongest"]["images"] == len(ids)
    assert effect["strongest"]["changed"] == changed
    assert effect["strongest"]["size"] == pytest.approx(
        float((after - before).abs().mean()), abs=1e-4
    )

    # Random units of the layer are left out of the same images.
    others = draw_other_units(explorer, "conv3", 6)
    assert len(set(others)) == 4
    assert 6 not in others
    changes = [load_without("conv3", other).logits(images) for other in others]
    assert effect["random"]["units"] == 4
    assert effect["random"]["changed"] == pytest.approx(
        sum(int((change.argmax(1) != before.argmax(1)).sum()) for change in changes) / 4
    )
    assert effect["random"]["size"] == pytest.approx(
        sum(float((change - before).abs().mean()) for change in changes) / 4, abs=1e-4
    )


def test_a_unit_is_not_beside_itself(explorer: Explorer) -> None:
    for unit in range(12):
        others = draw_other_units(explorer, "conv2", unit)
        assert unit not in others
        assert len(set(others)) == 4
        assert others == draw_other_units(explorer, "conv2", unit)


def test_the_same_network_has_no_effect(explorer: Explorer) -> None:
    assert explorer.model is not None
    comparison = compare_scores(explorer, explorer.model, explorer.model, [3, 8])
    assert comparison["changed"] == 0
    assert not comparison["mean"].any()


def test_it_is_measured_when_a_server_is_asked(explorer: Explorer) -> None:
    script = add_effect_script(explorer, "conv2", 3)
    assert script is not None
    assert script["name"] == "effect-of/conv2/3"
    exported = Explorer(explorer.scan, explorer.model, pictures=explorer.pictures)
    other = add_effect_script(exported, "conv2", 3)
    assert other == script

    def read(reader: Explorer) -> dict[str, object]:
        text = reader.read_script("effect-of/conv2/3")
        assert text is not None
        return json.loads(text[text.index(",") + 1 :].removesuffix(");\n"))

    assert read(exported) == {"missing": True}
    measured = read(explorer)
    assert measured["strongest"]
    assert read(exported) == measured  # it is kept


def test_there_is_none_without_the_network(explorer: Explorer) -> None:
    bare = Explorer(explorer.scan, None, pictures=explorer.pictures)
    assert add_effect_script(bare, "conv2", 3) is None
