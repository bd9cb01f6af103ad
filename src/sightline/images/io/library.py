"""Pictures that come with the package, and pictures in folders."""

from pathlib import Path

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.decode.formats import IMAGE_FILE_SUFFIXES
from sightline.images.files import walk_files
from sightline.images.io.pictures import read_picture, resolve_image
from sightline.images.transforms import cover_center

ASSETS_FOLDER = Path(__file__).parents[2] / "assets"
# What the shipped style network was trained on, by the names of its styles.
PAINTINGS_FOLDER = ASSETS_FOLDER / "paintings"
PAINTING_NAMES = tuple(path.stem for path in sorted(PAINTINGS_FOLDER.glob("*.jpg")))


def read_style_picture(source: Tensor | str | Path) -> Tensor:
    """A style picture N×3×H×W: a shipped painting by its name, else what `resolve_image` reads."""
    if isinstance(source, str) and source in PAINTING_NAMES and not Path(source).exists():
        return read_picture(PAINTINGS_FOLDER / f"{source}.jpg")
    return resolve_image(source)


def read_random_images(folder: str, count: int, seed: int, height: int, width: int) -> list[Tensor]:
    """Reads `count` random pictures of a folder, each as 3×height×width in [0, 1].

    A picture is resized to cover that size, then cut to its middle. None is drawn twice before
    all were drawn once. Raises SightlineError for a folder without pictures, and for a picture
    that can't be read.
    """
    if not Path(folder).is_dir():
        raise SightlineError(f"folder is {folder!r}; there is no such folder")
    paths = sorted(path for path in Path(folder).iterdir() if _is_picture_file(path))
    if not paths:
        raise SightlineError(
            f"folder is {folder!r}; it holds no pictures ({', '.join(IMAGE_FILE_SUFFIXES)})"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(paths), generator=generator).tolist()
    images = [cover_center(read_picture(paths[index]), height, width)[0] for index in order[:count]]
    return [images[position % len(images)] for position in range(count)]


def find_pictures_below(folder: Path) -> list[Path]:
    """The picture files in a folder and in those below it, sorted.

    Raises SightlineError for a folder that is missing or holds none.
    """
    if not folder.is_dir():
        raise SightlineError(
            f"no folder {str(folder)!r}; photographs to train on are expected there"
        )
    paths = sorted(path for path in map(Path, walk_files(str(folder))) if _is_picture_file(path))
    if not paths:
        raise SightlineError(
            f"the folder {str(folder)!r} holds no picture ({', '.join(IMAGE_FILE_SUFFIXES)})"
        )
    return paths


def _is_picture_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_FILE_SUFFIXES and path.is_file()
