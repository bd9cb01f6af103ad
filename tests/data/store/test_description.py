"""The description of a scan: its JSON is that of layout version 1, and differences are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import sightline as sl
from sightline.data.store.description import (
    DatasetDescription,
    LayerDescription,
    NetworkDescription,
    ScanDescription,
    describe_network,
    require_same_scan,
)

# As version 1 writes it, key for key.
VERSION_1: dict[str, Any] = {
    "format": "sightline scan",
    "version": 1,
    "model": {"model": "resnet18", "options": {"mean": [0.5, 0.5, 0.5]}},
    "network": {
        "weights": "ab" * 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "side": 224,
        "short": 256,
    },
    "labels": ["tench", "goldfish"],
    "names": {"middle": "layer2", "penultimate": "fc:in"},
    "layers": {
        "conv1": {"units": 64, "shape": [112, 110]},
        "fc": {"units": 1000, "shape": [1, 1]},
        "layer2": {"units": 128, "shape": [28, 27]},
    },
    "vectors": {"fc:in": 512, "layer2": 128},
    "k": 25,
    "class_k": 5,
    "sample": 256,
    "batch": 32,
    "collection": {"kind": "Files", "source": "/photos/\udcff", "count": 1000, "sha256": "cd" * 32},
    "class_names": ["ant", "bee"],
}

DESCRIPTION = ScanDescription.from_json(VERSION_1)


def test_a_size_that_is_no_square_comes_back_from_json() -> None:
    network = replace(DESCRIPTION.network, size=(24, 40), short_side=28)
    content = replace(DESCRIPTION, network=network).to_json()
    assert content["network"]["side"] == [24, 40]
    assert ScanDescription.from_json(json.loads(json.dumps(content))).network == network
    assert "24×40 of 28 pixels" in str(network)
    for side in ([24], [24, 0], [24, 40, 3], "24", 24.5, True, None):
        with pytest.raises(ValidationError):
            ScanDescription.from_json({**content, "network": {**content["network"], "side": side}})


def test_json_is_that_of_version_1() -> None:
    assert json.dumps(DESCRIPTION.to_json()) == json.dumps(VERSION_1)
    expected = ScanDescription(
        recipe={"model": "resnet18", "options": {"mean": [0.5, 0.5, 0.5]}},
        network=NetworkDescription(
            "ab" * 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), size=(224, 224), short_side=256
        ),
        model_labels=("tench", "goldfish"),
        aliases={"middle": "layer2", "penultimate": "fc:in"},
        layers={
            "conv1": LayerDescription(64, (112, 110)),
            "fc": LayerDescription(1000, (1, 1)),
            "layer2": LayerDescription(128, (28, 27)),
        },
        vector_lengths={"fc:in": 512, "layer2": 128},
        k=25,
        class_k=5,
        sample_size=256,
        batch_size=32,
        dataset=DatasetDescription("Files", "/photos/\udcff", 1000, "cd" * 32),
        class_names=("ant", "bee"),
    )
    assert ScanDescription.from_json(VERSION_1) == expected


def test_unknown_keys_are_ignored_and_missing_ones_are_not() -> None:
    assert ScanDescription.from_json({**VERSION_1, "more": 1}) == DESCRIPTION
    for key in VERSION_1.keys() - {"format", "version"}:
        incomplete = {name: value for name, value in VERSION_1.items() if name != key}
        with pytest.raises(ValidationError, match=key):
            ScanDescription.from_json(incomplete)


def test_units_and_vectors_have_their_order() -> None:
    assert DESCRIPTION.unit_count == 1192
    assert DESCRIPTION.unit_slices == {
        "conv1": slice(0, 64),
        "fc": slice(64, 1064),
        "layer2": slice(1064, 1192),
    }
    assert DESCRIPTION.vector_columns == {"fc:in": "vector_0", "layer2": "vector_1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 9}, r"another k \(25, now 9\)"),
        ({"class_k": 4}, "another number per class"),
        ({"sample_size": 128}, "another sample"),
        ({"layers": {"conv1": LayerDescription(64, (112, 110))}}, "other layers .*, now conv1"),
        ({"vector_lengths": {"fc:in": 512}}, r"other vectors \(fc:in, layer2, now fc:in\)"),
        ({"class_names": ("ant",)}, r"other classes \(ant, bee, now ant\)"),
        (
            {"dataset": DatasetDescription("Files", "/photos", 999, "cd" * 32)},
            "another dataset, or its files have changed since .*, now 999 files of /photos",
        ),
        (
            {"network": replace(DESCRIPTION.network, short_side=224)},
            r"another preprocessing \(.* 224 of 256 pixels, now .* 224 of 224 pixels\)",
        ),
        (
            {"network": replace(DESCRIPTION.network, weights="")},
            "was made with other weights of resnet18;",
        ),
        ({"recipe": {"model": "vgg16"}}, "was made with resnet18, not vgg16;"),
    ],
)
def test_differences_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(sl.SightlineError, match=message) as caught:
        require_same_scan(Path("a.scan"), DESCRIPTION, replace(DESCRIPTION, **changes))
    assert "a.scan" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batch_size_and_order_are_no_difference() -> None:
    reversed_layers = dict(reversed(DESCRIPTION.layers.items()))
    requested = replace(DESCRIPTION, batch_size=4, layers=reversed_layers)
    require_same_scan(Path("a.scan"), DESCRIPTION, requested)


def test_network_changes_with_each_weight_and_with_preprocessing(
    wide: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(bias: float = 0.0, **options: Any) -> NetworkDescription:
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
        torch.nn.init.constant_(network[0].weight, 0.1)  # type: ignore[arg-type]
        torch.nn.init.constant_(network[0].bias, bias)  # type: ignore[arg-type]
        labels = [str(number) for number in range(4 * 30 * 30)]
        return describe_network(sl.load(network, labels=labels, size=32, **options), size=(48, 48))

    plain = describe(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
    assert plain == describe(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
    assert plain.mean == (0.5, 0.4, 0.3)
    assert plain.std == (0.25, 0.2, 0.3)
    assert plain.size == (48, 48)
    assert describe_network(wide, size=(48, 48)).short_side == 48
    monkeypatch.setattr(wide, "resize", 40)
    assert describe_network(wide, size=(48, 48)).short_side == 60  # 48 · 40 / 32
    monkeypatch.setattr(wide, "resize", 20)
    assert describe_network(wide, size=(48, 48)).short_side == 48  # the square has to fit
    assert plain.weights != describe(1e-7, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3)).weights


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_weights_are_told_apart_by_their_numbers(layout: torch.layout) -> None:
    def describe(value: float) -> str:
        weight = torch.zeros(5, 12)
        weight[3, 7] = value
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
        torch.nn.init.constant_(network[0].weight, 0.1)  # type: ignore[arg-type]
        torch.nn.init.zeros_(network[0].bias)  # type: ignore[arg-type]
        network.register_buffer("mixing", weight.to_sparse(layout=layout))
        return describe_network(sl.load(network, size=32), size=(32, 32)).weights

    assert describe(1.0) == describe(1.0) != describe(1.5)
