"""Which units respond alike: Pearson's correlation of their responses, over all images.

A block of images at a time is multiplied into the sums of products of a layer's units with all
units, so memory grows neither with the number of images nor with the square of the units.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sightline.data.store.reader import Scan

NEIGHBORS_PER_SIDE = 5  # listed of a unit in its own layer, and as many in all others

# Of two units with this correlation, each accounts for 90 % of the other's variance.
DUPLICATE_CORRELATION = 0.95

# Numbers in memory: the responses of a block of images, the sums of products that grow with each
# block, and the correlations that are ranked together.
MAX_BLOCK_VALUES = 4_000_000
MAX_PRODUCT_VALUES = 32_000_000
MAX_RANKED_VALUES = 1_000_000


@dataclass(frozen=True)
class NearestUnits:
    """The units that respond most like each of U units.

    `layers` (indices into the scan's layers), `units` and `correlations` are U×10, in order of
    falling correlation, up to five of the own layer and five of others; what is missing has layer
    and unit −1. `duplicate_of`, U, is the first unit of the own layer whose correlation is at least
    0.95 and which comes before, or −1.
    """

    layers: np.ndarray
    units: np.ndarray
    correlations: np.ndarray
    duplicate_of: np.ndarray


def find_nearest_units(scan: Scan, layer: str) -> NearestUnits:
    """The nearest units of a layer's units, and which of them are duplicates.

    A unit that responds the same to every image has no correlation, and no neighbours.
    """
    layer_units = scan.description.unit_slices[scan.layer(layer)]
    slices = list(scan.description.unit_slices.values())
    blocks = [
        rank_neighbors(slices, layer_units, rows, correlations)
        for rows, correlations in iterate_correlations(scan, layer_units)
    ]
    return NearestUnits(
        layers=np.concatenate([block.layers for block in blocks]),
        units=np.concatenate([block.units for block in blocks]),
        correlations=np.concatenate([block.correlations for block in blocks]),
        duplicate_of=np.concatenate([block.duplicate_of for block in blocks]),
    )


def iterate_correlations(scan: Scan, own: slice) -> Iterator[tuple[range, Tensor]]:
    """The correlations of some of a layer's units with all units, and which units they are.

    Both are numbers on the axis of all units. Undefined correlations are NaN.
    """
    unit_count = scan.description.unit_count
    for rows in split_range(range(own.start, own.stop), MAX_PRODUCT_VALUES // unit_count):
        sums = sum_products(scan, rows)
        for ranked_rows in split_range(rows, MAX_RANKED_VALUES // unit_count):
            yield ranked_rows, sums.correlate_units(ranked_rows)


def split_range(numbers: range, max_length: int) -> Iterator[range]:
    """Consecutive pieces of a range, of at most `max_length` numbers or of one."""
    step = max(1, max_length)
    for start in range(numbers.start, numbers.stop, step):
        yield range(start, min(start + step, numbers.stop))


@dataclass(frozen=True)
class ProductSums:
    """Sums over n images of the products of the responses of the units `rows` with those of all.

    `products` are len(rows) × U, of numbers that are shifted by their approximate mean; `means`, U,
    are the exact means of those, and `deviations`, U, the standard deviations, NaN of a unit that
    responds the same to every image.
    """

    rows: range
    images: int
    products: Tensor
    means: Tensor
    deviations: Tensor

    def correlate_units(self, rows: range) -> Tensor:
        """The correlations of some of the `rows` with all units, len(rows) × U."""
        row_units = slice(rows.start, rows.stop)
        products = self.products[rows.start - self.rows.start : rows.stop - self.rows.start]
        covariances = products.double() / self.images - self.means[row_units, None] * self.means
        correlations = covariances / (self.deviations[row_units, None] * self.deviations)
        return correlations.clamp(-1, 1)


def sum_products(scan: Scan, rows: range) -> ProductSums:
    """The sums of products of some units with all, over all images."""
    unit_count = scan.description.unit_count
    products = torch.zeros(len(rows), unit_count)
    sums = torch.zeros(unit_count, dtype=torch.float64)
    squares = torch.zeros(unit_count, dtype=torch.float64)
    shift: Tensor | None = None
    first_responses: Tensor | None = None
    is_constant = torch.ones(unit_count, dtype=torch.bool)

    block_images = max(1, MAX_BLOCK_VALUES // unit_count)
    for block in scan.iterate_responses(None, block_images):
        responses = torch.from_numpy(block).float()
        if shift is None or first_responses is None:
            first_responses = responses[0].clone()
            # Sums of products are exact enough where the numbers are near 0.
            shift = responses.mean(0)
        is_constant &= (responses == first_responses).all(0)
        responses -= shift
        products.addmm_(responses[:, rows.start : rows.stop].T, responses)
        sums += responses.sum(0, dtype=torch.float64)
        squares += responses.square().sum(0, dtype=torch.float64)

    means = sums / scan.images
    variances = (squares / scan.images - means.square()).clamp_min(0)
    variances[is_constant] = torch.nan
    return ProductSums(rows, scan.images, products, means, variances.sqrt())


def rank_neighbors(
    slices: Sequence[slice], own: slice, rows: range, correlations: Tensor
) -> NearestUnits:
    """The neighbours of the units `rows`, given their correlations with all units.

    `slices` are the layers' units on the axis of all units, `own` those of the units' own layer.
    """
    numbers = torch.arange(correlations.shape[1])
    is_own = (numbers >= own.start) & (numbers < own.stop)
    is_itself = numbers == torch.tensor(rows)[:, None]
    finite = correlations.nan_to_num(nan=-torch.inf)

    own_known = finite.masked_fill(~is_own | is_itself, -torch.inf)
    other_known = finite.masked_fill(is_own, -torch.inf)
    selections = [select_largest(values, NEIGHBORS_PER_SIDE) for values in (own_known, other_known)]
    values = torch.cat([values for values, _ in selections], 1)
    indices = torch.cat([indices for _, indices in selections], 1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)

    # A number on the axis of all units as its layer, and its number there.
    starts = torch.tensor([units.start for units in slices])
    layers = torch.searchsorted(starts, indices, right=True) - 1
    units = indices - starts[layers]
    is_missing = values == -torch.inf
    return NearestUnits(
        layers=layers.masked_fill(is_missing, -1).numpy(),
        units=units.masked_fill(is_missing, -1).numpy(),
        correlations=values.masked_fill(is_missing, torch.nan).numpy(),
        duplicate_of=find_first_duplicates(own_known[:, own], rows.start - own.start),
    )


def select_largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row and their indices, equal ones by rising index; where a row has
    fewer, the rest is −inf."""
    sorted_values, order = values.sort(dim=1, descending=True, stable=True)
    missing = max(0, count - values.shape[1])
    largest = pad(sorted_values[:, :count], (0, missing), value=-torch.inf)
    return largest, pad(order[:, :count], (0, missing))


def find_first_duplicates(correlations: Tensor, first_unit: int) -> np.ndarray:
    """Of each unit the first one before it that it duplicates, or −1.

    The rows are consecutive units of a layer from `first_unit` on, the columns all of its units.
    """
    units = torch.arange(correlations.shape[1])
    rows = torch.arange(len(correlations)) + first_unit
    is_duplicate = (correlations >= DUPLICATE_CORRELATION) & (units < rows[:, None])
    first = is_duplicate.int().argmax(1)
    return first.masked_fill(~is_duplicate.any(1), -1).numpy()
