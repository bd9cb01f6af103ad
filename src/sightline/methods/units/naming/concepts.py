"""Concepts of the images of a dataset, after which units are named.

A concept is a text and the images that have it: a class, a group of classes, or an attribute of a
table.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sightline.data.scan.true_classes import is_wordnet_id, list_class_names
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display, get_first_error_line
from sightline.methods.units.naming.scores import (
    IndexArray,
    count_labels,
    get_labelled_images,
    make_label_matrix,
)
from sightline.methods.units.naming.wordnet import (
    find_wordnet_ancestors,
    load_wordnet,
)

MAX_ATTRIBUTE_VALUES = 200  # different values of a column of attributes

# Of the images. So few lack a more common concept that its labels can hardly be spoiled.
MAX_CONCEPT_SHARE = 2 / 3

YES_WORDS = frozenset({"1", "1.0", "true", "yes", "y"})
NO_WORDS = frozenset({"", "0", "0.0", "-1", "false", "no", "n"})


@dataclass(frozen=True)
class ConceptTable:
    """C concepts of N images: their texts, and a sparse matrix N×C of truth values, by column."""

    texts: list[str]
    labels: Any

    @classmethod
    def from_pairs(
        cls, texts: list[str], images: IndexArray, concepts: IndexArray, image_count: int
    ) -> "ConceptTable":
        """Image `images[i]` has the concept `concepts[i]`; negative concepts are none."""
        is_concept = concepts >= 0
        places = (images[is_concept], concepts[is_concept])
        values = np.ones(int(is_concept.sum()), dtype=bool)
        shape = (image_count, len(texts))
        return cls(texts, make_label_matrix(sparse.coo_array((values, places), shape=shape)))

    @property
    def counts(self) -> IndexArray:
        """How many images have each concept."""
        return count_labels(self.labels)

    def get_images(self, concept: int) -> IndexArray:
        """The images that have a concept, in rising order."""
        return get_labelled_images(self.labels, concept)

    def select_concepts(self, concepts: Sequence[int]) -> "ConceptTable":
        """The table of some of the concepts."""
        texts = [self.texts[concept] for concept in concepts]
        return ConceptTable(texts, make_label_matrix(self.labels[:, list(concepts)]))

    def select_images(self, images: IndexArray) -> "ConceptTable":
        """The table of some of the images."""
        return ConceptTable(self.texts, make_label_matrix(self.labels[images]))

    def keep_testable(self, min_images: int) -> "ConceptTable":
        """The concepts that at least `min_images` and at most two thirds of the images have.

        Each is there once: of concepts of the same images the first, or the first whose text is no
        WordNet id.
        """
        image_count = self.labels.shape[0]
        concept_by_images: dict[bytes, int] = {}
        for concept, count in enumerate(self.counts):
            if not min_images <= count <= MAX_CONCEPT_SHARE * image_count:
                continue
            key = self.get_images(concept).tobytes()
            earlier = concept_by_images.setdefault(key, concept)
            if is_wordnet_id(self.texts[earlier]) and not is_wordnet_id(self.texts[concept]):
                concept_by_images[key] = concept
        return self.select_concepts(sorted(concept_by_images.values()))


def merge_concepts(tables: Sequence[ConceptTable]) -> ConceptTable:
    """One table of the concepts of several, which are of the same images."""
    texts = [text for table in tables for text in table.texts]
    labels = sparse.hstack([table.labels for table in tables], format="csc")
    return ConceptTable(texts, make_label_matrix(labels))


# ── classes and their groups ──


def collect_class_concepts(scan: Scan) -> ConceptTable:
    """The classes of a scan's images: the dataset's, else those that the network predicts."""
    names = scan.model_labels if scan.classes is None else list_class_names(scan)
    return make_class_table(scan, names)


def make_class_table(scan: Scan, names: list[str]) -> ConceptTable:
    """The classes of a scan's images by these names, in the order of the classes."""
    if scan.classes is not None:
        classes = scan.classes.numpy()
    else:
        classes = scan.top5[0][:, 0].numpy() if names else np.empty(0, dtype=np.int64)
    if not names:
        raise SightlineError(
            f"the store {scan.path.name} has no classes to name units after: put each class into a "
            "folder of its own, or give attributes="
        )
    return ConceptTable.from_pairs(names, np.arange(scan.images), classes, scan.images)


def collect_group_concepts(scan: Scan, groups: str | Path) -> ConceptTable:
    """Groups of the classes of a scan's images.

    `groups` is a table of ancestors as `read_ancestors` reads it, or "wordnet". Raises
    SightlineError if no class has an ancestor.
    """
    # By the dataset's own names, which may be WordNet ids.
    own_names = scan.model_labels if scan.classes is None else scan.shown_class_names
    classes = make_class_table(scan, own_names)
    if str(groups) == "wordnet":
        ancestors = find_wordnet_ancestors(classes.texts, load_wordnet())
    else:
        parents = read_ancestors(Path(groups))
        ancestors = {name: collect_ancestors(name, parents) for name in classes.texts}
    if not any(ancestors.values()):
        raise SightlineError(
            f"groups is {str(groups)!r}; it has no group of any class, such as {classes.texts[0]!r}"
        )
    return group_classes(classes, ancestors)


