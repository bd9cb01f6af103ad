"""The table of pages: which function builds the page of each route, and which pages there are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sightline.app.web.explorer.addresses import parse_address
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page

PAGES = "sightline.app.web.pages"

Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """A kind of page.

    Attributes:
        name: A key of `ROUTE_PATTERNS`.
        builder: «module:function» of `app/web/pages`; it takes the explorer and the parts of the
            address, and returns a `Page`.
        list_parts: The parts of every page of this kind, in order.
    """

    name: str
    builder: str
    list_parts: Callable[[Explorer], Iterator[Parts]]

    def build(self, explorer: Explorer, parts: Parts) -> Page:
        """Builds the page; raises SightlineError for parts that the scan has not."""
        module, function = self.builder.split(":")
        build_page = getattr(import_module(f"{PAGES}.{module}"), function)
        return build_page(explorer, **parts)


def _list_one(explorer: Explorer) -> Iterator[Parts]:
    yield {}


def _list_comparison(explorer: Explorer) -> Iterator[Parts]:
    if explorer.compared_scan is not None:
        yield {}


def _list_mistakes(explorer: Explorer) -> Iterator[Parts]:
    if explorer.has_mistakes:
        yield {}


def _list_layers(explorer: Explorer) -> Iterator[Parts]:
    for layer in explorer.scan.layers:
        yield {"layer": layer}


def _list_units(explorer: Explorer) -> Iterator[Parts]:
    for layer, description in explorer.scan.description.layers.items():
        for unit in range(description.units):
            yield {"layer": layer, "unit": unit}


def _list_classes(explorer: Explorer) -> Iterator[Parts]:
    for index in range(len(explorer.scan.model_labels)):
        yield {"index": index}


def _list_images(explorer: Explorer) -> Iterator[Parts]:
    for id in explorer.image_ids:
        yield {"id": id}


ROUTES = (
    Route("network", "network:build_network_page", _list_one),
    Route("layer", "layer:build_layer_page", _list_layers),
    Route("unit", "unit:build_unit_page", _list_units),
    Route("class", "unit_class:build_class_page", _list_classes),
    Route("image", "image:build_image_page", _list_images),
    Route("map", "map:build_map_page", _list_one),
    Route("compare", "diagnosis:build_comparison_page", _list_comparison),
    Route("mistakes", "diagnosis:build_mistakes_page", _list_mistakes),
    Route("live", "live:build_live_page", _list_one),
)
ROUTE_BY_NAME = {route.name: route for route in ROUTES}


def list_addresses(explorer: Explorer) -> Iterator[str]:
    """The addresses of all pages, in the order of the table."""
    for route in ROUTES:
        for values in route.list_parts(explorer):
            yield explorer.link(route.name, **values)


def build_page(explorer: Explorer, address: str) -> Page | None:
    """The page of an address; None where there is none.

    Numbers are checked here: a builder gets only layers, units, classes and images that exist.
    """
    parsed = parse_address(address, explorer.spellings)
    if parsed is None:
        return None
    name, values = parsed
    route = ROUTE_BY_NAME.get(name)
    if route is None or not _exists(explorer, route, values):
        return None
    # Every page refers to the index that its search reads.
    import_module(f"{PAGES}.network").add_search_index(explorer)
    return route.build(explorer, values)


def _exists(explorer: Explorer, route: Route, parts: Parts) -> bool:
    """Whether the scan has the units, classes and images that an address names."""
    if not parts:
        return next(route.list_parts(explorer), None) is not None
    if "unit" in parts:
        return parts["unit"] < explorer.scan.description.layers[parts["layer"]].units
    if "index" in parts:
        return parts["index"] < len(explorer.scan.model_labels)
    if "id" in parts:
        return explorer.has_image_page(parts["id"])
    return True
