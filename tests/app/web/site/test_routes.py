"""The table of pages: complete, in order, and only what exists."""

import pytest

from sightline.app.web.explorer.addresses import ROUTE_PATTERNS
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.site import routes
from sightline.app.web.site.routes import ROUTES, build_page, list_addresses


def test_every_address_is_listed_once_and_leads_to_a_page(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, routes.Parts]] = []

    def build(route: routes.Route, _explorer: Explorer, parts: routes.Parts) -> Page:
        built.append((route.name, dict(parts)))
        return Page("base.html", {}, "")

    monkeypatch.setattr(routes.Route, "build", build)
    addresses = list(list_addresses(explorer))
    assert len(set(addresses)) == len(addresses)
    assert all(build_page(explorer, address) for address in addresses)
    units = explorer.scan.description.unit_count
    layers = len(explorer.scan.layers)
    assert len(addresses) == 1 + layers + units + 5 + 14 + 2
    assert ("unit", {"layer": "conv2", "unit": 11}) in built


def test_numbers_out_of_range_have_no_page(explorer: Explorer) -> None:
    for address in ("units/conv2/12.html", "classes/5.html", "images/14.html", "nothing.html"):
        assert build_page(explorer, address) is None


def test_the_table_is_that_of_the_patterns() -> None:
    assert {route.name for route in ROUTES} <= set(ROUTE_PATTERNS)


def test_every_builder_is_there() -> None:
    from importlib import import_module

    for route in ROUTES:
        module, function = route.builder.split(":")
        assert callable(getattr(import_module(f"{routes.PAGES}.{module}"), function))
