"""The page of a unit, against the scan and the network."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from web_scan import MARKUP_CLASS, MARKUP_FILE, MARKUP_LABEL

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages import unit as unit_file
from sightline.app.web.pages.content.facts import UnitTable, read_unit_table
from sightline.app.web.pages.unit import (
    build_unit_page,
    describe_name,
    pick_strongest_weights,
)
from sightline.app.web.site.rendering import render_page
from sightline.data.store.reader import Scan


def render(explorer: Explorer, layer: str = "conv3", unit: int = 6) -> str:
    address = explorer.link("unit", layer=layer, unit=unit)
    return render_page(explorer, build_unit_page(explorer, layer, unit), address)


def test_the_distribution_is_that_of_all_images(explorer: Explorer) -> None:
    data = build_unit_page(explorer, "conv3", 6).data["range"]["data"]
    responses = explorer.scan.responses("conv3")[:, 6].astype(float)
    counts, edges = np.histogram(responses, bins=60)
    assert data["counts"] == counts.tolist()
    assert data["low"] == pytest.approx(edges[0], rel=1e-4)
    assert data["high"] == pytest.approx(edges[-1], rel=1e-4)


def test_the_class_that_drives_it_is_a_part_of_each_bar(explorer: Explorer) -> None:
    page = build_unit_page(explorer, "conv3", 6)
    data = page.data["range"]["data"]
    scan = explorer.scan
    responses = scan.responses("conv3")[:, 6].astype(float)
    assert scan.classes is not None
    means = [responses[scan.classes.numpy() == index].mean() for index in range(2)]
    best = int(np.argmax(means))
    assert data["className"] == scan.class_names[best]
    assert sum(data["classCounts"]) == int((scan.classes == best).sum())
    assert all(own <= every for own, every in zip(data["classCounts"], data["counts"], strict=True))
    rows = page.data["classes"]
    assert [row["name"] for row in rows] == [scan.class_names[best], scan.class_names[1 - best]]
    assert float(rows[0]["value"].replace("−", "-")) == pytest.approx(means[best], rel=1e-2)


def test_cells_of_the_range_fall_from_the_strongest(explorer: Explorer) -> None:
    page = build_unit_page(explorer, "conv3", 6)
    values = [cell[0] for cell in page.data["range"]["data"]["cells"]]
    assert values == sorted(values, reverse=True)
    assert len(values) == explorer.scan.images
    strongest = [cell["number"] for cell in page.data["strongest"]["patches"]["cells"]]
    assert strongest == explorer.scan.top("conv3").values[:9, 6].tolist()


def test_nearest_units_are_the_most_correlated(explorer: Explorer) -> None:
    cards = build_unit_page(explorer, "conv3", 6).data["nearest"]
    responses = {
        layer: explorer.scan.responses(layer).astype(float) for layer in explorer.scan.layers
    }
    own = responses["conv3"][:, 6]
    first = cards[0]
    best = max(
        np.corrcoef(own, responses[layer][:, unit])[0, 1]
        for layer in responses
        for unit in range(responses[layer].shape[1])
        if (layer, unit) != ("conv3", 6) and responses[layer][:, unit].std() > 0
    )
    assert float(first["note"].removeprefix("r = ")) == pytest.approx(best, abs=6e-3)


def test_inputs_are_the_strongest_weights(explorer: Explorer) -> None:
    inputs = build_unit_page(explorer, "conv3", 6).data["inputs"]
    assert inputs["layer"] == "conv2"
    assert explorer.model is not None
    filters = explorer.model.module("conv3").weight[6].flatten(1)
    signed = filters.norm(dim=1) * filters.sum(1).sign()
    assert inputs["units"][0]["unit"] == int(signed.argmax())
    assert int(signed.argmin()) in [card["unit"] for card in inputs["units"]]


def test_cards_say_which_unit_they_show(explorer: Explorer) -> None:
    """The unit in a line of its own, which long names of layers can't push out."""
    data = build_unit_page(explorer, "conv3", 6).data
    nearest = [(card["unit"], card["name"]) for card in data["nearest"]]
    read = [(card["unit"], card["name"]) for card in data["inputs"]["units"]]
    html = render(explorer)
    lines = re.findall(
        r'<span class="name"[^>]*>([^<]*)</span>\s*<span class="soft">(.*)</span>', html
    )
    assert len(lines) == len(nearest + read)
    for (unit, name), (line, _) in zip(nearest + read, lines, strict=True):
        if not name:
            assert line == f"unit {unit}"
    assert all("conv" in rest for _, rest in lines[: len(nearest)])
    assert not any("conv" in rest for _, rest in lines[len(nearest) :])


