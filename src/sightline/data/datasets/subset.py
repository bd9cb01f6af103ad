"""An evenly spaced subset of a dataset that is too large to scan whole while someone waits."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sightline.data.datasets.files import Files
from sightline.data.datasets.names import encode_name, make_storable_name
from sightline.data.datasets.open import open_dataset
from sightline.errors import SightlineError, escape_for_display
from sightline.images.files import get_cache_path, replace_atomically


@dataclass(frozen=True)
class DatasetSubset:
    """What to scan in place of a dataset: itself, or a text list of some of its files."""

    source: str
    count: int
    total: int
    name: str

    @property
    def description(self) -> str:
        """A clause such as «200 of the 5,000 images of photos, evenly drawn»."""
        name = escape_for_display(self.name)
        if self.count == self.total:
            return f"the {self.total:,} images of {name}"
        return f"{self.count:,} of the {self.total:,} images of {name}, evenly drawn"


def draw_subset(source: str, max_images: int) -> DatasetSubset:
    """At most `max_images` files, evenly spaced in the dataset's order, as a list in the cache.

    A dataset that is no larger is used whole. Raises SightlineError if there are no images, and for
    larger archives, because a text list can't name a part of an archive.
    """
    dataset = open_dataset(source)
    total = len(dataset)
    name = os.path.basename(os.path.abspath(source)) or source
    if total <= max_images:
        return DatasetSubset(source, total, total, name)
    if not isinstance(dataset, Files):
        raise SightlineError(
            f"{source} holds {total:,} images in archives; "
            f"give at most {max_images:,}, or a folder of image files"
        )

    last_number = max(1, max_images - 1)
    positions = [round(number * (total - 1) / last_number) for number in range(max_images)]
    lines = [format_list_line(dataset, position) for position in positions]
    lines = [line for line in lines if line]
    list_path = cache_file_list(source, "".join(lines))
    return DatasetSubset(str(list_path), len(lines), total, name)


def format_list_line(dataset: Files, position: int) -> str:
    """A line of a text list: path, tab, class. Empty for a path that such a list can't hold."""
    path = dataset.paths[position]
    is_one_field = "\t" not in path and path == path.strip() and "\n" not in path
    if not is_one_field:
        return ""
    label = dataset.get_label(position)
    if label < 0:
        return f"{path}\n"
    return f"{path}\t{dataset.class_names[label]}\n"


def cache_file_list(source: str, text: str) -> Path:
    """Writes a list to the user's cache, under a name that depends on its content."""
    digest = hashlib.sha256(encode_name(text)).hexdigest()[:12]
    stem = make_storable_name(os.path.basename(os.path.abspath(source)))[:40]
    path = get_cache_path("lists", f"{stem}-{digest}.txt")
    if not path.exists():
        with replace_atomically(path) as temporary:
            temporary.write_bytes(encode_name(text))
    return path
