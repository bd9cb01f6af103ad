"""A store, read: what a network answers over a collection of images. A reader needs no network."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.data.datasets.open import reread_image
from sightline.data.store.schema import (
    ERRORS_TABLE,
    IMAGES_TABLE,
    QUANTILE_LEVELS,
    STATE_FILE,
    THUMBNAIL_SIZE,
    compute_network_facts,
    make_zero_counters,
    read_store_facts,
    require_same_facts,
)
from sightline.errors import (
    SightlineError,
    get_first_error_line,
    make_out_of_range_error,
    make_unknown_name_error,
)
from sightline.images.decode import fit_square, stack_squares
from sightline.models.model import Model
from sightline.models.zoo.reload import load_recipe_model


class TopImages(NamedTuple):
    """The strongest images of each unit of a layer, strongest first, ties by id: values K×units, ids K×units, and row and
    column of the strongest place, K×units×2, or None where the layer has no places. An entry that is missing has id −1, value −inf."""

    values: Tensor
    ids: Tensor
    positions: Tensor | None


class ResponseSample(NamedTuple):
    """The same random images for every unit, each unit's in falling order: values, ids, positions as in `Top`, S×units;
    and quantiles 0, 0.1, … 1 of the units' responses (11×units), estimated from them."""

    values: Tensor
    ids: Tensor
    positions: Tensor | None
    quantiles: Tensor


