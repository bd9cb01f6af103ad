"""The page of an image, against the scan."""

import numpy as np
import pytest
from web_scan import MARKUP_CLASS, MARKUP_FILE, MARKUP_LABEL

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import name_image
from sightline.app.web.pages.image import (
    UNITS_PER_LAYER,
    build_image_page,
    rank_units,
    rank_units_by_place,
)
from sightline.app.web.site.rendering import render_page


def test_answers_are_those_of_the_scan(explorer: Explorer) -> None:
    answers = build_image_page(explorer, 4).data["answers"]
    labels, probabilities = explorer.scan.top5
    assert [answer["index"] for answer in answers] == labels[4].tolist()
    assert answers[0]["share"] == pytest.approx(100 * float(probabilities[4, 0]), abs=0.06)
    assert explorer.model is not None
    image = explorer.scan.image(4)
    expected = explorer.model.probabilities(image)[0].max()
    assert answers[0]["share"] == pytest.approx(100 * float(expected), abs=0.2)


def test_units_stand_out_for_what_they_do_otherwise(explorer: Explorer) -> None:
    responses = explorer.scan.responses("conv3").astype(float)
    medians = np.median(responses, axis=0)
    spans = responses.max(0) - medians
    shares = np.where((responses > 0).any(0) & (spans > 0), (responses[4] - medians) / spans, 0)
    ranked = [unit for unit, _ in rank_units(explorer, "conv3", 4)]
    assert len(ranked) == min(UNITS_PER_LAYER, int((shares > 0).sum()))
    expected = np.argsort(-shares, kind="stable")[: len(ranked)].tolist()
    assert shares[ranked].tolist() == pytest.approx(shares[expected].tolist(), abs=1e-3)


def test_without_responses_they_are_those_of_its_places(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(explorer.scan), "has_responses", False)
    ids = explorer.scan.top("conv2").ids
    ranked = rank_units_by_place(explorer.scan, "conv2", 4)
    places = [ids[:, unit].tolist().index(4) for unit, _ in ranked]
    assert places == sorted(places)
    assert ranked[0][1] == f"its number {places[0] + 1}"
    html = render_page(explorer, build_image_page(explorer, 4), "images/4.html")
    assert "without the responses to all images" in html


def test_names_are_no_markup(explorer: Explorer) -> None:
    names = [name_image(explorer.scan, id) for id in range(explorer.scan.images)]
    id = names.index(MARKUP_FILE)
    html = render_page(explorer, build_image_page(explorer, id), f"images/{id}.html")
    assert "&lt;script&gt;" in html
    for markup in (MARKUP_FILE, MARKUP_CLASS, MARKUP_LABEL):
        assert markup not in html


def test_neighbours_end_at_the_first_and_last(explorer: Explorer) -> None:
    assert build_image_page(explorer, 0).data["previous"] == ""
    assert build_image_page(explorer, 13).data["next"] == ""
    assert build_image_page(explorer, 3).data["next"] == explorer.link("image", id=4)


def test_without_the_network(explorer: Explorer) -> None:
    bare = Explorer(explorer.scan, None, pictures=explorer.pictures, model_note="it is gone")
    page = build_image_page(bare, 2)
    assert page.data["settings"]["attributions"] == []
    assert page.data["settings"]["places"] is None
    assert "it is gone" in render_page(bare, page, "images/2.html")
