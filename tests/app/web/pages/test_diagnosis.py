"""The pages of a comparison and of mistakes: found once, served as exported."""

import re
from pathlib import Path
from typing import Any

import pytest
from web_scan import make_two_scans

import sightline as sl
from sightline.app.web.delivery.answers import read_site_file
from sightline.app.web.delivery.export import SiteExport
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages import diagnosis
from sightline.app.web.pages.diagnosis import (
    build_comparison_page,
    build_mistakes_page,
    read_comparison,
    read_mistakes,
)
from sightline.app.web.pictures.cache import PictureCache
from sightline.data.store.reader import Scan
from sightline.models.model import Model

ADDRESSES = ("compare.html", "mistakes.html")


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scan, Scan, Model]:
    """Two scans of the same images, and the network of the second."""
    return make_two_scans(tmp_path_factory.mktemp("compared"))


def make_explorer(
    compared: tuple[Scan, Scan, Model], pictures: PictureCache, **settings: Any
) -> Explorer:
    old, new, model = compared
    return Explorer(new, model, pictures=pictures, compared_scan=old, has_mistakes=True, **settings)


def read_page(explorer: Explorer, address: str) -> str:
    file = read_site_file(explorer, address)
    assert file is not None
    return file.content.decode()


def test_a_site_without_them_has_no_such_pages(
    compared: tuple[Scan, Scan, Model], pictures: PictureCache
) -> None:
    explorer = Explorer(compared[1], compared[2], pictures=pictures, is_served=True)
    for address in ADDRESSES:
        assert read_site_file(explorer, address) is None
        assert f'href="{address}"' not in read_page(explorer, "index.html")
    with pytest.raises(sl.SightlineError, match="nothing is compared"):
        build_comparison_page(explorer)


def test_exported_as_served(
    compared: tuple[Scan, Scan, Model], pictures: PictureCache, tmp_path: Path
) -> None:
    folder = tmp_path / "site"
    exported = make_explorer(compared, pictures)
    assert SiteExport(exported, folder).run(lambda *_: False)
    served = make_explorer(compared, pictures, is_served=True)
    for address in ADDRESSES:
        text = (folder / address).read_text(encoding="utf-8")
        assert text == read_page(served, address)
        assert "style=" not in text
        assert "<style" not in text
        assert "data:image" not in text
        addresses = re.findall(r'(?:src|href)="([^"#]+)"', text)
        assert all((folder / found).is_file() for found in addresses if found != "data:,")
        assert f'href="{address}"' in (folder / "index.html").read_text(encoding="utf-8")
    comparison = (folder / "compare.html").read_text(encoding="utf-8")
    assert "<h1>an_earlier_network_100 and new</h1>" in comparison
    assert 'href="units/conv' in comparison
    assert 'href="images/' in comparison
    assert "sightline compare old.scan new.scan" in comparison

    # The next export of the same folder has them no more.
    alone = Explorer(compared[1], compared[2], pictures=pictures)
    assert SiteExport(alone, folder).run(lambda *_: False)
    assert not any((folder / address).exists() for address in ADDRESSES)


def test_what_they_show_is_found_once(
    compared: tuple[Scan, Scan, Model], pictures: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = make_explorer(compared, pictures)
    calls: list[str] = []
    steps: list[str] = []
    find_comparison, find_mistakes = diagnosis.compare, diagnosis.mistakes

    def compare(*scans: Scan, **settings: Any) -> Any:
        calls.append("compare")
        return find_comparison(*scans, **settings)

    def mistakes(*scans: Scan, **settings: Any) -> Any:
        calls.append("mistakes")
        return find_mistakes(*scans, **settings)

    monkeypatch.setattr(diagnosis, "compare", compare)
    monkeypatch.setattr(diagnosis, "mistakes", mistakes)
    content = read_comparison(explorer, compared[0], lambda step, _: steps.append(step))
    assert len(steps) > 1
    assert read_comparison(explorer, compared[0]) == content
    assert read_mistakes(explorer) == read_mistakes(explorer)
    assert calls == ["compare", "mistakes"]

    # A picture that is gone is made again.
    name = content["pictures"][0].removeprefix("pictures/")
    pictures.find_path(name).unlink()
    assert read_comparison(explorer, compared[0]) == content
    assert pictures.has(name)
    assert calls == ["compare", "mistakes", "compare"]


def test_another_network_is_compared_anew(
    compared: tuple[Scan, Scan, Model], pictures: PictureCache
) -> None:
    old, new, model = compared
    explorer = Explorer(new, model, pictures=pictures)
    other = read_comparison(explorer, old)
    same = read_comparison(explorer, new)
    assert same["data"]["is_same"]
    assert not other["data"]["is_same"]


def test_a_scan_of_other_images_is_one_line(
    compared: tuple[Scan, Scan, Model], web_scan: Scan, pictures: PictureCache
) -> None:
    explorer = Explorer(compared[1], compared[2], pictures=pictures, compared_scan=web_scan)
    with pytest.raises(sl.SightlineError, match="scan the same images with both networks"):
        build_comparison_page(explorer)


def test_too_few_images_for_mistakes_are_one_line(web_scan: Scan, pictures: PictureCache) -> None:
    explorer = Explorer(web_scan, pictures=pictures, has_mistakes=True)
    with pytest.raises(sl.SightlineError) as caught:
        build_mistakes_page(explorer)
    assert "\n" not in str(caught.value)
