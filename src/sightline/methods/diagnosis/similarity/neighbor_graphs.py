"""Images that one network holds together and another does not.

After Kondapaneni et al. 2025 ("Representational difference explanations", RDX): the neighbours of
each image are ranked in both networks, pairs that are near in one and far in the other are joined,
and the groups around the first eigenvectors of that graph are taken, one after the other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]

# Neighbours of an image that count as near.
NEIGHBOR_COUNT = 15

# Groups smaller than this are no groups.
MIN_GROUP_SIZE = 5
MAX_GROUP_SHARE = 0.25

# The slope of RDX's locally biased difference of ranks.
DIFFERENCE_SLOPE = 1.0

# Rows of distances that are in memory at once.
ROW_BLOCK = 512


@dataclass(frozen=True)
class ImageGroup:
    """Images that are near each other in one network only.

    Attributes:
        members: Their ids, the most central first.
        together: The mean share of a member's nearest images that are members too, in the network
            that holds them together.
        apart: The same in the other network.
        strength: How strongly the members are joined, to compare groups by.
    """

    members: NDArray[np.int64]
    together: float
    apart: float
    strength: float


def rank_image_neighbors(features: Features) -> NDArray[np.int32]:
    """For each image how many others are nearer to every image, by cosine distance, n×n.

    An image has rank −1 to itself; the nearest other image has rank 0.
    """
    unit_vectors = normalize_rows(features)
    count = len(unit_vectors)
    ranks = np.empty((count, count), np.int32)
    for start in range(0, count, ROW_BLOCK):
        similarity = unit_vectors[start : start + ROW_BLOCK] @ unit_vectors.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = np.inf
        ranks[start : start + ROW_BLOCK] = rank_highest(similarity)
    return ranks - 1


def rank_highest(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The rank of each value in its row, 0 for the highest; ties by column."""
    order = np.argsort(-values, axis=1, kind="stable")
    positions = np.arange(values.shape[1], dtype=np.int32)
    ranks = np.empty(values.shape, np.int32)
    np.put_along_axis(ranks, order, np.broadcast_to(positions, order.shape), axis=1)
    return ranks


def normalize_rows(features: Features) -> NDArray[np.float32]:
    """Centered features with length 1 for each image; 0 stays 0."""
    values = features.astype(np.float32)
    values -= values.mean(0)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.maximum(lengths, 1e-12)


def join_near_and_far(
    near: NDArray[np.int32], far: NDArray[np.int32], neighbor_count: int = NEIGHBOR_COUNT
) -> NDArray[np.float32]:
    """How strongly each pair is joined that is near by the first ranks and far by the second.

    n×n, symmetric, in [0, 1], 0 where a pair is no neighbour by the first ranks. The difference of
    ranks counts relative to the smaller one, as RDX has it: 3 against 30 counts more than 103
    against 130.
    """
    smaller = np.minimum(near, far).clip(min=0).astype(np.float32) + 1
    difference = (far - near).clip(min=0).astype(np.float32) / smaller
    weights: NDArray[np.float32] = np.tanh(DIFFERENCE_SLOPE * difference)
    is_neighbor = (near >= 0) & (near < neighbor_count)
    weights[~is_neighbor] = 0
    return ((weights + weights.T) / 2).astype(np.float32, copy=False)


def find_groups(
    near: NDArray[np.int32], far: NDArray[np.int32], group_count: int = 5
) -> list[ImageGroup]:
    """The groups that the first ranks hold together and the second do not, the strongest first."""
    weights = join_near_and_far(near, far)
    groups: list[ImageGroup] = []
    is_free = weights.sum(1) > 0
    # Some candidates are too loose to be shown.
    for _ in range(3 * group_count):
        members = cut_strongest_group(weights, is_free)
        if members is None or len(groups) == group_count:
            break
        is_free[members] = False
        together = measure_togetherness(near, members)
        apart = measure_togetherness(far, members)
        inside = weights[np.ix_(members, members)]
        strength = float(inside.sum() / len(members))
        groups.append(ImageGroup(members, together, apart, strength))
    return sorted(groups, key=lambda group: -(group.together - group.apart) * len(group.members))


def cut_strongest_group(
    weights: NDArray[np.float32], is_free: NDArray[np.bool_]
) -> NDArray[np.int64] | None:
    """The free images around the first eigenvector of their graph, the most central first.

    They are taken in the order of the eigenvector, as many as make the mean weight between members
    the largest (the densest prefix); None where no group of the smallest size is joined at all.
    """
    free = np.flatnonzero(is_free)
    if len(free) < MIN_GROUP_SIZE:
        return None
    graph = weights[np.ix_(free, free)]
    limit = max(MIN_GROUP_SIZE, int(MAX_GROUP_SHARE * len(weights)))
    centrality = find_first_eigenvector(graph)
    most_central = np.argsort(-centrality, kind="stable")[:limit]
    size = find_densest_prefix(graph[np.ix_(most_central, most_central)])
    return free[most_central[:size]] if size else None


def find_densest_prefix(graph: NDArray[np.float32]) -> int:
    """How many of the first nodes of a graph are joined most densely; 0 where none are joined."""
    # The sum of weights between the first k, for every k.
    inside = np.cumsum(np.tril(graph, -1).sum(1, dtype=np.float64))
    sizes = np.arange(1, len(inside) + 1)
    # Twice the weight within, for each member: its mean degree inside the group. The square root
    # keeps large loose groups from winning over small dense ones.
    density = 2 * inside / sizes**1.5
    density[: MIN_GROUP_SIZE - 1] = -1
    best = int(density.argmax())
    return best + 1 if inside[best] > 0 else 0


def find_first_eigenvector(graph: NDArray[np.float32], steps: int = 100) -> NDArray[np.float64]:
    """The eigenvector of the largest eigenvalue of a symmetric graph without negative weights."""
    values = graph.sum(1, dtype=np.float64) + 1e-9
    shifted = graph.astype(np.float32)
    for _ in range(steps):
        # The shift keeps a graph of two parts that only join each other from going back and forth.
        following = shifted @ values.astype(np.float32) + 0.1 * values
        following /= np.linalg.norm(following) + 1e-30
        if np.abs(following - values).max() < 1e-7:
            return following
        values = following
    return values


def measure_togetherness(ranks: NDArray[np.int32], members: NDArray[np.int64]) -> float:
    """The mean share of a member's nearest images that are members.

    Of as many nearest images as there are other members, and at most `NEIGHBOR_COUNT`.
    """
    nearest = min(NEIGHBOR_COUNT, len(members) - 1)
    inside = ranks[np.ix_(members, members)]
    is_near = (inside >= 0) & (inside < nearest)
    return float(is_near.sum() / (len(members) * nearest))
