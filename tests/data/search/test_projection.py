"""Maps of vectors: planted clusters stay together, and what is said of a map is counted by hand."""

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.data.search.nearest import measure_vote_accuracy
from sightline.data.search.projection import (
    compute_principal_components,
    measure_faithfulness,
    project_vectors,
)


def clusters(count: int = 60, size: int = 64) -> tuple[Tensor, Tensor]:
    """Three clouds in turn, far from each other: vectors count×size and classes."""
    generator, classes = torch.Generator().manual_seed(0), torch.arange(count) % 3
    return torch.randn(count, size, generator=generator) + 6 * torch.randn(
        3, size, generator=generator
    )[classes], classes


@pytest.mark.parametrize("dimensions", [2, 3])
def test_tsne_keeps_clusters_and_repeats(dimensions: int) -> None:
    vectors, classes = clusters()
    places = project_vectors(vectors, "tsne", dimensions, seed=0).positions
    assert places.shape == (60, dimensions)
    assert places.mean(0).abs().max() < 1e-3
    assert measure_vote_accuracy(places, classes, 10, "l2") == 1  # chance is 0.33
    assert torch.equal(places, project_vectors(vectors, "tsne", dimensions, seed=0).positions)


def test_umap_keeps_clusters_and_threads() -> None:
    vectors, classes = clusters()
    threads = torch.get_num_threads()
    places = project_vectors(vectors, "umap", 2, seed=0).positions
    assert torch.get_num_threads() == threads
    assert measure_vote_accuracy(places, classes, 10, "l2") == 1


def test_vectors_that_are_all_alike() -> None:
    places, explained = (
        project_vectors(torch.ones(5, 3), "tsne", 2, seed=0).positions,
        compute_principal_components(torch.ones(5, 3), 2, 0)[1],
    )
    assert places.tolist() == [[0, 0]] * 5
    assert explained.tolist() == [0, 0]


def test_trustworthiness_is_venna_and_kaskis() -> None:
    """Neighbours on the map that are none in the vectors count by how far down their rank is (2001, equation 2)."""
    vectors, k = clusters(20, 5)[0], 4
    places = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    penalty = 0
    for i in range(20):
        ranks = {
            j: rank
            for rank, j in enumerate(
                sorted(range(20), key=lambda j: float((vectors[j] - vectors[i]).norm()))
            )
        }
        shown = sorted(
            (j for j in range(20) if j != i), key=lambda j: float((places[j] - places[i]).norm())
        )[:k]
        penalty += sum(max(0, ranks[j] - k) for j in shown)
    assert measure_faithfulness(vectors, places, k)["trustworthiness"] == pytest.approx(
        1 - 2 * penalty / (20 * k * (40 - 3 * k - 1))
    )


def test_refuses_too_little() -> None:
    with pytest.raises(sl.SightlineError, match="a map needs at least 4 images; there are 3"):
        project_vectors(torch.randn(3, 8), "pca", 2, seed=0)
    with pytest.raises(
        sl.SightlineError, match="2 numbers an image can't be laid out in 3 dimensions"
    ):
        project_vectors(torch.randn(9, 2), "pca", 3, seed=0)
