"""What the methods over a collection share: the scan they read, the network behind it, its images as they compare and name them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sightline.data.scan.run import scan
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.images.io import crop_center, resize_image
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid

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
    """The scan that a method reads: the one given, else the model's pass over `folder` (or what comes along) kept in `store`.

    A pass that must be made keeps the features of `vectors` and follows the units of `layer`, or of all convolutions if it is one.
    A store without a folder is read as it is; raises SightlineError if another network made it.
    """
    if isinstance(model, Scan):
        if folder is not None or store is not None:
            raise SightlineError(
                "a Scan is read as it is: leave out folder and store, or give the Model instead"
            )
        return model
    if store is None or folder is not None:
        others = (
            None if layer is None or is_followed_by_default(model, model.layer(layer)) else (layer,)
        )
        return scan(
            model,
            folder,
            store=store,
            vectors=tuple(dict.fromkeys(("penultimate", vector_layer))),
            layers=others,
        )
    found = Scan.open(store)
    found.require(model)
    return found


def is_followed_by_default(model: Model, layer: str) -> bool:
    """Whether a pass follows this layer's units without being told."""
    return layer in model.layers and isinstance(model.module(layer), nn.Conv2d)


def compute_feature_vectors(model: Model, image: Tensor, layer: str) -> Tensor:
    """The features of images as a scan keeps them, N×d: averaged over places."""
    with torch.no_grad():
        feature = model.features(image, layer)[layer]
        return (
            (feature if feature.ndim == 2 else reshape_to_unit_grid(feature, image).mean((2, 3)))
            .float()
            .cpu()
        )


def resolve_network(model: Model | Scan, dataset_scan: Scan) -> Model:
    """The network itself: the one given, else the one that the store names."""
    return dataset_scan.model() if isinstance(model, Scan) else model


def load_pixel_vectors(dataset_scan: Scan) -> Tensor:
    """All images as n×3072 numbers: the middle square of each at 32×32; decoded once for a scan."""
    if dataset_scan not in _pixel_vector_cache:
        _pixel_vector_cache[dataset_scan] = load_center_crops(
            dataset_scan, range(dataset_scan.images), PIXEL_VECTOR_SIDE
        ).flatten(1)
    return _pixel_vector_cache[dataset_scan]


def load_center_crops(dataset_scan: Scan, ids: Sequence[int], side: int) -> Tensor:
    """The middle squares of stored images, n×3×side×side, read by the hundred."""
    return torch.cat(
        [
            resize_center_crop(
                dataset_scan.thumbnails(ids[start : start + THUMBNAIL_BATCH_SIZE]), side
            )
            for start in range(0, len(ids), THUMBNAIL_BATCH_SIZE)
        ]
    )


def compute_pixel_vectors(image: Tensor) -> Tensor:
    """Images N×3×H×W as N×3072 numbers: their middle square at 32×32."""
    return resize_center_crop(image, PIXEL_VECTOR_SIDE).flatten(1)


def resize_center_crop(image: Tensor, side: int) -> Tensor:
    """The middle square of images, N×3×side×side."""
    whole = min(image.shape[-2:])
    return resize_image(crop_center(image, whole, whole), side, side)


def name_image_classes(dataset_scan: Scan, ids: Iterable[int]) -> list[str]:
    """The class of each image, else the class that the network takes it for, with a question mark."""
    words: list[str] = []
    for id in ids:
        if dataset_scan.classes is not None and int(dataset_scan.classes[id]) >= 0:
            words.append(dataset_scan.class_names[int(dataset_scan.classes[id])])
        else:
            words.append(f"{dataset_scan.model_labels[int(dataset_scan.top5[0][id, 0])]}?")
    return words
