"""Addresses of the site: pages, pictures, scripts and files of the package, and nothing else."""

from pathlib import Path

import pytest
import torch

from sightline.app.web.delivery.answers import read_site_file, read_static_files
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.site import routes


@pytest.fixture(autouse=True)
def simple_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without content, of the frame alone."""

    def build(_route: routes.Route, _explorer: Explorer, parts: routes.Parts) -> Page:
        return Page("base.html", {"breadcrumb": [(str(dict(parts)), "")]}, "title")

    monkeypatch.setattr(routes.Route, "build", build)


def test_a_page(explorer: Explorer) -> None:
    file = read_site_file(explorer, "units/conv2/7.html")
    assert file is not None
    assert file.media_type == "text/html; charset=utf-8"
    assert b'href="../../static/sightline.css"' in file.content
    assert not file.is_immutable
    first = read_site_file(explorer, "")
    again = read_site_file(explorer, "index.html")
    assert first is not None
    assert again is not None
    assert first.tag == again.tag != file.tag


def test_a_picture(explorer: Explorer) -> None:
    address = explorer.add_picture({"unit": 1}, lambda: torch.zeros(1, 3, 4, 4))
    file = read_site_file(explorer, address)
    assert file is not None
    assert file.media_type == "image/webp"
    assert file.is_immutable
    thumbnail = read_site_file(explorer, explorer.thumbnail(2))
    assert thumbnail is not None
    assert thumbnail.media_type == "image/jpeg"


def test_a_script(explorer: Explorer) -> None:
    file = read_site_file(explorer, explorer.add_script("units/0", lambda: [1]))
    assert file is not None
    assert file.content == b'sightline.receive("units/0",[1]);\n'
    assert file.media_type == "text/javascript; charset=utf-8"


def test_files_of_the_package() -> None:
    files = read_static_files()
    assert files["static/sightline.css"].media_type == "text/css; charset=utf-8"
    assert all(file.media_type != "application/octet-stream" for file in files.values())


@pytest.mark.parametrize(
    "address",
    [
        "static/../explorer/page.py",
        "static/",
        "static",
        "pictures/../../../etc/passwd",
        "pictures/" + "0" * 32 + ".webp",
        "pictures/",
        "data/../secret.js",
        "data/.js",
        "../index.html",
        "/etc/passwd",
        "etc/passwd",
        "units/conv2/12.html",
        "units/conv9/0.html",
        "classes/5.html",
        "images/14.html",
        "layers/conv2",
        "compare.html",
        "\x00",
        "a" * 10_000,
    ],
)
def test_other_addresses_lead_nowhere(explorer: Explorer, address: str) -> None:
    assert read_site_file(explorer, address) is None


def test_nothing_reads_the_disk_for_an_unknown_address(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a path was opened")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for address in ("pictures/%2e%2e/x.webp", "static/none.css", "C:\\Windows", "file:///etc"):
        assert read_site_file(explorer, address) is None