def test_outputs_are_the_classes_that_read_it(explorer: Explorer) -> None:
    [reader] = build_unit_page(explorer, "conv3", 6).data["outputs"]
    assert reader["layer"] == "fc"
    assert explorer.model is not None
    weights = explorer.model.module("fc").weight[:, 6]
    shares = {row["name"]: row["share"] for row in reader["classes"]}
    labels = explorer.model.labels
    assert (labels[int(weights.argmax())] in shares) == bool(weights.max() > 0)
    assert (labels[int(weights.argmin())] in shares) == bool(weights.min() < 0)
    for label, share in shares.items():
        expected = 100 * float(weights[labels.index(label)] / weights.abs().max())
        assert share == pytest.approx(expected, abs=0.06)


def test_strongest_weights_of_both_signs() -> None:
    weights = np.array([0.0, 3.0, -1.0, 2.0, -5.0, 1.0, 0.5, 0.1, 0.2])
    expected = [(1, 3.0), (3, 2.0), (5, 1.0), (6, 0.5), (4, -5.0), (2, -1.0)]
    assert pick_strongest_weights(weights) == expected


def make_table(name: dict[str, object] | None) -> UnitTable:
    """What is known of a layer of two units, the second of which may have a name."""
    shown = str(name["name"]) if name and float(str(name["auprc"])) > 0.5 else ""
    return UnitTable("conv", np.ones(2), None, ("", shown), (None, name), None, 0)


def test_a_name_comes_with_its_numbers_and_tests() -> None:
    row = {
        "name": "church",
        "auprc": 0.81,
        "auprc_chance": 0.1,
        "correlation": 0.7,
        "correlation_chance": 0.2,
        "name_images": 50,
        "passes_missing_label": True,
        "passes_extra_label": False,
    }
    name = describe_name(make_table(row), 1)
    assert name["text"] == "church"
    assert "AUPRC 0.81 (chance 0.10)" in name["score"]
    assert "50 images" in name["score"]
    assert [level for level, _, _ in name["checks"]] == ["strong", "failed"]

    weak = describe_name(make_table({**row, "auprc": 0.2}), 1)
    assert weak["text"] == ""
    assert "the closest class, church, fits badly" in weak["note"]
    assert "no class agreed with it" in describe_name(make_table(row), 0)["note"]
    assert describe_name(make_table(None), 1)["note"] == ""


def test_names_are_no_markup(explorer: Explorer) -> None:
    for layer in ("conv1", "conv3"):
        html = render(explorer, layer, 2)
        assert MARKUP_FILE not in html
        assert MARKUP_CLASS not in html
        assert MARKUP_LABEL not in html
        assert "<script>alert" not in html
        assert "<img src=x" not in html
    assert "&lt;script&gt;alert" in html


def test_the_page_has_no_inline_script_or_style(explorer: Explorer) -> None:
    html = render(explorer)
    scripts = re.findall(r"<script([^>]*)>", html)
    assert scripts
    assert all("src=" in script or 'type="application/json"' in script for script in scripts)
    assert not re.search(r"\sstyle=|\son\w+=\"", html)
    assert "http://" not in html
    assert "https://" not in html
    assert len(html) < 100_000


def test_without_the_network_it_says_what_is_missing(explorer: Explorer) -> None:
    bare = Explorer(
        explorer.scan, None, pictures=explorer.pictures, model_note="the weights have changed"
    )
    html = render(bare)
    assert "Not measured: the weights have changed" in html
    assert "No synthesis was made" in html
    assert "Its whole range" in html


def test_without_responses_it_says_so(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(explorer.scan), "has_responses", False)
    html = render(explorer)
    assert "made without responses" in html


def test_one_image(web_model: sl.Model, web_scan: Scan, tmp_path: object) -> None:
    scan = sl.scan(web_model, [web_scan.paths[3]], store=f"{tmp_path}/one.scan")
    explorer = Explorer(scan, web_model)
    html = render(explorer, "conv2", 1)
    assert "1 images" not in html.split("<footer")[0]
    assert len(build_unit_page(explorer, "conv2", 1).data["strongest"]["patches"]["cells"]) == 1


def test_a_layer_without_a_map(web_model: sl.Model, web_scan: Scan, tmp_path: object) -> None:
    folder = web_scan.description.dataset.source
    scan = sl.scan(web_model, folder, store=f"{tmp_path}/flat.scan", layers=["gap", "fc"])
    explorer = Explorer(scan, web_model)
    page = build_unit_page(explorer, "gap", 4)
    assert page.data["strongest"]["seen"] == "whole images"
    assert "whole images" in render(explorer, "gap", 4)
    assert torch.isfinite(scan.top("gap").values).all()


def test_a_dead_unit_is_called_dead(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "It is dead in this scan" not in render(explorer)
    facts = read_unit_table(explorer, "conv3").facts
    assert facts is not None
    dead_facts = replace(facts, is_dead=np.arange(16) == 6)
    dead_table = replace(read_unit_table(explorer, "conv3"), facts=dead_facts)
    monkeypatch.setattr(unit_file, "read_unit_table", lambda *_: dead_table)
    assert "It is dead in this scan" in render(explorer)
    assert "It is dead in this scan" not in render(explorer, unit=5)
