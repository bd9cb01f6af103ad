"""Photographs for training, decoded once: a folder's pictures as one uint8 memory map, batches drawn by seed and step."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.files import replace_atomically
from sightline.images.io import crop_center, read, resize_short_side
from sightline.images.library import find_pictures_below


class PhotoDataset:
    """Square pictures N×side×side×3 uint8; `key` tells them from others."""

    def __init__(self, pixels: NDArray[np.uint8], fingerprint: str = "") -> None:
        self.pixels, self.side, self.fingerprint = pixels, pixels.shape[1], fingerprint

    def __len__(self) -> int:
        return len(self.pixels)

    def crop_batch(self, indices: Sequence[int], size: int, rng: np.random.Generator) -> Tensor:
        """These pictures, cropped at random to `size` and mirrored half of the time: N×3×size×size in [0, 1], channels_last."""
        crops: list[NDArray[np.uint8]] = []
        for index in indices:
            y, x = rng.integers(0, self.side - size + 1, 2)
            crop = self.pixels[index, y : y + size, x : x + size]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return pixels_to_images(np.stack(crops))

    def pick_evenly(self, count: int) -> Tensor:
        """As many pictures, evenly spread over all, whole: count×3×side×side in [0, 1]."""
        return pixels_to_images(self.pixels[[len(self) * i // count for i in range(count)]])

    def draw_batch(self, seed: int, step: int, count: int, size: int) -> Tensor:
        """The batch of one step of training: it depends on seed and step alone, so a resumed run sees what it would have seen."""
        rng = np.random.default_rng([seed, step])
        return self.crop_batch(rng.integers(0, len(self), count).tolist(), size, rng)


def pixels_to_images(pixels: NDArray[np.uint8]) -> Tensor:
    """N×H×W×3 uint8 as N×3×H×W in [0, 1], channels_last."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def decode_photo_folder(
    folder: Path, side: int, cache: Path, progress: Callable[[float], object] = lambda _: None
) -> PhotoDataset:
    """The pictures under `folder`, each resized to the short side and cropped to the middle square, from `cache` if it was made from the same files.
    Those that can't be read are left out, and a warning counts them.

    Raises SightlineError for a folder that is missing or holds no picture.
    """
    return cache_photos(find_pictures_below(folder), side, cache, "photos", progress)


def cache_photos(
    paths: Sequence[Path],
    side: int,
    cache: Path,
    name: str,
    progress: Callable[[float], object] = lambda _: None,
) -> PhotoDataset:
    """These pictures as `decoded` has them, in `cache` under a name."""
    pixels, facts = cache / f"{name}.u8", cache / f"{name}.json"
    key = fingerprint_files(paths, side)
    if not (
        facts.is_file()
        and pixels.is_file()
        and json.loads(facts.read_text(encoding="utf-8")).get("key") == key
    ):
        count = write_pixel_file(paths, side, pixels, progress)
        with replace_atomically(facts) as temporary:
            temporary.write_text(json.dumps({"key": key, "count": count}), encoding="utf-8")
    count = json.loads(facts.read_text(encoding="utf-8"))["count"]
    return PhotoDataset(np.memmap(pixels, np.uint8, "r", shape=(count, side, side, 3)), key)


def fingerprint_files(paths: Sequence[Path], side: int) -> str:
    """What tells one set of files from another: names, sizes and times of change."""
    told = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([side, told]).encode()).hexdigest()


def write_pixel_file(
    paths: Sequence[Path], side: int, target: Path, progress: Callable[[float], object]
) -> int:
    """Decodes pictures one after the other into a flat file; gives how many there are."""
    count, reasons = 0, list[str]()
    with replace_atomically(target) as temporary, temporary.open("wb") as file:
        for done, path in enumerate(paths):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of an animation the first frame does
                    picture = crop_center(resize_short_side(read(path), side), side, side)
            except SightlineError as error:
                reasons.append(str(error))
                continue
            file.write(picture[0].mul(255).round().byte().permute(1, 2, 0).numpy().tobytes())
            count += 1
            progress((done + 1) / len(paths))
        if not count:
            raise SightlineError(
                f"none of {len(paths)} pictures can be read; the first: {reasons[0]}"
            )
    if reasons:
        warnings.warn(
            f"{len(reasons)} of {len(paths)} pictures are left out; the first: {reasons[0]}",
            stacklevel=3,
        )
    return count
