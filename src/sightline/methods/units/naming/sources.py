"""Which concepts units are named after: classes, groups, attributes and words, as a user asks."""

from pathlib import Path

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.methods.units.naming.clip_words import collect_word_concepts, read_words
from sightline.methods.units.naming.concepts import (
    ConceptTable,
    collect_attribute_concepts,
    collect_class_concepts,
    collect_group_concepts,
    merge_concepts,
)


def collect_concepts(
    scan: Scan,
    *,
    groups: str | Path | None = None,
    attributes: str | Path | None = None,
    words: str | Path | None = None,
    clip: str | Path | None = None,
) -> ConceptTable:
    """The classes of a scan's images, with what else is asked for.

    `groups` is a table of groups of classes, or "wordnet"; `attributes` a table of attributes of
    the images; `words` a file of words that the networks in the folder `clip` find in the images.

    Raises SightlineError for what can't be read, for words without clip, clip without words, and
    where there is no concept at all.
    """
    if (words is None) != (clip is None):
        absent, purpose = ("words", "a file, one a line") if words is None else ("clip", "a folder")
        raise SightlineError(f"words and clip go together; {absent} is missing: give {purpose}")
    tables: list[ConceptTable] = []
    has_classes = scan.classes is not None or bool(scan.model_labels)
    if has_classes or not (attributes or words):
        tables.append(collect_class_concepts(scan))
    if groups is not None:
        tables.append(collect_group_concepts(scan, groups))
    if attributes is not None:
        tables.append(collect_attribute_concepts(scan, Path(attributes)))
    if words is not None and clip is not None:
        tables.append(collect_word_concepts(scan, read_words(Path(words)), Path(clip)))
    return merge_concepts(tables)
