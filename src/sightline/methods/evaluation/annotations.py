"""Images whose objects are marked, for the pointing game.

Beside an image NAME.jpg there may be NAME.mask.png (the object is what is not black) or NAME.xml
(boxes, Pascal VOC). One file boxes.csv in the folder may hold the boxes of any of its images, with
the header `file,label,x0,y0,x1,y1`: pixels of the upright image from its top left corner, x1 and y1
exclusive. Boxes of one label in one image together mark one object; an empty label stands for the
class that the caller chooses.

Without a folder there are grids of sample photographs, where each photograph is the object of the
class that the network predicts for it alone.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.picture import TRANSPOSED_ORIENTATIONS, read_orientation
from sightline.images.io.library import IMAGE_FILE_SUFFIXES
from sightline.images.io.pictures import read, sample
from sightline.images.transforms import resize_image
from sightline.models.model import Model

BOX_COLUMNS = ("file", "label", "x0", "y0", "x1", "y1")

MASK_SUFFIX = ".mask.png"
VOC_SUFFIX = ".xml"

# Photographs so different that a network hardly predicts the same class for two of them.
GRID_SAMPLES = ("rocket", "chelsea", "coffee", "astronaut")


class LabeledBox(NamedTuple):
    """A box in pixels, x1 and y1 exclusive, and its label."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class AnnotatedObject:
    """An object in an image.

    `name` is that of the file, `image` what the network sees, 1×3×H×W, `label` the object's class
    ("" if none is given) and `region` its pixels, H×W.
    """

    name: str
    image: Tensor
    label: str
    region: Tensor


# ── sample photographs ──


def make_sample_grids(model: Model) -> Iterator[AnnotatedObject]:
    """Four sample photographs in the quarters of one image, each once in each quarter (Böhle 2021).

    Photographs with the same predicted class together are one object.
    """
    # The paper enlarges the image to hold whole photographs. Many networks take one size only, so
    # here each photograph gets a quarter of it.
    side = model.size
    half = side // 2
    photographs = torch.cat([model.fit(sample(name)) for name in GRID_SAMPLES])
    labels = [str(index) for index in model.choose("top", photographs).tolist()]
    quarters = resize_image(photographs, half, half)
    for turn in range(len(GRID_SAMPLES)):
        image = torch.full((1, 3, side, side), 0.5)
        regions: dict[str, Tensor] = {}
        for number, (label, quarter) in enumerate(zip(labels, quarters, strict=True)):
            row, column = divmod((number + turn) % len(GRID_SAMPLES), 2)
            rows = slice(row * half, (row + 1) * half)
            columns = slice(column * half, (column + 1) * half)
            image[0, :, rows, columns] = quarter
            region = regions.setdefault(label, torch.zeros(side, side, dtype=torch.bool))
            region[rows, columns] = True
        for label, region in regions.items():
            yield AnnotatedObject(f"grid {turn + 1}", image, label, region)


# ── a folder of images ──


def read_annotated_objects(
    model: Model, folder: Path, problems: list[str]
) -> Iterator[AnnotatedObject]:
    """Every object in the folder, image by image.

    What can't be read, or lies outside of what the network sees, is added to `problems` as one line
    each. Raises SightlineError if there is no such folder, or none of its images is annotated.
    """
    if not folder.is_dir():
        raise SightlineError(f"folder is {str(folder)!r}; there is no such folder")
    boxes_by_file = read_box_table(folder / "boxes.csv", problems)
    for path in list_annotated_files(folder, boxes_by_file, problems):
        try:
            yield from read_image_objects(model, path, boxes_by_file.get(path.name, []))
        except (SightlineError, ElementTree.ParseError, ValueError) as error:
            reason = get_first_error_line(error)
            if not reason.startswith(path.name):
                reason = f"{path.name}: {reason}"
            problems.append(reason)


def list_annotated_files(
    folder: Path, boxes_by_file: Mapping[str, list[LabeledBox]], problems: list[str]
) -> list[Path]:
    """The folder's images that have a mask or boxes, sorted; boxes without an image are problems.

    Raises SightlineError if there are none.
    """
    images: list[Path] = []
    for path in sorted(folder.iterdir()):
        is_image = path.suffix.lower() in IMAGE_FILE_SUFFIXES
        if is_image and not path.name.endswith(MASK_SUFFIX):
            images.append(path)
    names = {path.name for path in images}
    for name in sorted(boxes_by_file.keys() - names):
        problems.append(f"{name}: no such file, but boxes.csv has boxes for it")

    annotated: list[Path] = []
    for path in images:
        has_mask = make_sibling_path(path, MASK_SUFFIX).is_file()
        has_voc_boxes = make_sibling_path(path, VOC_SUFFIX).is_file()
        if path.name in boxes_by_file or has_mask or has_voc_boxes:
            annotated.append(path)
    if not annotated:
        raise SightlineError(
            f"folder is {str(folder)!r}; none of its {len(images)} images has a mask "
            "(NAME.mask.png) or boxes (NAME.xml, boxes.csv)"
        )
    return annotated


