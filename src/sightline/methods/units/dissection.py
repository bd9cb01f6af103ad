"""Network Dissection: the concept whose masks overlap best with where a unit fires (Bau 2017).

Masks lie in a folder: CONCEPT/NAME.png for the image NAME of the dataset, the concept where the
mask is not black. Images without any mask do not count. A unit fires at a position if its response
there is above the unit's threshold, which 0.5 % of its responses at all positions of these images
exceed (section 2.2 of the paper).
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.center_crop import fit_center_crop, stack_crops
from sightline.images.io.library import IMAGE_FILE_SUFFIXES
from sightline.images.io.pictures import read
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.tracing.batch_size import split_into_batches
from sightline.models.tracing.crops import find_receptive_window

ABOVE_THRESHOLD_SHARE = 0.005  # of a unit's responses

MIN_DETECTOR_IOU = 0.04  # intersection over union above which a unit detects a concept

DISSECTION_BATCH_SIZE = 16  # images that go through the network at once

OUTSIDE_BRIGHTNESS = 0.3  # of an image where a unit does not fire

OUTLINE_COLOR = (1.0, 0.85, 0.0)  # RGB: yellow


@dataclass(frozen=True)
class ConceptMasks:
    """Files of masks by image id and index of the concept.

    `unused_masks` lists the masks that could not be used, with the reason; it grows as masks are
    read.
    """

    concepts: list[str]
    mask_files: dict[int, dict[int, Path]]
    unused_masks: list[str] = field(default_factory=list[str])

    @classmethod
    def from_folder(cls, scan: Scan, folder: Path) -> "ConceptMasks":
        """The masks of a dataset's images.

        Raises SightlineError if there is none, and for a mask whose name several images have.
        """
        if not folder.is_dir():
            raise SightlineError(f"masks is {str(folder)!r}; there is no such folder")
        concepts = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        ids_by_name: dict[str, list[int]] = {}
        for image_id, path in enumerate(scan.paths):
            ids_by_name.setdefault(Path(path).stem, []).append(image_id)

        masks = cls(concepts, {})
        for number, concept in enumerate(concepts):
            for path in list_mask_files(folder / concept):
                ids = ids_by_name.get(path.stem, [])
                if len(ids) > 1:
                    raise SightlineError(
                        f"{concept}/{path.name} is the mask of {len(ids)} images named "
                        f"{path.stem}; names must differ"
                    )
                if ids:
                    masks.mask_files.setdefault(ids[0], {})[number] = path
                else:
                    masks.unused_masks.append(f"{concept}/{path.name}: no image of that name")
        if not masks.mask_files:
            raise SightlineError(
                f"masks is {str(folder)!r}; it has no CONCEPT/NAME.png for any image NAME of the "
                f"{scan.images}"
            )
        return masks

    def load_concept_regions(self, scan: Scan, image_id: int) -> Tensor:
        """Where each concept is in what the network saw: bool, concepts×height×width.

        A mask that can't be used is noted in `unused_masks`, and its concept is nowhere.
        """
        image_size = scan.sizes[image_id].tolist()
        regions = torch.zeros(len(self.concepts), *scan.size, dtype=torch.bool)
        for number, path in self.mask_files[image_id].items():
            try:
                mask = read_concept_mask(path, image_size)
            except SightlineError as error:
                reason = get_first_error_line(error)
                self.unused_masks.append(f"{self.concepts[number]}/{path.name}: {reason}")
                continue
            crop = fit_center_crop(mask.expand(1, 3, -1, -1), scan.size, scan.short_side)
            regions[number] = stack_crops([crop])[0, 0] > 0.5
        return regions


def list_mask_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_FILE_SUFFIXES)


def read_concept_mask(path: Path, image_size: list[int]) -> Tensor:
    """A mask 1×1×H×W, 1 where its file is not black.

    Raises SightlineError if it does not have the image's height and width.
    """
    mask = (read(path).amax(1, keepdim=True) > 0).float()
    height, width = mask.shape[-2:]
    if [height, width] != image_size:
        raise SightlineError(f"it is {height}×{width}, the image {image_size[0]}×{image_size[1]}")
    return mask


# ── overlap of units and concepts ──


@dataclass(frozen=True)
class Dissection:
    """What dissecting a layer found.

    `iou` is the intersection over union, units×concepts, `thresholds` has one value for each unit,
    and `strongest_ids`, units×images, are the ids of the images with masks, strongest first.
    """

    concepts: list[str]
    iou: Tensor
    thresholds: Tensor
    strongest_ids: Tensor
    image_count: int
    unused_masks: list[str]

    @property
    def best_concepts(self) -> tuple[Tensor, Tensor]:
        """For each unit the highest IoU, and the index of its concept."""
        best = self.iou.max(1)
        return best.values, best.indices

    def count_detectors(self) -> dict[str, int]:
        """How many units detect each concept: it is their best one, with an IoU above 0.04."""
        best_iou, best_concept = self.best_concepts
        detected = best_concept[best_iou > MIN_DETECTOR_IOU]
        counts = detected.bincount(minlength=len(self.concepts)).tolist()
        return dict(zip(self.concepts, counts, strict=True))


def dissect_layer(model: Model, scan: Scan, layer: str, masks: ConceptMasks) -> Dissection:
    """Measures the overlap of every unit of a layer with every concept.

    The images with masks go through the network twice: for the thresholds, and for the overlap.
    """
    ids = sorted(masks.mask_files)
    thresholds, peaks = compute_unit_thresholds(model, scan, layer, ids)
    shape = (len(thresholds), len(masks.concepts))
    intersection = torch.zeros(shape, dtype=torch.double)
    union = torch.zeros(shape, dtype=torch.double)
    for positions in split_into_batches(len(ids), DISSECTION_BATCH_SIZE):
        batch = [ids[position] for position in positions]
        images, maps = load_images_with_maps(model, scan, layer, batch)
        for image_id, image_maps in zip(batch, maps, strict=True):
            responses = upsample_unit_maps(model, layer, image_maps, images)
            # Above the threshold, not at it: else a unit that is 0 at most positions, and whose
            # threshold is therefore 0, would fire everywhere.
            fires = (responses > thresholds[:, None, None]).flatten(1).float()
            regions = masks.load_concept_regions(scan, image_id).flatten(1).float()
            overlap = fires @ regions.T
            intersection += overlap
            union += fires.sum(1)[:, None] + regions.sum(1) - overlap

    order = peaks.argsort(dim=0, descending=True, stable=True)
    return Dissection(
        masks.concepts,
        iou=(intersection / union.clamp_min(1)).float(),
        thresholds=thresholds,
        strongest_ids=torch.tensor(ids)[order].T,
        image_count=len(ids),
        unused_masks=list(dict.fromkeys(masks.unused_masks)),  # each once
    )


def compute_unit_thresholds(
    model: Model, scan: Scan, layer: str, ids: list[int]
) -> tuple[Tensor, Tensor]:
    """The threshold of each unit, and its largest response to each image, images×units.

    A threshold is what 0.5 % of the unit's responses at all positions exceed.
    """
    largest_responses = torch.empty(0)
    peaks: list[Tensor] = []
    above_count = 0
    for positions in split_into_batches(len(ids), DISSECTION_BATCH_SIZE):
        batch = [ids[position] for position in positions]
        _, maps = load_images_with_maps(model, scan, layer, batch)
        peaks.append(maps.flatten(2).amax(2))
        responses = maps.transpose(0, 1).flatten(1)
        if largest_responses.numel():
            responses = torch.cat([largest_responses, responses], 1)
        # Only the responses that may exceed the threshold in the end are kept, and one more.
        total = len(ids) * maps.shape[2] * maps.shape[3]
        above_count = int(ABOVE_THRESHOLD_SHARE * total)
        count = min(above_count + 1, responses.shape[1])
        largest_responses = responses.topk(count, dim=1).values
    return largest_responses[:, above_count], torch.cat(peaks)


def load_images_with_maps(
    model: Model, scan: Scan, layer: str, ids: list[int]
) -> tuple[Tensor, Tensor]:
    """Stored images n×3×side×side, and a layer's maps of them, n×units×h×w.

    Raises SightlineError for a layer with a single position.
    """
    images = torch.cat([scan.image(image_id) for image_id in ids])
    with torch.no_grad():
        features = model.features(images, layer)[layer]
        maps = reshape_to_unit_grid(features, images, model, model.layer(layer)).float().cpu()
    if maps[0, 0].numel() == 1:
        raise SightlineError(
            f"{layer} has no positions that masks could be laid over; choose a convolutional layer"
        )
    return images, maps


def upsample_unit_maps(model: Model, layer: str, maps: Tensor, image: Tensor) -> Tensor:
    """Maps units×h×w at the image's size, units×H×W.

    Interpolates linearly between the centres of what the positions see (the anchors of the paper).
    """
    map_size = maps.shape[-2:]
    first_box = find_receptive_window(model, layer, 0, 0, image)
    last_box = find_receptive_window(model, layer, map_size[0] - 1, map_size[1] - 1, image)
    grid_axes: list[Tensor] = []
    for axis, (count, length) in enumerate(zip(map_size, image.shape[-2:], strict=True)):
        first_center = (first_box[axis] + first_box[axis + 2] - 1) / 2
        last_center = (last_box[axis] + last_box[axis + 2] - 1) / 2
        if first_center == last_center:
            # There is one position, or each sees everything: they stand for equal parts of the
            # image.
            first_center = 0.5 * length / count - 0.5
            last_center = (count - 0.5) * length / count - 0.5
        shares = (torch.arange(length) - first_center) / max(last_center - first_center, 1e-9)
        grid_axes.append(shares.clamp(0, 1) * 2 - 1)

    rows, columns = torch.meshgrid(*grid_axes, indexing="ij")
    grid = torch.stack([columns, rows], -1)[None]  # grid_sample takes x before y
    upsampled = torch.nn.functional.grid_sample(
        maps[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return upsampled[0]


# ── figure ──


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
    """The units of the highest IoU, a row each, with the images that drive them most.

    An image is bright where the unit fires, and the concept's mask is outlined. Returns the figure
    and the units.
    """
    best_iou, best_concept = dissection.best_concepts
    units = best_iou.argsort(descending=True, stable=True)[:unit_count].tolist()
    rows: list[FigureRow] = []
    for unit in units:
        concept = int(best_concept[unit])
        ids = dissection.strongest_ids[unit, :images_per_unit].tolist()
        images, maps = load_images_with_maps(model, scan, layer, ids)
        tiles: list[Tensor] = []
        for image_id, image, image_maps in zip(ids, images, maps, strict=True):
            responses = upsample_unit_maps(model, layer, image_maps[[unit]], images)[0]
            fires = responses > dissection.thresholds[unit]
            picture = model.to_picture(image[None])[0]
            shaded = picture * torch.where(fires, 1, OUTSIDE_BRIGHTNESS)
            region = masks.load_concept_regions(scan, image_id)[concept]
            tiles.append(outline_region(shaded, region)[None])
        title = f"unit {unit}: {dissection.concepts[concept]}, IoU {float(best_iou[unit]):.2f}"
        rows.append(FigureRow(title, tiles, [""] * len(tiles)))
    return compose_figure_rows(rows), units


def outline_region(image: Tensor, region: Tensor) -> Tensor:
    """An image 3×H×W with a yellow line around a region H×W, 1 % of the width wide."""
    line_width = max(1, image.shape[-1] // 100)
    window = 2 * line_width + 1
    grown = torch.nn.functional.max_pool2d(region[None].float(), window, 1, line_width)[0] > 0
    color = torch.tensor(OUTLINE_COLOR)[:, None, None]
    return torch.where(grown & ~region, color, image)
