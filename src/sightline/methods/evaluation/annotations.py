"""Pictures of which it is known what is where: what the pointing game is played on.

Beside a picture NAME.jpg may lie NAME.mask.png (the object is what is not black) or NAME.xml (boxes, Pascal VOC). One file boxes.csv
in the folder has the boxes of any of its pictures, with the header `file,label,x0,y0,x1,y1`: pixels of the upright picture from its
top left corner, x1 and y1 exclusive. Boxes of one label in one picture are one object's place; an empty label is the class asked for.

Without a folder there are grids of sample photographs, each the object of the class that it is given alone.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.io import read, resize_image, sample
from sightline.images.library import IMAGE_FILE_SUFFIXES
from sightline.models.model import Model

LabeledBox = tuple[str, float, float, float, float]

BOX_COLUMNS = ("file", "label", "x0", "y0", "x1", "y1")

# Photographs so different that a network hardly gives two of them the same class.
GRID_SAMPLES = ("rocket", "chelsea", "coffee", "astronaut")


@dataclass(frozen=True)
class AnnotatedObject:
    """A picture as the network sees it 1×3×H×W, the name of a class ("" if none is told), and where it is, H×W."""

    name: str
    image: Tensor
    label: str
    region: Tensor


def make_sample_grids(model: Model) -> Iterator[AnnotatedObject]:
    """Sample photographs in the four quarters of one image, every one in every quarter once (Böhle 2021)."""
    # The paper enlarges the image to hold whole pictures; many networks take only one size, so here each gets a quarter of it.
    side, half = model.size, model.size // 2
    whole = torch.cat([model.fit(sample(name)) for name in GRID_SAMPLES])
    labels, parts = (
        [str(index) for index in model.choose("top", whole).tolist()],
        resize_image(whole, half, half),
    )
    for turn in range(len(GRID_SAMPLES)):
        image, regions = torch.full((1, 3, side, side), 0.5), dict[str, Tensor]()
        for number, (label, part) in enumerate(zip(labels, parts, strict=True)):
            row, column = divmod((number + turn) % 4, 2)
            place = slice(row * half, (row + 1) * half), slice(column * half, (column + 1) * half)
            image[0, :, *place] = part
            regions.setdefault(label, torch.zeros(side, side, dtype=torch.bool))[place] = True
        yield from (
            AnnotatedObject(f"grid {turn + 1}", image, label, region)
            for label, region in regions.items()
        )


def read_annotated_objects(
    model: Model, folder: Path, problems: list[str]
) -> Iterator[AnnotatedObject]:
    """Every object of the folder, picture by picture; what can't be read or isn't seen is noted in `broken`, one line each.

    Raises SightlineError when there is no such folder, and when none of its pictures has a mask or boxes beside it.
    """
    if not folder.is_dir():
        raise SightlineError(f"folder is {str(folder)!r}; there is no such folder")
    table = read_box_table(folder / "boxes.csv", problems)
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_FILE_SUFFIXES and not path.name.endswith(".mask.png")
    ]
    known = [
        path
        for path in files
        if path.name in table
        or any(make_sibling_path(path, end).is_file() for end in (".mask.png", ".xml"))
    ]
    problems += [
        f"{name}: no such file, but boxes.csv has boxes of it"
        for name in sorted(table.keys() - {path.name for path in files})
    ]
    if not known:
        raise SightlineError(
            f"folder is {str(folder)!r}; none of its {len(files)} pictures has a mask (NAME.mask.png) or boxes (NAME.xml, boxes.csv)"
        )
    for path in known:
        try:
            yield from read_image_objects(model, path, table.get(path.name, []))
        except (SightlineError, ElementTree.ParseError, ValueError) as error:
            reason = get_first_error_line(error)
            problems.append(reason if reason.startswith(path.name) else f"{path.name}: {reason}")


def read_image_objects(
    model: Model, path: Path, boxes: list[LabeledBox]
) -> Iterator[AnnotatedObject]:
    """The objects of one picture, by its mask or its boxes. Raises SightlineError for what is broken or outside of what is seen."""
    picture = read(path)
    height, width = picture.shape[-2:]
    regions: dict[str, Tensor] = {}
    if make_sibling_path(path, ".mask.png").is_file():
        mask = read(make_sibling_path(path, ".mask.png")).amax(1)[0] > 0
        if mask.shape != (height, width):
            raise SightlineError(
                f"its mask is {mask.shape[0]}×{mask.shape[1]}, the picture {height}×{width}"
            )
        regions[""] = mask
    for label, *sides in boxes + read_voc_boxes(make_sibling_path(path, ".xml")):
        left, top, right, bottom = (round(side) for side in sides)
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise SightlineError(
                f"the box {left}, {top}, {right}, {bottom} does not lie in the picture of {width}×{height}"
            )
        regions.setdefault(label, torch.zeros(height, width, dtype=torch.bool))[
            top:bottom, left:right
        ] = True
    for label, region in regions.items():
        # The mask goes the way of the picture, resized and cropped.
        seen = model.fit(region.float().expand(1, 3, -1, -1))[0, 0] > 0.5
        if not seen.any():
            raise SightlineError(
                f"{label or 'the object'} lies outside the middle that the network sees"
            )
        yield AnnotatedObject(path.name, model.fit(picture), label, seen)


def make_sibling_path(path: Path, suffix: str) -> Path:
    """The file of the picture's name with another ending."""
    return path.with_name(path.stem + suffix)


def read_box_table(path: Path, problems: list[str]) -> dict[str, list[LabeledBox]]:
    """The boxes of boxes.csv by file; a line that can't be read is noted. Raises SightlineError for another header."""
    found: dict[str, list[LabeledBox]] = {}
    if not path.is_file():
        return found
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if tuple(header) != BOX_COLUMNS:
            raise SightlineError(
                f"boxes.csv begins with {','.join(header)!r:.80}; its first line must be {','.join(BOX_COLUMNS)}"
            )
        for number, line in enumerate(lines, 2):
            try:
                name, label, *sides = line
                left, top, right, bottom = map(float, sides)
                found.setdefault(name, []).append((label, left, top, right, bottom))
            except ValueError:
                problems.append(f"boxes.csv, line {number}: not {','.join(BOX_COLUMNS)}")
    return found


def read_voc_boxes(path: Path) -> list[LabeledBox]:
    """The boxes of a Pascal VOC annotation, whose pixels count from 1 and whose far ends are inside; none without the file."""
    if not path.is_file():
        return []
    found: list[LabeledBox] = []
    for one in ElementTree.parse(path).getroot().iter("object"):
        left, top, right, bottom = (
            float(one.findtext(f"bndbox/{side}", "nan"))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        found.append((one.findtext("name", ""), left - 1, top - 1, right, bottom))
    return found