def read_image_objects(
    model: Model, path: Path, boxes: list[LabeledBox]
) -> Iterator[AnnotatedObject]:
    """The objects of one image, by its mask and its boxes.

    Raises SightlineError for a file that can't be read and for an object that the network does not
    see.
    """
    image = read(path)
    height, width = image.shape[-2:]
    regions: dict[str, Tensor] = {}
    mask_path = make_sibling_path(path, MASK_SUFFIX)
    if mask_path.is_file():
        regions[""] = read_mask(mask_path, height, width)
    voc_boxes = read_voc_boxes(make_sibling_path(path, VOC_SUFFIX), path, height, width)
    for box in boxes + voc_boxes:
        region = regions.setdefault(box.label, torch.zeros(height, width, dtype=torch.bool))
        mark_box(region, box)

    for label, region in regions.items():
        # The region is resized and cropped like the image.
        fitted_region = model.fit(region.float().expand(1, 3, -1, -1))[0, 0] > 0.5
        if not fitted_region.any():
            raise SightlineError(
                f"{label or 'the object'} lies outside the middle that the network sees"
            )
        yield AnnotatedObject(path.name, model.fit(image), label, fitted_region)


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """A mask file as H×W, True where it is not black. Raises SightlineError for another size."""
    mask = read(path).amax(1)[0] > 0
    if mask.shape != (height, width):
        raise SightlineError(
            f"its mask is {mask.shape[0]}×{mask.shape[1]}, the image {height}×{width}"
        )
    return mask


def mark_box(region: Tensor, box: LabeledBox) -> None:
    """Sets a box in a region H×W to True. Raises SightlineError if it does not lie in the image."""
    height, width = region.shape
    x0, y0, x1, y1 = (round(side) for side in box[1:])
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise SightlineError(
            f"the box {x0}, {y0}, {x1}, {y1} does not lie in the image of {width}×{height}"
        )
    region[y0:y1, x0:x1] = True


def make_sibling_path(path: Path, suffix: str) -> Path:
    """The path of the file with the same stem and another suffix."""
    return path.with_name(path.stem + suffix)


def read_box_table(path: Path, problems: list[str]) -> dict[str, list[LabeledBox]]:
    """The boxes of boxes.csv by file name, none if there is no such file.

    A line that can't be read is added to `problems`. Raises SightlineError for another header.
    """
    boxes_by_file: dict[str, list[LabeledBox]] = {}
    if not path.is_file():
        return boxes_by_file
    expected_header = ",".join(BOX_COLUMNS)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if tuple(header) != BOX_COLUMNS:
            raise SightlineError(
                f"boxes.csv begins with {','.join(header)!r:.80}; "
                f"its first line must be {expected_header}"
            )
        for line_number, line in enumerate(lines, 2):
            try:
                name, label, *sides = line
                x0, y0, x1, y1 = map(float, sides)
            except ValueError:
                problems.append(f"boxes.csv, line {line_number}: not {expected_header}")
                continue
            boxes_by_file.setdefault(name, []).append(LabeledBox(label, x0, y0, x1, y1))
    return boxes_by_file


def read_voc_boxes(path: Path, image_path: Path, height: int, width: int) -> list[LabeledBox]:
    """The boxes of a Pascal VOC annotation in its upright image, none if there is no such file.

    The boxes of a file whose EXIF turns it by a quarter may be of the stored image: that is so
    where the annotation's size is. Raises SightlineError where it is neither's.
    """
    if not path.is_file():
        return []
    root = ElementTree.parse(path).getroot()
    boxes = list_voc_boxes(root)
    annotated_height, annotated_width = (
        int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width")
    )
    # Some programs leave the size out, or write 0.
    if (annotated_height, annotated_width) == (height, width) or not annotated_height:
        return boxes
    orientation = read_orientation(image_path)
    is_turned = orientation in TRANSPOSED_ORIENTATIONS
    if is_turned and (annotated_height, annotated_width) == (width, height):
        return [turn_box(box, orientation, height, width) for box in boxes]
    stored = f" (stored as {width}×{height})" if is_turned else ""
    raise SightlineError(
        f"{path.name} is for an image of {annotated_height}×{annotated_width}; "
        f"this one is {height}×{width}{stored}"
    )


def turn_box(box: LabeledBox, orientation: int, height: int, width: int) -> LabeledBox:
    """A box of the stored image in the upright one, which has this height and width.

    The orientation is one that exchanges rows and columns.
    """
    # Transposed, as in orientation 5; the others mirror the transposed image.
    label, y0, x0, y1, x1 = box
    if orientation in (6, 7):
        x0, x1 = width - x1, width - x0
    if orientation in (7, 8):
        y0, y1 = height - y1, height - y0
    return LabeledBox(label, x0, y0, x1, y1)


def list_voc_boxes(root: ElementTree.Element) -> list[LabeledBox]:
    """The boxes in a Pascal VOC annotation."""
    boxes: list[LabeledBox] = []
    for element in root.iter("object"):
        xmin, ymin, xmax, ymax = (
            float(element.findtext(f"bndbox/{side}", "nan"))
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
        # Pascal VOC counts pixels from 1 and includes the far ends.
        boxes.append(LabeledBox(element.findtext("name", ""), xmin - 1, ymin - 1, xmax, ymax))
    return boxes
