"""How much more a unit responds to one class than to the others.

The class selectivity index of Morcos et al. (2018), «On the importance of single directions for
generalization», equation 1: (μ_max − μ_rest) / (μ_max + μ_rest), with the unit's mean response to
the class that excites it most, and the mean of its mean responses to all other classes. 0 is no
preference, 1 a unit that responds to one class only.

Two departures: a response is the largest value over positions, where the paper averages over them;
and a negative mean counts as 0, since the index is of activations behind a ReLU.
"""

from typing import NamedTuple

import numpy as np

from sightline.data.store.reader import Scan


class ClassSelectivity(NamedTuple):
    """The degree of each unit, U, and the class that it responds to most, −1 where there is none.

    Without two classes that have images, the degree is NaN. Of a unit without a positive mean it is
    0, and it has no class.
    """

    degree: np.ndarray
    favorite: np.ndarray


def measure_selectivity(scan: Scan, layer: str) -> ClassSelectivity:
    """The class selectivity of a layer's units."""
    if not scan.class_names:
        return make_unknown_selectivity(scan.description.layers[scan.layer(layer)].units)
    return compute_selectivity(scan.class_means(layer).double().numpy())


def make_unknown_selectivity(unit_count: int) -> ClassSelectivity:
    """What there is without two classes."""
    return ClassSelectivity(np.full(unit_count, np.nan), np.full(unit_count, -1))


def compute_selectivity(class_means: np.ndarray) -> ClassSelectivity:
    """The index from the mean response to each class, classes × units; NaN without images of it."""
    [present] = np.nonzero(~np.isnan(class_means).any(1))
    if len(present) < 2:
        return make_unknown_selectivity(class_means.shape[1])
    means = np.maximum(class_means[present], 0)
    largest = means.max(0)
    other_mean = (means.sum(0) - largest) / (len(present) - 1)
    total = largest + other_mean
    is_active = total > 0
    index = np.divide(largest - other_mean, total, out=np.zeros_like(total), where=is_active)
    favorite = present[means.argmax(0)]
    return ClassSelectivity(index, np.where(is_active, favorite, -1))
