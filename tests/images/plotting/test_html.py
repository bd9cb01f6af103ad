"""A page holds all that it shows, and what is put in stays text."""

import base64
import io

import numpy as np
import pytest
import torch
from jinja2 import TemplateNotFound, UndefinedError
from PIL import Image

from sightline.images.io import pictures as images
from sightline.images.plotting.html import (
    make_data_uri,
    make_preview_uri,
    make_webp_uri,
    render_template,
)

CONTENT = {
    "title": "<script>alert(1)</script>",
    "subtitle": "a&b",
    "hint": "",
    "data": "{}",
}


def test_what_is_put_in_is_escaped() -> None:
    page = render_template("embedding.html", **CONTENT)
    assert "<script>alert" not in page
    assert "a&amp;b" in page


def test_what_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render_template("embedding.html", title="one")


def test_another_package_has_templates_of_its_own() -> None:
    page = render_template(
        "base.html",
        package="sightline.app.web",
        root="",
        title="<b>",
        breadcrumb=[("a<b", "")],
        made_with="x",
    )
    assert "<title>&lt;b&gt; · Sightline</title>" in page
    with pytest.raises(TemplateNotFound):
        render_template("base.html")


def test_a_small_picture_is_lossless_or_not() -> None:
    picture = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(1))
    header, image = decode_uri(make_webp_uri(picture, lossless=True))
    assert header == "data:image/webp;base64"
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
    assert torch.equal(pixels, (picture[0] * 255).round().byte())
    _, lossy = decode_uri(make_webp_uri(picture))
    assert lossy.size == (9, 6)


def test_a_picture_is_inside() -> None:
    picture = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    head, code = make_data_uri(picture).split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(code) == images.encode_png(picture)


def decode_uri(uri: str) -> tuple[str, Image.Image]:
    header, content = uri.split(",")
    return header, Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_preview_is_lossless_while_it_is_small() -> None:
    picture = torch.rand(1, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    assert make_preview_uri(picture, 8) == make_data_uri(picture)
    header, preview = decode_uri(make_preview_uri(picture, 4))
    assert header == "data:image/png;base64"
    assert preview.size == (4, 2)


def test_a_large_preview_is_a_jpeg() -> None:
    noise = torch.rand(1, 3, 400, 500, generator=torch.Generator().manual_seed(0))
    header, preview = decode_uri(make_preview_uri(noise, 500))
    assert header == "data:image/jpeg;base64"
    assert preview.size == (500, 400)
