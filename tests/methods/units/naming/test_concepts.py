"""Concepts from classes, tables of groups and tables of attributes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import sightline as sl
from sightline.methods.units.naming.concepts import (
    ConceptTable,
    collect_ancestors,
    collect_attribute_concepts,
    collect_class_concepts,
    collect_group_concepts,
    group_classes,
    list_image_names,
    merge_concepts,
    read_ancestors,
)
from sightline.methods.units.naming.scores import make_label_matrix

PATHS = ["ant/0.png", "ant/1.png", "bee/0.png", "bee/2.jpg", "cat/3.png"]


def make_scan(**changes: Any) -> Any:
    """What a scan of five images of three classes, one of them unknown, tells."""
    facts: dict[str, Any] = {
        "images": 5,
        "paths": PATHS,
        "path": Path("a.scan"),
        "classes": torch.tensor([0, 0, 1, 1, -1]),
        "class_names": ["ant", "bee", "cat"],
        "shown_class_names": ["ant", "bee", "cat"],
        "model_labels": ["dog", "elk"],
        "top5": (torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]]), None),
    }
    return SimpleNamespace(**{**facts, **changes})


def list_concepts(table: ConceptTable) -> dict[str, list[int]]:
    """The images of each concept."""
    return {text: table.get_images(index).tolist() for index, text in enumerate(table.texts)}


def test_classes_of_the_dataset_else_of_the_network() -> None:
    table = collect_class_concepts(make_scan())
    assert list_concepts(table) == {"ant": [0, 1], "bee": [2, 3], "cat": []}
    assert table.counts.tolist() == [2, 2, 0]
    table = collect_class_concepts(make_scan(classes=None, shown_class_names=[]))
    assert list_concepts(table) == {"dog": [1, 4], "elk": [0, 2, 3]}
    with pytest.raises(sl.SightlineError, match=r"store a\.scan has no classes"):
        collect_class_concepts(make_scan(classes=None, shown_class_names=[], model_labels=[]))


def test_a_class_by_its_id_is_named_as_the_network_calls_it() -> None:
    ids = ["n02206856", "n02219486", "n01440764"]
    labels = ["dog", "Bee"]
    scan = make_scan(class_names=ids, shown_class_names=ids, model_labels=labels)
    table = collect_class_concepts(scan)
    assert list_concepts(table) == {"Bee": [0, 1], "ant": [2, 3], "tench": []}


def test_groups_of_groups(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("bee,insect,flier\n\nant,insect\ninsect,animal\ncat,animal\nanimal,insect\n")
    parents = read_ancestors(table)
    assert collect_ancestors("bee", parents) == ["insect", "flier", "animal"]
    assert collect_ancestors("animal", parents) == ["insect"]
    concepts = list_concepts(collect_group_concepts(make_scan(), table))
    assert concepts == {"insect": [0, 1, 2, 3], "animal": [0, 1, 2, 3], "flier": [2, 3]}


def test_a_table_of_groups_that_names_no_class(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("wasp,insect\n")
    with pytest.raises(sl.SightlineError, match="no group of any class, such as 'ant'"):
        collect_group_concepts(make_scan(), table)
    with pytest.raises(sl.SightlineError, match=r"groups is .*no\.csv', which can't be read"):
        collect_group_concepts(make_scan(), tmp_path / "no.csv")
    table.write_bytes(b"ant,\xff\xfe\n")
    with pytest.raises(sl.SightlineError, match="can't be read"):
        collect_group_concepts(make_scan(), table)


def test_two_classes_of_a_group_count_once() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)
    classes = ConceptTable(["a", "b", "c"], make_label_matrix(labels))
    table = group_classes(classes, {"a": ["x"], "b": ["x", "y"], "c": []})
    assert list_concepts(table) == {"x": [0, 1], "y": [0, 1]}
    assert table.counts.tolist() == [2, 2]


def test_attributes_of_yes_and_no_and_of_words(tmp_path: Path) -> None:
    table = tmp_path / "attributes.csv"
    table.write_text(
        "file,striped,weather,big\n"
        "ant/0.png,1,rain,True\n"
        "3,0,rain,false\n"
        "2.jpg,1,,yes\n"
        "bee/0,-1,sun,no\n"
        "unknown.png,1,snow,1\n",
        encoding="utf-8-sig",
    )
    concepts = list_concepts(collect_attribute_concepts(make_scan(), table))
    assert concepts == {
        "striped": [0, 3],
        "weather: rain": [0, 4],
        "weather: sun": [2],
        "big": [0, 3],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.png\n", "its first row must be"),
        ("", "its first row must be"),
        ("file,striped\n0.png,1\n", "'0.png', which 2 images are named; give more of the path"),
        ("file,striped\nzebra.png,1\n", "none of the 5 images; they are named like 'ant/0.png'"),
    ],
)
def test_tables_of_attributes_that_say_nothing(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "attributes.csv"
    table.write_text(text)
    with pytest.raises(sl.SightlineError, match=message):
        collect_attribute_concepts(make_scan(), table)


def test_a_column_of_numbers_is_no_attribute(tmp_path: Path) -> None:
    table = tmp_path / "attributes.csv"
    rows = "".join(f"x{number},{number / 7}\n" for number in range(300))
    table.write_text(f"file,age\n3,5\n{rows}")
    with pytest.raises(sl.SightlineError, match="column 'age' of attributes has 301 different"):
        collect_attribute_concepts(make_scan(), table)


def test_names_of_an_image() -> None:
    assert list_image_names("a/b.c.jpg") == ["a/b.c.jpg", "b.c.jpg", "a/b.c", "b.c"]
    assert list_image_names("README") == ["README"]
    assert list_image_names("a\\.hidden") == ["a/.hidden", ".hidden"]


def test_concepts_that_can_be_tested_each_once() -> None:
    labels = np.zeros((12, 6), dtype=bool)
    labels[:3, 0] = True  # n01440764
    labels[:2, 1] = True  # too few
    labels[:3, 2] = True  # the same images as the first, in words
    labels[:9, 3] = True  # too many
    labels[4:9, 4] = True
    labels[4:9, 5] = True  # the same images again
    texts = ["n01440764", "rare", "tench", "common", "bee", "insect"]
    table = ConceptTable(texts, make_label_matrix(labels)).keep_testable(3)
    assert list_concepts(table) == {"tench": [0, 1, 2], "bee": [4, 5, 6, 7, 8]}


def test_tables_together() -> None:
    scan = make_scan()
    classes = collect_class_concepts(scan)
    predicted = collect_class_concepts(make_scan(classes=None))
    merged = merge_concepts([classes, predicted])
    assert list_concepts(merged) == {**list_concepts(classes), **list_concepts(predicted)}
