"""The pictures that come with the package: samples, textures and paintings."""

from pathlib import Path

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.io import crop_center, read, resize_image, resolve_image

ASSETS_FOLDER = Path(__file__).parents[1] / "assets"
PAINTINGS_FOLDER = (
    ASSETS_FOLDER / "paintings"
)  # what the shipped network was taught, by the names of its styles

PAINTING_NAMES = tuple(path.stem for path in sorted(PAINTINGS_FOLDER.glob("*.jpg")))


IMAGE_FILE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".webp",
    ".avif",
    ".tif",
    ".tiff",
    ".bmp",
    ".ppm",
    ".pgm",
    ".pnm",
    ".jp2",
)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_style_picture(source: Tensor | str | Path) -> Tensor:
    """A style picture N×3×H×W: a shipped painting by its name, else what `image.given` reads."""
    shipped = isinstance(source, str) and source in PAINTING_NAMES and not Path(source).exists()
    return read(PAINTINGS_FOLDER / f"{source}.jpg") if shipped else resolve_image(source)


def read_random_images(folder: str, count: int, seed: int, height: int, width: int) -> list[Tensor]:
    """`count` pictures of a folder, drawn without repeats while there are enough, each covering height × width from its centre.

    Raises SightlineError when the folder has no pictures or one can't be read.
    """
    place = Path(folder)
    if not place.is_dir():
        raise SightlineError(f"folder is {folder!r}; there is no such folder")
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in IMAGE_FILE_SUFFIXES)
    if not files:
        raise SightlineError(
            f"folder is {folder!r}; it holds no pictures ({', '.join(IMAGE_FILE_SUFFIXES)})"
        )
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    images = {k: resize_to_cover_center(read(files[k]), height, width) for k in order[:count]}
    return [images[order[i % len(files)]] for i in range(count)]


def resize_to_cover_center(image: Tensor, height: int, width: int) -> Tensor:
    """The middle of a 1×3×h×w image, resized to cover height × width: 3×height×width."""
    scale = max(height / image.shape[2], width / image.shape[3])
    resized = resize_image(
        image, max(height, round(image.shape[2] * scale)), max(width, round(image.shape[3] * scale))
    )
    return crop_center(resized, height, width)[0]


def find_pictures_below(folder: Path) -> list[Path]:
    """The picture files in a folder and those below it, sorted; raises SightlineError for a folder that is missing or holds none."""
    if not folder.is_dir():
        raise SightlineError(
            f"no folder {str(folder)!r}; photographs to train on are expected there"
        )
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise SightlineError(
            f"the folder {str(folder)!r} holds no picture ({', '.join(PICTURE_SUFFIXES)})"
        )
    return paths
