"""The explorer: what its addresses, pictures, scripts and numbers promise to pages."""

from pathlib import Path

import pytest
import torch

import sightline as sl
from sightline.app.web.explorer import explorer as explorer_file
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.cache import PictureCache
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError


def test_links_take_names_and_aliases_of_layers(explorer: Explorer) -> None:
    assert explorer.link("unit", layer="conv2", unit=7) == "units/conv2/7.html"
    assert explorer.link("network") == "index.html"
    with pytest.raises(SightlineError, match="did you mean conv2"):
        explorer.link("layer", layer="conv22")


def test_a_picture_is_made_when_it_is_read(explorer: Explorer) -> None:
    made: list[int] = []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.rand(1, 3, 8, 12)

    address = explorer.add_picture({"picture": "noise"}, make)
    assert address == explorer.add_picture({"picture": "noise"}, make)
    assert address != explorer.add_picture({"picture": "noise"}, make, depends_on={"image": "x"})
    assert not made
    name = address.removeprefix("pictures/")
    assert explorer.pictures.read(name) == explorer.pictures.read(name)
    assert len(made) == 1


def test_scripts_hand_over_json(explorer: Explorer) -> None:
    text = "</script>\u2028<script>"
    assert explorer.add_script("units/conv1/0", lambda: {"name": text}) == "data/units/conv1/0.js"
    script = explorer.read_script("units/conv1/0")
    assert script is not None
    assert script.startswith('sightline.receive("units/conv1/0",{')
    assert script.isascii()
    assert explorer.read_script("units/conv1/1") is None
    for name in ("../x", "/x", "x/", "a b", "", ".x", "a//b", "a/../b"):
        with pytest.raises(ValueError, match="no script"):
            explorer.add_script(name, dict)


def test_scripts_are_forgotten_the_oldest_first(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer_file, "MAX_SCRIPTS", 3)
    for number in range(5):
        explorer.add_script(f"s{number}", dict)
    assert list(explorer.script_makers) == ["s2", "s3", "s4"]


def test_numbers_are_made_only_where_somebody_waits(
    explorer: Explorer, web_scan: Scan, web_model: sl.Model
) -> None:
    exported = Explorer(web_scan, web_model, pictures=explorer.pictures)
    key = {"numbers": "slow"}
    assert exported.read_numbers(key, lambda: {"value": 3}) is None
    assert explorer.read_numbers(key, lambda: {"value": 3}) == {"value": 3}
    assert exported.read_numbers(key, lambda: {"value": 4}) == {"value": 3}


def test_resources_are_recorded_while_a_page_is_built(explorer: Explorer) -> None:
    with explorer.record_resources() as resources:
        picture = explorer.add_picture({"picture": "a"}, lambda: torch.zeros(1, 3, 2, 2))
        script = explorer.add_script("b", dict)
        thumbnail = explorer.thumbnail(3)
    explorer.thumbnail(4)
    assert resources == {picture, script, thumbnail}


def test_thumbnails_are_those_of_the_store(explorer: Explorer) -> None:
    name = explorer.thumbnail(3).removeprefix("pictures/")
    assert explorer.pictures.read(name) == explorer.scan.thumbnail_bytes([3])[0]
    assert not explorer.pictures.has(name)
    assert explorer.thumbnail(3) != explorer.thumbnail(4)
    with pytest.raises(SightlineError, match="images 0 to 13"):
        explorer.thumbnail(14)


def test_an_image_is_read_once(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    image = explorer.read_image(6)
    assert image is not None
    torch.testing.assert_close(image, explorer.scan.image(6))
    monkeypatch.setattr(Scan, "image", lambda *_: pytest.fail("it is in memory"))
    again = explorer.read_image(6)
    assert again is not None
    torch.testing.assert_close(again, image)


def test_an_image_that_is_gone(
    explorer: Explorer, tmp_path: Path, web_model: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SightlineError("has changed since the pass")

    monkeypatch.setattr(Scan, "image", refuse)
    assert explorer.read_image(2) is None


def test_which_images_have_a_page(
    explorer: Explorer, web_scan: Scan, web_model: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = Explorer(web_scan, web_model, pictures=explorer.pictures)
    assert exported.image_ids == list(range(14))
    monkeypatch.setattr(explorer_file, "MAX_IMAGE_PAGES", 4)
    few = Explorer(web_scan, web_model, pictures=explorer.pictures)
    strongest = {int(id) for layer in web_scan.layers for id in web_scan.top(layer).ids[0]}
    assert len(few.image_ids) == 4
    assert set(few.image_ids) <= strongest
    assert [id for id in range(14) if few.has_image_page(id)] == few.image_ids
    assert explorer.has_image_page(13)
    assert not explorer.has_image_page(14)


def test_without_a_network(web_scan: Scan, explorer: Explorer) -> None:
    lonely = Explorer(web_scan, None, model_note="gone", has_synthesis=True)
    assert not lonely.has_synthesis
    assert lonely.synthesis("conv1", 0) is None
    assert not lonely.has_classes
    assert lonely.read_image(0) is not None
    assert explorer.has_classes


def test_variants_are_made_by_a_server_and_shown_where_they_are_kept(
    web_scan: Scan, web_model: sl.Model, pictures: PictureCache
) -> None:
    served = Explorer(web_scan, web_model, pictures=pictures, has_synthesis=True, is_served=True)
    exported = Explorer(web_scan, web_model, pictures=pictures, has_synthesis=True)
    address = served.synthesis_variants("conv2", 3)
    assert address is not None
    assert exported.synthesis_variants("conv2", 3) is None
    pictures.find_path(address.removeprefix("pictures/")).parent.mkdir(parents=True)
    pictures.find_path(address.removeprefix("pictures/")).write_bytes(b"kept")
    assert exported.synthesis_variants("conv2", 3) == address
    plain = Explorer(web_scan, web_model, pictures=pictures, is_served=True)
    assert plain.synthesis_variants("conv2", 3) is None


def test_thumbnails_are_read_once_and_together(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [explorer.scan.thumbnail_bytes([id])[0] for id in (4, 0, 9)]
    asked: list[list[int]] = []
    read_bytes = explorer.scan.thumbnail_bytes

    def read_noted(ids: list[int]) -> list[bytes]:
        asked.append(list(ids))
        return read_bytes(ids)

    monkeypatch.setattr(explorer.scan, "thumbnail_bytes", read_noted)
    assert explorer.read_thumbnails([4, 0, 4]) == [expected[0], expected[1], expected[0]]
    assert explorer.read_thumbnails([9, 0]) == [expected[2], expected[1]]
    assert asked == [[4, 0], [9]]


def test_inputs_are_those_of_the_pass_and_read_once(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = explorer.scan.image(3)
    assert torch.equal(explorer.read_input(3), image)
    monkeypatch.setattr(explorer.scan, "image", lambda _: pytest.fail("read again"))
    assert torch.equal(explorer.read_input(3), image)


def test_inputs_of_other_depth_keep_their_numbers(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(explorer.scan, "image", lambda _: image)
    for _ in range(2):
        assert torch.equal(explorer.read_input(3), image)