def group_classes(classes: ConceptTable, ancestors: Mapping[str, Sequence[str]]) -> ConceptTable:
    """The groups of classes as concepts: an image has all groups of the classes that it has."""
    group_numbers: dict[str, int] = {}
    members: list[int] = []
    numbers: list[int] = []
    for member, name in enumerate(classes.texts):
        for group in ancestors.get(name, ()):
            members.append(member)
            numbers.append(group_numbers.setdefault(group, len(group_numbers)))
    shape = (len(classes.texts), len(group_numbers))
    membership = sparse.coo_array((np.ones(len(members)), (members, numbers)), shape=shape)
    labels = classes.labels.astype(np.float64) @ membership.tocsc()
    texts = [escape_for_display(group) for group in group_numbers]
    return ConceptTable(texts, make_label_matrix(labels > 0))


def read_ancestors(path: Path) -> dict[str, list[str]]:
    """A table of groups: in each row of a CSV file a class or a group, then the groups it is in.

    Raises SightlineError if it can't be read.
    """
    parents: dict[str, list[str]] = {}
    for row in read_table_rows(path, "groups"):
        name, *groups = [cell.strip() for cell in row]
        if name:
            parents.setdefault(name, []).extend(group for group in groups if group)
    return parents


def collect_ancestors(name: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """The groups of a name, the groups of these and so on, nearest first, each once."""
    ancestors: dict[str, None] = {}
    waiting = list(parents.get(name, ()))
    while waiting:
        group = waiting.pop(0)
        if group not in ancestors and group != name:
            ancestors[group] = None
            waiting += parents.get(group, ())
    return list(ancestors)


# ── attributes of images ──


def collect_attribute_concepts(scan: Scan, table: Path) -> ConceptTable:
    """The attributes of a scan's images, from a CSV file.

    Its first column names the image: its path in the dataset, or the end of it, with or without
    the suffix. Each other column with yes and no (1 and 0, true and false) is a concept of its
    name; each value of a column of words is a concept «COLUMN: VALUE».

    Raises SightlineError if the file can't be read, names no image of the scan or an ambiguous
    one, or has a column of too many values.
    """
    header, *rows = read_table_rows(table, "attributes") or [[]]
    if len(header) < 2:
        raise SightlineError(
            f"attributes is {str(table)!r}; its first row must be the name of the column of files, "
            "then those of the attributes"
        )
    images = match_images(scan, [row[0].strip() for row in rows])
    texts: list[str] = []
    concept_images: list[int] = []
    concept_numbers: list[int] = []
    for column, name in enumerate(header[1:], start=1):
        cells = [row[column].strip() if column < len(row) else "" for row in rows]
        text_of_cell = name_cells(escape_for_display(name.strip()), cells)
        number_of_text: dict[str, int] = {}
        for image, cell in zip(images, cells, strict=True):
            text = text_of_cell.get(cell)
            if text is None or image < 0:
                continue
            number = number_of_text.setdefault(text, len(texts) + len(number_of_text))
            concept_images.append(image)
            concept_numbers.append(number)
        texts += number_of_text
    return ConceptTable.from_pairs(
        texts, np.array(concept_images, int), np.array(concept_numbers, int), scan.images
    )


def name_cells(column: str, cells: Sequence[str]) -> dict[str, str]:
    """The concept of each value of a column; values that say no have none.

    Raises SightlineError for a column of too many values.
    """
    values = dict.fromkeys(cells)
    if all(value.lower() in YES_WORDS | NO_WORDS for value in values):
        return {value: column for value in values if value.lower() in YES_WORDS}
    if len(values) > MAX_ATTRIBUTE_VALUES:
        raise SightlineError(
            f"the column {column!r} of attributes has {len(values):,} different values; "
            f"at most {MAX_ATTRIBUTE_VALUES} can be concepts: group them, or leave the column out"
        )
    return {value: f"{column}: {escape_for_display(value)}" for value in values if value}


def match_images(scan: Scan, names: Sequence[str]) -> list[int]:
    """The id of the image of each name, −1 where there is none.

    A name is an image's path, or the end of it, with or without the suffix. Raises SightlineError
    where several images have it, and where no name is an image's.
    """
    ids_by_name: dict[str, list[int]] = {}
    for image, path in enumerate(scan.paths):
        for name in list_image_names(path):
            ids_by_name.setdefault(name, []).append(image)

    images: list[int] = []
    for name in names:
        ids = ids_by_name.get(name.replace("\\", "/"), [])
        if len(ids) > 1:
            raise SightlineError(
                f"attributes has a row of {name!r}, which {len(ids)} images are named; "
                f"give more of the path, such as {scan.paths[ids[0]]!r}"
            )
        images.append(ids[0] if ids else -1)
    if all(image < 0 for image in images):
        example = repr(scan.paths[0]) if scan.paths else "…"
        raise SightlineError(
            f"attributes names none of the {scan.images:,} images; they are named like {example}"
        )
    return images


def list_image_names(path: str) -> list[str]:
    """The ends of a path, with and without its suffix: a/b.jpg, b.jpg, a/b, b."""
    segments = path.replace("\\", "/").split("/")
    ends = ["/".join(segments[start:]) for start in range(len(segments))]
    stem, dot, _ = segments[-1].rpartition(".")
    if not dot or not stem:
        return ends
    suffix_length = len(segments[-1]) - len(stem)
    return ends + [end[:-suffix_length] for end in ends]


def read_table_rows(path: Path, parameter: str) -> list[list[str]]:
    """The rows of a CSV file that are not empty. Raises SightlineError if it can't be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = get_first_error_line(error)
        raise SightlineError(
            f"{parameter} is {str(path)!r}, which can't be read: {reason}"
        ) from error
