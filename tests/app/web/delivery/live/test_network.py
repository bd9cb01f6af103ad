"""The live answers, against the network run by hand."""

import base64

import numpy as np
import pytest
import torch

import sightline as sl
from sightline.app.web.delivery.live.network import LiveNetwork
from sightline.app.web.delivery.live.schema import LiveRequest
from sightline.app.web.explorer.explorer import Explorer
from sightline.errors import SightlineError


@pytest.fixture
def live(explorer: Explorer, web_model: sl.Model) -> LiveNetwork:
    return LiveNetwork(explorer, web_model, 1_000_000)


def test_the_answer_is_that_of_the_covered_image(live: LiveNetwork) -> None:
    image = live.explorer.scan.image(3)
    covered = image.clone()
    covered[:, :, 4:20, 8:30] = 0.5
    answer = live.answer(LiveRequest(image="s-3", cover=[(4, 8, 20, 30)]))
    for classes, shown in ((answer.answer, covered), (answer.clean, image)):
        probabilities = live.model.probabilities(shown)[0]
        assert [each.index for each in classes] == probabilities.argsort(descending=True).tolist()
        for each in classes:
            assert each.probability == pytest.approx(float(probabilities[each.index]), abs=1e-5)
            assert each.label == live.model.labels[each.index]
    assert answer.answer != answer.clean


def test_units_are_ranked_by_their_share_of_the_scans_maximum(live: LiveNetwork) -> None:
    scan = live.explorer.scan
    answer = live.answer(LiveRequest(image="s-6", units=9))
    features = live.model.features(scan.image(6), scan.layers)
    shares: dict[tuple[str, int], float] = {}
    for layer, feature in features.items():
        peaks = feature[0].flatten(1).amax(1)
        maxima = scan.top(layer).values[0]
        for unit, (peak, highest) in enumerate(zip(peaks.tolist(), maxima.tolist(), strict=True)):
            shares[layer, unit] = peak / highest if highest > 0 else 0.0
    expected = sorted(shares.values(), reverse=True)[:9]
    assert [unit.share_of_max for unit in answer.units] == pytest.approx(expected, abs=1e-4)
    for unit in answer.units:
        assert unit.share_of_max == pytest.approx(shares[unit.layer, unit.unit], abs=1e-4)
        assert unit.link == f"units/{unit.layer}/{unit.unit}.html"
    for layer, units in answer.layers.items():
        best = sorted((s for (name, _), s in shares.items() if name == layer), reverse=True)
        assert [unit.share_of_max for unit in units] == pytest.approx(best[:4], abs=1e-4)


def test_a_unit_that_never_fired_has_no_share(live: LiveNetwork) -> None:
    maxima = {layer: values.clone() for layer, values in live.unit_maxima.items()}
    strongest = live.answer(LiveRequest(image="s-2", layer="conv2", units=1)).units[0]
    maxima["conv2"][strongest.unit] = -0.5
    live.unit_maxima = maxima
    units = live.answer(LiveRequest(image="s-2", layer="conv2", units=12)).units
    (share,) = [unit.share_of_max for unit in units if unit.unit == strongest.unit]
    assert share == 0


def test_maps_are_those_of_the_layer(live: LiveNetwork) -> None:
    answer = live.answer(LiveRequest(image="s-2", layer="conv2", units=5))
    maps = live.model.features(live.explorer.scan.image(2), "conv2")["conv2"][0]
    assert [each.unit for each in answer.maps] == [unit.unit for unit in answer.units]
    for each in answer.maps:
        levels = np.frombuffer(base64.b64decode(each.bytes), np.uint8)
        values = each.low + levels.reshape(each.rows, each.columns) / 255 * (each.high - each.low)
        expected = maps[each.unit].numpy()
        assert expected.shape == values.shape
        np.testing.assert_allclose(values, expected, atol=(each.high - each.low) / 255)


def test_units_that_are_off(live: LiveNetwork) -> None:
    first = live.answer(LiveRequest(image="s-2", layer="conv2", units=3))
    units = [unit.unit for unit in first.units]
    second = live.answer(LiveRequest(image="s-2", layer="conv2", units=3, off={"conv2": units}))
    assert not set(units) & {unit.unit for unit in second.units}
    assert second.clean == first.answer
    assert second.answer != first.answer
    assert live.answer(LiveRequest(image="s-2", layer="conv2", units=3)).answer == first.answer


@pytest.mark.parametrize("name", ["saliency", "gradient_input", "guided", "gradcam"])
def test_attributions_are_those_of_the_methods(live: LiveNetwork, name: str) -> None:
    answer = live.answer(LiveRequest.model_validate({"image": "s-5", "attribution": name}))
    attribution = answer.attribution
    assert attribution is not None
    assert attribution.label == answer.answer[0].label
    image = live.explorer.scan.image(5)
    method = {"gradient_input": sl.saliency}.get(name) or getattr(sl, name)
    parameters = {
        "gradient_input": {"kind": "gradient_input"},
        "guided": {"layer": "logits", "unit": answer.answer[0].index},
    }.get(name, {})
    expected = torch.as_tensor(method(live.model, image, **parameters).values["attribution"])[0]
    levels = np.frombuffer(base64.b64decode(attribution.bytes), np.uint8).astype(float)
    scaled = (levels - 128) / 127 if attribution.signed else levels / 255
    values = scaled.reshape(attribution.height, attribution.width) * attribution.limit
    clipped = expected.clamp(-attribution.limit, attribution.limit)
    np.testing.assert_allclose(values, clipped.numpy(), atol=attribution.limit / 100)


def test_an_image_that_was_sent(live: LiveNetwork) -> None:
    from pathlib import Path

    content = Path(live.explorer.scan.paths[7]).read_bytes()
    name = live.uploads.add(content).name
    assert (
        live.answer(LiveRequest(image=name)).answer == live.answer(LiveRequest(image="s-7")).answer
    )


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"image": "s-14"}, "id is 14"),
        ({"image": "u-" + "x" * 20}, "send it again"),
        ({"image": "s-1", "layer": "conv9"}, "no layer"),
        ({"image": "s-1", "off": {"conv1": [8]}}, "between 0 and 7"),
        ({"image": "s-1", "brush": "AAAA"}, "brush"),
    ],
)
def test_bad_requests_are_one_line(
    live: LiveNetwork, request_fields: dict[str, object], message: str
) -> None:
    with pytest.raises(SightlineError, match=message):
        live.answer(LiveRequest.model_validate(request_fields))


def test_what_can_be_asked_for(live: LiveNetwork) -> None:
    state = live.describe()
    assert {layer.name: layer.units for layer in state.layers}["conv2"] == 12
    assert state.size == (32, 32)
    assert state.images == 14
