"""What a section shows: sizes, rows, alternative texts, and which pictures are lossless."""

import base64
import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from sightline.app.web.report.figures import (
    MAX_LOSSLESS_COLORS,
    describe_figure,
    encode_picture,
    format_share,
    is_drawn,
    limit_side,
    shorten_alt_text,
)
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import LinePlot
from sightline.images.plotting.figures import (
    BarChart,
    ColorScale,
    DotPlot,
    Histogram,
    ImagePair,
    LineChart,
    PictureRows,
)
from sightline.images.plotting.html import make_webp_uri


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def open_source(source: str) -> Image.Image:
    kind, _, content = source.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize(
    ("size", "shown", "wide"),
    [
        ((50, 64), (200, 256), False),
        ((100, 128), (200, 256), False),
        ((200, 300), (200, 300), False),
        ((100, 700), (100, 700), True),
        ((960, 1920), (640, 1280), True),
    ],
)
def test_a_picture_has_its_own_size_or_a_whole_multiple(
    size: tuple[int, int], shown: tuple[int, int], wide: bool
) -> None:
    described = describe_figure(None, noise(*size), "What it is. And more.")
    assert (described["height"], described["width"]) == shown
    assert described["wide"] == wide
    assert described["alt"] == "What it is."


def test_tiles_keep_their_shape_and_their_captions() -> None:
    row = FigureRow("title", [noise(20, 40), noise(64, 32)], ["a\nb", ""], lead_count=1)
    figure = PictureRows([row], 96, scale=ColorScale("diverging", 0.25))
    described = describe_figure(figure, noise(2, 2), "caption")
    first, second = described["rows"][0]["tiles"]
    assert (first["width"], first["height"]) == (96, 48)
    assert (second["width"], second["height"]) == (48, 96)
    assert first["lines"] == ["a", "b"]
    assert (first["alt"], second["alt"]) == ("a b", "title 2")
    assert (first["leads"], second["leads"]) == (True, False)
    assert described["scale"] == ("diverging", "−0.25", "0", "0.25")


def test_rows_without_titles_are_one() -> None:
    rows = [
        FigureRow("title", [noise(4, 4)], ["a"]),
        FigureRow("", [noise(4, 4)], ["b"]),
        FigureRow("other", [noise(4, 4)], ["c"]),
    ]
    described = describe_figure(PictureRows(rows), noise(2, 2), "")
    lines = [[tile["lines"] for tile in row["tiles"]] for row in described["rows"]]
    assert lines == [[["a"], ["b"]], [["c"]]]
    assert [row["title"] for row in described["rows"]] == ["title", "other"]


def test_tiles_are_stored_at_little_more_than_they_are_shown() -> None:
    row = FigureRow("", [noise(600, 300)], [""])
    described = describe_figure(PictureRows([row], 96), noise(2, 2), "")
    assert open_source(described["rows"][0]["tiles"][0]["source"]).size == (72, 144)


def test_charts_of_every_kind() -> None:
    panel = noise(2, 2)
    bars = describe_figure(BarChart(["a", "b"], [0.875, 0.0]), panel, "")
    assert bars["bars"] == [("a", 0.875, "87.5 %"), ("b", 0.0, "0.0 %")]
    dots = describe_figure(DotPlot(["a"], {"one": [0.5], "two": [0.1]}), panel, "")
    assert [title for title, _ in dots["charts"]] == ["one", "two"]
    plot = LinePlot("title", "x", {"first": ([0, 1], [0, 1]), "second": ([0, 1], [1, 0])})
    lines = describe_figure(LineChart([plot]), panel, "")
    assert [name for name, _ in lines["plots"][0]["legend"]] == ["first", "second"]
    assert describe_figure(Histogram([1, 2, 3], [], "x"), panel, "")["kind"] == "charts"
    pair = describe_figure(ImagePair(noise(30, 40), noise(30, 40, 1), "a", "b"), panel, "")
    assert (pair["width"], pair["height"]) == (384, 288)
    assert pair["first"] != pair["second"]


def test_drawn_pictures_are_stored_without_loss() -> None:
    drawn = torch.zeros(1, 3, 30, 50)
    drawn[:, 0, 10:20, 5:25] = 1
    drawn[:, 2, 3:7] = 0.2
    assert is_drawn(drawn)
    assert not is_drawn(noise(40, 40))
    image = open_source(encode_picture(drawn)).convert("RGB")
    levels = (drawn[0] * 255).round().byte()
    assert image.getpixel((6, 11)) == tuple(levels[:, 11, 6].tolist())
    assert image.getpixel((40, 5)) == tuple(levels[:, 5, 40].tolist())


def test_a_gray_photograph_is_not_stored_without_loss() -> None:
    gray = noise(60, 40).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert len(gray.mul(255).round().unique()) < MAX_LOSSLESS_COLORS
    assert not is_drawn(gray)
    assert len(encode_picture(gray)) < len(make_webp_uri(gray, lossless=True))


def test_a_picture_is_made_smaller_and_never_larger() -> None:
    assert limit_side(noise(30, 50), 25).shape == (1, 3, 15, 25)
    small = noise(3, 5)
    assert limit_side(small, 25) is small


@pytest.mark.parametrize(
    ("caption", "alt"),
    [
        ("The first sentence. The second.", "The first sentence."),
        ("Of 0.5 and more; then this", "Of 0.5 and more."),
        ("No end", "No end"),
        ("x" * 200, "x" * 159 + "…"),
    ],
)
def test_the_alternative_text_is_the_first_sentence(caption: str, alt: str) -> None:
    assert shorten_alt_text(caption) == alt


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.9999, "> 99.9 %"), (1e-5, "< 0.1 %"), (0.25, "25.0 %")],
)
def test_a_share_is_not_rounded_to_all_or_nothing(share: float, text: str) -> None:
    assert format_share(share) == text
