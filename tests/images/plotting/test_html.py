"""A page holds all that it shows, and what is put in stays text."""

import base64
import io

import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from sightline.images.io import pictures as images
from sightline.images.plotting.html import make_data_uri, make_preview_uri, render_template

CONTENT = {
    "label": "<script>alert(1)</script>",
    "source": "a&b.png",
    "image": "data:,",
    "interrupted": False,
    "chapters": [],
    "seconds": 1.0,
    "version": "0",
    "layers": 3,
    "dataset": "the folder <i>mine</i>",
    "failed": [],
}


class Network:
    """What the report's template reads of a model."""

    name = "net<b>"
    labels = ("one",)
    device = "cpu"


def test_what_is_put_in_is_escaped() -> None:
    page = render_template("tour.html", model=Network(), **CONTENT)
    assert "<script>alert" not in page
    assert "a&amp;b.png" in page
    assert "net&lt;b&gt;" in page
    assert "the folder &lt;i&gt;mine" in page


def test_what_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render_template("tour.html", model=Network())


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
