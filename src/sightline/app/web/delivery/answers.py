"""What the server answers to an address: a page, a picture, a script, or a file of the package."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.cache import PICTURE_NAME
from sightline.app.web.site.rendering import render_page
from sightline.app.web.site.routes import build_page

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ico": "image/x-icon",
}

STATIC_FOLDER = "static/"
PICTURE_FOLDER = "pictures/"
SCRIPT_FOLDER = "data/"

# Files that pages of methods have too, beside those.
SHARED_FILES = ("embedding.css", "embedding.js")


@dataclass(frozen=True)
class SiteFile:
    """The content of an address.

    Attributes:
        content: Its bytes.
        media_type: For the header of that name.
        is_immutable: Whether the address never has another content, as that of a picture.
    """

    content: bytes
    media_type: str
    is_immutable: bool = False

    @property
    def tag(self) -> str:
        """What tells this content from others, for the header ETag."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def read_site_file(explorer: Explorer, address: str) -> SiteFile | None:
    """The content of an address, relative to the root of the site; None where there is none.

    An address is only compared with known ones. No part of it becomes a path on the disk, but for
    the name of a picture, which is a digest.
    """
    if address.startswith(STATIC_FOLDER):
        return read_static_files().get(address)
    if address.startswith(PICTURE_FOLDER):
        return _read_picture(explorer, address.removeprefix(PICTURE_FOLDER))
    if address.startswith(SCRIPT_FOLDER):
        name = address.removeprefix(SCRIPT_FOLDER)
        text = explorer.read_script(name.removesuffix(".js")) if name.endswith(".js") else None
        return None if text is None else SiteFile(text.encode(), MEDIA_TYPES[".js"])
    page = build_page(explorer, address or "index.html")
    if page is None:
        return None
    html = render_page(explorer, page, address or "index.html")
    return SiteFile(html.encode(), MEDIA_TYPES[".html"])


def _read_picture(explorer: Explorer, name: str) -> SiteFile | None:
    if not PICTURE_NAME.fullmatch(name):
        return None
    content = explorer.pictures.read(name)
    if content is None:
        return None
    suffix = name[name.rindex(".") :]
    return SiteFile(content, MEDIA_TYPES[suffix], is_immutable=True)


@cache
def read_static_files() -> dict[str, SiteFile]:
    """The style sheets and scripts that come with the package, by their addresses."""
    folder = files("sightline.app.web") / "static"
    static_files = {
        f"{STATIC_FOLDER}{name}": SiteFile(entry.read_bytes(), find_media_type(name))
        for name, entry in _walk_files(folder, "")
        if not name.startswith(".")
    }
    for name in SHARED_FILES:
        entry = files("sightline") / "templates" / name
        if entry.is_file():
            static_files[f"{STATIC_FOLDER}{name}"] = SiteFile(
                entry.read_bytes(), find_media_type(name)
            )
    return static_files


def find_media_type(name: str) -> str:
    """The media type of a file by its suffix."""
    suffix = name[name.rfind(".") :]
    return MEDIA_TYPES.get(suffix, "application/octet-stream")


def _walk_files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk_files(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry
