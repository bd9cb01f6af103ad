"""The exported site: what the server gives, in files that are whole, in a folder of their own."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin

import pytest
import torch

import sightline as sl
from sightline.app.web.delivery.answers import read_site_file
from sightline.app.web.delivery.export import MARKER_FILE, SiteExport, check_export_folder, is_site
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pictures.cache import PictureCache
from sightline.app.web.site import routes
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError


@pytest.fixture
def simple_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of the frame alone, each with a picture of its own."""

    def build(route: routes.Route, explorer: Explorer, parts: routes.Parts) -> Page:
        key = {"picture": route.name, **parts}
        picture = explorer.add_picture(key, lambda: torch.full((1, 3, 4, 6), 0.5))
        explorer.add_script(f"{route.name}/0", lambda: {"shared": True})
        return Page("base.html", {"breadcrumb": [(picture, "")]}, route.name)

    monkeypatch.setattr(routes.Route, "build", build)


@pytest.fixture
def exported(web_scan: Scan, web_model: sl.Model, pictures: PictureCache) -> Explorer:
    return Explorer(web_scan, web_model, pictures=pictures, command="sightline export")


def go_on(_done: int, _total: int, _address: str) -> bool:
    return False


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER_FILE
    }


@pytest.mark.usefixtures("simple_pages")
class TestFolder:
    """Which folder is written to, and when."""

    def test_a_new_folder(self, exported: Explorer, tmp_path: Path) -> None:
        export = SiteExport(exported, tmp_path / "a" / "site")
        assert export.run(go_on)
        files = read_files(tmp_path / "a" / "site")
        assert set(files) == export.written
        assert sum(map(len, files.values())) == export.total_bytes
        assert {"index.html", "units/conv3/15.html", "classes/4.html", "images/13.html"} <= set(
            files
        )
        assert is_site(tmp_path / "a" / "site")

    def test_a_folder_of_something_else_is_left_alone(
        self, exported: Explorer, tmp_path: Path
    ) -> None:
        (tmp_path / "site").mkdir()
        note = tmp_path / "site" / "note.txt"
        note.write_text("mine", encoding="utf-8")
        with pytest.raises(SightlineError, match=r"holds 'note\.txt' and is no exported site"):
            SiteExport(exported, tmp_path / "site").run(go_on)
        assert [path.name for path in (tmp_path / "site").iterdir()] == ["note.txt"]

    @pytest.mark.parametrize("content", ["", "{}", "[]", "no json", '{"format": "other"}'])
    def test_another_marker_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / MARKER_FILE).write_text(content, encoding="utf-8")
        with pytest.raises(SightlineError, match="is no exported site"):
            check_export_folder(tmp_path)

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "site").write_text("x", encoding="utf-8")
        with pytest.raises(SightlineError, match="not a folder"):
            check_export_folder(tmp_path / "site")

    def test_an_earlier_export_is_renewed(self, exported: Explorer, tmp_path: Path) -> None:
        site = tmp_path / "site"
        SiteExport(exported, site).run(go_on)
        before = read_files(site)
        (site / "units" / "conv1" / "99.html").write_text("stale", encoding="utf-8")
        (site / "pictures" / f"{'0' * 32}.webp").write_bytes(b"stale")
        (site / "index.html").write_text("old", encoding="utf-8")
        (site / "CNAME").write_text("my.example", encoding="utf-8")
        (site / "pictures" / "logo.jpg").write_bytes(b"mine")
        again = SiteExport(exported, site)
        assert again.run(go_on)
        mine = {"CNAME": b"my.example", "pictures/logo.jpg": b"mine"}
        assert read_files(site) == {**before, **mine}
        assert again.changed == 1

    def test_a_stopped_export_has_no_first_page_and_goes_on(
        self, exported: Explorer, tmp_path: Path
    ) -> None:
        def stop_half_way(done: int, total: int, _address: str) -> bool:
            return done > total // 2

        site = tmp_path / "site"
        assert not SiteExport(exported, site).run(stop_half_way)
        assert not (site / "index.html").exists()
        assert (site / "static" / "sightline.css").exists(), (
            "the pages that are there have no style"
        )
        marker = json.loads((site / MARKER_FILE).read_text(encoding="utf-8"))
        assert marker["complete"] is False
        half = len(read_files(site))
        rest = SiteExport(exported, site)
        assert rest.run(go_on)
        assert 0 < half < rest.changed + half == len(read_files(site))

    def test_a_full_disk_is_one_line_and_leaves_whole_files(
        self, exported: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Path.write_bytes
        written: list[Path] = []

        def run_out(path: Path, content: bytes) -> int:
            if len(written) >= 12:
                write(path, content[:10])
                raise OSError(28, "No space left on device")
            written.append(path)
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", run_out)
        with pytest.raises(SightlineError, match="No space left on device"):
            SiteExport(exported, tmp_path / "site").run(go_on)
        monkeypatch.undo()
        files = read_files(tmp_path / "site")
        assert 0 < len(files) < 13
        assert "index.html" not in files
        assert all(len(content) > 10 for content in files.values())


# ── the pages themselves ──


class AddressCollector(HTMLParser):
    """The addresses that a page refers to, and what would run in it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.tags: list[str] = []
        self.in_script = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        for name in ("href", "src", "poster", "action"):
            if values.get(name):
                self.addresses.append(values[name] or "")
        self.inline += [name for name in values if name.startswith("on") or name == "style"]
        if tag == "script" and values.get("type") != "application/json" and not values.get("src"):
            self.inline.append("script")
        if tag == "style":
            self.inline.append("style")


@pytest.fixture(scope="module")
def site(
    web_scan: Scan, web_model: sl.Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, PictureCache]]:
    """The whole site of the small scan, with its real pages."""
    folder = tmp_path_factory.mktemp("exported")
    pictures = PictureCache(folder / "pictures")
    explorer = Explorer(web_scan, web_model, pictures=pictures, command="sightline export")
    assert SiteExport(explorer, folder / "site").run(go_on)
    return folder / "site", pictures


def test_export_and_server_give_the_same_pages(
    site: tuple[Path, PictureCache], web_scan: Scan, web_model: sl.Model
) -> None:
    folder, pictures = site
    served = Explorer(
        web_scan, web_model, pictures=pictures, command="sightline export", is_served=True
    )
    addresses = list(routes.list_addresses(served))
    pages = {name for name in read_files(folder) if name.endswith(".html")}
    assert pages == set(addresses)
    for address in addresses:
        if address == "live.html":
            continue  # which says in the files that it needs the server
        file = read_site_file(served, address)
        assert file is not None
        assert file.content == (folder / address).read_bytes(), address
    for name, content in read_files(folder).items():
        if name.startswith("pictures/"):
            file = read_site_file(served, name)
            assert file is not None
            assert file.content == content


def test_every_link_of_a_file_leads_to_a_file(site: tuple[Path, PictureCache]) -> None:
    folder, _ = site
    names = set(read_files(folder))
    for name in sorted(names):
        if not name.endswith(".html"):
            continue
        collector = AddressCollector()
        collector.feed((folder / name).read_text(encoding="utf-8"))
        for address in collector.addresses:
            target = unquote(urljoin(f"/{name}", address).split("#")[0].split("?")[0])
            if address.startswith("data:"):
                continue
            assert "://" not in address, f"{name} refers to {address}"
            assert not address.startswith("/"), f"{name} refers to {address}"
            assert target.removeprefix("/") in names, f"{name} refers to {address}"


def test_pages_fit_the_servers_policy(site: tuple[Path, PictureCache]) -> None:
    folder, _ = site
    for path in folder.rglob("*.html"):
        collector = AddressCollector()
        collector.feed(path.read_text(encoding="utf-8"))
        assert collector.inline == [], path


def test_names_from_outside_are_text(site: tuple[Path, PictureCache]) -> None:
    folder, _ = site
    pages = [path.read_text(encoding="utf-8") for path in folder.rglob("*.html")]
    assert any("&lt;script&gt;alert(" in page for page in pages)
    assert any("&lt;img src=x onerror=alert(1)&gt;" in page for page in pages)
    for page in pages:
        assert not re.search(r"<script>\s*alert", page)
        assert "<img src=x" not in page
        collector = AddressCollector()
        collector.feed(page)
        assert collector.tags.count("html") == 1


def test_scripts_hand_over_data_only(site: tuple[Path, PictureCache]) -> None:
    folder, _ = site
    for path in (folder / "data").rglob("*.js"):
        text = path.read_text(encoding="ascii")
        name = path.relative_to(folder / "data").as_posix().removesuffix(".js")
        match = re.fullmatch(r"sightline\.receive\((\".*?\"),(.*)\);\n", text, re.DOTALL)
        assert match is not None
        assert json.loads(match[1]) == name
        json.loads(match[2])
