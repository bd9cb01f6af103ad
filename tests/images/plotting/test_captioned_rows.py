"""Rows of pictures: each picture in its tile, undistorted, captions cut to its width."""

import matplotlib as mpl
import matplotlib.figure
import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting import captioned_rows
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows

SIDE = 40


def make_picture(height: int, width: int, value: float = 0.4) -> Tensor:
    return torch.full((1, 3, height, width), value)


def find_boxes(figure: Tensor, value: float = 0.4) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom, right of the areas of a gray value, by row and column."""
    from scipy.ndimage import find_objects, label

    areas, _ = label(((figure[0] - value).abs().amax(0) < 0.01).numpy())
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in find_objects(areas)]
    return sorted(box for box in boxes if box[2] - box[0] > 3 and box[3] - box[1] > 3)


def test_pictures_are_centered_in_their_tiles_and_keep_their_aspect() -> None:
    pictures = [make_picture(20, 40), make_picture(60, 30), make_picture(10, 10)]
    figure = compose_figure_rows([FigureRow("", pictures, ["", "", ""])], SIDE)
    assert figure.shape == (1, 3, SIDE + 8 + 10, 3 * SIDE + 2 * 8 + 2 * 10)
    top, left, step = 5, 10, SIDE + 8
    assert find_boxes(figure) == sorted(
        [
            (top + 10, left, top + 30, left + 40),
            (top, left + step + 10, top + 40, left + step + 30),
            (top, left + 2 * step, top + 40, left + 2 * step + 40),
        ]
    )


def test_leading_pictures_are_set_apart() -> None:
    pictures = [make_picture(10, 10)] * 4
    plain = compose_figure_rows([FigureRow("", pictures, [""] * 4)], SIDE)
    apart = compose_figure_rows([FigureRow("", pictures, [""] * 4, lead_count=2)], SIDE)
    assert apart.shape[3] == plain.shape[3] + 24
    shifts = [
        after[1] - before[1]
        for before, after in zip(find_boxes(plain), find_boxes(apart), strict=True)
    ]
    assert shifts == [0, 0, 24, 24]


def test_rows_stand_below_each_other_with_room_for_title_and_captions() -> None:
    rows = [
        FigureRow("Title", [make_picture(10, 10)], ["caption"]),
        FigureRow("", [make_picture(10, 10)] * 3, [""] * 3),
        FigureRow("Last", [make_picture(10, 10)], [""]),
    ]
    figure = compose_figure_rows(rows, SIDE)
    assert figure.shape[2] == 10 + (24 + SIDE + 32) + (SIDE + 8) + (24 + SIDE + 8)
    assert figure.shape[3] == 3 * SIDE + 2 * 8 + 2 * 10
    tops = sorted({box[0] for box in find_boxes(figure)})
    assert tops == [5 + 24, 5 + 96, 5 + 96 + 48 + 24]


def test_captions_are_cut_to_their_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[mpl.figure.Figure] = []

    def record(figure: mpl.figure.Figure) -> Tensor:
        figures.append(figure)
        return torch.ones(1, 3, 1, 1)

    monkeypatch.setattr(captioned_rows, "rasterize_figure", record)
    row = FigureRow("A title", [make_picture(10, 10)] * 2, ["12345678\n123456789", "b"])
    compose_figure_rows([row], SIDE)
    texts = figures[0].texts
    assert [text.get_text() for text in texts] == ["A title", "12345678\n1234567…", "b"]
    width = 2 * SIDE + 8 + 20
    height = 24 + SIDE + 32 + 10
    centers = [text.get_position()[0] * width for text in texts[1:]]
    assert centers == pytest.approx([10 + SIDE / 2, 10 + SIDE + 8 + SIDE / 2])
    assert texts[1].get_position()[1] == pytest.approx(1 - (5 + 24 + SIDE + 16) / height)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(SightlineError, match="an image is N×3×H×W"):
        compose_figure_rows([FigureRow("", [make_picture(4, 5, 2.0)], [""])])


def test_a_long_title_takes_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[mpl.figure.Figure] = []

    def record(figure: mpl.figure.Figure) -> Tensor:
        figures.append(figure)
        return torch.ones(1, 3, 1, 1)

    pictures = [make_picture(10, 10)] * 4  # 184 pixels: titles of 25 characters
    rows = [
        FigureRow("twenty-five characters -- and a few more", pictures, [""] * 4),
        FigureRow("word " * 40, pictures, [""] * 4),
    ]
    height = compose_figure_rows(rows, SIDE).shape[2]
    assert height == 10 + (24 + 15 + SIDE + 8) + (24 + 2 * 15 + SIDE + 8)
    monkeypatch.setattr(captioned_rows, "rasterize_figure", record)
    compose_figure_rows(rows, SIDE)
    titles = [text.get_text() for text in figures[0].texts if len(text.get_text()) > 1]
    assert titles[0] == "twenty-five characters --\nand a few more"
    assert titles[1].count("\n") == 2
    assert titles[1].endswith("word …")
