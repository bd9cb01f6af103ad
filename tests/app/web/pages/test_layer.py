"""The page of a layer, against the scan."""

import json
from typing import Any

import numpy as np
import pytest

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.layer import (
    build_layer_page,
    compute_unit_map,
    quantize_quantiles,
    read_color_filters,
)
from sightline.app.web.site.rendering import render_page
from sightline.data.store.reader import Scan


def read_content(explorer: Explorer, address: str) -> Any:
    name = address.removeprefix("data/").removesuffix(".js")
    text = explorer.read_script(name)
    assert text is not None
    return json.loads(text[text.index(",") + 1 :].removesuffix(");\n"))


def test_units_have_their_numbers(explorer: Explorer) -> None:
    page = build_layer_page(explorer, "conv2")
    content = read_content(explorer, page.data["script"])
    top = explorer.scan.top("conv2")
    assert content["count"] == 12
    assert content["peak"] == pytest.approx(top.values[0].tolist(), rel=5e-3)
    responses = explorer.scan.responses("conv2").astype(float)
    assert content["frequency"] == pytest.approx((responses > 0).mean(0).tolist(), rel=5e-3)
    middle = np.quantile(responses[:, 4], 0.5)
    least, largest = responses[:, 4].min(), responses[:, 4].max()
    assert content["quantiles"][4][5] == pytest.approx(
        99 * (middle - least) / (largest - least), abs=1
    )
    assert f"{content['folder']}4.html" == explorer.link("unit", layer="conv2", unit=4)


def test_quantiles_of_a_constant_unit_are_zero() -> None:
    quantiles = np.array([[0.0, 1.0, 4.0], [2.0, 2.0, 2.0]])
    assert quantize_quantiles(quantiles).tolist() == [[0, 25, 99], [0, 0, 0]]


def test_only_the_first_layer_shows_filters(explorer: Explorer) -> None:
    kinds = [kind for kind, _ in build_layer_page(explorer, "conv1").data["pictures"]]
    assert kinds == ["patch", "filter"]
    assert [kind for kind, _ in build_layer_page(explorer, "conv2").data["pictures"]] == ["patch"]
    assert explorer.model is not None
    weight = read_color_filters(explorer.model, "conv1")
    assert weight is not None
    assert weight.shape == (8, 3, 3, 3)
    assert read_color_filters(explorer.model, "conv2") is None
    assert read_color_filters(None, "conv1") is None


def test_neighbouring_layers(explorer: Explorer) -> None:
    first = build_layer_page(explorer, "conv1").data
    middle = build_layer_page(explorer, "conv2").data
    assert first["previous"] is None
    assert middle["previous"]["name"] == "conv1"
    assert middle["next"]["address"] == explorer.link("layer", layer="conv3")


def test_units_that_go_together_lie_together(
    web_scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    causes = generator.normal(size=(14, 2))
    # Units 0 to 5 follow one cause, 6 to 11 the other, in scales that differ a lot.
    responses = np.repeat(causes, 6, axis=1) + 0.05 * generator.normal(size=(14, 12))
    responses = responses * np.logspace(-2, 2, 12) + 3
    monkeypatch.setattr(type(web_scan), "responses", lambda *_, **__: responses)
    content = compute_unit_map(web_scan, "conv2")
    places = np.stack([content["x"], content["y"]], 1)
    assert places.min() >= 0
    assert places.max() <= 1
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    for unit in range(12):
        own = slice(0, 6) if unit < 6 else slice(6, 12)
        others = slice(6, 12) if unit < 6 else slice(0, 6)
        assert distances[unit, own].max() < distances[unit, others].min()


def test_without_responses_the_page_says_so(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(explorer.scan), "has_responses", False)
    page = build_layer_page(explorer, "conv2")
    html = render_page(explorer, page, "layers/conv2.html")
    assert "made without responses" in html
    assert page.data["settings"]["mapScript"] == ""
    assert [key for key, _ in page.data["sorts"] if key in ("selectivity", "frequency")] == []
