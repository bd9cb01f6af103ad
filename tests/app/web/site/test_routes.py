"""The table of pages: complete, in order, and only what exists."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from web_scan import make_wide_scan

from sightline.app.web.delivery.live.network import LiveNetwork
from sightline.app.web.delivery.live.schema import LiveRequest
from sightline.app.web.explorer.addresses import ROUTE_PATTERNS
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pictures.cache import PictureCache
from sightline.app.web.site import routes
from sightline.app.web.site.rendering import render_page
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


def test_every_page_of_a_scan_that_is_not_square(tmp_path: Path) -> None:
    scan, model = make_wide_scan(tmp_path)
    pictures = PictureCache(tmp_path / "pictures")
    explorer = Explorer(scan, model, pictures=pictures, is_served=True, command="sightline")
    pages: dict[str, str] = {}
    for address in list_addresses(explorer):
        page = build_page(explorer, address)
        assert page is not None
        pages[address] = render_page(explorer, page, address)
    assert "24×40 pixels" in pages["index.html"]
    assert "the network sees 24×40" in pages["images/3.html"]
    assert 'width="40" height="24"' in pages["live.html"]

    sizes: set[tuple[int, int]] = set()
    for name in sorted(set(re.findall(r"[0-9a-f]{16,}\.webp", "".join(pages.values())))):
        content = pictures.read(name)
        assert content
        sizes.add(Image.open(io.BytesIO(content)).size)
    assert (480, 288) in sizes  # the image on its page


def test_a_live_answer_of_a_network_that_is_not_square(tmp_path: Path) -> None:
    scan, model = make_wide_scan(tmp_path)
    live = LiveNetwork(Explorer(scan, model, is_served=True), model, 10_000)
    request = LiveRequest(image="s-2", cover=[(0, 30, 24, 40)], units=4, attribution="saliency")
    answer = live.answer(request)
    assert answer.size == (24, 40)
    assert answer.attribution
    assert (answer.attribution.height, answer.attribution.width) == (24, 40)
    covered = scan.image(2)
    covered[..., 30:] = 0.5
    expected = model.probabilities(covered)[0].max()
    assert answer.answer[0].probability == pytest.approx(float(expected), abs=1e-4)
