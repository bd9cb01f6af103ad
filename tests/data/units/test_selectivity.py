"""The class selectivity index against a loop over images, and on units whose index is known."""

import math
from pathlib import Path

import numpy as np
import torch

import sightline as sl
from sightline.data.store.memory import MemoryStore
from sightline.data.units.selectivity import compute_selectivity, measure_selectivity
from sightline.methods.units.labels import compute_class_selectivity


def compute_index(column: list[float], labels: list[int]) -> tuple[float, int]:
    """The index of a unit and its class, image by image."""
    means: dict[int, float] = {}
    for label in sorted(set(labels) - {-1}):
        values = [
            value for value, image_label in zip(column, labels, strict=True) if image_label == label
        ]
        means[label] = max(0.0, math.fsum(values) / len(values))
    favorite = max(means, key=lambda label: means[label])
    rest = math.fsum(mean for label, mean in means.items() if label != favorite)
    rest /= len(means) - 1
    total = means[favorite] + rest
    return ((means[favorite] - rest) / total, favorite) if total else (0.0, -1)


def test_a_layer_of_a_scan(odd: sl.Scan) -> None:
    assert odd.classes is not None
    labels = odd.classes.tolist()
    for layer in odd.layers:
        index, favorite = measure_selectivity(odd, layer)
        sample = odd.sample(layer)  # all images, as they were before they were rounded
        responses = torch.empty_like(sample.values).scatter_(0, sample.ids, sample.values)
        expected = [compute_index(column, labels) for column in responses.T.double().tolist()]
        np.testing.assert_allclose(index, [value for value, _ in expected], rtol=1e-5, atol=1e-7)
        assert favorite.tolist() == [label for _, label in expected]
        assert (index[favorite >= 0] > 0).any()
        # The same as the method `labels` gives.
        same, _ = compute_class_selectivity(odd.class_means(layer))
        np.testing.assert_allclose(index, same.numpy(), atol=1e-6)


def test_units_whose_index_is_known() -> None:
    # Four classes, the third without images.
    means = np.array(
        [
            [0.0, 3.0, np.nan, 0.0],  # only class 1
            [2.0, 2.0, np.nan, 2.0],  # all alike
            [0.0, -1.0, np.nan, -2.0],  # never over 0
            [1.0, -5.0, np.nan, 4.0],  # (4 − ½) / (4 + ½)
        ]
    )
    index, favorite = compute_selectivity(means.T)
    np.testing.assert_allclose(index, [1, 0, 0, 7 / 9])
    assert favorite.tolist() == [1, 0, -1, 3]


def test_without_two_classes_there_is_no_index(odd_model: sl.Model, photos: Path) -> None:
    scan = sl.scan(odd_model, sorted((photos / "odd").iterdir()), store=MemoryStore())
    for index, favorite in (
        measure_selectivity(scan, "conv1"),
        compute_selectivity(np.array([[5.0, 0.0], [np.nan, np.nan]])),
    ):
        assert np.isnan(index).all()
        assert (favorite == -1).all()
