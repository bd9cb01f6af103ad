"""Network Dissection (Bau 2017): which concept's masks does each unit of a layer fire inside, by intersection over union.

Masks lie in a folder: CONCEPT/NAME.png for the image NAME of the collection, the concept where it is not black. Images without any mask
don't count. A unit's threshold is what 0.5 % of its responses at all places of these images exceed (section 2.2 of the paper).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode import fit_square, stack_squares
from sightline.images.io import read
from sightline.images.library import IMAGE_FILE_SUFFIXES
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid
from sightline.models.tracing.crops import find_receptive_window

ABOVE_THRESHOLD_SHARE = 0.005  # share of places above a unit's threshold

MIN_DETECTOR_IOU = 0.04  # intersection over union beyond which a unit detects a concept

DISSECTION_BATCH_SIZE = 16  # images that go through the network at once

OUTSIDE_BRIGHTNESS = 0.3  # of an image outside of where a unit fires


@dataclass(frozen=True)
class ConceptMasks:
    """Names of concepts, files by image and concept, and what could not be used."""

    concepts: list[str]
    mask_files: dict[int, dict[int, Path]]
    unused_masks: list[str]

    @classmethod
    def from_folder(cls, scan: Scan, folder: Path) -> "ConceptMasks":
        """The masks of a collection's images. Raises SightlineError if there are none, or two images of one name have one."""
        if not folder.is_dir():
            raise SightlineError(f"masks is {str(folder)!r}; there is no such folder")
        concepts = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        ids: dict[str, list[int]] = {}
        for id, path in enumerate(scan.paths):
            ids.setdefault(Path(path).stem, []).append(id)
        files: dict[int, dict[int, Path]] = {}
        broken: list[str] = []
        for number, concept in enumerate(concepts):
            for path in sorted(
                entry
                for entry in (folder / concept).iterdir()
                if entry.suffix.lower() in IMAGE_FILE_SUFFIXES
            ):
                owners = ids.get(path.stem, [])
                if len(owners) > 1:
                    raise SightlineError(
                        f"{concept}/{path.name} is the mask of {len(owners)} images named {path.stem}; names must differ"
                    )
                if owners:
                    files.setdefault(owners[0], {})[number] = path
                else:
                    broken.append(f"{concept}/{path.name}: no image of that name")
        if not files:
            raise SightlineError(
                f"masks is {str(folder)!r}; it has no CONCEPT/NAME.png for any image NAME of the {scan.images}"
            )
        return cls(concepts, files, broken)

    def load_concept_regions(self, scan: Scan, image_id: int) -> Tensor:
        """Where each concept is in what the network saw of an image, concepts×side×side; broken masks are noted and empty."""
        side, short = scan.network["side"], scan.network["short"]
        regions = torch.zeros(len(self.concepts), side, side, dtype=torch.bool)
        for number, path in self.mask_files[image_id].items():
            try:
                mask = read(path).amax(1, keepdim=True) > 0
                if list(mask.shape[-2:]) != scan.sizes[image_id].tolist():
                    raise SightlineError(
                        f"it is {mask.shape[-2]}×{mask.shape[-1]}, the image {scan.sizes[image_id, 0]}×{scan.sizes[image_id, 1]}"
                    )
            except SightlineError as error:
                self.unused_masks.append(
                    f"{self.concepts[number]}/{path.name}: {get_first_error_line(error)}"
                )
                continue
            regions[number] = (
                stack_squares([fit_square(mask.float().expand(1, 3, -1, -1), side, short)])[0, 0]
                > 0.5
            )
        return regions


@dataclass(frozen=True)
class Dissection:
    """Intersection over union of units×concepts, the units' thresholds, and of each the images that drive it most, units×K."""

    concepts: list[str]
    iou: Tensor
    thresholds: Tensor
    strongest_ids: Tensor
    image_count: int
    unused_masks: list[str]

    @property
    def best_concepts(self) -> tuple[Tensor, Tensor]:
        """Of each unit the highest value and its concept."""
        return self.iou.max(1).values, self.iou.max(1).indices

    def count_detectors(self) -> dict[str, int]:
        """How many units detect each concept: it is their best one, and beyond 0.04."""
        value, which = self.best_concepts
        return {
            name: int(((which == number) & (value > MIN_DETECTOR_IOU)).sum())
            for number, name in enumerate(self.concepts)
        }


def dissect_layer(model: Model, scan: Scan, layer: str, masks: ConceptMasks) -> Dissection:
    """Two passes over the images with masks: one for the thresholds, one for the overlap."""
    ids = sorted(masks.mask_files)
    threshold, peaks = compute_unit_thresholds(model, scan, layer, ids)
    shared, either = torch.zeros(2, len(threshold), len(masks.concepts), dtype=torch.double)
    for start in range(0, len(ids), DISSECTION_BATCH_SIZE):
        some = ids[start : start + DISSECTION_BATCH_SIZE]
        pictures, maps = load_images_with_maps(model, scan, layer, some)
        for id, map_ in zip(some, maps, strict=True):
            # Above, not at: a unit that is zero at most places would fire everywhere.
            fires = (
                (upsample_unit_maps(model, layer, map_, pictures) > threshold[:, None, None])
                .flatten(1)
                .float()
            )
            regions = masks.load_concept_regions(scan, id).flatten(1).float()
            both = fires @ regions.T
            shared += both
            either += fires.sum(1)[:, None] + regions.sum(1) - both
    order = peaks.argsort(dim=0, descending=True, stable=True)
    iou = (shared / either.clamp_min(1)).float()
    return Dissection(
        masks.concepts,
        iou,
        threshold,
        torch.tensor(ids)[order].T,
        len(ids),
        list(dict.fromkeys(masks.unused_masks)),
    )


