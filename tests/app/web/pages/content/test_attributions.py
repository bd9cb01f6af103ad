"""Maps as bytes, and units at positions, against direct computation."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.attributions import (
    MATRIX_METHODS,
    add_attribution_scripts,
    add_place_script,
    encode_map,
    format_score,
    judge_attribution,
    measure_places,
)


def decode(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def read_content(explorer: Explorer, name: str) -> Any:
    text = explorer.read_script(name)
    assert text is not None
    return json.loads(text[text.index(",") + 1 :].removesuffix(");\n"))


def test_signed_maps_have_zero_in_the_middle() -> None:
    values = torch.tensor([[0.0, 2.0, -1.0], [-2.0, 1.0, 0.5]])
    content = encode_map(values)
    assert (content["rows"], content["columns"], content["signed"]) == (2, 3, True)
    assert content["limit"] == 2
    assert decode(content["bytes"], np.uint8).tolist() == [128, 255, 64, 1, 192, 160]


def test_other_maps_begin_at_zero() -> None:
    content = encode_map(torch.tensor([[0.0, 2.0, 1.0]]))
    assert not content["signed"]
    assert decode(content["bytes"], np.uint8).tolist() == [0, 255, 128]
    assert decode(encode_map(torch.zeros(2, 2))["bytes"], np.uint8).tolist() == [0] * 4


def test_large_maps_are_averaged() -> None:
    content = encode_map(torch.arange(16.0).view(2, 8), max_side=4)
    assert (content["rows"], content["columns"]) == (1, 4)
    assert decode(content["bytes"], np.uint8).tolist() == [109, 158, 206, 255]


def test_scores_have_no_negative_zero() -> None:
    assert [format_score(value) for value in (-0.001, -0.25, 0.5)] == ["0.00", "−0.25", "0.50"]


@pytest.mark.parametrize(
    ("deletion", "insertion", "level"),
    [(0.2, 0.6, "strong"), (0.5, 0.9, "weak"), (0.5, 0.3, "failed")],
)
def test_judgement(deletion: float, insertion: float, level: str) -> None:
    numbers = {
        "deletion_auc": deletion,
        "deletion_auc_chance": 0.4,
        "insertion_auc": insertion,
        "insertion_auc_chance": 0.5,
    }
    assert judge_attribution(numbers)[0] == level


def test_units_at_a_position_are_the_strongest_for_their_peak(explorer: Explorer) -> None:
    assert explorer.model is not None
    layers = measure_places(explorer, explorer.model, 4)["layers"]
    assert [layer["name"] for layer in layers] == ["conv1", "conv2", "conv3"]
    second = layers[1]
    features = explorer.model.features(explorer.scan.image(4), "conv2")["conv2"][0]
    peaks = explorer.scan.top("conv2").values[0]
    shares = torch.where(peaks[:, None, None] > 0, features / peaks[:, None, None], -torch.inf)
    units = decode(second["units"], np.uint16).reshape(second["rowCount"], second["columnCount"], 3)
    strengths = decode(second["strengths"], np.uint8).reshape(units.shape)
    assert (second["rowCount"], second["columnCount"]) == (16, 16)
    for row, column in ((0, 0), (3, 11), (15, 2)):
        strongest = shares[:, row, column].topk(3)
        assert units[row, column].tolist() == strongest.indices.tolist()
        expected = strongest.values.clamp(0, 1) * 255
        assert strengths[row, column] == pytest.approx(expected.numpy(), abs=1)


def test_the_strongest_position_of_the_strongest_image_is_its_peak(explorer: Explorer) -> None:
    assert explorer.model is not None
    top = explorer.scan.top("conv3")
    assert top.positions is not None
    unit = int(top.values[0].argmax())
    id = int(top.ids[0, unit])
    row, column = top.positions[0, unit].tolist()
    layer = measure_places(explorer, explorer.model, id)["layers"][2]
    shape = (layer["rowCount"], layer["columnCount"], 3)
    units = decode(layer["units"], np.uint16).reshape(shape)[row, column].tolist()
    strengths = decode(layer["strengths"], np.uint8).reshape(shape)[row, column].tolist()
    assert (unit, 255) in zip(units, strengths, strict=True)


def test_what_nobody_waits_for_is_not_computed(explorer: Explorer) -> None:
    exported = Explorer(explorer.scan, explorer.model, pictures=explorer.pictures)
    script = add_place_script(exported, 1)
    assert script is not None
    assert read_content(exported, script["name"]) == {"missing": True}
    for item in add_attribution_scripts(exported, 1, 2):
        assert read_content(exported, item["map"]) == {"missing": True}
        assert read_content(exported, item["test"]) == {"missing": True}


def test_a_served_attribution_is_the_methods(explorer: Explorer) -> None:
    scripts = dict(zip(MATRIX_METHODS, add_attribution_scripts(explorer, 1, 2), strict=True))
    content = read_content(explorer, scripts["saliency"]["map"])
    assert explorer.model is not None
    saliency = sl.saliency(explorer.model, explorer.scan.image(1), label=2)
    expected = saliency.tensors["attribution"][0].abs()
    values = decode(content["map"]["bytes"], np.uint8).reshape(32, 32) / 255
    inside = (expected < content["map"]["limit"]).numpy()
    shares = (expected / content["map"]["limit"]).numpy()
    assert np.abs(values - shares)[inside].max() < 0.01
    test = read_content(explorer, scripts["saliency"]["test"])
    assert test["level"] in ("strong", "weak", "failed")
    assert len(test["rows"]) == 4


def test_every_column_of_the_matrix_is_another_attribution(explorer: Explorer) -> None:
    scripts = add_attribution_scripts(explorer, 1, 2)
    titles = [f"{item['title']} {item['kind']}" for item in scripts]
    assert titles[1].split() == ["Guided", "backpropagation"]
    assert "layercam" in titles[3]
    maps = [read_content(explorer, item["map"])["map"]["bytes"] for item in scripts]
    assert len(set(maps)) == len(MATRIX_METHODS)
