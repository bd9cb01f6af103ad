"""The page of the map: its numbers, names, colours and thumbnails."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sightline as sl
from sightline.data.scan.access import load_center_crops
from sightline.data.store.reader import Scan
from sightline.methods.retrieval import embedding_page
from sightline.methods.retrieval.embedding_page import (
    build_thumbnail_sheets,
    encode_thumbnail_sheet,
    list_color_groups,
    render_scatter_page,
    strip_common_folder,
)


def read_page_data(page: str) -> dict[str, Any]:
    pattern = r'<script type="application/json" id="data">(.*?)</script>'
    (text,) = re.findall(pattern, page, re.DOTALL)
    return json.loads(text)


def decode_numbers(text: str, dtype: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def decode_sheet(uri: str) -> Tensor:
    """A sheet of thumbnails, 3×H×W in [0, 1]."""
    encoded = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


def test_page_has_every_image(stored: Scan) -> None:
    page = sl.embedding(stored, method="pca").pages["map"]
    data = read_page_data(page)
    paths = zip(data["names"], stored.paths, strict=True)
    assert all(path.endswith(name) for name, path in paths)
    assert [group["label"] for group in data["groups"]] == ["label", "prediction", "error"]
    assert len(data["sheets"]) == 1
    assert decode_numbers(data["pictured"], "<u4").tolist() == list(range(14))
    assert "http" not in page
    assert "NaN" not in page


@pytest.mark.parametrize("dimensions", [2, 3])
def test_positions_are_scaled_alike_in_all_directions(stored: Scan, dimensions: int) -> None:
    """The longest extent fills [−1, 1], the others lie in the middle."""
    positions = torch.rand(14, dimensions, generator=torch.Generator().manual_seed(0))
    positions = positions * torch.tensor([8.0, 2.0, 4.0])[:dimensions] + 5
    data = read_page_data(render_scatter_page(stored, positions, "title", "subtitle", 1))
    assert data["dimensions"] == dimensions
    shown = torch.from_numpy(decode_numbers(data["positions"], "<f4").copy()).view(-1, dimensions)
    extent = positions.amax(0) - positions.amin(0)
    assert torch.allclose(shown.amax(0), extent / extent.max(), atol=1e-6)
    assert torch.allclose(shown.amin(0), -extent / extent.max(), atol=1e-6)
    assert torch.allclose(shown.diff(dim=0), positions.diff(dim=0) * 2 / extent.max(), atol=1e-5)


def test_a_name_cannot_end_the_script(stored: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"/photos/</script><b>{number}" for number in range(14)]
    monkeypatch.setattr(stored, "paths", paths)
    page = render_scatter_page(stored, torch.rand(14, 2), "</script>", "<b>", 1)
    assert "<b>" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert read_page_data(page)["names"][3] == "script><b>3"


def test_thumbnails_stand_row_by_row(stored: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_page, "SHEET_COLUMNS", 4)
    image_ids = [9, 2, 13, 4, 5, 0]
    sheet = decode_sheet(encode_thumbnail_sheet(stored, image_ids))
    assert sheet.shape == (3, 2 * 48, 4 * 48)
    thumbnails = load_center_crops(stored, image_ids, 48)
    for number, thumbnail in enumerate(thumbnails):
        top, left = 48 * (number // 4), 48 * (number % 4)
        cell = sheet[:, top + 2 : top + 46, left + 2 : left + 46]
        errors = [float((cell - other[:, 2:46, 2:46]).abs().mean()) for other in thumbnails]
        assert errors.index(min(errors)) == number
        assert (cell - thumbnail[:, 2:46, 2:46]).abs().mean() < 0.03


def test_a_budget_leaves_images_out_evenly(stored: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_page, "SHEET_COLUMNS", 2)
    monkeypatch.setattr(embedding_page, "SHEET_THUMBNAILS", 4)
    first_size = len(encode_thumbnail_sheet(stored, [0, 4, 9, 13]))
    image_ids, sheets = build_thumbnail_sheets(stored, first_size * 1.51)
    assert image_ids == [0, 3, 5, 8, 10, 13]
    assert len(sheets) == 2
    assert decode_sheet(sheets[1]).shape == (3, 48, 96)
    assert build_thumbnail_sheets(stored, first_size * 100)[0] == list(range(14))
    assert build_thumbnail_sheets(stored, 0) == ([], [])


def test_a_common_folder_is_left_out() -> None:
    assert strip_common_folder(["/a/b/cat.png", "/a/b/c/dog.png"]) == ["cat.png", "c/dog.png"]
    assert strip_common_folder(["/a/bat.png", "/a/bee.png"]) == ["bat.png", "bee.png"]
    assert strip_common_folder(["rocket[0:2]", "rocket[1:3]"]) == ["rocket[0:2]", "rocket[1:3]"]
    assert strip_common_folder(["/a/b.png"]) == ["/a/b.png"]


# ── colours ──


def make_scan(classes: list[int] | None) -> Any:
    """What `list_color_groups` reads of a scan: classes, and five predictions of five names."""
    return SimpleNamespace(
        classes=None if classes is None else torch.tensor(classes),
        class_names=["bee", "cow"],
        shown_class_names=["bee", "cow"],
        model_labels=["ant", "bee", "cow"],
        top5=(torch.tensor([[1, 0], [2, 0], [1, 2], [0, 1]]), None),
        paths=["a.png", "b.png", "c.png", "d.png"],
        path=Path("net.scan"),
    )


def name_groups(scan: Any) -> dict[str, list[str]]:
    """For each colouring the name of each image."""
    names: dict[str, list[str]] = {}
    for group in list_color_groups(scan):
        indices = decode_numbers(group["of"], "<u2")
        names[group["label"]] = [group["names"][index] for index in indices]
    return names


def test_images_are_coloured_by_class_prediction_and_error() -> None:
    assert name_groups(make_scan([0, 1, 1, -1])) == {
        "label": ["bee", "cow", "cow", "unknown"],
        "prediction": ["bee", "cow", "bee", "ant"],
        "error": ["right", "right", "wrong", "unknown"],
    }
    assert list(name_groups(make_scan(None))) == ["prediction"]


def test_wordnet_ids_are_classes() -> None:
    scan = make_scan([0, 1, 1, -1])
    scan.class_names = scan.shown_class_names = ["n02206856", "n02121808"]
    assert name_groups(scan) == {
        "label": ["bee", "domestic cat", "domestic cat", "unknown"],
        "prediction": ["bee", "cow", "bee", "ant"],
        "error": ["right", "unknown", "unknown", "unknown"],
    }
    files = make_scan(None)
    files.paths = ["n02206856_1.png", "n02206856_2.png", "n02121808_3.png", "n02219486_4.png"]
    assert name_groups(files) == {
        "label": ["bee", "bee", "unknown", "ant"],
        "prediction": ["bee", "cow", "bee", "ant"],
        "error": ["right", "wrong", "unknown", "right"],
    }


def test_classes_that_the_network_does_not_know_have_no_errors() -> None:
    scan = make_scan([0, 1, 1, 0])
    scan.class_names = scan.shown_class_names = ["indoors", "outdoors"]
    assert list(name_groups(scan)) == ["label", "prediction"]
