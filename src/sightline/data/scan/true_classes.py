"""The true class of every image of a scan, as a number of the network's classes.

A dataset knows its classes by name, the network by number. They are brought together by their
names, by WordNet ids, or by their order.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display

# Of a noun, as ImageNet names its classes.
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

    By name, whatever its case and spelling of spaces; a WordNet id by its number in ImageNet or by
    the names that WordNet has for it; by order for a network of as many classes that nobody named.
    None where no class is the network's.
    """
    numbers = match_by_name(class_names, labels)
    if numbers is not None:
        return numbers
    is_unnamed = all(UNNAMED_LABEL.fullmatch(label) for label in labels)
    if is_unnamed and len(labels) == len(class_names):
        return list(range(len(labels)))
    return None


def match_by_name(class_names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """As `match_class_names`, but never by order."""
    number_by_name: dict[str, int] = {}
    for number, label in enumerate(labels):
        for name in (label, label.partition(",")[0]):
            number_by_name.setdefault(fold_name(name), number)
    if len(labels) == IMAGENET_CLASS_COUNT:
        number_by_name |= read_imagenet_ids()
    numbers = [find_class_number(name, number_by_name) for name in class_names]
    return numbers if any(number >= 0 for number in numbers) else None


def find_class_number(name: str, number_by_name: Mapping[str, int]) -> int:
    """The number of a class by its name or its WordNet id; −1 where it has none."""
    names = [name]
    if is_wordnet_id(name):
        names += read_wordnet_names().get(name, ())
    numbers = (number_by_name.get(fold_name(spelling)) for spelling in names)
    return next((number for number in numbers if number is not None), UNKNOWN)


def is_wordnet_id(text: str) -> bool:
    """Whether a text is the number of a noun in WordNet, such as n01440764."""
    return WORDNET_ID.fullmatch(text) is not None


def fold_name(name: str) -> str:
    """A class's name as it is compared: «Golf_ball» is «golf ball»."""
    folded = escape_for_display(name).casefold()
    return re.sub(r"[\s_-]+", " ", folded).strip()


def list_class_names(scan: Scan) -> list[str]:
    """The names of a dataset's classes for people; of a WordNet id, what it stands for.

    That is the network's name for it, or else the first of WordNet's.
    """
    labels = scan.model_labels
    numbers = match_by_name(scan.class_names, labels) or [UNKNOWN] * len(scan.class_names)
    names: list[str] = []
    for class_name, shown_name, number in zip(
        scan.class_names, scan.shown_class_names, numbers, strict=True
    ):
        if not is_wordnet_id(class_name):
            names.append(shown_name)
        elif number >= 0:
            names.append(labels[number])
        else:
            names.append(read_wordnet_names().get(class_name, (shown_name,))[0])
    return names


@cache
def read_imagenet_ids() -> dict[str, int]:
    """The number of each of ImageNet's 1000 classes by its WordNet id."""
    lines = read_timm_table("imagenet_synsets.txt")
    return {name: number for number, name in enumerate(lines)}


@cache
def read_wordnet_names() -> dict[str, tuple[str, ...]]:
    """The names of the nouns that pictures are labelled with, by WordNet id."""
    rows = [line.split("\t") for line in read_timm_table("imagenet_synset_to_lemma.txt")]
    return {id: tuple(names.split(", ")) for id, names in rows}


def read_timm_table(name: str) -> list[str]:
    """The lines of one of the tables that timm has of ImageNet's classes."""
    # Its folder is found without an import, which takes more than half a second.
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise SightlineError("timm, which has the names of WordNet's ids, is not installed")
    table = Path(spec.origin).parent / "data" / "_info" / name
    return table.read_text(encoding="utf-8").splitlines()


def read_wordnet_labels(paths: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64] | None:
    """The classes that the names of ImageNet's files begin with; None where they don't."""
    matches = [WORDNET_ID.match(os.path.basename(path)) for path in paths]
    if not matches or not all(matches):
        return None
    ids = [match.group() for match in matches if match]
    distinct_ids = sorted(set(ids))
    numbers = match_by_name(distinct_ids, labels)
    if numbers is None:
        return None
    number_by_id = dict(zip(distinct_ids, numbers, strict=True))
    return np.array([number_by_id[id] for id in ids], dtype=np.int64)
