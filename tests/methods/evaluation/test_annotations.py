"""Every form of annotation marks the same pixels; broken files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth
from PIL import Image

import sightline as sl
from sightline.images.io.pictures import write
from sightline.methods.evaluation.annotations import (
    LabeledBox,
    make_sample_grids,
    mark_box,
    read_annotated_objects,
    turn_box,
)

REGION = torch.zeros(32, 32, dtype=torch.bool)
REGION[4:12, 16:28] = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of 32×32 with REGION as a mask, in boxes.csv and as Pascal VOC; one is broken."""
    for name in ("a", "b", "c"):
        write(smooth(seed=ord(name)), tmp_path / f"{name}.png")
    write(REGION.float().expand(1, 3, -1, -1), tmp_path / "a.mask.png")
    (tmp_path / "boxes.csv").write_text(
        "file,label,x0,y0,x1,y1\nb.png,cat,16,4,28,12\nd.png,cat,0,0,1,1\nb.png,cat,x\n"
    )
    box = "<bndbox><xmin>17</xmin><ymin>5</ymin><xmax>28</xmax><ymax>12</ymax></bndbox>"
    (tmp_path / "c.xml").write_text(
        f"<annotation><object><name>dog</name>{box}</object></annotation>"
    )
    write(smooth(), tmp_path / "e.png")
    (tmp_path / "e.xml").write_text("<annotation>")
    return tmp_path


def test_every_annotation_marks_the_same_pixels(folder: Path, tiny: sl.Model) -> None:
    problems: list[str] = []
    objects = list(read_annotated_objects(tiny, folder, problems))
    assert [(item.name, item.label) for item in objects] == [
        ("a.png", ""),
        ("b.png", "cat"),
        ("c.png", "dog"),
    ]
    assert all(torch.equal(item.region, REGION) for item in objects)
    assert [line.split(":")[0] for line in problems] == ["boxes.csv, line 4", "d.png", "e.png"]