def compute_unit_thresholds(
    model: Model, scan: Scan, layer: str, ids: list[int]
) -> tuple[Tensor, Tensor]:
    """What 0.5 % of each unit's responses at all places exceed, and the largest response to each image, n×units."""
    held, peaks, most = list[Tensor](), list[Tensor](), 0
    for start in range(0, len(ids), DISSECTION_BATCH_SIZE):
        maps = load_images_with_maps(
            model, scan, layer, ids[start : start + DISSECTION_BATCH_SIZE]
        )[1]
        peaks.append(maps.flatten(2).amax(2))
        # Of all so far, as many of the largest as may exceed the threshold in the end, and one.
        most = int(ABOVE_THRESHOLD_SHARE * len(ids) * maps.shape[2] * maps.shape[3]) + 1
        flat = torch.cat([*held, maps.transpose(0, 1).flatten(1)], 1)
        held = [flat.topk(min(most, flat.shape[1]), dim=1).values]
    return held[0][:, most - 1], torch.cat(peaks)


def load_images_with_maps(
    model: Model, scan: Scan, layer: str, ids: list[int]
) -> tuple[Tensor, Tensor]:
    """Stored images n×3×side×side, and a layer's maps of them. Raises SightlineError for a layer without places."""
    pictures = torch.cat([scan.image(id) for id in ids])
    with torch.no_grad():
        maps = reshape_to_unit_grid(model.features(pictures, layer)[layer], pictures).float().cpu()
    if maps[0, 0].numel() == 1:
        raise SightlineError(
            f"{layer} has no places that masks could be laid over; name a layer with maps"
        )
    return pictures, maps


def upsample_unit_maps(model: Model, layer: str, maps: Tensor, image: Tensor) -> Tensor:
    """Maps units×h×w as large as the image, linear between the centres of what each place sees (the paper's anchors)."""
    grids: list[Tensor] = []
    boxes = [
        find_receptive_window(model, layer, row, column, image)
        for row, column in ((0, 0), (maps.shape[-2] - 1, maps.shape[-1] - 1))
    ]
    for axis, (count, side) in enumerate(zip(maps.shape[-2:], image.shape[-2:], strict=True)):
        first, last = ((box[axis] + box[axis + 2] - 1) / 2 for box in boxes)
        if (
            last == first
        ):  # one place only, or all see everything: then they are taken for parts of the image
            first, last = 0.5 * side / count - 0.5, (count - 0.5) * side / count - 0.5
        grids.append(((torch.arange(side) - first) / max(last - first, 1e-9)).clamp(0, 1) * 2 - 1)
    rows, columns = torch.meshgrid(*grids, indexing="ij")
    grid = torch.stack([columns, rows], -1)[None]
    return torch.nn.functional.grid_sample(
        maps[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def render_concept_units(
    model: Model,
    scan: Scan,
    layer: str,
    masks: ConceptMasks,
    dissection: Dissection,
    *,
    unit_count: int,
    images_per_unit: int,
) -> tuple[Tensor, list[int]]:
    """The best units with the images that drive them most: bright where they fire, outlined where their concept is."""
    value, which = dissection.best_concepts
    shown = value.argsort(descending=True, stable=True)[:unit_count].tolist()
    rows: list[FigureRow] = []
    for unit in shown:
        ids = dissection.strongest_ids[unit, :images_per_unit].tolist()
        pictures, maps = load_images_with_maps(model, scan, layer, ids)
        tiles: list[Tensor] = []
        for id, picture, map_ in zip(ids, pictures, maps, strict=True):
            fires = (
                upsample_unit_maps(model, layer, map_[[unit]], pictures)[0]
                > dissection.thresholds[unit]
            )
            tiles.append(
                outline_concept_region(
                    picture * torch.where(fires, 1, OUTSIDE_BRIGHTNESS),
                    masks.load_concept_regions(scan, id)[which[unit]],
                )[None]
            )
        title = (
            f"unit {unit}: {dissection.concepts[int(which[unit])]}, IoU {float(value[unit]):.2f}"
        )
        rows.append(FigureRow(title, tiles, [""] * len(tiles)))
    return compose_figure_rows(rows), shown


def outline_concept_region(picture: Tensor, region: Tensor) -> Tensor:
    """A picture 3×H×W with the border of a region H×W in yellow, a hundredth of the side wide."""
    wide = 2 * max(1, picture.shape[-1] // 100) + 1
    grown = torch.nn.functional.max_pool2d(region[None].float(), wide, 1, wide // 2)[0] > 0
    return torch.where(grown & ~region, torch.tensor([1.0, 0.85, 0.0])[:, None, None], picture)
