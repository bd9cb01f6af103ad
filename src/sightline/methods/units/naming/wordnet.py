"""Groups of classes from WordNet, where `nltk` and its data are on this machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.data.scan.true_classes import is_wordnet_id
from sightline.errors import SightlineError, get_first_error_line


def load_wordnet() -> Any:
    """WordNet as nltk reads it. Raises SightlineError where nltk or its data is not there."""
    try:
        from nltk.corpus import wordnet  # pyright: ignore[reportMissingImports]

        wordnet.ensure_loaded()
    except ImportError as error:
        raise SightlineError(
            "groups='wordnet' needs nltk: pip install nltk; or give a table of groups"
        ) from error
    except LookupError as error:
        raise SightlineError(
            "groups='wordnet' needs nltk's WordNet, which is not on this machine "
            "(python -m nltk.downloader wordnet); or give a table of groups"
        ) from error
    return wordnet


def find_wordnet_ancestors(names: Sequence[str], wordnet: Any) -> Mapping[str, list[str]]:
    """The ancestors of each class in WordNet, nearest first, by the first word of each.

    A class is known by its WordNet id, such as n01440764, or by a name that is one noun only: a
    name of several meanings («crane») has no ancestors, since a wrong one is worse. A class known
    by its id has its own word among them.
    """
    return {name: list_ancestor_words(find_noun(name, wordnet), name) for name in names}


def find_noun(name: str, wordnet: Any) -> Any:
    """The entry of WordNet for a class; None if there is none, or more than one."""
    if is_wordnet_id(name):
        try:
            return wordnet.synset_from_pos_and_offset("n", int(name[1:]))
        except Exception as error:  # nltk raises what its parser meets
            raise SightlineError(
                f"the class {name} is not in this WordNet ({get_first_error_line(error):.80}); "
                "ids are those of WordNet 3.0"
            ) from error
    entries = wordnet.synsets(name.replace(" ", "_"), pos="n")
    return entries[0] if len(entries) == 1 else None


def list_ancestor_words(entry: Any, name: str) -> list[str]:
    """The first word of all ancestors of an entry, and of the entry itself if it differs."""
    if entry is None:
        return []
    ancestors = [entry, *entry.closure(lambda synset: synset.hypernyms())]
    words = [str(ancestor.lemma_names()[0]).replace("_", " ") for ancestor in ancestors]
    return [word for word in dict.fromkeys(words) if word != name]
