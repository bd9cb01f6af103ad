"""The true class of every image of a scan, as a number of the network's classes.

A dataset knows its classes by name, the network by number. They are brought together by their
names, by WordNet ids, or by their order.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display

WORDNET_ID = re.compile(r"n\d{8}(?!\d)")

# The names that a network's classes have where nobody named them.
UNNAMED_LABEL = re.compile(r"class \d+")

IMAGENET_CLASS_COUNT = 1000

UNKNOWN = -1


@dataclass(frozen=True)
class TrueClasses:
    """The true class of every image.

    Attributes:
        labels: For each image the number of its class among the network's, −1 where unknown.
        names: The network's classes.
        source: How they are known, as a clause for captions.
    """

    labels: NDArray[np.int64]
    names: tuple[str, ...]
    source: str

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether an image's class is known."""
        return self.labels >= 0


def find_true_classes(scan: Scan) -> TrueClasses:
    """The true class of every image of a scan.

    Raises SightlineError where none is known, saying how to make them known.
    """
    names = tuple(scan.model_labels)
    if scan.classes is not None:
        numbers = match_class_names(scan.class_names, names)
        if numbers is None:
            examples = ", ".join(scan.shown_class_names[:3])
            raise SightlineError(
                f"the classes of the images in {scan.path.name} ({examples}, …) are none of the "
                f"network's {len(names)}; name the folders as the network's classes, or give "
                "--labels when you scan"
            )
        lookup = np.array([*numbers, UNKNOWN])  # the last for images of unknown class, −1
        labels = lookup[scan.classes.numpy()]
        return TrueClasses(labels, names, "the dataset's classes")
    labels = read_wordnet_labels(scan.paths, names)
    if labels is None:
        raise SightlineError(
            f"the store {scan.path.name} knows no classes: put each class into a folder of its "
            "own, or begin each file's name with its WordNet id"
        )
    return TrueClasses(labels, names, "the WordNet ids in the files' names")


def match_class_names(class_names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each class of a dataset the number of the network's class, −1 for one that it lacks.

    By name, whatever its case and spelling of spaces; by WordNet id for ImageNet's classes; by
    order for a network of as many classes that nobody named. None where no class is the network's.
    """
    number_by_name: dict[str, int] = {}
    for number, label in enumerate(labels):
        for name in (label, label.partition(",")[0]):
            number_by_name.setdefault(fold_name(name), number)
    if len(labels) == IMAGENET_CLASS_COUNT:
        number_by_name |= read_imagenet_ids()
    numbers = [number_by_name.get(fold_name(name), UNKNOWN) for name in class_names]
    if any(number >= 0 for number in numbers):
        return numbers
    is_unnamed = all(UNNAMED_LABEL.fullmatch(label) for label in labels)
    if is_unnamed and len(labels) == len(class_names):
        return list(range(len(labels)))
    return None


def fold_name(name: str) -> str:
    """A class's name as it is compared: «Golf_ball» is «golf ball»."""
    folded = escape_for_display(name).casefold()
    return re.sub(r"[\s_-]+", " ", folded).strip()


@cache
def read_imagenet_ids() -> dict[str, int]:
    """The number of each of ImageNet's 1000 classes by its WordNet id."""
    text = (files("timm") / "data" / "_info" / "imagenet_synsets.txt").read_text(encoding="utf-8")
    return {name: number for number, name in enumerate(text.split())}


def read_wordnet_labels(paths: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64] | None:
    """The classes that the names of ImageNet's files begin with; None where they don't."""
    if len(labels) != IMAGENET_CLASS_COUNT:
        return None
    numbers = read_imagenet_ids()
    matches = [WORDNET_ID.match(os.path.basename(path)) for path in paths]
    if not matches or not all(matches):
        return None
    classes = [numbers.get(match.group(), UNKNOWN) for match in matches if match]
    return np.array(classes, dtype=np.int64)
