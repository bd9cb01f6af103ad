"""What the methods over a dataset share: the scan they read, its network, and its images.

The images are given as the methods compare them (as pixels) and name them (by class).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sightline.data.scan.layers import list_default_layers, resolve_scan_layer
from sightline.data.scan.run import scan
from sightline.data.scan.true_classes import list_class_names
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.images.transforms import crop_center, resize_image
from sightline.models.model import Model

PIXEL_VECTOR_SIDE = 32  # side of the thumbnails that are compared pixel by pixel

THUMBNAIL_BATCH_SIZE = 256  # thumbnails in memory at their full size

_pixel_vector_cache: "WeakKeyDictionary[Scan, Tensor]" = WeakKeyDictionary()


def resolve_scan(
    model: Model | Scan,
    folder: str | Path | None,
    store: str | Path | None,
    *,
    vector_layer: str = "penultimate",
    layer: str | None = None,
) -> Scan:
    """The scan that a method reads.

    A `Scan` in the model's place is returned. A store without a folder is opened as it is. Else it
    is the model's pass over `folder`, kept in `store`, run if it is not there yet: it keeps the
    features of `vector_layer`, and follows the units of the default layers, or of `layer` if it is
    none of them.

    Raises SightlineError if another network made the store.
    """
    if isinstance(model, Scan):
        if folder is not None or store is not None:
            raise SightlineError(
                "a Scan is read as it is: leave out folder and store, or give the Model instead"
            )
        return model

    if store is not None and folder is None:
        stored_scan = Scan.open(store)
        stored_scan.require(model)
        return stored_scan

    layers = None
    if layer is not None and not is_followed_by_default(model, resolve_scan_layer(model, layer)):
        layers = (layer,)
    vectors = tuple(dict.fromkeys(("penultimate", vector_layer)))
    return scan(model, folder, store=store, vectors=vectors, layers=layers)


def is_followed_by_default(model: Model, layer: str) -> bool:
    """Whether a scan without `layers` follows this layer's units."""
    return layer in list_default_layers(model)


def name_feature_layer(dataset_scan: Scan, layer: str) -> str:
    """A layer as captions name it: a layer that stands in for "penultimate" by its own name."""
    own_name = dataset_scan.layer(layer)
    if layer == "penultimate" and not own_name.endswith(":in"):
        return own_name
    return layer


def resolve_network(model: Model | Scan, dataset_scan: Scan) -> Model:
    """The network itself: the one given, else the one that the store names."""
    return dataset_scan.model() if isinstance(model, Scan) else model


def count_voters(dataset_scan: Scan, limit: int) -> int:
    """How many neighbours vote for an image's class: `limit`, or fewer in a small dataset.

    0 without two images of known class.
    """
    if dataset_scan.classes is None:
        return 0
    known_count = int((dataset_scan.classes >= 0).sum())
    return max(0, min(limit, known_count - 1))


# ── images as pixels ──


def load_pixel_vectors(dataset_scan: Scan) -> Tensor:
    """All images as n×3072 numbers: the middle square of each at 32×32. Decoded once per scan."""
    if dataset_scan not in _pixel_vector_cache:
        ids = range(dataset_scan.images)
        squares = load_center_crops(dataset_scan, ids, PIXEL_VECTOR_SIDE)
        _pixel_vector_cache[dataset_scan] = squares.flatten(1)
    return _pixel_vector_cache[dataset_scan]


def load_center_crops(dataset_scan: Scan, ids: Sequence[int], side: int) -> Tensor:
    """The middle squares of stored images, n×3×side×side, decoded a batch at a time."""
    squares: list[Tensor] = []
    for start in range(0, len(ids), THUMBNAIL_BATCH_SIZE):
        thumbnails = dataset_scan.thumbnails(ids[start : start + THUMBNAIL_BATCH_SIZE])
        squares.append(resize_center_crop(thumbnails, side))
    return torch.cat(squares)


def compute_pixel_vectors(image: Tensor) -> Tensor:
    """Images N×3×H×W as N×3072 numbers: the middle square of each at 32×32."""
    return resize_center_crop(image, PIXEL_VECTOR_SIDE).flatten(1)


def resize_center_crop(image: Tensor, side: int) -> Tensor:
    """The middle squares of images, N×3×side×side."""
    crop_side = min(image.shape[-2:])
    return resize_image(crop_center(image, crop_side, crop_side), side, side)


# ── images by name ──


def name_image_classes(dataset_scan: Scan, ids: Iterable[int]) -> list[str]:
    """The class of each image as captions show it.

    Where it is unknown, it is the network's best class with a «?».
    """
    class_names = list_class_names(dataset_scan)
    names: list[str] = []
    for id in ids:
        label = -1 if dataset_scan.classes is None else int(dataset_scan.classes[id])
        if label >= 0:
            names.append(class_names[label])
        else:
            best_labels, _ = dataset_scan.top5
            names.append(f"{dataset_scan.model_labels[int(best_labels[id, 0])]}?")
    return names