def test_a_region_is_cropped_like_its_image(tmp_path: Path, tiny: sl.Model) -> None:
    """Of 32×48 pixels the network sees columns 8 to 39; the object's edges are the image's."""
    region = torch.zeros(32, 48, dtype=torch.bool)
    region[3:9, 20:46] = True
    image = torch.where(region, 0.9, 0.1).expand(1, 3, -1, -1)
    write(image, tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("file,label,x0,y0,x1,y1\na.png,cat,20,3,46,9\n")
    (annotated,) = read_annotated_objects(tiny, tmp_path, [])
    assert annotated.image.shape == (1, 3, 32, 32)
    assert torch.equal(annotated.region, region[:, 8:40])
    assert torch.equal(annotated.region, annotated.image[0, 0] > 0.5)


def test_boxes_of_one_label_are_one_object(tmp_path: Path, tiny: sl.Model) -> None:
    write(smooth(), tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text(
        "file,label,x0,y0,x1,y1\na.png,cat,0,0,4,8\na.png,dog,1,1,3,3\na.png,cat,20,16,31,20\n"
    )
    cat, dog = read_annotated_objects(tiny, tmp_path, [])
    assert (cat.label, dog.label) == ("cat", "dog")
    assert int(cat.region.sum()) == 4 * 8 + 11 * 4
    assert int(dog.region.sum()) == 4
    assert cat.region[7, 3]
    assert not cat.region[3, 7]


def test_a_box_has_rows_by_y_and_columns_by_x() -> None:
    region = torch.zeros(8, 12, dtype=torch.bool)
    mark_box(region, LabeledBox("", 7, 2, 12, 5))
    assert region.nonzero().amin(0).tolist() == [2, 7]
    assert region.nonzero().amax(0).tolist() == [4, 11]
    for box in ((0, 0, 13, 8), (0, 0, 12, 9), (-1, 0, 3, 3), (3, 3, 3, 5), (3, 5, 6, 5)):
        with pytest.raises(sl.SightlineError, match="does not lie in the image of 12×8"):
            mark_box(region, LabeledBox("", *box))


def test_a_mask_of_another_size_is_a_problem(tmp_path: Path, tiny: sl.Model) -> None:
    write(smooth(), tmp_path / "a.png")
    write(torch.ones(1, 3, 16, 24), tmp_path / "a.mask.png")
    problems: list[str] = []
    assert not list(read_annotated_objects(tiny, tmp_path, problems))
    assert problems == ["a.png: its mask is 16×24, the image 32×32"]


def test_an_object_beside_the_middle_is_a_problem(tmp_path: Path, tiny: sl.Model) -> None:
    write(torch.rand(1, 3, 32, 64), tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("file,label,x0,y0,x1,y1\na.png,cat,0,3,10,9\n")
    problems: list[str] = []
    assert not list(read_annotated_objects(tiny, tmp_path, problems))
    assert problems == ["a.png: cat lies outside the middle that the network sees"]


def test_a_grid_has_every_photograph_in_every_quarter(
    tiny: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "choose", lambda *_: torch.tensor([3, 0, 3, 2]))
    objects = list(make_sample_grids(tiny))
    assert [item.label for item in objects] == ["3", "0", "2"] * 4
    assert torch.stack([item.region.float() for item in objects]).sum(0).unique().tolist() == [4]
    assert {float(item.region.float().mean()) for item in objects if item.label == "3"} == {0.5}
    quarters = [item.image[0, :, item.region] for item in objects if item.label == "0"]
    assert all(torch.equal(quarter, quarters[0]) for quarter in quarters)


def write_voc(path: Path, size: tuple[int, int] | None, box: tuple[int, int, int, int]) -> None:
    """An annotation for an image of (height, width), or without a size; x1 and y1 exclusive."""
    x0, y0, x1, y1 = box
    size_text = ""
    if size is not None:
        size_text = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    sides = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    path.write_text(
        f"<annotation>{size_text}<object><name>dog</name><bndbox>{sides}</bndbox></object>"
        "</annotation>"
    )


def write_turned_picture(path: Path, orientation: int, box: tuple[int, int, int, int]) -> None:
    """A stored picture of 40×32 with a bright box, which its EXIF turns."""
    x0, y0, x1, y1 = box
    pixels = np.full((40, 32, 3), 20, np.uint8)
    pixels[y0:y1, x0:x1] = 240
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(path, exif=exif)


def find_bright_box(image: torch.Tensor) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what is bright in an image 1×3×H×W."""
    rows, columns = (image[0, 0] > 0.5).nonzero(as_tuple=True)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


STORED_BOX = (6, 11, 15, 29)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["stored", "upright", "without a size", "size 0"])
def test_voc_boxes_of_turned_pictures(
    tmp_path: Path, tiny: sl.Model, orientation: int, frame: str
) -> None:
    """The region is what is bright, whichever frame the annotation is in."""
    write_turned_picture(tmp_path / "a.png", orientation, STORED_BOX)
    upright = sl.read(tmp_path / "a.png")
    height, width = upright.shape[-2:]
    is_turned = orientation >= 5
    assert (height, width) == ((32, 40) if is_turned else (40, 32))
    box = find_bright_box(upright)
    sizes = {"stored": (40, 32), "upright": (height, width), "size 0": (0, 0)}
    if frame == "stored" and is_turned:
        box = STORED_BOX
    write_voc(tmp_path / "a.xml", sizes.get(frame), box)
    problems: list[str] = []
    (annotated,) = read_annotated_objects(tiny, tmp_path, problems)
    assert not problems
    assert torch.equal(annotated.region, annotated.image[0, 0] > 0.5)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_voc_annotations_of_another_size(tmp_path: Path, tiny: sl.Model, orientation: int) -> None:
    write_turned_picture(tmp_path / "a.png", orientation, STORED_BOX)
    write_turned_picture(tmp_path / "b.png", orientation, STORED_BOX)
    write_voc(tmp_path / "a.xml", (41, 32), STORED_BOX)
    write_voc(tmp_path / "b.xml", None, (1, 2, 9, 9))
    problems: list[str] = []
    objects = list(read_annotated_objects(tiny, tmp_path, problems))
    assert [item.name for item in objects] == ["b.png"]
    stored = "32×40 (stored as 40×32)" if orientation > 1 else "40×32"
    assert problems == [f"a.png: a.xml is for an image of 41×32; this one is {stored}"]


def test_turned_boxes_agree_with_turned_arrays() -> None:
    stored = torch.zeros(5, 7, dtype=torch.bool)
    stored[1:3, 2:6] = True
    turned = {
        5: stored.T,
        6: stored.rot90(-1),
        7: stored.rot90(2).T,
        8: stored.rot90(1),
    }
    for orientation, expected in turned.items():
        region = torch.zeros(7, 5, dtype=torch.bool)
        mark_box(region, turn_box(LabeledBox("", 2, 1, 6, 3), orientation, 7, 5))
        assert torch.equal(region, expected)
