"""What lies below a folder: image files, and what scans and other programs left there."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.images.files import walk_files

TEXT_SUFFIXES = frozenset({".txt", ".json", ".csv", ".md", ".xml", ".yaml", ".yml", ".log", ".py"})
ARRAY_SUFFIXES = frozenset({".npz", ".npy", ".mat", ".safetensors", ".pt", ".pth"})

COMPANION_SUFFIXES = TEXT_SUFFIXES | ARRAY_SUFFIXES  # files that often lie beside images
ARRAY_IMAGE_SUFFIX = ".npy"  # an image where no other files are

STORE_DESCRIPTION = "scan.json"
STORE_SIGNATURE = b'"format": "sightline scan"'
STORE_HEAD_BYTES = 1000

# The files of a store before its description, and the tables of one that has lost it.
STORE_BEGINNINGS: tuple[set[str], ...] = ({"lock"}, {"lock", "writer"})
STORE_TABLES = frozenset({"images.lance", "errors.lance"})

LANCE_FOLDERS = frozenset({"_versions", "data"})  # of a table


def find_image_files(folder: str) -> Iterator[str]:
    """Every file below a folder that could be an image.

    Leaves out hidden files and folders, stores and Lance tables, and files such as `.txt` and
    `.json` that often lie beside images. Does not follow links to folders. A folder that can't be
    listed is given too, with a separator at its end. Where there are no such files, `.npy` files
    are the images.
    """
    unlisted_folders: list[str] = []
    arrays: list[str] = []
    has_image = False

    def note_folder(path: str) -> None:
        unlisted_folders.append(os.path.join(path, ""))

    def may_hold_images(path: str) -> bool:
        return not os.path.basename(path).startswith(".") and not is_store_or_table(path)

    for path in walk_files(folder, enters=may_hold_images, note_unlisted=note_folder):
        name = os.path.basename(path)
        if name.startswith("."):
            continue
        if Path(name).suffix.lower() not in COMPANION_SUFFIXES:
            has_image = True
            yield path
        elif name.lower().endswith(ARRAY_IMAGE_SUFFIX):
            arrays.append(path)
    if not has_image:
        yield from arrays
    yield from unlisted_folders


def is_store_or_table(folder: str) -> bool:
    """Whether a folder holds a store or a Lance table, whatever its name."""
    names = list_names(folder)
    return (
        names >= LANCE_FOLDERS
        or names >= STORE_TABLES
        or names in STORE_BEGINNINGS
        or (STORE_DESCRIPTION in names and has_store_description(folder))
    )


def is_lance_table(folder: str) -> bool:
    """Whether a folder holds a Lance table."""
    return list_names(folder) >= LANCE_FOLDERS


def list_names(folder: str) -> set[str]:
    """The names in a folder; none if it can't be listed."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def has_store_description(folder: str) -> bool:
    """Whether the `scan.json` in a folder is that of a store."""
    try:
        with open(os.path.join(folder, STORE_DESCRIPTION), "rb") as file:
            return STORE_SIGNATURE in file.read(STORE_HEAD_BYTES)
    except OSError:
        return False


def infer_folder_classes(root: str, paths: Sequence[str]) -> list[str | None]:
    """The first folder below `root` of each path; None for all if one lies in `root` itself."""
    folders_of_path: list[list[str]] = []
    for path in paths:
        folder = os.path.relpath(os.path.dirname(path), root)
        folders_of_path.append([] if folder == os.curdir else folder.split(os.sep))
    if not all(folders_of_path):
        return [None] * len(paths)
    return [folders[0] for folders in folders_of_path]
