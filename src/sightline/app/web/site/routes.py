"""The table of pages: which function builds the page of each route, and which pages there are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sightline.app.web.explorer.addresses import ROUTE_PATTERNS, parse_address
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page

PAGES = "sightline.app.web.pages"

# Of a scan of more images, only those have an exported page that are among the strongest of a unit.
MAX_EXPORTED_IMAGES = 5_000

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