class Scan:
    """A pass of a network over a collection. A unit's response to an image is the largest value of its feature map.

    Images are numbered 0 to `images` − 1 in the order of the collection, without those that could not be read.
    """

    def __init__(self, path: Path, facts: dict[str, Any], counters: dict[str, int]) -> None:
        self.path, self.facts = path, facts
        self.recipe: dict[str, Any] = facts["model"]
        self.network: dict[str, Any] = facts["network"]
        self.images, self.done, self.complete = (
            counters["images"],
            counters["done"],
            bool(counters["complete"]),
        )
        self.layers: list[str] = list(facts["layers"])
        self.class_names: list[str] = facts["class_names"]
        self.model_labels: list[str] = facts["labels"]

    def __repr__(self) -> str:
        return f"Scan({str(self.path)!r}, {self.images} images, {self.recipe.get('model')})"

    @classmethod
    def open(cls, path: str | Path) -> "Scan":
        """The store at `path`, as far as its pass has come. Raises SightlineError for no store, a newer version, a damaged one."""
        path = Path(path)
        facts = read_store_facts(path)
        tallies = make_zero_counters()
        if path.joinpath(STATE_FILE).exists():
            with open_state_file(path) as state:
                tallies = {name: int(value) for name, value in state.metadata().items()}
        return cls(path, facts, tallies)

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
        """Index into `class_names` of each image, −1 where it is not known; None if no classes are known."""
        return self._read_numbers("class").long() if self.class_names else None

    @cached_property
    def errors(self) -> list[tuple[str, str]]:
        """Path and reason of every file that could not be read."""
        rows = (
            open_store_table(self.path, ERRORS_TABLE)
            .search()
            .where(f"position < {self.done}")
            .to_arrow()
            .sort_by("position")
        )
        return list(zip(rows["path"].to_pylist(), rows["reason"].to_pylist(), strict=True))

    @cached_property
    def top5(self) -> tuple[Tensor, Tensor]:
        """The network's best classes for each image, indices and probabilities, n×5 (fewer if it knows fewer)."""
        count = min(5, len(self.model_labels))
        return self._read_numbers("labels", count).long(), self._read_numbers(
            "probabilities", count
        )

    def vectors(self, layer: str = "penultimate") -> Tensor:
        """The feature vectors of all images at a layer, n×d float32. Raises SightlineError if the pass did not keep them."""
        known = list(self.facts["vectors"])
        name = self.resolve_layer("vectors of layer", layer, known)
        return self._read_numbers(f"vector_{known.index(name)}", self.facts["vectors"][name])

    def thumbnail(self, id: int) -> Tensor:
        """The middle square that the network saw, small: 1×3×h×w in [0, 1]."""
        return self.thumbnails([id])

    def thumbnails(self, ids: Sequence[int]) -> Tensor:
        """Those of several images, read at once, n×3×h×w."""
        side = min(THUMBNAIL_SIZE, self.network["side"])
        return stack_squares([fit_square(data, side, side) for data in self.thumbnail_bytes(ids)])

    def thumbnail_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Those thumbnails as JPEG files."""
        wanted = [self._check_id(id) for id in ids]
        if len(wanted) > 500:
            whole = self.read_column("thumbnail")
            return [whole[id].as_py() for id in wanted]
        found = self.read_rows(wanted, ["thumbnail"])
        return [found[id]["thumbnail"] for id in wanted]

    def image(self, id: int) -> Tensor:
        """The original, fitted as it was in the pass: 1×3×side×side. Raises SightlineError if it is gone or has changed."""
        row = self.read_rows([self._check_id(id)], ["position", "path", "sha256"])[id]
        data, digest = reread_image(self.facts["collection"], row["position"], row["path"])
        if row["sha256"] and digest != row["sha256"]:
            raise SightlineError(f"{row['path']} has changed since the pass; scan it again")
        return stack_squares([fit_square(data, self.network["side"], self.network["short"])])

    # ── the units ──

    def top(self, layer: str) -> TopImages:
        """The k strongest images of every unit of a layer. Raises SightlineError for a layer that is not in the store."""
        name, units = self._resolve_units(layer)
        values, ids, places = (
            self._read_state(f"top.{part}", units)[:, : self.images].T
            for part in ("values", "ids", "places")
        )
        return TopImages(values, ids.long(), self._split_positions(name, places))

    def class_top(self, layer: str) -> TopImages:
        """The strongest images of every unit within each class: classes×K×units. Raises SightlineError without known classes."""
        name, units = self._resolve_units(layer)
        self._require_classes()
        values, ids, places = (
            self._read_state(f"class.{part}", units).transpose(1, 2)
            for part in ("values", "ids", "places")
        )
        return TopImages(values, ids.long(), self._split_positions(name, places))

    def class_means(self, layer: str) -> Tensor:
        """The mean response of every unit to each class, classes×units. Raises SightlineError without known classes."""
        _, units = self._resolve_units(layer)
        self._require_classes()
        return (
            self._read_state("class.sums", units) / self._read_state("class.counts", None)[:, None]
        ).float()

    def sample(self, layer: str) -> ResponseSample:
        """A uniform sample of the images with the responses of every unit of a layer."""
        name, units = self._resolve_units(layer)
        ids = self._read_state("sample.ids", None)
        here = ids.argsort()[
            (ids < 0).sum() :
        ]  # the order of entry counts for nothing, not even between equal values
        values, order = self._read_state("sample.values", units)[here].sort(
            dim=0, descending=True, stable=True
        )
        places = self._read_state("sample.places", units)[here].gather(0, order)
        quantiles = values.quantile(torch.tensor(QUANTILE_LEVELS), dim=0) if len(values) else values
        return ResponseSample(
            values, ids[here][order].long(), self._split_positions(name, places), quantiles
        )

    # ── the network ──

    def model(self, device: str | torch.device | None = None) -> Model:
        """The very network, by its recipe. Raises SightlineError where it can't be had by name, or its weights have changed."""
        model = load_recipe_model(self.recipe, device)
        self.require(model)
        return model

    def require(self, model: Model) -> None:
        """Raises SightlineError unless `model` is the network of this pass, with these weights and this preprocessing."""
        facts = {
            "model": model.recipe,
            "network": compute_network_facts(model, self.network["side"]),
        }
        require_same_facts(self.path, self.facts, facts)

    def layer(self, name: str) -> str:
        """A layer's own name for a name, alias or landmark."""
        return self.facts["names"].get(name, name)

    # ── reading ──

    def resolve_layer(self, kind: str, layer: str, known: Sequence[str]) -> str:
        """The own name of a layer that the store knows; raises SightlineError with the nearest one."""
        name = self.layer(layer)
        if name not in known:
            raise make_unknown_name_error(f"{kind} in the store {self.path.name}", layer, known)
        return name

    def _resolve_units(self, layer: str) -> tuple[str, slice]:
        name = self.resolve_layer("layer", layer, self.layers)
        before = sum(
            self.facts["layers"][other]["units"] for other in self.layers[: self.layers.index(name)]
        )
        return name, slice(before, before + self.facts["layers"][name]["units"])

    def _split_positions(self, layer: str, flat_positions: Tensor) -> Tensor | None:
        rows, columns = self.facts["layers"][layer]["shape"]
        return (
            None
            if rows * columns == 1
            else torch.stack(
                [flat_positions.div(columns, rounding_mode="floor"), flat_positions % columns], -1
            ).long()
        )

    def _read_state(self, name: str, units: slice | None) -> Tensor:
        with open_state_file(self.path) as state:
            part = state.get_slice(name)
            if units is None:
                return part[:]
            # Units are the first axis of the top list, the middle one of the classes', the last one of the rest.
            return part[units] if name.startswith("top.") else part[:, units]

    def _require_classes(self) -> None:
        if not self.class_names:
            raise SightlineError(
                f"the store {self.path.name} knows no classes: put each class into a folder of its own"
            )

    def _check_id(self, id: int) -> int:
        if not 0 <= id < self.images:
            raise make_out_of_range_error("id", id, 0, self.images - 1)
        return int(id)

    def read_rows(self, ids: Sequence[int], columns: list[str]) -> dict[int, dict[str, Any]]:
        """The named columns of the rows with these ids, by id."""
        if not ids:
            return {}
        wanted = ", ".join(map(str, sorted(set(ids))))
        query = (
            open_store_table(self.path, IMAGES_TABLE)
            .search()
            .where(f"id IN ({wanted})")
            .select(["id", *columns])
        )
        return {row["id"]: row for row in query.to_arrow().to_pylist()}

    def read_column(self, name: str) -> Any:
        """One column of all images, in the order of the collection."""
        found = (
            open_store_table(self.path, IMAGES_TABLE)
            .search()
            .where(f"id < {self.images}")
            .select(list({"id": 0, name: 0}))
            .to_arrow()
        )
        ids = found["id"].to_numpy()
        if len(ids) != self.images:
            raise SightlineError(
                f"the store {self.path} is damaged: {len(ids)} of {self.images} images; sightline store verify tells more"
            )
        return (found if (np.diff(ids) > 0).all() else found.sort_by("id"))[name].combine_chunks()

    def _read_numbers(self, name: str, columns: int = 0) -> Tensor:
        column = self.read_column(name)
        numbers = torch.from_numpy(
            (column.flatten() if columns else column).to_numpy(zero_copy_only=False).copy()
        )
        return numbers.view(-1, columns) if columns else numbers


def open_state_file(path: Path) -> Any:
    """The opened state file, a context. Raises SightlineError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path / STATE_FILE, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SightlineError(
            f"the store {path} is damaged: {STATE_FILE} can't be read ({get_first_error_line(error)})"
        ) from error


def open_store_table(path: Path, name: str) -> Any:
    """A table of a store. Raises SightlineError if it is gone."""
    import lancedb

    try:
        return lancedb.connect(path).open_table(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise SightlineError(
            f"the store {path} is damaged: its table of {name} can't be opened ({get_first_error_line(error)})"
        ) from error
