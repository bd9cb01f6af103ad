"""The addresses of the explorer's pages: each has one, which is the same served and exported.

An address is relative to the site's root, and is also the path of the exported file. So it has
only characters that need no escape in a URL and are allowed in file names everywhere; layers, whose
names may hold anything, get a spelling of their own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# The pages by the name of their route. What stands in braces are the parts of the address.
ROUTE_PATTERNS = {
    "network": "index.html",
    "layer": "layers/{layer}.html",
    "unit": "units/{layer}/{unit}.html",
    "class": "classes/{index}.html",
    "image": "images/{id}.html",
    "map": "map.html",
    "compare": "compare.html",
    "mistakes": "mistakes.html",
    "live": "live.html",
}

MAX_SPELLING_LENGTH = 80
SAFE_SPELLING = re.compile(r"[A-Za-z0-9._~-]+")
UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]+")
WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
# Names that Windows keeps for devices, with any suffix behind them.
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


class LayerSpellings:
    """How the names of layers are spelled in addresses, one to one, and back."""

    def __init__(self, layers: Iterable[str]) -> None:
        self.spelling_by_layer: dict[str, str] = {}
        self.layer_by_spelling: dict[str, str] = {}
        # Some file systems don't tell upper case from lower.
        folded_spellings: set[str] = set()
        for layer in layers:
            base = _spell_layer(layer)
            spelling = base
            number = 2
            while spelling.casefold() in folded_spellings:
                spelling = f"{base}~{number}"
                number += 1
            folded_spellings.add(spelling.casefold())
            self.spelling_by_layer[layer] = spelling
            self.layer_by_spelling[spelling] = layer


def _spell_layer(layer: str) -> str:
    """A layer's name with «~» for what is not allowed: «layer1.0~relu»."""
    spelling = UNSAFE_CHARACTERS.sub("~", layer)[:MAX_SPELLING_LENGTH]
    is_hidden = spelling.startswith(".")
    # Windows drops dots at the end of a name.
    is_cut = spelling.endswith(".") or not spelling
    if is_hidden or is_cut or DEVICE_NAME.fullmatch(spelling):
        return f"~{spelling}~"
    return spelling


def make_address(route: str, parts: Mapping[str, Any], spellings: LayerSpellings) -> str:
    """The address of a page, from the root of the site.

    Raises KeyError for an unknown route or layer, and for a part that is missing.
    """
    spelled = {
        name: spellings.spelling_by_layer[value] if name == "layer" else str(int(value))
        for name, value in parts.items()
    }
    return ROUTE_PATTERNS[route].format(**spelled)


def parse_address(
    address: str, spellings: LayerSpellings
) -> tuple[str, dict[str, str | int]] | None:
    """The route and the parts of an address; None for what no route has.

    A layer is looked up among the known ones, and a number has one spelling only, so two addresses
    never lead to the same page.
    """
    segments = address.split("/")
    for route, pattern in ROUTE_PATTERNS.items():
        pattern_segments = pattern.split("/")
        if len(segments) != len(pattern_segments):
            continue
        values = _match_segments(segments, pattern_segments, spellings)
        if values is not None:
            return route, values
    return None


def _match_segments(
    segments: list[str], pattern_segments: list[str], spellings: LayerSpellings
) -> dict[str, str | int] | None:
    values: dict[str, str | int] = {}
    for segment, pattern in zip(segments, pattern_segments, strict=True):
        if "{" not in pattern:
            if segment != pattern:
                return None
            continue
        name, suffix = pattern.removeprefix("{").split("}")
        if not segment.endswith(suffix):
            return None
        text = segment.removesuffix(suffix) if suffix else segment
        value = _parse_part(name, text, spellings)
        if value is None:
            return None
        values[name] = value
    return values


def _parse_part(name: str, text: str, spellings: LayerSpellings) -> str | int | None:
    if name == "layer":
        return spellings.layer_by_spelling.get(text)
    return int(text) if WHOLE_NUMBER.fullmatch(text) else None


def find_root_prefix(address: str) -> str:
    """What leads from a page back to the root of the site: «../../» for `units/conv1/7.html`."""
    return "../" * address.count("/")
