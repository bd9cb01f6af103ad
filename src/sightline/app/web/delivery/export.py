"""Writes the explorer's pages as files, which open from the disk and on any static host.

The pages are those that the server answers, read from the same table. Every file is written whole,
and `index.html` last, so a folder with one is a site that works. A marker file says that a folder
is such a site: only an empty folder or one with the marker is written to.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sightline.app.web.delivery.answers import (
    SiteFile,
    read_site_file,
    read_static_files,
)
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.cache import write_bytes
from sightline.app.web.site.routes import list_addresses
from sightline.errors import SightlineError
from sightline.images.files import check_writable, write_text

MARKER_FILE = ".sightline-site"
MARKER_FORMAT = "sightline site"
FIRST_PAGE = "index.html"

# The files that an export writes into the folders of a site. Those that belong to no page any more
# are removed; whatever else somebody put there stays.
SITE_FOLDERS = ("classes", "data", "images", "layers", "pictures", "static", "units")
OWN_FILE = re.compile(
    r"(classes|images)/[0-9]+\.html|layers/[^/]+\.html|units/[^/]+/[0-9]+\.html"
    r"|compare\.html|mistakes\.html"
    r"|pictures/[0-9a-f]{32}\.(webp|jpg)|data/.+\.js|static/.+\.(css|js)"
)

# Called with the files written, all that are known so far, and what is written now; returns
# whether to stop.
ExportProgress = Callable[[int, int, str], bool]


@dataclass
class SiteExport:
    """The export of an explorer's site into a folder.

    Attributes:
        explorer: What the pages are made from.
        folder: Where they are written.
        written: The addresses of the files that belong to the site.
        total_bytes: Of these files.
        changed: How many of them were not there as they are.
    """

    explorer: Explorer
    folder: Path
    written: set[str] = field(default_factory=set[str])
    total_bytes: int = 0
    changed: int = 0

    def run(self, on_progress: ExportProgress) -> bool:
        """Writes the site. Returns whether it is whole; it is not if `on_progress` stopped it.

        What an interrupted export wrote is not made again.

        Raises SightlineError for a folder that holds something else, and where a file can't be
        written.
        """
        self.claim_folder()
        # First, so that the pages of an export that is stopped look as they should.
        for address, file in read_static_files().items():
            self.write_file(address, file)
        addresses = [address for address in list_addresses(self.explorer) if address != FIRST_PAGE]
        for number, address in enumerate(addresses):
            if on_progress(number, len(addresses) + 1, address):
                return False
            self.write_page(address)
        self.write_page(FIRST_PAGE)
        self.remove_stale_files()
        self.write_marker(is_complete=True)
        on_progress(len(addresses) + 1, len(addresses) + 1, FIRST_PAGE)
        return True

    def claim_folder(self) -> None:
        """Marks the folder as a site that is being written.

        Raises SightlineError for a folder that holds something else.
        """
        check_export_folder(self.folder)
        self.write_marker(is_complete=False)

    def write_page(self, address: str) -> None:
        """Writes a page, and the pictures and scripts that it shows before it."""
        with self.explorer.record_resources() as resources:
            page = read_site_file(self.explorer, address)
        if page is None:
            raise SightlineError(f"the page {address} of the table is not there")
        for resource in sorted(resources):
            self.write_resource(resource)
        self.write_file(address, page)

    def write_resource(self, address: str) -> None:
        """Writes a picture or script, unless it is there."""
        if address in self.written:
            return
        path = self.folder / address
        is_picture = address.startswith("pictures/")
        if is_picture and path.is_file():
            # Its name is the digest of what it shows, and files appear whole.
            self.written.add(address)
            self.total_bytes += path.stat().st_size
            return
        file = read_site_file(self.explorer, address)
        if file is not None:
            self.write_file(address, file)

    def write_file(self, address: str, file: SiteFile) -> None:
        """Writes a file, unless it is there as it is."""
        path = self.folder / address
        if not _holds(path, file.content):
            write_bytes(file.content, path)
            self.changed += 1
        self.written.add(address)
        self.total_bytes += len(file.content)

    def remove_stale_files(self) -> None:
        """Removes pages and pictures of an earlier export that this one does not have."""
        paths = list(self.folder.glob("*.html"))
        for name in SITE_FOLDERS:
            for root, _, files in os.walk(self.folder / name):
                paths += [Path(root, file) for file in files]
        for path in paths:
            address = path.relative_to(self.folder).as_posix()
            if OWN_FILE.fullmatch(address) and address not in self.written:
                path.unlink(missing_ok=True)

    def write_marker(self, *, is_complete: bool) -> None:
        """Writes the file that says what the folder is."""
        content = {
            "format": MARKER_FORMAT,
            "version": 1,
            "complete": is_complete,
            "scan": self.explorer.store_digest,
        }
        write_text(json.dumps(content) + "\n", self.folder / MARKER_FILE)


def check_export_folder(folder: Path) -> None:
    """Raises SightlineError for a folder that can't be written, or holds something else."""
    check_writable(folder)
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise SightlineError(f"can't read {str(folder)!r}: {error.strerror}") from error
    if not names or is_site(folder):
        return
    raise SightlineError(
        f"{str(folder)!r} holds {names[0]!r} and is no exported site; give an empty folder"
    )


def is_site(folder: Path) -> bool:
    """Whether an earlier export wrote this folder."""
    try:
        content = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == MARKER_FORMAT


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False
