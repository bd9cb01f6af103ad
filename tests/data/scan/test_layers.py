"""Which layers a scan follows by itself, and by name."""

import sightline as sl
from sightline.data.scan.layers import (
    find_last_hidden_layer,
    list_default_layers,
    measure_unit_grids,
    resolve_scan_layer,
    resolve_scan_layers,
)


def test_default_layers_are_the_convolutions(wide: sl.Model, tiny: sl.Model) -> None:
    assert list_default_layers(wide) == ["conv1", "conv2"]
    assert list_default_layers(tiny) == ["conv1", "conv2", "conv3"]


def test_last_hidden_layer_is_not_the_logits(wide: sl.Model) -> None:
    assert find_last_hidden_layer(wide) == "flatten"


def test_names_aliases_and_patterns_are_layers_once(wide: sl.Model) -> None:
    assert resolve_scan_layer(wide, "last_conv") == "relu2"
    assert resolve_scan_layer(wide, "penultimate") == "fc:in"
    assert resolve_scan_layers(wide, ["conv2", "conv*"], "fc:in") == ["conv2", "conv1"]
    # The name stands for the layer that was found for it.
    assert resolve_scan_layers(wide, ["penultimate", "conv2"], "conv2") == ["conv2"]


def test_grids_are_units_rows_and_columns(wide: sl.Model) -> None:
    assert measure_unit_grids(wide, ["conv1", "conv2", "fc:in", "logits"], (32, 32)) == {
        "conv1": (6, 16, 32),
        "conv2": (10, 8, 10),
        "fc:in": (10, 1, 1),
        "logits": (5, 1, 1),
    }
