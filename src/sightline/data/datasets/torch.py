"""Dataset objects of torch, torchvision and Hugging Face as collections."""

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from sightline.data.datasets.files import Files, ImageDataset, hash_source
from sightline.errors import SightlineError
from sightline.images.decode import ImageSource, convert_tensor_to_pillow

FINGERPRINT_IMAGES = 16


def wrap_dataset(dataset: Any) -> ImageDataset:
    """The files of an image folder without transform, else the pictures that `dataset[i]` gives."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise SightlineError(
            f"a collection is a folder, list, archive or dataset with len(); this is {dataset!r:.60}"
        )
    samples, names = getattr(dataset, "samples", None), getattr(dataset, "classes", None)
    if (
        samples
        and names
        and getattr(dataset, "transform", None) is None
        and isinstance(samples[0][0], str)
    ):
        return Files(
            str(getattr(dataset, "root", type(dataset).__name__)),
            [path for path, _ in samples],
            [names[label] for _, label in samples],
        )
    return Dataset(dataset)


class Dataset:
    """Pictures and labels by `dataset[i]`: a pair, a picture alone, or a mapping with `image` and `label`; one thread at a time."""

    source = None

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.lock = dataset, threading.Lock()
        features = getattr(dataset, "features", None) or {}
        names = getattr(dataset, "classes", None) or getattr(
            features.get("label") if isinstance(features, Mapping) else None, "names", None
        )
        self.class_names = tuple(map(str, names or ()))
        self.labels: dict[int, int] = {}
        found = hashlib.sha256(
            f"{type(dataset).__name__} {len(dataset)} {getattr(dataset, '_fingerprint', '')}".encode()
        )
        for position in (
            sorted(
                {
                    number * (len(dataset) - 1) // (FINGERPRINT_IMAGES - 1)
                    for number in range(FINGERPRINT_IMAGES)
                }
            )
            if len(dataset)
            else []
        ):
            picture = self.read_image(position)
            found.update(
                (
                    hash_source(convert_tensor_to_pillow(picture))
                    if isinstance(picture, Tensor)
                    else hash_source(picture)
                ).encode()
            )
        self.digest = found.hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def get_path(self, position: int) -> str:
        return f"{type(self.dataset).__name__}[{position}]"

    def get_label(self, position: int) -> int:
        return self.labels.pop(position, -1)

    def read_image(self, position: int) -> ImageSource:
        with self.lock:
            item = self.dataset[position]
        if isinstance(item, Mapping):
            item = (item.get("image"), item.get("label"))
        picture, label = (
            (item[0], item[1])
            if isinstance(item, (tuple, list)) and len(item) > 1
            else (item, None)
        )
        if self.class_names and label is not None:
            self.labels[position] = int(label)
        if isinstance(picture, Image.Image):
            picture.load()
        elif not isinstance(picture, (Tensor, bytes)):
            raise SightlineError(
                f"item {position} of the dataset is no picture, tensor or file's bytes but a {type(picture).__name__}"
            )
        return picture
