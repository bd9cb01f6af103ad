"""What the pages know of units, classes and images: numbers from the scan, ready to be shown."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sightline.app.web.explorer.explorer import Explorer
from sightline.data.scan.true_classes import (
    list_class_names,
    match_class_names,
    read_wordnet_labels,
)
from sightline.data.store.reader import ResponseSample, Scan
from sightline.data.units.facts import UnitFacts, read_unit_facts
from sightline.errors import SightlineError, escape_for_display
from sightline.methods.units.naming.names import fits_well, name_units
from sightline.methods.units.readability import (
    STRONGEST_IMAGES,
    Readability,
    measure_readability,
)

# Of a larger scan, the whole distribution of a unit is shown by so many images.
MAX_DISTRIBUTION_IMAGES = 200_000

# Responses of a layer that are kept in memory at once: 128 MB.
MAX_CACHED_RESPONSES = 64_000_000

HISTOGRAM_BINS = 60

# Of fewer images, any two are among the strongest of a unit.
MIN_READABILITY_IMAGES = 3 * STRONGEST_IMAGES

Numbers = np.ndarray[Any, Any]


# ── numbers as text ──


def format_number(value: float) -> str:
    """A number in three digits, without a negative zero: «0.125», «3.2e+05», «−1.5»."""
    text = f"{value:.3g}"
    if float(text) == 0:
        return "0"
    return text.replace("-", "−")


def round_share(share: float) -> str:
    """A share in percent: «12 %», «0.3 %»."""
    percent = 100 * share
    digits = 0 if percent >= 10 or percent == 0 else 1
    return f"{percent:.{digits}f} %"


def count_things(count: int, noun: str) -> str:
    """«1 image», «1,200 images», «2 classes»."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def round_numbers(values: Numbers) -> list[float | None]:
    """Numbers in three digits for JSON; None for what is not finite."""
    return [float(f"{value:.3g}") if np.isfinite(value) else None for value in values.tolist()]


# ── numbers that take long ──


