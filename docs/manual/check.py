"""Finds what built pages load from another machine. Links that a reader may follow load nothing."""

import re
from html.parser import HTMLParser
from pathlib import Path

# Where a page names what the browser loads by itself.
LOADING_ATTRIBUTES = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "link": ("href",),
}
# Links of the head that load nothing.
QUIET_RELATIONS = {"canonical", "index", "search", "next", "prev", "author", "copyright"}
REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
STYLE_LOADS = re.compile(
    r"""(?:url\(|@import\s+)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE
)


class ResourceParser(HTMLParser):
    """Collects the addresses of a page that the browser loads."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        relations = set(attributes.get("rel", "").split())
        if tag == "link" and relations <= QUIET_RELATIONS:
            return
        for name in LOADING_ATTRIBUTES.get(tag, ()):
            self.addresses.append(attributes.get(name, ""))
        self.addresses += STYLE_LOADS.findall(attributes.get("style", ""))


def find_remote_addresses(page: str) -> list[str]:
    """The addresses on other machines that an HTML page loads."""
    parser = ResourceParser()
    parser.feed(page)
    styles = re.findall(r"<style[^>]*>(.*?)</style>", page, flags=re.DOTALL | re.IGNORECASE)
    addresses = [
        *parser.addresses,
        *(load for text in styles for load in STYLE_LOADS.findall(text)),
    ]
    return [address for address in addresses if REMOTE.match(address)]


def find_remote_resources(folder: Path) -> list[str]:
    """«FILE: ADDRESS» for everything remote that the pages and stylesheets of a folder load."""
    remote: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            addresses = find_remote_addresses(path.read_text(encoding="utf-8"))
        elif path.suffix == ".css":
            addresses = STYLE_LOADS.findall(path.read_text(encoding="utf-8"))
        else:
            continue
        remote += [f"{path.relative_to(folder)}: {address}" for address in addresses]
    return remote
