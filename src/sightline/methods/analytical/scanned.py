"""What the methods over a collection share: the scan they read, the network behind it, its images as they compare and name them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ... import image as images
from ...errors import SightlineError
from ...model import Model
from ...outputs import positions
from ...scans import Scan, scan

PIXELS = 32  # side of the thumbnails that are compared pixel by pixel
BLOCK = 256  # thumbnails in memory at their full size
_pixels: "WeakKeyDictionary[Scan, Tensor]" = WeakKeyDictionary()


def scanned(
    model: Model | Scan, folder: str | Path | None, store: str | Path | None, *, vectors: str = "penultimate", layer: str | None = None
) -> Scan:
    """The scan that a method reads: the one given, else the model's pass over `folder` (or what comes along) kept in `store`.

    A pass that must be made keeps the features of `vectors` and follows the units of `layer`, or of all convolutions if it is one.
    A store without a folder is read as it is; raises SightlineError if another network made it.
    """
    if isinstance(model, Scan):
        if folder is not None or store is not None:
            raise SightlineError("a Scan is read as it is: leave out folder and store, or give the Model instead")
        return model
    if store is None or folder is not None:
        others = None if layer is None or followed(model, model.layer(layer)) else (layer,)
        return scan(model, folder, store=store, vectors=tuple(dict.fromkeys(("penultimate", vectors))), layers=others)
    found = Scan.open(store)
    found.require(model)
    return found


def followed(model: Model, layer: str) -> bool:
    """Whether a pass follows this layer's units without being told."""
    return layer in model.layers and isinstance(model.module(layer), nn.Conv2d)


def vector(model: Model, image: Tensor, layer: str) -> Tensor:
    """The features of images as a scan keeps them, N×d: averaged over places."""
    with torch.no_grad():
        feature = model.features(image, layer)[layer]
        return (feature if feature.ndim == 2 else positions(feature, image).mean((2, 3))).float().cpu()


def network(model: Model | Scan, found: Scan) -> Model:
    """The network itself: the one given, else the one that the store names."""
    return found.model() if isinstance(model, Scan) else model


def pixels(found: Scan) -> Tensor:
    """All images as n×3072 numbers: the middle square of each at 32×32; decoded once for a scan."""
    if found not in _pixels:
        _pixels[found] = squares(found, range(found.images), PIXELS).flatten(1)
    return _pixels[found]


def squares(found: Scan, ids: Sequence[int], side: int) -> Tensor:
    """The middle squares of stored images, n×3×side×side, read by the hundred."""
    return torch.cat([square(found.thumbnails(ids[start : start + BLOCK]), side) for start in range(0, len(ids), BLOCK)])


def squared(image: Tensor) -> Tensor:
    """Images N×3×H×W as N×3072 numbers: their middle square at 32×32."""
    return square(image, PIXELS).flatten(1)


def square(image: Tensor, side: int) -> Tensor:
    """The middle square of images, N×3×side×side."""
    whole = min(image.shape[-2:])
    return images.resize(images.center_crop(image, whole, whole), side, side)


def named(found: Scan, ids: Iterable[int]) -> list[str]:
    """The class of each image, else the class that the network takes it for, with a question mark."""
    words: list[str] = []
    for id in ids:
        if found.classes is not None and int(found.classes[id]) >= 0:
            words.append(found.class_names[int(found.classes[id])])
        else:
            words.append(f"{found.model_labels[int(found.top5[0][id, 0])]}?")
    return words
