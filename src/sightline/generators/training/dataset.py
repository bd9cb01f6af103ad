"""Training photographs, decoded once into a memory map; batches are drawn by seed and step."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.files import replace_atomically, write_text
from sightline.images.io.library import find_pictures_below
from sightline.images.io.pictures import read_picture
from sightline.images.transforms import crop_center, resize_short_side

Progress = Callable[[float], object]


class PhotoDataset:
    """Square images N×side×side×3 uint8. `fingerprint` tells one dataset from another."""

    def __init__(self, pixels: NDArray[np.uint8], fingerprint: str = "") -> None:
        self.pixels = pixels
        self.side = pixels.shape[1]
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.pixels)

    def crop_batch(self, indices: Sequence[int], size: int, rng: np.random.Generator) -> Tensor:
        """Random crops N×3×size×size in [0, 1], half of them mirrored, in channels_last."""
        crops: list[NDArray[np.uint8]] = []
        for index in indices:
            y, x = rng.integers(0, self.side - size + 1, 2)
            crop = self.pixels[index, y : y + size, x : x + size]
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            crops.append(crop)
        return pixels_to_images(np.stack(crops))

    def pick_evenly(self, count: int) -> Tensor:
        """`count` whole images, evenly spaced in the dataset: count×3×side×side in [0, 1]."""
        indices = [len(self) * number // count for number in range(count)]
        return pixels_to_images(self.pixels[indices])

    def draw_batch(self, seed: int, step: int, count: int, size: int) -> Tensor:
        """The batch of one training step, count×3×size×size in [0, 1].

        It depends on seed and step alone, so that a resumed run goes on with the batches of an
        uninterrupted one.
        """
        rng = np.random.default_rng([seed, step])
        indices = rng.integers(0, len(self), count).tolist()
        return self.crop_batch(indices, size, rng)


def pixels_to_images(pixels: NDArray[np.uint8]) -> Tensor:
    """Converts N×H×W×3 uint8 to N×3×H×W in [0, 1], channels_last."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def decode_photo_folder(
    folder: Path, side: int, cache: Path, progress: Progress = lambda _: None
) -> PhotoDataset:
    """Decodes the images under `folder` to squares of `side` pixels.

    The short side is resized, then the square in the middle is cut out.

    The result is read from the folder `cache` if it was made from the same files. Images that can't
    be read are left out with one warning that counts them. `progress` is called with the share
    done, in [0, 1].

    Raises SightlineError for a folder that is missing or holds no readable image.
    """
    return cache_photos(find_pictures_below(folder), side, cache, "photos", progress)


def cache_photos(
    paths: Sequence[Path],
    side: int,
    cache: Path,
    name: str,
    progress: Progress = lambda _: None,
) -> PhotoDataset:
    """`decode_photo_folder` for a list of files; `name` names the files in `cache`."""
    pixel_path = cache / f"{name}.u8"
    metadata_path = cache / f"{name}.json"
    fingerprint = fingerprint_files(paths, side)

    count = read_cached_count(metadata_path, pixel_path, fingerprint, side)
    if count is None:
        # Killed between the two files, a run must not leave the old facts beside new pixels.
        metadata_path.unlink(missing_ok=True)
        count = write_pixel_file(paths, side, pixel_path, progress)
        facts = CacheFacts(key=fingerprint, count=count)
        write_text(facts.model_dump_json(), metadata_path)

    shape = (count, side, side, 3)
    return PhotoDataset(np.memmap(pixel_path, np.uint8, "r", shape=shape), fingerprint)


class CacheFacts(BaseModel):
    """What a pixel file holds: the fingerprint of its pictures, and how many could be read."""

    model_config = ConfigDict(strict=True)

    key: str
    count: Annotated[int, Field(ge=1)]


def read_cached_count(
    metadata_path: Path, pixel_path: Path, fingerprint: str, side: int
) -> int | None:
    """How many pictures the pixel file holds; None where it has to be written.

    That is without the files, and where they are damaged or of other pictures.
    """
    try:
        facts = CacheFacts.model_validate_json(metadata_path.read_bytes())
        byte_count = pixel_path.stat().st_size
    except (OSError, ValidationError):
        return None
    is_whole = byte_count == facts.count * side * side * 3
    return facts.count if is_whole and facts.key == fingerprint else None


def fingerprint_files(paths: Sequence[Path], side: int) -> str:
    """A digest of the files' names, sizes and modification times, and of the side."""
    facts: list[tuple[str, int, int]] = []
    for path in paths:
        status = path.stat()
        facts.append((str(path), status.st_size, status.st_mtime_ns))
    text = json.dumps([side, facts])
    return hashlib.sha256(text.encode()).hexdigest()


def write_pixel_file(paths: Sequence[Path], side: int, target: Path, progress: Progress) -> int:
    """Decodes images into a flat file, side×side×3 bytes each. Returns how many could be read."""
    count = 0
    problems: list[str] = []
    with replace_atomically(target) as temporary, temporary.open("wb") as file:
        for index, path in enumerate(paths):
            try:
                image = read_square_image(path, side)
            except SightlineError as error:
                problems.append(str(error))
                continue
            pixels = image[0].mul(255).round().byte().permute(1, 2, 0)
            file.write(pixels.numpy().tobytes())
            count += 1
            progress((index + 1) / len(paths))
        if not count:
            raise SightlineError(
                f"none of {len(paths)} pictures can be read; the first: {problems[0]}"
            )
    if problems:
        warnings.warn(
            f"{len(problems)} of {len(paths)} pictures are left out; the first: {problems[0]}",
            stacklevel=3,
        )
    return count


def read_square_image(path: Path, side: int) -> Tensor:
    """The square in the middle of an image, 1×3×side×side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The first frame of an animation will do.
        image = read_picture(path)
    return crop_center(resize_short_side(image, side), side, side)
