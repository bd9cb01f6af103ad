"""Imagenette for training: decoded once into a flat uint8 memory map, augmented from it.

The tars hold JPEGs named `wnid/file`; the cache keeps every image whole (short side 160, any
aspect), so that random crops see all of it. About 1 GB for the training part.
"""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from sightline.models.zoo.sightnet import SIGHTNET_MEAN, SIGHTNET_STD

# In the order of sightnet.LABELS.
CLASSES = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


class Photos:
    """The images of one tar: `photos[i]` is (H×W×3 uint8 view, class index)."""

    def __init__(self, tar: Path, cache: Path) -> None:
        pixel_path = cache / f"{tar.stem}.u8"
        index_path = cache / f"{tar.stem}.json"
        if not index_path.exists():
            decode_archive(tar, pixel_path, index_path)
        self.index = json.loads(index_path.read_text())
        self.pixels = np.memmap(pixel_path, np.uint8, "r")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        offset, height, width, label = self.index[i]
        pixels = self.pixels[offset : offset + height * width * 3]
        return pixels.reshape(height, width, 3), label


def decode_archive(tar: Path, pixel_path: Path, index_path: Path) -> None:
    """Decodes every JPEG of `tar` into one file, and writes offsets and labels to another, last."""
    pixel_path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, int, int]] = []
    offset = 0
    with tarfile.open(tar) as archive, pixel_path.open("wb") as out:
        for member in archive:
            if not member.isfile():
                continue
            data = archive.extractfile(member)
            assert data is not None
            image = np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB"))
            out.write(image.tobytes())
            wnid = next(part for part in Path(member.name).parts if part in CLASSES)
            rows.append((offset, image.shape[0], image.shape[1], CLASSES.index(wnid)))
            offset += image.size
    index_path.write_text(json.dumps(rows))


def random_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, min_area: float
) -> np.ndarray:
    """Random resized crop (Szegedy 2015), mirrored half of the time.

    Its area is from `min_area` to 1 of the image's, its aspect from 3/4 to 4/3.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = rng.uniform(min_area, 1) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width = round(np.sqrt(area * aspect))
        crop_height = round(np.sqrt(area / aspect))
        if crop_width <= width and crop_height <= height:
            break
    else:
        crop_width = crop_height = min(height, width)
    y = rng.integers(0, height - crop_height + 1)
    x = rng.integers(0, width - crop_width + 1)
    crop = image[y : y + crop_height, x : x + crop_width]
    interpolation = cv2.INTER_AREA if crop_height > size else cv2.INTER_LINEAR
    resized = cv2.resize(crop, (size, size), interpolation=interpolation)
    return resized[:, ::-1] if rng.random() < 0.5 else resized


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre square of an image whose short side is resized to `size`."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        resized_width = max(size, round(width * scale))
        resized_height = max(size, round(height * scale))
        image = cv2.resize(image, (resized_width, resized_height), interpolation=cv2.INTER_AREA)
    height, width = image.shape[:2]
    y = (height - size) // 2
    x = (width - size) // 2
    return image[y : y + size, x : x + size]


def to_tensor(batch: list[np.ndarray]) -> torch.Tensor:
    """N uint8 images of one size as a channels_last float tensor in [0, 1]."""
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float().div_(255)


def normalize(image: torch.Tensor) -> torch.Tensor:
    """[0, 1] to zero mean and unit variance by ImageNet's channel statistics."""
    mean = torch.tensor(SIGHTNET_MEAN).view(1, 3, 1, 1)
    deviation = torch.tensor(SIGHTNET_STD).view(1, 3, 1, 1)
    return (image - mean) / deviation


def jitter_color(image: torch.Tensor, rng: torch.Generator, strength: float = 0.3) -> torch.Tensor:
    """Brightness, contrast and saturation, each multiplied by 1 ± strength, one draw per image."""
    factor = 1 + strength * (2 * torch.rand(3, image.shape[0], 1, 1, 1, generator=rng) - 1)
    gray = (image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    image = gray + (image - gray) * factor[0]
    mean = image.mean((1, 2, 3), keepdim=True)
    return (mean + (image - mean) * factor[1]).mul(factor[2]).clamp(0, 1)
