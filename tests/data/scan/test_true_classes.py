"""Classes of a dataset and of a network, brought together by name, id and order."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sightline.data.scan.true_classes import (
    list_class_names,
    match_class_names,
    read_wordnet_labels,
)

IMAGENET = tuple(f"name {number}" for number in range(1000))


def test_by_name_whatever_its_spelling() -> None:
    labels = ("tench, Tinca tinca", "golf ball", "French horn", "Elk")
    assert match_class_names(["Golf_ball", "elk", "tench", "cow"], labels) == [1, 3, 0, -1]


def test_by_wordnet_id() -> None:
    assert match_class_names(["n01440764", "n03888257"], IMAGENET) == [0, 701]


def test_by_order_where_nobody_named_them() -> None:
    labels = ("class 0", "class 1", "class 2")
    assert match_class_names(["cat", "dog", "elk"], labels) == [0, 1, 2]
    assert match_class_names(["cat", "dog"], labels) is None
    assert match_class_names(["cat", "dog", "elk"], ("x", "y", "z")) is None


def test_files_that_begin_with_an_id() -> None:
    paths = ["a/n01440764_tench.jpg", "b/n03888257_parachute.jpg"]
    labels = read_wordnet_labels(paths, IMAGENET)
    assert labels is not None
    assert np.array_equal(labels, [0, 701])
    assert read_wordnet_labels([*paths, "c/cat.jpg"], IMAGENET) is None
    assert read_wordnet_labels(paths, IMAGENET[:10]) is None


@pytest.mark.parametrize("labels", [("parachute", "tench"), ("chute", "Tinca_tinca, a fish")])
def test_an_id_by_its_names_where_the_network_has_other_classes(labels: tuple[str, ...]) -> None:
    ids = ["n03888257", "n01440764", "n02012849"]
    assert match_class_names(ids, labels) == [0, 1, -1]
    assert match_class_names(["n02012849"], labels) is None
    paths = [f"photos/{id}_{number}.jpg" for number, id in enumerate(ids)]
    found = read_wordnet_labels(paths, labels)
    assert found is not None
    assert np.array_equal(found, [0, 1, -1])


def test_files_that_begin_with_ids_are_not_matched_by_order() -> None:
    paths = ["n01440764_1.jpg", "n03888257_1.jpg"]
    assert read_wordnet_labels(paths, ("class 0", "class 1")) is None


def test_ids_are_shown_as_the_network_calls_them_or_as_wordnet_does() -> None:
    names = ["n01440764", "n02012849", "n99999999", "wheel\n"]
    scan: Any = SimpleNamespace(
        class_names=names,
        shown_class_names=[*names[:3], "wheel\\n"],
        model_labels=["cow", "Tench, the fish"],
    )
    assert list_class_names(scan) == ["Tench, the fish", "crane", "n99999999", "wheel\\n"]
