"""An even draw from a collection that is too large to be passed whole where someone waits for it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sightline.data.datasets.files import Files
from sightline.data.datasets.open import open_dataset
from sightline.errors import SightlineError
from sightline.images.files import get_cache_path, replace_atomically


@dataclass(frozen=True)
class DatasetSubset:
    """What to pass in place of a collection: itself, or a text list of some of its files; how many, of how many."""

    source: str
    count: int
    total: int
    name: str

    @property
    def description(self) -> str:
        """How many of how many, of what."""
        return (
            f"the {self.total:,} images of {self.name}"
            if self.count == self.total
            else f"{self.count:,} of the {self.total:,} images of {self.name}, evenly drawn"
        )


def draw_subset(source: str, max_images: int) -> DatasetSubset:
    """At most `most` files of a collection, evenly spread over its order, as a list in the user's cache; all of it if it is no larger.

    Raises SightlineError where there is nothing, and for archives with more images than that, since a list can't name a part of one.
    """
    found, name = open_dataset(source), os.path.basename(os.path.abspath(source)) or source
    if len(found) <= max_images:
        return DatasetSubset(source, len(found), len(found), name)
    if not isinstance(found, Files):
        raise SightlineError(
            f"{source} holds {len(found):,} images in archives; give at most {max_images:,}, or a folder of image files"
        )
    chosen = [round(number * (len(found) - 1) / (max_images - 1)) for number in range(max_images)]
    lines = [line for position in chosen if (line := format_list_line(found, position))]
    return DatasetSubset(str(cache_file_list(source, "".join(lines))), len(lines), len(found), name)


def format_list_line(dataset: Files, position: int) -> str:
    """A line of a list: path and class; empty for a path that a list can't hold."""
    path, label = dataset.paths[position], dataset.get_label(position)
    if (
        path != dataset.get_path(position)
        or path != path.strip()
        or "\t" in path
        or len(path.splitlines()) != 1
    ):
        return ""
    return f"{path}\t{dataset.class_names[label]}\n" if label >= 0 else f"{path}\n"


def cache_file_list(source: str, text: str) -> Path:
    """A list in the user's cache, under a name that changes with what it says."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = get_cache_path("lists", f"{os.path.basename(os.path.abspath(source))[:40]}-{digest}.txt")
    if not path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path
