"""Dataset objects of torch, torchvision and Hugging Face."""

import hashlib
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from sightline.data.datasets.files import Files, ImageDataset, hash_source
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.center_crop import ImageSource
from sightline.images.decode.pixels import convert_tensor_to_pillow
from sightline.images.validation import add_batch_axis, check_image
from sightline.process.locks import ForkSafeLock

FINGERPRINT_IMAGES = 16  # images that the digest of a dataset object depends on


def wrap_dataset(dataset: Any) -> ImageDataset:
    """A dataset object as an ImageDataset.

    Of a torchvision image folder without a transform the files are read, of anything else the
    images that `dataset[i]` returns. Raises SightlineError for an object without `len()` or `[i]`.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise SightlineError(
            "a dataset is a folder, list, archive, or an object with len() and [i]; "
            f"this is {dataset!r:.60}"
        )
    samples = getattr(dataset, "samples", None)
    class_names = getattr(dataset, "classes", None)
    transform = getattr(dataset, "transform", None)
    if samples and class_names and transform is None and isinstance(samples[0][0], str):
        root = str(getattr(dataset, "root", type(dataset).__name__))
        paths = [path for path, _ in samples]
        return Files(root, paths, [class_names[label] for _, label in samples])
    return Dataset(dataset)


class Dataset:
    """Images and labels from `dataset[i]`, read by one thread at a time.

    An item is an (image, label) pair, an image alone, or a mapping with `image` and `label`. The
    label is known once the image has been read, and `get_label` returns it once.
    """

    source = None

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.lock = ForkSafeLock()
        self.class_names = find_class_names(dataset)
        self.labels: dict[int, int] = {}

        fingerprint = getattr(dataset, "_fingerprint", "")  # of a Hugging Face dataset
        header = f"{type(dataset).__name__} {len(dataset)} {fingerprint}"
        digest = hashlib.sha256(header.encode())
        errors: list[SightlineError] = []
        positions = pick_fingerprint_positions(len(dataset))
        for position in positions:
            try:
                image = self.read_image(position)
                if isinstance(image, Tensor):
                    image = make_hashable_picture(image)
                digest.update(hash_source(image).encode())
            except SightlineError as error:
                errors.append(error)
                digest.update(str(error).encode())
        if errors and len(errors) == len(positions):
            raise errors[0]
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> ImageSource:
        return self.read_image(position)

    def get_path(self, position: int) -> str:
        return f"{type(self.dataset).__name__}[{position}]"

    def get_label(self, position: int) -> int:
        return self.labels.pop(position, -1)

    def read_image(self, position: int) -> ImageSource:
        try:
            with self.lock:
                item = self.dataset[position]
        except Exception as error:
            reason = get_first_error_line(error) or type(error).__name__
            raise SightlineError(f"the dataset has no item {position}: {reason}") from error
        image, label = split_item(item)
        if self.class_names and label is not None:
            self.labels[position] = check_label(label, len(self.class_names))
        if isinstance(image, Image.Image):
            image.load()
        elif not isinstance(image, (Tensor, bytes)):
            raise SightlineError(
                f"item {position} of the dataset is of type {type(image).__name__}; "
                "it must be an image, a tensor or the bytes of a file"
            )
        return image


def make_hashable_picture(image: Tensor) -> Image.Image:
    """A picture that differs where the first image of a tensor does, by its 8-bit values."""
    batch = add_batch_axis(image)
    if batch.ndim == 4 and batch.shape[1] != 3:
        values = check_image(batch, channels=batch.shape[1])[:1]
        batch = values.flatten(1, 2)[:, None].expand(-1, 3, -1, -1)
    return convert_tensor_to_pillow(batch)


def check_label(label: Any, class_count: int) -> int:
    """A label as an index into the class names; −1 is not known.

    Raises SightlineError if it is none.
    """
    try:
        index = int(label)
    except (TypeError, ValueError) as error:
        raise SightlineError(f"its label is {label!r:.40}; it must be a number") from error
    if not -1 <= index < class_count:
        raise SightlineError(f"its label is {index}; the dataset has {class_count} classes")
    return index


def find_class_names(dataset: Any) -> tuple[str, ...]:
    """The class names of a dataset: `classes` of torchvision, or `features` of Hugging Face."""
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if not names and isinstance(features, Mapping):
        names = getattr(features.get("label"), "names", None)
    return tuple(map(str, names or ()))


def pick_fingerprint_positions(count: int) -> list[int]:
    """At most 16 evenly spaced positions, the first and the last among them."""
    if not count:
        return []
    last_number = FINGERPRINT_IMAGES - 1
    return sorted({number * (count - 1) // last_number for number in range(FINGERPRINT_IMAGES)})


def split_item(item: Any) -> tuple[Any, Any]:
    """Image and label of what `dataset[i]` returned; the label is None where there is none."""
    if isinstance(item, Mapping):
        return item.get("image"), item.get("label")
    if isinstance(item, (tuple, list)) and len(item) > 1:
        return item[0], item[1]
    return item, None
