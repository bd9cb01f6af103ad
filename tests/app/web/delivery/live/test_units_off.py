"""Units that are switched off give zero, and only they, and only for the while."""

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.app.web.delivery.live import units_off
from sightline.app.web.delivery.live.units_off import AblatedModels, resolve_units_off
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError


def test_units_give_zero_while_they_are_off(web_model: sl.Model) -> None:
    image = smooth(2, side=32, seed=9)
    before = web_model.features(image, ["conv2", "logits"])
    expected = before["conv2"].clone()
    expected[:, [3, 7]] = 0
    model = AblatedModels(web_model).get({"conv2": [3, 7]})
    changed = model.features(image, ["conv2", "logits"])
    torch.testing.assert_close(changed["conv2"], expected)
    # The rest of the network by hand.
    network = web_model.network
    value = torch.relu(expected)
    for name in ("pool2", "conv3", "relu3", "gap", "flatten", "fc"):
        value = network.get_submodule(name)(value)
    torch.testing.assert_close(changed["logits"], value)
    after = web_model.features(image, ["conv2", "logits"])
    assert torch.equal(before["logits"], after["logits"])
    assert not torch.allclose(before["logits"], changed["logits"])


def test_several_layers_at_once(web_model: sl.Model) -> None:
    image = smooth(side=32)
    model = AblatedModels(web_model).get({"conv1": [0], "conv3": [5, 2]})
    features = model.features(image, ["conv1", "conv3"])
    assert not features["conv1"][:, 0].any()
    assert not features["conv3"][:, [2, 5]].any()
    assert features["conv3"][:, 3].any()


def test_the_last_networks_are_kept(web_model: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units_off, "MAX_ABLATED_MODELS", 2)
    models = AblatedModels(web_model)
    assert models.get({}) is web_model
    first = models.get({"conv1": [0]})
    second = models.get({"conv1": [1]})
    assert models.get({"conv1": [0]}) is first
    models.get({"conv1": [2]})
    assert models.get({"conv1": [0]}) is first
    assert models.get({"conv1": [1]}) is not second


def test_units_are_checked(web_scan: Scan) -> None:
    assert resolve_units_off(web_scan, {"conv2": [7, 3, 3], "conv1": []}) == {"conv2": [3, 7]}
    with pytest.raises(SightlineError, match="between 0 and 11"):
        resolve_units_off(web_scan, {"conv2": [12]})
    with pytest.raises(SightlineError, match="did you mean conv2"):
        resolve_units_off(web_scan, {"conv22": [1]})
