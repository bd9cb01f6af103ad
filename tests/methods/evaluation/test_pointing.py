"""The pointing game: hits and energy counted by hand, and folders with broken files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.images.io.pictures import write
from sightline.methods.evaluation.pointing import (
    MethodScore,
    compute_energy_share,
    compute_hit_share,
    describe_successful_methods,
    make_middle_spot,
)

HEIGHT = 24
WIDTH = 40
# An object near the right border: with rows and columns exchanged, it lies elsewhere.
REGION = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
REGION[4:12, 28:38] = True


def spot(row: int, column: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    heatmap = torch.zeros(height, width)
    heatmap[row, column] = 1
    return heatmap


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of 32×32 whose object fills rows 4 to 11 and columns 16 to 27, and a broken one."""
    lines = ["file,label,x0,y0,x1,y1"]
    for name in ("a", "b", "c"):
        write(smooth(seed=ord(name)), tmp_path / f"{name}.png")
        lines.append(f"{name}.png,cat,16,4,28,12")
    lines += ["d.png,cat,0,0,1,1", "b.png,cat,x"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    write(smooth(), tmp_path / "e.png")
    (tmp_path / "e.xml").write_text("<annotation>")
    return tmp_path


# ── hits and energy ──


@pytest.mark.parametrize(
    ("row", "column", "tolerance", "hit"),
    [
        (4, 28, 0, 1),
        (11, 37, 0, 1),
        (3, 28, 0, 0),
        (4, 38, 0, 0),
        (3, 28, 1, 1),
        (12, 38, 1, 0),  # a diagonal step is longer than 1
        (0, 25, 4, 0),
        (0, 25, 5, 1),
        (16, 35, 5, 1),
        (16, 35, 4, 0),
    ],
)
def test_a_hit_is_a_maximum_within_the_tolerance(
    row: int, column: int, tolerance: int, hit: int
) -> None:
    assert float(compute_hit_share(spot(row, column), REGION, tolerance)) == hit


def test_a_maximum_hits_at_its_own_row_and_column() -> None:
    """Every pixel of a map that is not square, so that no other reading of a flat index agrees."""
    for row, column in np.ndindex(HEIGHT, WIDTH):
        hit = float(compute_hit_share(spot(row, column), REGION, 0))
        assert hit == float(REGION[row, column]), (row, column)
    tall, tall_region = WIDTH, REGION.T
    for row, column in np.ndindex(tall, HEIGHT):
        heatmap = spot(row, column, tall, HEIGHT)
        assert float(compute_hit_share(heatmap, tall_region, 0)) == float(tall_region[row, column])


def test_of_several_maxima_the_share_that_hits_counts() -> None:
    heatmap = spot(4, 28) + spot(5, 30) + spot(0, 0) + spot(20, 30) + 0.9 * spot(6, 30)
    assert float(compute_hit_share(heatmap, REGION, 0)) == pytest.approx(0.5)


def test_a_constant_map_is_chance() -> None:
    near = 0
    for y, x in np.ndindex(HEIGHT, WIDTH):
        rows_away = max(4 - y, 0, y - 11)
        columns_away = max(28 - x, 0, x - 37)
        near += (rows_away**2 + columns_away**2) ** 0.5 <= 3
    constant = torch.ones(HEIGHT, WIDTH)
    share = near / (HEIGHT * WIDTH)
    assert float(compute_hit_share(constant, REGION, 3)) == pytest.approx(share)
    inside = 80 / (HEIGHT * WIDTH)
    for heatmap in (constant, -constant):
        assert float(compute_energy_share(heatmap, REGION)) == pytest.approx(inside)


def test_energy_is_the_share_of_the_positive_part() -> None:
    heatmap = 3 * spot(5, 30) + spot(20, 1) - 9 * spot(0, 0)
    assert float(compute_energy_share(heatmap, REGION)) == pytest.approx(0.75)


def test_the_middle_spot_is_in_the_middle() -> None:
    heatmap = make_middle_spot(5, 9)
    assert divmod(int(heatmap.argmax()), 9) == (2, 4)
    assert heatmap[2, 4] == 1
    # As far from the middle, measured in half the side, in either direction.
    torch.testing.assert_close(heatmap[0, 4], heatmap[2, 0])
    assert float(heatmap[2, 0]) == pytest.approx(np.exp(-2))


# ── the method ──


def test_one_table_for_several_methods(
    folder: Path, tiny: sl.Model, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(lambda _model, image: spot(5, 20, 32, 32).expand(len(image), -1, -1))
    result = sl.pointing(
        tiny, folder=folder, methods=("gradcam", "saliency:smoothgrad"), tolerance=0
    )
    table: Any = result.values["table"]
    names = ["gradcam", "saliency (smoothgrad)", "chance", "middle"]
    assert [row["method"] for row in table] == names
    assert (table[0]["pointing"], table[0]["energy"]) == (1, 1)
    assert table[2]["pointing"] == table[2]["energy"] == pytest.approx(96 / 1024)
    hits, energies = result.tensors["hits"], result.tensors["energies"]
    assert hits.shape == energies.shape == (4, 3)
    for i, row in enumerate(table):
        assert row["pointing"] == pytest.approx(float(hits[i].mean()))
        assert row["energy"] == pytest.approx(float(energies[i].mean()))
    assert result.values["objects"] == ["a.png", "b.png", "c.png"]
    problems: Any = result.values["broken"]
    assert [line.split(":")[0] for line in problems] == ["boxes.csv, line 6", "d.png", "e.png"]
    assert "gradcam" in result.captions["pointing"]
    assert "3 could not be used" in result.captions["pointing"]


def test_the_figure_shows_the_first_object_and_the_methods_alone(
    folder: Path, tiny: sl.Model, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(lambda _model, image: spot(5, 20, 32, 32).expand(len(image), -1, -1))
    result = sl.pointing(tiny, folder=folder, methods=("gradcam", "saliency"), label="dog")
    panel = result.panels["maps"]
    assert panel.shape == (1, 3, 32, 3 * 32 + 2 * 4)
    image = tiny.fit(smooth(seed=ord("a")))
    region = torch.zeros(32, 32, dtype=torch.bool)
    region[4:12, 16:28] = True
    shown = panel[..., :32]
    torch.testing.assert_close(shown[..., region], image[..., region], atol=5e-3, rtol=0)
    dimmed = 0.4 * image[..., ~region]
    torch.testing.assert_close(shown[..., ~region], dimmed, atol=5e-3, rtol=0)
    assert result.captions["maps"].startswith("a.png, all but the object dimmed")


def test_without_a_folder_the_grids_are_played_on(
    tiny: sl.Model, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(lambda _model, image: spot(5, 20, 32, 32).expand(len(image), -1, -1))
    result = sl.pointing(tiny, methods=("gradcam",))
    objects: Any = result.values["objects"]
    assert len(objects) == result.tensors["hits"].shape[1]
    assert "photographs in grids" in result.captions["pointing"]
    assert "pixels beside" not in result.captions["pointing"]
    assert result.captions["maps"].startswith("Sample photographs in the quarters of one image")


def test_only_a_clear_lead_is_called_one() -> None:
    table = [
        MethodScore("a", 0.5, 0.0),
        MethodScore("b", 0.4, 0.0),
        MethodScore("chance", 0.25, 0.0),
        MethodScore("middle", 0.2, 0.0),
    ]
    assert (
        describe_successful_methods(table, 16)
        == "a hits them clearly more often than chance and the middle of the image."
    )
    few = describe_successful_methods(table, 4)
    assert few.startswith("None of these attributions hits")
    assert describe_successful_methods(table, 400).startswith("a, b hit them")


@pytest.mark.parametrize(("share", "start"), [(0.7, "None of these"), (0.71, "a hits them")])
def test_two_standard_errors_are_not_yet_clear(share: float, start: str) -> None:
    """Of 25 objects chance hits half: 0.5 ± 0.1."""
    table = [
        MethodScore("a", share, 0.0),
        MethodScore("chance", 0.2, 0.0),
        MethodScore("middle", 0.5, 0.0),
    ]
    assert describe_successful_methods(table, 25).startswith(start)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, "has a mask"),
        ({"boxes.csv": "a,b\n"}, {}, "its first line must be file,label,x0,y0,x1,y1"),
        (
            {"boxes.csv": "file,label,x0,y0,x1,y1\np.png,cat,0,0,99,9\n"},
            {},
            "does not lie in the image of 32×32",
        ),
        ({"boxes.csv": "file,label,x0,y0,x1,y1\np.png,caat,0,0,9,9\n"}, {}, "caat"),
        ({}, {"folder": "nowhere"}, "there is no such folder"),
        ({}, {"methods": ("predictions",)}, "no attribution method named 'predictions'"),
        ({}, {"methods": ()}, "methods is empty"),
        ({}, {"label": "zebra"}, "zebra"),
    ],
)
def test_refuses_in_one_line(
    tmp_path: Path, tiny: sl.Model, files: dict[str, str], options: dict[str, Any], message: str
) -> None:
    write(smooth(), tmp_path / "p.png")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    options = {"folder": tmp_path, "methods": ("gradcam",), **options}
    with pytest.raises(sl.SightlineError) as error:
        sl.pointing(tiny, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
