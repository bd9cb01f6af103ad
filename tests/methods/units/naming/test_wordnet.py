"""Ancestors of classes from a small WordNet of the test's own."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import pytest

import sightline as sl
from sightline.methods.units.naming.wordnet import find_wordnet_ancestors, load_wordnet


@dataclass
class Synset:
    """An entry as nltk has it."""

    words: list[str]
    parents: list["Synset"] = field(default_factory=list)

    def lemma_names(self) -> list[str]:
        return self.words

    def hypernyms(self) -> list["Synset"]:
        return self.parents

    def closure(self, relation: Callable[["Synset"], list["Synset"]]) -> list["Synset"]:
        seen: list[Synset] = []
        waiting = list(relation(self))
        while waiting:
            synset = waiting.pop(0)
            if synset not in seen:
                seen.append(synset)
                waiting += relation(synset)
        return seen


FISH = Synset(["fish"], [Synset(["animal", "beast"])])
TENCH = Synset(["tench", "Tinca_tinca"], [Synset(["game_fish"], [FISH])])
CRANE = [Synset(["crane"], [Synset(["machine"])]), Synset(["crane"], [Synset(["bird"])])]


class FakeWordNet:
    """The two look-ups that are used."""

    def synset_from_pos_and_offset(self, pos: str, offset: int) -> Synset:
        if (pos, offset) != ("n", 1440764):
            raise ValueError("no such entry")
        return TENCH

    def synsets(self, name: str, pos: str) -> list[Synset]:
        assert pos == "n"
        return {"tench": [TENCH], "crane": CRANE}.get(name, [])


def test_ancestors_by_id_and_by_name() -> None:
    ancestors = find_wordnet_ancestors(["n01440764", "tench", "crane", "gizmo"], FakeWordNet())
    assert ancestors["n01440764"] == ["tench", "game fish", "fish", "animal"]
    assert ancestors["tench"] == ["game fish", "fish", "animal"]
    assert ancestors["crane"] == [], "two birds of a name have no ancestors"
    assert ancestors["gizmo"] == []


def test_an_id_that_is_not_there() -> None:
    with pytest.raises(sl.SightlineError, match="class n00000001 is not in this WordNet"):
        find_wordnet_ancestors(["n00000001"], FakeWordNet())


def test_nltk_or_its_data_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(sl.SightlineError, match="needs nltk: pip install nltk"):
        load_wordnet()

    class Unloaded:
        def ensure_loaded(self) -> None:
            raise LookupError("Resource wordnet not found")

    corpus = ModuleType("nltk.corpus")
    corpus.wordnet = Unloaded()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)
    with pytest.raises(sl.SightlineError, match="nltk's WordNet, which is not on this machine"):
        load_wordnet()
