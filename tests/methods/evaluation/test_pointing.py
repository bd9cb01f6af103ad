"""The pointing game: hits and energy counted by hand, every form of annotation, and folders with broken files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.images import io as images
from sightline.methods import load_methods
from sightline.methods.evaluation import annotations, pointing
from sightline.registry.method import METHODS

REGION = torch.zeros(32, 32, dtype=torch.bool)
REGION[4:12, 16:28] = True


def spot(row: int, column: int) -> Tensor:
    map_ = torch.zeros(32, 32)
    map_[row, column] = 1
    return map_


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 32×32 with the same place marked as a mask, in boxes.csv and as Pascal VOC; the last one is broken."""
    for name in ("a", "b", "c"):
        images.write(smooth(seed=ord(name)), tmp_path / f"{name}.png")
    images.write(REGION.float().expand(1, 3, -1, -1), tmp_path / "a.mask.png")
    (tmp_path / "boxes.csv").write_text(
        "file,label,x0,y0,x1,y1\nb.png,cat,16,4,28,12\nd.png,cat,0,0,1,1\nb.png,cat,x\n"
    )
    box = "<bndbox><xmin>17</xmin><ymin>5</ymin><xmax>28</xmax><ymax>12</ymax></bndbox>"
    (tmp_path / "c.xml").write_text(
        f"<annotation><object><name>dog</name>{box}</object></annotation>"
    )
    images.write(smooth(), tmp_path / "e.png")
    (tmp_path / "e.xml").write_text("<annotation>")
    return tmp_path


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """Puts a map H×W in gradcam's place."""
    load_methods()

    def plant(map_: Tensor) -> None:
        def run(_model: sl.Model, image: Tensor, *, label: int) -> sl.Result:
            return sl.Result({}, {"map": map_.expand(len(image), -1, -1)})

        monkeypatch.setitem(METHODS, "gradcam", replace(METHODS["gradcam"], function=run))

    return plant


@pytest.mark.parametrize(
    ("row", "column", "tolerance", "wanted"),
    [(4, 16, 0, 1), (3, 16, 0, 0), (3, 16, 1, 1), (0, 13, 4, 0), (0, 13, 5, 1)],
)
def test_a_hit_is_a_maximum_so_near(row: int, column: int, tolerance: int, wanted: int) -> None:
    assert float(pointing.compute_hit_share(spot(row, column), REGION, tolerance)) == wanted


def test_an_even_map_is_chance() -> None:
    near = (
        sum(
            (max(4 - y, 0, y - 11) ** 2 + max(16 - x, 0, x - 27) ** 2) ** 0.5 <= 3
            for y in range(32)
            for x in range(32)
        )
        / 1024
    )
    assert float(pointing.compute_hit_share(torch.ones(32, 32), REGION, 3)) == pytest.approx(near)
    assert float(pointing.compute_energy_share(torch.ones(32, 32), REGION)) == pytest.approx(
        96 / 1024
    )
    assert float(pointing.compute_energy_share(-torch.ones(32, 32), REGION)) == pytest.approx(
        96 / 1024
    )


def test_energy_is_the_share_of_the_positive_part() -> None:
    assert float(
        pointing.compute_energy_share(3 * spot(5, 20) + spot(30, 1) - 9 * spot(0, 0), REGION)
    ) == pytest.approx(0.75)


def test_every_annotation_marks_the_same_place(folder: Path, tiny: sl.Model) -> None:
    broken: list[str] = []
    found = list(annotations.read_annotated_objects(tiny, folder, broken))
    assert [(one.name, one.label) for one in found] == [
        ("a.png", ""),
        ("b.png", "cat"),
        ("c.png", "dog"),
    ]
    assert all(torch.equal(one.region, REGION) for one in found)
    assert [line.split(":")[0] for line in broken] == ["boxes.csv, line 4", "d.png", "e.png"]


def test_one_table_for_several_methods(
    folder: Path, tiny: sl.Model, planted: Callable[[Tensor], None]
) -> None:
    planted(spot(5, 20))
    result = sl.pointing(
        tiny, folder=folder, methods=("gradcam", "saliency:smoothgrad"), tolerance=0
    )
    table: Any = result.values["table"]
    assert [row["method"] for row in table] == [
        "gradcam",
        "saliency (smoothgrad)",
        "chance",
        "middle",
    ]
    assert (table[0]["pointing"], table[0]["energy"]) == (1, 1)
    assert table[2]["pointing"] == table[2]["energy"] == pytest.approx(96 / 1024)
    assert result.tensors["hits"].shape == (4, 3)
    assert "gradcam" in result.captions["pointing"]
    assert "3 could not be used" in result.captions["pointing"]


def test_a_grid_has_every_photograph_in_every_quarter(
    tiny: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "choose", lambda *_: torch.tensor([3, 0, 3, 2]))
    found = list(annotations.make_sample_grids(tiny))
    assert [one.label for one in found] == ["3", "0", "2"] * 4
    assert torch.stack([one.region.float() for one in found]).sum(0).unique().tolist() == [4]
    assert {float(one.region.float().mean()) for one in found if one.label == "3"} == {0.5}
    cells = [one.image[0, :, one.region] for one in found if one.label == "0"]
    assert all(torch.equal(cell, cells[0]) for cell in cells)


def test_without_a_folder_the_grids_are_played_on(
    tiny: sl.Model, planted: Callable[[Tensor], None]
) -> None:
    planted(spot(5, 20))
    result = sl.pointing(tiny, methods=("gradcam",))
    assert len(result.values["objects"]) == result.tensors["hits"].shape[1]  # type: ignore[arg-type]
    assert "photographs in grids" in result.captions["pointing"]


def test_only_a_clear_lead_is_called_one() -> None:
    table = [
        {"method": "a", "pointing": 0.5},
        {"method": "b", "pointing": 0.4},
        {"method": "chance", "pointing": 0.25},
        {"method": "middle", "pointing": 0.2},
    ]
    assert (
        pointing.describe_successful_methods(table, 16)
        == "a hits them clearly more often than chance and the middle of the picture."
    )
    assert pointing.describe_successful_methods(table, 4).startswith("None of these maps hits")
    assert pointing.describe_successful_methods(table, 400).startswith("a, b hit them")


@pytest.mark.parametrize(
    ("files", "knobs", "told"),
    [
        ({}, {}, "has a mask"),
        ({"boxes.csv": "a,b\n"}, {}, "its first line must be file,label,x0,y0,x1,y1"),
        (
            {"boxes.csv": "file,label,x0,y0,x1,y1\np.png,cat,0,0,99,9\n"},
            {},
            "does not lie in the picture of 32×32",
        ),
        ({"boxes.csv": "file,label,x0,y0,x1,y1\np.png,caat,0,0,9,9\n"}, {}, "caat"),
        ({}, {"folder": "nowhere"}, "there is no such folder"),
        ({}, {"methods": ("predictions",)}, "no method with a map named 'predictions'"),
        ({}, {"methods": ()}, "methods is empty"),
    ],
)
def test_refuses_in_one_line(
    tmp_path: Path, tiny: sl.Model, files: dict[str, str], knobs: dict[str, Any], told: str
) -> None:
    images.write(smooth(), tmp_path / "p.png")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    told_knobs: dict[str, Any] = {"folder": tmp_path, "methods": ("gradcam",), **knobs}
    with pytest.raises(sl.SightlineError) as error:
        sl.pointing(tiny, **told_knobs)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
