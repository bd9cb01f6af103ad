"""How alike two layers' responses are: centered kernel alignment, without a bias.

Kornblith et al. 2019 ("Similarity of neural network representations revisited") compare the linear
kernels of two layers over the same images. Their estimate is above 0 for unrelated layers of many
units; that of Song et al. 2012 (HSIC₁), which Nguyen et al. 2021 use, is 0 on average.

With centered features no kernel of images × images is needed: of two layers X, n×p, and Y, n×q,
only XᵀY and the images' squared lengths are. Both are summed over blocks of images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# HSIC₁ divides by n − 3.
MIN_IMAGES = 4

# Images whose responses are converted to single precision at once.
BLOCK_SIZE = 1024

# Units of each network that are multiplied with one another at once: 128 MB in double precision.
GROUP_UNITS = 4096


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
    trace = float(np.square(cross, dtype=np.float64).sum()) - diagonal
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
    return multiply_groups([first], [second])


def multiply_groups(
    first: Sequence[CenteredLayer], second: Sequence[CenteredLayer]
) -> NDArray[np.float64]:
    """XᵀY of the units of several layers side by side, blocks added up in double precision."""
    total = np.zeros((count_units(first), count_units(second)))
    first_blocks = zip(*(layer.iterate_blocks() for layer in first), strict=True)
    second_blocks = zip(*(layer.iterate_blocks() for layer in second), strict=True)
    for first_block, second_block in zip(first_blocks, second_blocks, strict=True):
        total += np.concatenate(first_block, axis=1).T @ np.concatenate(second_block, axis=1)
    return total


def count_units(layers: Sequence[CenteredLayer]) -> int:
    """Units of several layers together."""
    return sum(layer.responses.shape[1] for layer in layers)


def group_layers(layers: Sequence[CenteredLayer]) -> list[list[CenteredLayer]]:
    """Layers in their order, as many together as have at most GROUP_UNITS units; one at least."""
    groups: list[list[CenteredLayer]] = []
    for layer in layers:
        if not groups or count_units([*groups[-1], layer]) > GROUP_UNITS:
            groups.append([])
        groups[-1].append(layer)
    return groups


def compute_cka_matrix(
    first: Mapping[str, NDArray[np.floating]],
    second: Mapping[str, NDArray[np.floating]],
    callback: Callable[[int, int], object] | None = None,
) -> NDArray[np.float64]:
    """CKA of every layer of one network with every layer of another, over the same images.

    `callback` is called with the number of the first network's layers done and of all.
    """
    second_groups = group_layers([center_layer(responses) for responses in second.values()])
    first_groups = group_layers([center_layer(responses) for responses in first.values()])
    rows: list[NDArray[np.float64]] = []
    for first_group in first_groups:
        blocks = [compare_groups(first_group, second_group) for second_group in second_groups]
        rows.append(np.concatenate(blocks, axis=1))
        if callback is not None:
            callback(sum(map(len, rows)), len(first))
    return np.concatenate(rows)


def compare_groups(
    first: Sequence[CenteredLayer], second: Sequence[CenteredLayer]
) -> NDArray[np.float64]:
    """CKA of every layer of one group with every layer of another."""
    cross = multiply_groups(first, second)
    matrix = np.full((len(first), len(second)), np.nan)
    first_unit = 0
    for row, layer in enumerate(first):
        end_unit = first_unit + layer.responses.shape[1]
        second_unit = 0
        for column, second_layer in enumerate(second):
            second_end = second_unit + second_layer.responses.shape[1]
            layer_cross = cross[first_unit:end_unit, second_unit:second_end]
            between = compute_hsic(layer_cross, layer.lengths, second_layer.lengths)
            matrix[row, column] = normalize_hsic(between, layer.own_hsic, second_layer.own_hsic)
            second_unit = second_end
        first_unit = end_unit
    return matrix


def find_best_matches(matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each column the row with the largest similarity, −1 for a column of NaN alone."""
    is_unknown = np.isnan(matrix)
    best = np.where(is_unknown, -np.inf, matrix).argmax(0)
    best[is_unknown.all(0)] = -1
    return best