def keep_numbers(
    explorer: Explorer, key: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Numbers of this scan by their key, made if they are not kept yet."""
    full_key = {**key, "depends on": {"scan": explorer.store_digest}}
    numbers = explorer.pictures.read_numbers(full_key, make)
    return make() if numbers is None else numbers


# ── classes ──


@dataclass(frozen=True)
class ImageGroups:
    """The class of every image.

    Attributes:
        names: Of the classes.
        indices: The class of each image, −1 where unknown.
        noun: What the classes are: those of the dataset, or of the network's answers.
        labels: For each class, the number of its page; −1 where the network has no such class.
    """

    names: tuple[str, ...]
    indices: Numbers
    noun: str
    labels: tuple[int, ...]


@lru_cache(maxsize=8)
def read_image_groups(scan: Scan) -> ImageGroups:
    """The classes of the dataset, or what the network says of each image where it has none.

    They are known from folders, or from WordNet ids that the files' names begin with.
    """
    labels = tuple(scan.model_labels)
    own_pages = tuple(range(len(labels)))
    if scan.classes is not None:
        numbers = match_class_names(scan.class_names, labels)
        pages = tuple(numbers) if numbers else (-1,) * len(scan.class_names)
        return ImageGroups(tuple(list_class_names(scan)), scan.classes.numpy(), "class", pages)
    known_labels = read_wordnet_labels(scan.paths, labels)
    if known_labels is not None:
        return ImageGroups(labels, known_labels, "class", own_pages)
    answers = scan.top5[0]
    indices = np.full(scan.images, -1)
    if labels and answers.shape[1]:
        indices = answers[:, 0].numpy()
    return ImageGroups(labels, indices, "predicted class", own_pages)


# ── responses ──


@dataclass(frozen=True)
class Distribution:
    """A unit's responses, rising, with the images that they are responses to.

    `is_complete` tells whether these are all images of the scan, or a uniform sample.
    """

    values: Numbers
    ids: Numbers
    is_complete: bool


def read_distribution(scan: Scan, layer: str, unit: int) -> Distribution:
    """The responses of a unit: to all images where the scan keeps them, else to its sample."""
    if scan.has_responses and 0 < scan.images <= MAX_DISTRIBUTION_IMAGES:
        values = read_unit_responses(scan, layer, unit).astype(np.float32)
        ids = np.arange(len(values))
        order = np.argsort(values, kind="stable")
        return Distribution(values[order], ids[order], is_complete=True)
    sample = read_sample(scan, layer)
    values = sample.values[:, unit].numpy()[::-1].copy()
    ids = sample.ids[:, unit].numpy()[::-1].copy()
    return Distribution(values, ids, is_complete=len(values) == scan.images)


def read_unit_responses(scan: Scan, layer: str, unit: int) -> Numbers:
    """The responses of a unit to all images. Those of its layer are read together if they fit."""
    if scan.images * scan.description.layers[layer].units > MAX_CACHED_RESPONSES:
        return scan.responses(layer, units=[unit])[:, 0]
    return read_layer_responses(scan, layer)[:, unit]


@lru_cache(maxsize=2)
def read_layer_responses(scan: Scan, layer: str) -> Numbers:
    """The responses of a layer to all images, read once: its units are looked at in turn."""
    return scan.responses(layer)


@lru_cache(maxsize=4)
def read_sample(scan: Scan, layer: str) -> ResponseSample:
    """The sample of a layer, read once."""
    return scan.sample(layer)


def make_histogram(values: Numbers) -> tuple[Numbers, Numbers]:
    """Counts and edges of equally wide bins over all values."""
    if len(values) == 0:
        return np.zeros(1, int), np.array([0.0, 1.0])
    return np.histogram(values.astype(np.float64), bins=HISTOGRAM_BINS)


@dataclass(frozen=True)
class ClassMean:
    """The mean response of a unit to the images of a class."""

    index: int
    name: str
    mean: float
    count: int


def rank_class_means(
    distribution: Distribution, groups: ImageGroups, limit: int
) -> list[ClassMean]:
    """The classes that a unit responds to most, by its mean response to their images."""
    classes = groups.indices[distribution.ids]
    is_known = classes >= 0
    if not is_known.any():
        return []
    known_classes = classes[is_known]
    counts = np.bincount(known_classes, minlength=len(groups.names))
    sums = np.bincount(known_classes, distribution.values[is_known], len(groups.names))
    present = np.flatnonzero(counts)
    means = sums[present] / counts[present]
    order = np.argsort(-means, kind="stable")[:limit]
    return [
        ClassMean(
            int(present[rank]),
            groups.names[present[rank]],
            float(means[rank]),
            int(counts[present[rank]]),
        )
        for rank in order
    ]


# ── images ──


def name_image(scan: Scan, id: int) -> str:
    """The name of an image's file."""
    path = scan.paths[id].replace("\\", "/")
    return escape_for_display(path.rstrip("/").rpartition("/")[2] or path)


def name_image_group(groups: ImageGroups, id: int) -> str:
    """The class of an image; empty where it is not known."""
    index = int(groups.indices[id])
    return groups.names[index] if index >= 0 else ""


def describe_image(explorer: Explorer, groups: ImageGroups, id: int) -> dict[str, Any]:
    """An image as cards and lists show it."""
    return {
        "id": id,
        "name": name_image(explorer.scan, id),
        "class": name_image_group(groups, id),
        "picture": explorer.thumbnail(id),
        "address": link_image(explorer, id),
    }


def link_image(explorer: Explorer, id: int) -> str:
    """The address of an image's page; empty where the site has none for it."""
    return explorer.link("image", id=id) if explorer.has_image_page(id) else ""


# ── units ──


@dataclass(frozen=True)
class UnitTable:
    """What is known of each unit of a layer, U of them.

    Attributes:
        peaks: The strongest response of each.
        facts: What the responses to all images say; None where the scan has none.
        names: What each unit is called; empty where it has no name, or one that fits too badly.
        name_rows: The numbers of each name, by `UnitName.to_row`; None where there is no name.
        readability: How alike a unit's strongest images are, −1 to 1; None where it is not
            measured, NaN for units of fewer than two images.
        readability_limit: What only one random set of images in twenty exceeds.
    """

    layer: str
    peaks: Numbers
    facts: UnitFacts | None
    names: tuple[str, ...]
    name_rows: tuple[dict[str, Any] | None, ...]
    readability: Numbers | None
    readability_limit: float

    @property
    def unit_count(self) -> int:
        return len(self.peaks)

    @property
    def dead_count(self) -> int | None:
        """How many units are dead; None where it is not known."""
        return None if self.facts is None else int(self.facts.is_dead.sum())

    @property
    def duplicate_count(self) -> int | None:
        """How many units do the same as an earlier one; None where it is not known."""
        return None if self.facts is None else int((self.facts.duplicate_of >= 0).sum())


@lru_cache(maxsize=512)
def read_unit_table(explorer: Explorer, layer: str) -> UnitTable:
    """What is known of each unit of a layer, read once."""
    scan = explorer.scan
    values = scan.top(layer).values
    peaks = values[0].numpy() if len(values) else np.full(values.shape[1], np.nan)
    name_rows = read_name_rows(explorer, layer, len(peaks))
    readability = read_readability(scan, layer)
    return UnitTable(
        layer=layer,
        peaks=peaks,
        facts=read_facts(scan, layer),
        names=tuple(map(show_name, name_rows)),
        name_rows=name_rows,
        readability=None if readability is None else readability.agreement,
        readability_limit=0.0 if readability is None else readability.chance_limit,
    )


def read_facts(scan: Scan, layer: str) -> UnitFacts | None:
    """The facts of a layer's units; None for a scan without responses, or not complete."""
    if not scan.has_responses:
        return None
    try:
        return read_unit_facts(scan, layer)
    except SightlineError:
        return None


def read_name_rows(
    explorer: Explorer, layer: str, unit_count: int
) -> tuple[dict[str, Any] | None, ...]:
    """The names of a layer's units with their numbers; found once, and kept."""
    scan = explorer.scan
    no_names = (None,) * unit_count
    if not scan.has_responses or not scan.complete:
        return no_names

    def find_names() -> dict[str, Any]:
        names = name_units(scan, layer)
        return {"names": [name.to_row() if name else None for name in names]}

    try:
        numbers = keep_numbers(explorer, {"numbers": "names", "layer": layer}, find_names)
    except SightlineError:  # there is nothing to name units after
        return no_names
    return tuple(numbers["names"])


def show_name(name_row: dict[str, Any] | None) -> str:
    """A name as pages show it; empty for none, and for one that agrees too little."""
    if name_row is None or not fits_well(name_row["auprc"], name_row["auprc_chance"]):
        return ""
    return escape_for_display(name_row["name"])


def read_readability(scan: Scan, layer: str) -> Readability | None:
    """How alike the strongest images of each unit are, by the features that the scan keeps.

    None where it keeps none, or where it kept those of this layer only: they would agree by
    construction.
    """
    other_layers = [name for name in scan.vector_layers if name != layer]
    if not other_layers or scan.images < MIN_READABILITY_IMAGES:
        return None
    strongest = scan.top(layer).ids[:STRONGEST_IMAGES].numpy()
    return measure_readability(strongest, read_vectors(scan, other_layers[-1]))


@lru_cache(maxsize=2)
def read_vectors(scan: Scan, layer: str) -> Numbers:
    """The feature vectors of all images at a layer, read once."""
    return scan.vectors(layer).numpy()


def describe_unit(explorer: Explorer, layer: str, unit: int) -> dict[str, Any]:
    """A unit as cards and lists show it."""
    table = read_unit_table(explorer, layer)
    return {
        "layer": escape_for_display(layer),
        "unit": unit,
        "name": table.names[unit],
        "address": explorer.link("unit", layer=layer, unit=unit),
    }
