"""The page of the network, against the scan."""

import json

import pytest

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import read_unit_table
from sightline.app.web.pages.network import (
    MAX_CELLS,
    add_search_index,
    build_network_page,
    choose_cell_count,
    pick_units,
)
from sightline.app.web.site.rendering import render_page
from sightline.data.store.reader import Scan


def test_each_layer_has_a_row(explorer: Explorer) -> None:
    rows = build_network_page(explorer).data["rows"]
    assert [row["name"] for row in rows] == ["conv1", "conv2", "conv3"]
    assert rows[1]["shape"] == "12 units · map 16×16"
    assert rows[1]["address"] == explorer.link("layer", layer="conv2")


def test_receptive_fields_are_in_true_scale(explorer: Explorer) -> None:
    row = build_network_page(explorer).data["rows"][1]
    assert explorer.model is not None
    size = sl.receptive_field(explorer.model, "conv2", 32, 32).size[0]
    assert row["field"]["text"] == f"{size}×{size} px"
    assert row["field"]["width"] == pytest.approx(40 * size / 32, abs=0.1)
    assert row["field"]["left"] == pytest.approx((40 - 40 * size / 32) / 2, abs=0.1)


def test_selective_units_stand_for_a_layer(explorer: Explorer) -> None:
    table = read_unit_table(explorer, "conv2")
    assert table.facts is not None
    units = pick_units(table, 3)
    selectivity = table.facts.selectivity
    busy = [
        unit
        for unit in range(12)
        if not table.facts.is_dead[unit] and table.facts.duplicate_of[unit] < 0
    ]
    assert units == sorted(busy, key=lambda unit: -selectivity[unit])[:3]


def test_without_facts_units_are_spread(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(explorer.scan), "has_responses", False)
    assert pick_units(read_unit_table(explorer, "conv2"), 3) == [0, 6, 11]


@pytest.mark.parametrize(("layers", "cells"), [(1, 8), (35, 8), (53, 5), (300, 3)])
def test_few_cells_for_many_layers(layers: int, cells: int) -> None:
    assert choose_cell_count(layers) == cells
    assert layers * cells <= max(MAX_CELLS, 3 * layers)


def test_totals_are_sums(explorer: Explorer) -> None:
    totals = dict(build_network_page(explorer).data["totals"])
    assert totals["Units"] == "36"
    assert totals["Layers"] == "3"
    assert totals["Images"] == "14"
    tables = [read_unit_table(explorer, layer) for layer in explorer.scan.layers]
    assert totals["Dead units"] == str(sum(table.dead_count or 0 for table in tables))


def test_the_index_has_layers_and_classes(explorer: Explorer) -> None:
    assert add_search_index(explorer) == "data/index.js"
    text = explorer.read_script("index")
    assert text is not None
    content = json.loads(text.removeprefix('sightline.receive("index",').removesuffix(");\n"))
    assert content["classes"] == list(explorer.scan.model_labels)
    layer = content["layers"][1]
    assert layer["name"] == "conv2"
    assert layer["count"] == 12
    assert f"{layer['folder']}7.html" == explorer.link("unit", layer="conv2", unit=7)


def test_a_scan_without_layers_says_so(web_model: sl.Model, web_scan: Scan) -> None:
    scan = Scan.open(web_scan.path)
    scan.layers = []
    explorer = Explorer(scan, web_model)
    html = render_page(explorer, build_network_page(explorer), "index.html")
    assert "follows the units of no layer" in html
