"""A scan, read: what a network gives for the images of a dataset. Reading needs no network."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.data.datasets.open import reread_image
from sightline.data.store.description import (
    ResponseKind,
    describe_network,
    require_same_network,
)
from sightline.data.store.interface import (
    THUMBNAIL_SIZE,
    ArrowArray,
    ScanStore,
    convert_to_tensor,
)
from sightline.data.store.lance_store import resolve_store
from sightline.errors import (
    SightlineError,
    escape_for_display,
    make_out_of_range_error,
    make_unknown_name_error,
)
from sightline.images.decode.center_crop import fit_center_crop, limit_long_side, stack_crops
from sightline.models.layers.feature_maps import reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.network.preprocessing import format_size
from sightline.models.network.probe import RANDOM_NOTE
from sightline.models.zoo.reload import load_recipe_model

logger = logging.getLogger(__name__)

QUANTILE_LEVELS = tuple(number / 10 for number in range(11))

# Rows from which on reading a whole column is faster than asking for ids.
MAX_ROWS_BY_ID = 500

# Features of the same image differ by less between devices, precisions and sizes of the batch.
MAX_FEATURE_DIFFERENCE = 0.1

RESPONSE_BLOCK_IMAGES = 4096  # of which responses are read together


class TopImages(NamedTuple):
    """The strongest images of each unit of a layer, strongest first, ties by id.

    `values` and `ids` are K×units. `positions`, K×units×2, is the row and column of the strongest
    response in the unit's map; None where the layer has no map. A missing entry has id −1 and
    value −inf. Of classes, all three have the classes as a further first axis.
    """

    values: Tensor
    ids: Tensor
    positions: Tensor | None


class ResponseSample(NamedTuple):
    """The same random images for every unit, each unit's in falling order.

    `values`, `ids` and `positions` are those of `TopImages`, S×units. `quantiles`, 11×units, are
    the quantiles 0, 0.1, …, 1 of the units' responses, estimated from the sample.
    """

    values: Tensor
    ids: Tensor
    positions: Tensor | None
    quantiles: Tensor


class Scan:
    """A pass of a network over a dataset, kept in a store.

    A unit's response to an image is the largest value of its feature map. Images are numbered 0 to
    `images` − 1 in the order of the dataset, without those that could not be read.
    """

    def __init__(self, store: ScanStore) -> None:
        self.store = store
        self.reader = store.open_reader()
        self.description = self.reader.description
        self.path = self.reader.path
        self.images = self.reader.progress.images
        self.done = self.reader.progress.done  # files of the dataset that the pass is through with
        self.complete = self.reader.progress.complete
        # What loads the network again, if it can be had by name.
        self.recipe: dict[str, Any] = self.description.recipe
        self.layers = list(self.description.layers)  # whose units the scan followed
        self.vector_layers = list(self.description.vector_lengths)  # whose features it kept
        self.class_names = list(self.description.class_names)  # empty if none are known
        self.model_labels = list(map(escape_for_display, self.description.model_labels))

    @classmethod
    def open(cls, path: str | Path | ScanStore) -> "Scan":
        """The store at `path`, as far as its pass has come.

        Raises SightlineError if there is no store, or it is damaged or made by a newer version.
        """
        return cls(resolve_store(path))

    def __repr__(self) -> str:
        model_name = escape_for_display(str(self.recipe.get("model")))
        return f"Scan({str(self.path)!r}, {self.images} images, {model_name})"

    def _repr_html_(self) -> str:
        """A table of the scan's facts, for notebooks."""
        images = f"{self.images:,}"
        if not self.complete:
            images += f" ({self.done:,} of {self.description.dataset.count:,} files so far)"
        layers = [
            f"{escape_for_display(name)} ({layer.units} units)"
            for name, layer in self.description.layers.items()
        ]
        network = escape_for_display(str(self.recipe.get("model")))
        facts = {
            "images": images,
            "errors": f"{self.reader.progress.errors:,}",
            "network": f"{network} at {format_size(self.size)} pixels",
            "layers": ", ".join(layers),
            "responses": ", ".join(self.description.response_kinds) or "not kept",
            "classes": ", ".join(self.shown_class_names) or "not known",
            "path": escape_for_display(str(self.path)),
        }
        rows = [
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in facts.items()
        ]
        return f"<table>{''.join(rows)}</table>"

    # ── the description ──

    @property
    def shown_class_names(self) -> list[str]:
        """`class_names` as they may be shown: printable, and not too long."""
        return list(map(escape_for_display, self.class_names))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The description as `scan.json` holds it."""
        return self.description.to_json()

    @property
    def network(self) -> dict[str, Any]:
        """The digest of the network's weights and its preprocessing, as `scan.json` holds them."""
        return self.facts["network"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network saw."""
        return self.description.network.size

    @property
    def short_side(self) -> int:
        """The shorter side of the middle of an image, resized, out of which that was cut."""
        return self.description.network.short_side

    @property
    def thumbnail_size(self) -> tuple[int, int]:
        """Height and width of the thumbnails."""
        return limit_long_side(self.size, THUMBNAIL_SIZE)

    def layer(self, name: str) -> str:
        """A layer's own name for a name, alias or landmark."""
        return self.description.aliases.get(name, name)

    def resolve_layer(self, kind: str, layer: str, known: Sequence[str]) -> str:
        """A layer's own name. Raises SightlineError with the nearest one if it is not `known`."""
        name = self.layer(layer)
        if name not in known:
            raise make_unknown_name_error(f"{kind} in the store {self.path.name}", layer, known)
        return name

    # ── the images ──

    @cached_property
    def paths(self) -> list[str]:
        """Where each image came from."""
        return self.read_column("path").to_pylist()

    @cached_property
    def sizes(self) -> Tensor:
        """Height and width in pixels of each image, upright, n×2."""
        return torch.stack([self._read_numbers("height"), self._read_numbers("width")], 1)

    @cached_property
    def classes(self) -> Tensor | None:
        """Index into `class_names` of each image, −1 where unknown; None if no class is known."""
        return self._read_numbers("class").long() if self.class_names else None

    @cached_property
    def errors(self) -> list[tuple[str, str]]:
        """Path and reason of every file that could not be read."""
        return [(error.path, error.reason) for error in self.reader.read_errors()]

    @cached_property
    def top5(self) -> tuple[Tensor, Tensor]:
        """The network's best classes for each image, indices and probabilities.

        n×5 each; fewer columns if the network knows fewer classes.
        """
        count = min(5, len(self.model_labels))
        labels = self._read_numbers("labels", count).long()
        return labels, self._read_numbers("probabilities", count)

    def vectors(self, layer: str = "penultimate") -> Tensor:
        """The feature vectors of all images at a layer, n×d float32.

        Raises SightlineError if the scan did not keep them.
        """
        column = self.find_vector_column(layer)
        name = self.layer(layer)
        return self._read_numbers(column, self.description.vector_lengths[name])

    def find_vector_column(self, layer: str) -> str:
        """The store's column of a layer's vectors.

        Raises SightlineError if the scan did not keep them.
        """
        name = self.resolve_layer("vectors of layer", layer, self.vector_layers)
        return self.description.vector_columns[name]

    def thumbnail(self, id: int) -> Tensor:
        """What the network saw of an image, small: 1×3×h×w in [0, 1]."""
        return self.thumbnails([id])

    def thumbnails(self, ids: Sequence[int]) -> Tensor:
        """The thumbnails of several images, read at once, n×3×h×w in [0, 1]."""
        size = self.thumbnail_size
        return stack_crops([fit_center_crop(data, size) for data in self.thumbnail_bytes(ids)])

    def thumbnail_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The thumbnails of several images as JPEG files."""
        checked_ids = [self._check_id(id) for id in ids]
        if len(checked_ids) > MAX_ROWS_BY_ID:
            column = self.read_column("thumbnail")
            return [column[id].as_py() for id in checked_ids]
        rows = self.read_rows(checked_ids, ["thumbnail"])
        return [rows[id]["thumbnail"] for id in checked_ids]

    def image(self, id: int) -> Tensor:
        """The original, fitted as it was in the pass: 1×C×h×w in [0, 1].

        Raises SightlineError if it is gone or has changed.
        """
        row = self.read_rows([self._check_id(id)], ["position", "path", "sha256"])[id]
        dataset = asdict(self.description.dataset)
        data, digest = reread_image(dataset, row["position"], row["path"], row["sha256"])
        if row["sha256"] and digest != row["sha256"]:
            raise SightlineError(f"{row['path']} has changed since the pass; scan it again")
        return stack_crops([fit_center_crop(data, self.size, self.short_side)])

    # ── the units ──

    def top(self, layer: str) -> TopImages:
        """The k strongest images of every unit of a layer.

        Raises SightlineError for a layer that the scan did not follow.
        """
        name, units = self._resolve_units(layer)
        values = self.reader.read_state("top.values", units)[:, : self.images].T
        ids = self.reader.read_state("top.ids", units)[:, : self.images].T
        peaks = self.reader.read_state("top.places", units)[:, : self.images].T
        return TopImages(values, ids.long(), self._split_positions(name, peaks))

    def class_top(self, layer: str) -> TopImages:
        """The strongest images of every unit within each class, classes×K×units.

        Raises SightlineError without known classes.
        """
        name, units = self._resolve_units(layer)
        self._require_classes()
        values = self.reader.read_state("class.values", units).transpose(1, 2)
        ids = self.reader.read_state("class.ids", units).transpose(1, 2)
        peaks = self.reader.read_state("class.places", units).transpose(1, 2)
        return TopImages(values, ids.long(), self._split_positions(name, peaks))

    def class_means(self, layer: str) -> Tensor:
        """The mean response of every unit to each class, classes×units.

        Raises SightlineError without known classes.
        """
        _, units = self._resolve_units(layer)
        self._require_classes()
        sums = self.reader.read_state("class.sums", units)
        counts = self.reader.read_state("class.counts")
        return (sums / counts[:, None]).float()

    def sample(self, layer: str) -> ResponseSample:
        """A uniform sample of the images with the responses of every unit of a layer."""
        name, units = self._resolve_units(layer)
        slot_ids = self.reader.read_state("sample.ids")
        # Empty slots (id −1) come first. By id, so that the order in which images entered the
        # sample does not matter, not even between equal values.
        empty = int((slot_ids < 0).sum())
        slots = slot_ids.argsort()[empty:]

        values = self.reader.read_state("sample.values", units)[slots]
        values, order = values.sort(dim=0, descending=True, stable=True)
        ids = slot_ids[slots][order].long()
        peaks = self.reader.read_state("sample.places", units)[slots].gather(0, order)
        quantiles = values
        if len(values):
            quantiles = values.quantile(torch.tensor(QUANTILE_LEVELS), dim=0)
        return ResponseSample(values, ids, self._split_positions(name, peaks), quantiles)

    # ── responses ──

    @property
    def has_responses(self) -> bool:
        """Whether every unit's response to every image is kept."""
        return "max" in self.description.response_kinds

    def responses(
        self,
        layer: str,
        *,
        units: Sequence[int] | None = None,
        images: Sequence[int] | None = None,
        kind: ResponseKind = "max",
    ) -> np.ndarray:
        """The responses of a layer's units to images, images × units, float16.

        Args:
            layer: A layer that the scan followed.
            units: The units in the order of the columns; None for all.
            images: The ids of the images in the order of the rows; None for all.
            kind: "max" is the largest value over positions, "mean" their mean. Float16 has three
                digits; values beyond ±65504 are that.

        Raises:
            SightlineError: The scan was made without responses, or does not have the layer, a
                unit or an image.
        """
        unit_count = self.require_responses(layer, kind)
        self._require_last_image()
        unit_indices = np.arange(unit_count)
        if units is not None:
            unit_indices = check_indices("unit", units, unit_count)
        ids = np.arange(self.images)
        if images is not None:
            ids = check_indices("id", images, self.images)

        name = self.layer(layer)
        responses = np.empty((len(ids), len(unit_indices)), np.float16)
        for start in range(0, self.images, RESPONSE_BLOCK_IMAGES):
            stop = min(start + RESPONSE_BLOCK_IMAGES, self.images)
            [rows] = np.nonzero((ids >= start) & (ids < stop))
            if len(rows):
                block_ids = ids[rows]
                first = int(block_ids.min())
                block = self._read_responses([name], kind, range(first, int(block_ids.max()) + 1))
                responses[rows] = block[block_ids - first][:, unit_indices]
        return responses

    def iterate_responses(
        self,
        layer: str | None,
        images_per_block: int = RESPONSE_BLOCK_IMAGES,
        *,
        kind: ResponseKind = "max",
    ) -> Iterator[np.ndarray]:
        """The responses of a layer's units to all images in order of id, a block at a time.

        Without a layer they are those of all layers, side by side in the order of `layers`. Each
        block is images × units, float16, as `responses` gives them. Raises SightlineError as
        `responses` does.
        """
        if images_per_block < 1:
            raise SightlineError(f"images_per_block is {images_per_block}; it must be at least 1")
        names = self.layers if layer is None else [self.layer(layer)]
        for name in names:
            self.require_responses(name, kind)
        self._require_last_image()
        starts = range(0, self.images, images_per_block)
        blocks = [range(start, min(start + images_per_block, self.images)) for start in starts]
        return (self._read_responses(names, kind, ids) for ids in blocks)

    def require_responses(self, layer: str, kind: ResponseKind = "max") -> int:
        """The number of a layer's units. Raises SightlineError if there are no responses of it."""
        name, _ = self._resolve_units(layer)
        if kind not in self.description.response_kinds:
            noun = "responses" if kind == "max" else "mean responses"
            option = "--responses" if kind == "max" else "--mean-responses"
            raise SightlineError(
                f"the store {self.path.name} was made without {noun}: "
                f"scan again with {option} into another store"
            )
        return self.description.layers[name].units

    def _require_last_image(self) -> None:
        """Raises SightlineError if the store has fewer images than it counts.

        To be called before memory is taken for each of them: a damaged count may be any number.
        """
        if not self.images:
            return
        last = self.images - 1
        rows = self.reader.read_images(["id"], range(last, self.images))
        if rows.num_rows != 1:
            raise SightlineError(
                f"the store {self.path} is damaged: it lacks image {last}; "
                "sightline store verify tells more"
            )

    def _read_responses(self, layers: Sequence[str], kind: ResponseKind, ids: range) -> np.ndarray:
        """The responses of the units of some layers, side by side, to consecutive images."""
        all_columns = self.description.name_response_columns(kind)
        columns = [all_columns[layer] for layer in layers]
        rows = self.reader.read_images(["id", *columns], ids)
        stored_ids = rows["id"].to_numpy()
        order = stored_ids.argsort(kind="stable")
        if not np.array_equal(stored_ids[order], np.asarray(ids)):
            raise SightlineError(
                f"the store {self.path} is damaged: it lacks responses to the images {ids.start} "
                f"to {ids.stop - 1}; sightline store verify tells more"
            )
        blocks: list[np.ndarray] = []
        for column in columns:
            numbers = rows[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            blocks.append(numbers.reshape(len(ids), -1))
        responses = np.concatenate(blocks, axis=1)
        is_ordered = bool((np.diff(stored_ids) > 0).all())
        return responses if is_ordered else responses[order]

    def _resolve_units(self, layer: str) -> tuple[str, slice]:
        name = self.resolve_layer("layer", layer, self.layers)
        return name, self.description.unit_slices[name]

    def _split_positions(self, layer: str, peaks: Tensor) -> Tensor | None:
        """Flat positions (row × width + column) as row and column; None for maps of one value."""
        height, width = self.description.layers[layer].map_shape
        if height * width == 1:
            return None
        rows = peaks.div(width, rounding_mode="floor")
        return torch.stack([rows, peaks % width], -1).long()

    def _require_classes(self) -> None:
        if not self.class_names:
            raise SightlineError(
                f"the store {self.path.name} knows no classes: "
                "put each class into a folder of its own"
            )

    # ── the network ──

    def model(self, device: str | torch.device | None = None) -> Model:
        """The network of this scan, by its recipe.

        Raises SightlineError where it can't be had by name, or its weights have changed.
        """
        model = load_recipe_model(self.recipe, device)
        self.require(model)
        return model

    def require(self, model: Model) -> None:
        """Raises SightlineError unless `model` is the network of this scan.

        It has the same weights and preprocessing, and computes the same.
        """
        network = describe_network(model, self.size)
        require_same_network(self.path, self.description, model.recipe, network)
        self.require_same_features(model)

    def require_same_features(self, model: Model) -> None:
        """Raises SightlineError if the same weights give other features than the stored ones."""
        difference = self.measure_difference(model)
        if difference > MAX_FEATURE_DIFFERENCE:
            raise SightlineError(
                f"the store {self.path} was made by a network with these weights that computes "
                f"something else: features of its first image differ by {difference:.0%}; "
                "give another --store"
            )

    def measure_difference(self, model: Model) -> float:
        """How far a network's features of the first image are from the stored ones.

        As a share of these. 0 where it can't be told: without an image or vectors, where the file
        is gone, or for a network that gives another answer each time.
        """
        if not self.images or not self.vector_layers or RANDOM_NOTE in model.findings.notes:
            return 0.0
        layer = self.vector_layers[0]
        column = self.description.vector_columns[layer]
        try:
            image = self.image(0).to(model.device)
            features = compute_feature_vectors(model, image, layer)[0]
        except SightlineError as error:
            logger.debug("the network of %s is not compared: %s", self.path, error)
            return 0.0
        stored = torch.tensor(self.read_rows([0], [column])[0][column])
        if features.shape != stored.shape:
            return 1.0
        scale = max(float(stored.norm()), float(features.norm()))
        return float((features - stored).norm()) / scale if scale else 0.0

    # ── reading ──

    def read_rows(self, ids: Sequence[int], columns: list[str]) -> dict[int, dict[str, Any]]:
        """The named columns of the images with these ids, by id."""
        return self.reader.read_rows(ids, columns)

    def read_column(self, name: str) -> ArrowArray:
        """One column of all images, in order of id."""
        columns = ["id"] if name == "id" else ["id", name]
        rows = self.reader.read_images(columns)
        ids = rows["id"].to_numpy()
        if len(ids) != self.images:
            raise SightlineError(
                f"the store {self.path} is damaged: {len(ids)} of {self.images} images; "
                "sightline store verify tells more"
            )
        if not np.array_equal(ids, np.arange(self.images)):
            rows = rows.sort_by("id")
        if not np.array_equal(rows["id"].to_numpy(), np.arange(self.images)):
            raise SightlineError(f"the store {self.path} is damaged: an id is there twice")
        return rows[name].combine_chunks()

    def _read_numbers(self, name: str, width: int = 0) -> Tensor:
        return convert_to_tensor(self.read_column(name), width)

    def _check_id(self, id: int) -> int:
        if not 0 <= id < self.images:
            raise make_out_of_range_error("id", id, 0, self.images - 1)
        return int(id)


def compute_feature_vectors(model: Model, image: Tensor, layer: str) -> Tensor:
    """The features N×d of images, averaged over positions, as a scan keeps them."""
    with torch.no_grad():
        features = model.features(image, layer)[layer]
        if features.ndim != 2:
            features = reshape_to_unit_grid(features, image, model, model.layer(layer)).mean((2, 3))
        return features.float().cpu()


def check_indices(name: str, indices: Sequence[int], count: int) -> np.ndarray:
    """Indices of `count` things as an array. Raises SightlineError if one is out of range."""
    array = np.asarray(indices, dtype=np.int64).reshape(-1)
    is_outside = (array < 0) | (array >= count)
    if is_outside.any():
        raise make_out_of_range_error(name, int(array[is_outside][0]), 0, count - 1)
    return array
