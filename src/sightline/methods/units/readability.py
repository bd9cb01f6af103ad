"""How readable a unit is, without people: whether the images that drive it most are alike.

After the machine interpretability score (Zimmermann, Klindt and Brendel, NeurIPS 2024), which asks
an image encoder in place of a person, and the monosemanticity score (Pach et al., NeurIPS 2025).
Alike is what the features of another layer, or of another network, say.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.methods.units.naming.scores import FloatArray, IndexArray

STRONGEST_IMAGES = 9
CHANCE_SETS = 1000  # sets of random images
CHANCE_QUANTILE = 0.95


@dataclass(frozen=True)
class Readability:
    """How alike the images are that drive each of U units.

    `agreement`, U, is the mean cosine similarity of two of a unit's strongest images, NaN for a
    unit with fewer than two. `chance` is the mean of this for random images, and `chance_limit` the
    value that only one random set of images in twenty exceeds.

    `monosemanticity`, U, is the mean similarity of any two images, weighted by the product of their
    responses; `chance` is that of weights that are all alike. None without responses.
    """

    agreement: FloatArray
    chance: float
    chance_limit: float
    monosemanticity: FloatArray | None = None

    @property
    def is_readable(self) -> NDArray[np.bool_]:
        """Whether each unit's strongest images agree more than all but a few random sets."""
        return self.agreement > self.chance_limit


def read_unit_readability(
    scan: Scan, layer: str, *, vector_layer: str | None = None, seed: int = 0
) -> Readability:
    """The readability of the units of a layer, by the features that a scan keeps.

    `vector_layer` is one of its layers of vectors, by default the last. Raises SightlineError where
    the scan has fewer than two images, or did not follow the layer.
    """
    features = scan.vectors(vector_layer or scan.vector_layers[-1]).numpy()
    strongest = scan.top(layer).ids[:STRONGEST_IMAGES].numpy()
    responses = scan.responses(layer) if scan.has_responses else None
    return measure_readability(strongest, features, responses=responses, seed=seed)


def measure_readability(
    strongest: IndexArray,
    features: FloatArray,
    *,
    responses: FloatArray | None = None,
    seed: int = 0,
) -> Readability:
    """The readability of units, by their strongest images and the features of all images.

    `strongest`, K×units, has ids of images, −1 where there are fewer. `features` are images×d, not
    those of the units themselves: these would agree by construction. `responses`, images×units, add
    the monosemanticity. Raises SightlineError for fewer than two images.
    """
    directions = compute_directions(features)
    agreement = np.array([measure_agreement(directions, ids) for ids in strongest.T])
    generator = np.random.default_rng(seed)
    set_size = min(len(strongest), len(features))
    random_sets = [
        generator.choice(len(features), set_size, replace=False) for _ in range(CHANCE_SETS)
    ]
    random_agreement = [measure_agreement(directions, ids) for ids in random_sets]
    monosemanticity = None
    if responses is not None:
        monosemanticity = measure_monosemanticity(directions, responses)
    return Readability(
        agreement,
        chance=measure_agreement(directions, np.arange(len(features))),
        chance_limit=float(np.quantile(random_agreement, CHANCE_QUANTILE)),
        monosemanticity=monosemanticity,
    )


def compute_directions(features: FloatArray) -> FloatArray:
    """Features images×d as unit vectors around their mean, 0 for an image that is the mean.

    Departure from both papers, which compare the features themselves: after a ReLU these all point
    one way, so that any two images look alike. Raises SightlineError for fewer than two images.
    """
    if len(features) < 2:
        raise SightlineError("readability compares images, and the scan has fewer than two")
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return centred / lengths


def measure_agreement(directions: FloatArray, images: IndexArray) -> float:
    """The mean cosine similarity of two different ones of these images; NaN for fewer than two."""
    vectors = directions[images[images >= 0]]
    count = len(vectors)
    if count < 2:
        return float("nan")
    # The square of the sum holds every pair twice, and every image with itself.
    with_themselves = float((vectors**2).sum())
    pairs = float((vectors.sum(0) ** 2).sum()) - with_themselves
    return pairs / (count * (count - 1))


def measure_monosemanticity(directions: FloatArray, responses: FloatArray) -> FloatArray:
    """The monosemanticity score of units, from responses images×units and unit vectors images×d.

    The responses of a unit are scaled to [0, 1]. Like `measure_agreement` it takes the square of
    the weighted sum in place of all pairs of images, so that it takes images × d operations a unit.
    NaN for a unit that responds to all images alike.
    """
    lowest = responses.min(0).astype(np.float64)
    spread = responses.max(0) - lowest
    weights = (responses - lowest) / np.where(spread > 0, spread, np.nan)
    lengths = (directions**2).sum(1)
    sums = weights.T @ directions
    pairs = (sums**2).sum(1) - (weights**2).T @ lengths
    weight_pairs = weights.sum(0) ** 2 - (weights**2).sum(0)
    return pairs / np.where(weight_pairs > 0, weight_pairs, np.nan)
