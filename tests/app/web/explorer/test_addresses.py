"""Addresses: one for each page, and nothing in them that a URL or a file system minds."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.app.web.explorer.addresses import (
    ROUTE_PATTERNS,
    LayerSpellings,
    find_root_prefix,
    make_address,
    parse_address,
)

ALLOWED = re.compile(r"[A-Za-z0-9._~-]+")
layer_names = st.lists(st.text(min_size=0, max_size=120), unique=True, max_size=8)


@given(layer_names)
def test_every_layer_has_a_spelling_of_its_own(layers: list[str]) -> None:
    spellings = LayerSpellings(layers)
    folded = [spelling.casefold() for spelling in spellings.spelling_by_layer.values()]
    assert len(set(folded)) == len(layers)
    for layer, spelling in spellings.spelling_by_layer.items():
        assert ALLOWED.fullmatch(spelling)
        assert not spelling.startswith(".")
        assert not spelling.endswith(".")
        assert spellings.layer_by_spelling[spelling] == layer


@given(layer_names.filter(bool), st.integers(0, 10**9))
def test_an_address_leads_back_to_its_page(layers: list[str], number: int) -> None:
    spellings = LayerSpellings(layers)
    for route, pattern in ROUTE_PATTERNS.items():
        names = re.findall(r"{(\w+)}", pattern)
        parts = {name: layers[-1] if name == "layer" else number for name in names}
        address = make_address(route, parts, spellings)
        assert parse_address(address, spellings) == (route, parts)


def test_layers_that_look_alike() -> None:
    layers = ["a/relu", "a~relu", "A/RELU", "con", "..", "", "x" * 300, "x" * 301]
    spellings = LayerSpellings(layers).spelling_by_layer
    assert spellings["a/relu"] == "a~relu"
    assert spellings["con"] == "~con~"
    assert len({spelling.casefold() for spelling in spellings.values()}) == len(layers)


@pytest.mark.parametrize(
    "address",
    [
        "units/conv1/07.html",
        "units/conv1/+7.html",
        "units/conv1/-1.html",
        "units/conv1/٣.html",
        "units/conv1/7",
        "units/conv1/7.html/",
        "/units/conv1/7.html",
        "units//7.html",
        "units/conv9/7.html",
        "units/../7.html",
        "units/conv1/7.html\x00",
        "units/conv1/9999999999999999.html",
        "layers/.html",
        "index.htm",
        "INDEX.html",
        "",
    ],
)
def test_other_spellings_lead_nowhere(address: str) -> None:
    assert parse_address(address, LayerSpellings(["conv1"])) is None


@pytest.mark.parametrize(
    ("address", "prefix"),
    [("index.html", ""), ("layers/a.html", "../"), ("units/a/7.html", "../../")],
)
def test_the_way_back_to_the_root(address: str, prefix: str) -> None:
    assert find_root_prefix(address) == prefix
