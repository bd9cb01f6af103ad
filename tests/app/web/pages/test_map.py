"""The page of the map, against the features of the scan."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from web_scan import IMAGE_COUNT, MARKUP_CLASS, MARKUP_FILE

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.map import build_map_page
from sightline.app.web.site.rendering import render_page
from sightline.data.store.reader import Scan


def read_content(explorer: Explorer) -> Any:
    page = build_map_page(explorer)
    name = page.data["script"].removeprefix("data/").removesuffix(".js")
    text = explorer.read_script(name)
    assert text is not None
    return json.loads(text[text.index(",") + 1 :].removesuffix(");\n"))


def decode(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_every_image_has_a_position(explorer: Explorer) -> None:
    content = read_content(explorer)
    positions = decode(content["positions"], np.float32).reshape(-1, 2)
    assert positions.shape == (IMAGE_COUNT, 2)
    assert np.abs(positions).max() == pytest.approx(1)
    assert np.ptp(positions, axis=0) == pytest.approx(2 * np.abs(positions).max(0), rel=1e-3)
    assert decode(content["pictured"], np.uint32).tolist() == list(range(IMAGE_COUNT))
    assert decode(content["linked"], np.uint8).tolist() == [1] * IMAGE_COUNT
    assert [name.split("/")[-1] for name in content["names"]].count(MARKUP_FILE) == 1


def test_the_layout_is_made_once(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_content(explorer)
    monkeypatch.setattr("sightline.app.web.pages.map.project_vectors", None)
    assert read_content(explorer) == first


def test_thumbnails_are_in_the_order_of_the_images(explorer: Explorer) -> None:
    content = read_content(explorer)
    [address] = content["sheets"]
    file = explorer.pictures.read(address.removeprefix("pictures/"))
    assert file is not None
    sheet = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) / 255
    side = content["thumbnailSide"]
    for id in (0, 9):
        cell = sheet[:side, id * side : (id + 1) * side]
        thumbnail = explorer.scan.thumbnail(id)[0].permute(1, 2, 0).numpy()
        assert cell.mean((0, 1)) == pytest.approx(thumbnail.mean((0, 1)), abs=0.03)


def test_names_are_no_markup(explorer: Explorer) -> None:
    html = render_page(explorer, build_map_page(explorer), "map.html")
    assert MARKUP_FILE not in html
    assert MARKUP_CLASS not in html


def test_too_few_images_are_no_map(web_model: sl.Model, web_scan: Scan) -> None:
    scan = sl.scan(web_model, web_scan.paths[:3])
    explorer = Explorer(scan, web_model)
    html = render_page(explorer, build_map_page(explorer), "map.html")
    assert "needs at least 4 images; there are 3" in html
    assert "embedding.js" not in html
