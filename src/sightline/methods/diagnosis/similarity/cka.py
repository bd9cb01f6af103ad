"""How alike two layers' responses are: centered kernel alignment, without a bias.

Kornblith et al. 2019 ("Similarity of neural network representations revisited") compare the linear
kernels of two layers over the same images. Their estimate is above 0 for unrelated layers of many
units; that of Song et al. 2012 (HSIC₁), which Nguyen et al. 2021 use, is 0 on average.

With centered features no kernel of images × images is needed: of two layers X, n×p, and Y, n×q,
only XᵀY and the images' squared lengths are. Both are summed over blocks of images.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# HSIC₁ divides by n − 3.
MIN_IMAGES = 4

# Images whose responses are converted to single precision at once.
BLOCK_SIZE = 1024


def square_lengths(responses: NDArray[np.floating]) -> NDArray[np.float64]:
    """The squared length of each row, in double precision."""
    return np.einsum("ij,ij->i", responses, responses, dtype=np.float64)


def compute_hsic(
    cross: NDArray[np.floating],
    first_lengths: NDArray[np.float64],
    second_lengths: NDArray[np.float64],
) -> float:
    """HSIC₁ of linear kernels, from XᵀY of centered features and the images' squared lengths.

    Song et al. 2012, theorem 5, with K̃ = XXᵀ and L̃ = YYᵀ without their diagonals. Since the columns
    of X and Y add up to 0, the rows of K̃ add up to minus its diagonal.
    """
    count = len(first_lengths)
    diagonal = float(first_lengths @ second_lengths)
    squares = np.square(cross.astype(np.float64))
    trace = float(squares.sum()) - diagonal
    length_sums = float(first_lengths.sum() * second_lengths.sum())
    sums = length_sums / ((count - 1) * (count - 2))
    rows = 2 * diagonal / (count - 2)
    return (trace + sums - rows) / (count * (count - 3))


def normalize_hsic(between: float, own_first: float, own_second: float) -> float:
    """CKA from the three HSIC; NaN where a layer does not vary."""
    if own_first <= 0 or own_second <= 0:
        return float("nan")
    return between / float(np.sqrt(own_first * own_second))


# ── many layers ──


@dataclass(frozen=True)
class CenteredLayer:
    """A layer's responses, and what is needed of them for every comparison.

    Attributes:
        responses: As they are stored, n×p.
        means: Of the units, p.
        lengths: Squared lengths of the images' centered responses, n.
        own_hsic: HSIC₁ of the layer with itself.
    """

    responses: NDArray[np.floating]
    means: NDArray[np.float32]
    lengths: NDArray[np.float64]
    own_hsic: float

    def iterate_blocks(self) -> Iterator[NDArray[np.float32]]:
        """The centered responses in single precision, a block of images at a time."""
        for start in range(0, len(self.responses), BLOCK_SIZE):
            block = self.responses[start : start + BLOCK_SIZE].astype(np.float32)
            yield block - self.means


def center_layer(responses: NDArray[np.floating]) -> CenteredLayer:
    """What is needed of a layer's responses n×p. Raises ValueError for fewer than 4 images."""
    count = len(responses)
    if count < MIN_IMAGES:
        raise ValueError(f"{count} images; CKA needs {MIN_IMAGES}")
    means = responses.mean(0, dtype=np.float64).astype(np.float32)
    layer = CenteredLayer(responses, means, np.zeros(count), 0.0)
    lengths = np.concatenate([square_lengths(block) for block in layer.iterate_blocks()])
    own_hsic = compute_hsic(multiply_layers(layer, layer), lengths, lengths)
    return CenteredLayer(responses, means, lengths, own_hsic)


def multiply_layers(first: CenteredLayer, second: CenteredLayer) -> NDArray[np.float64]:
    """XᵀY, with the blocks' products added up in double precision."""
    total = np.zeros((first.responses.shape[1], second.responses.shape[1]))
    blocks = zip(first.iterate_blocks(), second.iterate_blocks(), strict=True)
    for first_block, second_block in blocks:
        total += first_block.T @ second_block
    return total


def compute_cka_matrix(
    first: Mapping[str, NDArray[np.floating]],
    second: Mapping[str, NDArray[np.floating]],
    callback: Callable[[int, int], object] | None = None,
) -> NDArray[np.float64]:
    """CKA of every layer of one network with every layer of another, over the same images.

    `callback` is called with the number of the first network's layers done and of all.
    """
    second_layers = [center_layer(responses) for responses in second.values()]
    matrix = np.full((len(first), len(second)), np.nan)
    for row, responses in enumerate(first.values()):
        layer = center_layer(responses)
        for column, second_layer in enumerate(second_layers):
            cross = multiply_layers(layer, second_layer)
            between = compute_hsic(cross, layer.lengths, second_layer.lengths)
            matrix[row, column] = normalize_hsic(between, layer.own_hsic, second_layer.own_hsic)
        if callback is not None:
            callback(row + 1, len(first))
    return matrix


def find_best_matches(matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each column the row with the largest similarity, −1 for a column of NaN alone."""
    is_unknown = np.isnan(matrix)
    best = np.where(is_unknown, -np.inf, matrix).argmax(0)
    best[is_unknown.all(0)] = -1
    return best
