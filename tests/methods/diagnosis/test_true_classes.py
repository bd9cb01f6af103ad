"""Classes of a dataset and of a network, brought together by name, id and order."""

import numpy as np

from sightline.methods.diagnosis.true_classes import match_class_names, read_wordnet_labels

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
