"""What layers keep of an image: as the method finds it, and only where syntheses are made."""

import io

import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content import inversions as inversions_file
from sightline.app.web.pages.content.inversions import describe_inversions, shrink_size
from sightline.app.web.pages.network import build_network_page
from sightline.app.web.pictures.cache import PictureCache
from sightline.data.store.reader import Scan
from sightline.images.decode.pixels import convert_pillow_to_tensor


@pytest.fixture
def synthesizing(web_scan: Scan, web_model: sl.Model, pictures: PictureCache) -> Explorer:
    return Explorer(web_scan, web_model, pictures=pictures, has_synthesis=True, is_served=True)


def read_picture(explorer: Explorer, address: str) -> torch.Tensor:
    content = explorer.pictures.read(address.removeprefix("pictures/"))
    assert content is not None
    with Image.open(io.BytesIO(content)) as file:
        return convert_pillow_to_tensor(file)


def test_the_pictures_are_inversions(
    synthesizing: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inversions_file, "INVERSION_STEPS", 8)
    described = describe_inversions(synthesizing, 4)
    assert described is not None
    assert [layer["name"] for layer in described["layers"]] == ["conv1", "conv2", "conv3"]
    assert described["layers"][1]["address"] == synthesizing.link("layer", layer="conv2")
    assert described["picture"] == synthesizing.thumbnail(4)
    picture = read_picture(synthesizing, described["layers"][1]["picture"])
    assert synthesizing.model is not None
    image = synthesizing.scan.image(4)
    result = sl.inversion(synthesizing.model, image, layer="conv2", steps=8, seed=0)
    expected = torch.as_tensor(result.values["image"])
    assert picture.shape == expected.shape
    assert float((picture - expected).abs().mean()) < 0.05  # WebP is not lossless


def test_an_image_that_is_gone_is_gray(
    synthesizing: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> torch.Tensor:
        raise sl.SightlineError("it is gone")

    described = describe_inversions(synthesizing, 2)
    assert described is not None
    monkeypatch.setattr(synthesizing, "read_input", refuse)
    picture = read_picture(synthesizing, described["layers"][0]["picture"])
    assert float((picture - 0.5).abs().max()) < 0.02


def test_there_are_none_without_synthesis(explorer: Explorer, synthesizing: Explorer) -> None:
    assert describe_inversions(explorer, 0) is None
    assert build_network_page(explorer).data["inversions"] is None
    assert len(build_network_page(synthesizing).data["inversions"]["layers"]) == 3


def test_pictures_keep_their_proportions() -> None:
    assert shrink_size((160, 160)) == (128, 128)
    assert shrink_size((120, 480)) == (32, 128)
    assert shrink_size((32, 40)) == (32, 40)
