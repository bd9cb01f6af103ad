"""Projections: planted clusters stay together, and the measures are counted by hand."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.data.search import projection as projection_module
from sightline.data.search.nearest import measure_vote_accuracy
from sightline.data.search.projection import (
    compute_principal_components,
    count_shared_points,
    measure_faithfulness,
    project_vectors,
)


def make_clusters(count: int = 60, dimensions: int = 64) -> tuple[Tensor, Tensor]:
    """Vectors, count×dimensions, of three clusters far from each other, and their classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(count) % 3
    noise = torch.randn(count, dimensions, generator=generator)
    centers = 6 * torch.randn(3, dimensions, generator=generator)
    return noise + centers[classes], classes


@pytest.fixture
def uncompiled_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP as the Python code that it is: it is compiled longer than it runs on a few points."""
    monkeypatch.setattr(import_module("numba").config, "DISABLE_JIT", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP tells that there is no TensorFlow
        import_module("umap")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_pca_has_the_variances_of_the_svd(dimensions: int) -> None:
    vectors, _ = make_clusters(40, 7)
    projection = project_vectors(vectors, "pca", dimensions, seed=0)
    centered = vectors.double() - vectors.double().mean(0)
    singular_values = torch.linalg.svdvals(centered)
    shares = singular_values.square() / singular_values.square().sum()
    assert projection.explained_variance.tolist() == pytest.approx(shares[:dimensions].tolist())
    lengths = projection.positions.double().norm(dim=0)
    assert lengths.tolist() == pytest.approx(singular_values[:dimensions].tolist())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_tsne_keeps_clusters_and_repeats(dimensions: int) -> None:
    vectors, classes = make_clusters()
    positions = project_vectors(vectors, "tsne", dimensions, seed=0).positions
    assert positions.shape == (60, dimensions)
    assert positions.mean(0).abs().max() < 1e-3
    assert measure_vote_accuracy(positions, classes, 10, "l2") == 1  # by chance 0.33
    again = project_vectors(vectors, "tsne", dimensions, seed=0).positions
    assert torch.equal(positions, again)


@pytest.mark.usefixtures("uncompiled_umap")
def test_umap_keeps_clusters_and_the_number_of_threads() -> None:
    vectors, classes = make_clusters(36)
    threads = torch.get_num_threads()
    positions = project_vectors(vectors, "umap", 2, seed=0).positions
    assert torch.get_num_threads() == threads
    assert measure_vote_accuracy(positions, classes, 10, "l2") == 1


COMPILED_UMAP = """
import torch
from sightline.data.search.projection import project_vectors
classes = torch.arange(60) % 3
generator = torch.Generator().manual_seed(0)
centers = 9 * torch.randn(3, 16, generator=generator)
vectors = centers[classes] + torch.randn(60, 16, generator=generator)
positions = project_vectors(vectors, "umap", 2, seed=0).positions
distances = torch.cdist(positions, positions).fill_diagonal_(torch.inf)
assert (classes[distances.topk(10, largest=False).indices] == classes[:, None]).all()
"""


@pytest.mark.slow
def test_umap_keeps_clusters_when_compiled() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", COMPILED_UMAP], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr


def test_vectors_that_are_all_alike() -> None:
    positions = project_vectors(torch.ones(5, 3), "tsne", 2, seed=0).positions
    _, explained = compute_principal_components(torch.ones(5, 3), 2, 0)
    assert positions.tolist() == [[0, 0]] * 5
    assert explained.tolist() == [0, 0]


def test_trustworthiness_is_that_of_venna_and_kaski() -> None:
    """Neighbours by position that are none by vector count by how far down their rank is
    (2001, equation 2)."""
    k = 4
    vectors, _ = make_clusters(20, 5)
    positions = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    penalty = 0
    for i in range(20):
        by_vector = (vectors - vectors[i]).norm(dim=1).argsort().tolist()
        by_position = (positions - positions[i]).norm(dim=1).argsort().tolist()
        for j in by_position[1 : k + 1]:
            penalty += max(0, by_vector.index(j) - k)
    expected = 1 - 2 * penalty / (20 * k * (40 - 3 * k - 1))
    measures = measure_faithfulness(vectors, positions, k)
    assert measures["trustworthiness"] == pytest.approx(expected)


def test_refuses_too_little() -> None:
    with pytest.raises(sl.SightlineError, match="a map needs at least 4 images; there are 3"):
        project_vectors(torch.randn(3, 8), "pca", 2, seed=0)
    with pytest.raises(
        sl.SightlineError, match="vectors of 2 numbers can't be projected into 3 dimensions"
    ):
        project_vectors(torch.randn(9, 2), "pca", 3, seed=0)


@pytest.mark.parametrize("count", [4, 5, 6, 7, 10, 21, 40])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_tsne_spreads_few_different_vectors(count: int, dimensions: int) -> None:
    generator = torch.Generator().manual_seed(count)
    vectors = torch.randn(count, 37, generator=generator).relu()
    projection = project_vectors(vectors, "tsne", dimensions, seed=3)
    distances = torch.pdist(projection.positions)
    assert projection.kind == "tsne"
    assert projection.note == ""
    assert distances.min() > 1e-3 * distances.max()
    assert distances.max() > 1


def test_tsne_spreads_vectors_that_are_equally_far_from_each_other() -> None:
    for count in (5, 13, 25):
        projection = project_vectors(torch.eye(count), "tsne", 2, seed=0)
        assert projection.kind == "tsne"
        distances = torch.pdist(projection.positions)
        assert distances.min() > 0.01 * distances.max() > 0


@pytest.mark.usefixtures("uncompiled_umap")
def test_equal_vectors_may_share_a_point() -> None:
    vectors = torch.randn(9, 12, generator=torch.Generator().manual_seed(2))
    vectors[4] = vectors[7]
    for kind in ("pca", "tsne", "umap"):
        projection = project_vectors(vectors, kind, 2, seed=0)
        assert projection.kind == kind
        assert projection.note == ""


def test_shared_points_are_counted() -> None:
    vectors = torch.tensor([[0.0, 0], [5, 1], [5, 1], [9, 4], [9, 4.0001], [2, 7]])
    positions = torch.tensor([[0.0, 0], [1, 1], [1, 1], [2, 2], [2, 2], [3, 3]])
    assert count_shared_points(vectors, positions) == 0
    positions[5] = positions[0]
    assert count_shared_points(vectors, positions) == 2
    assert count_shared_points(vectors, torch.zeros(6, 2)) == 6
    shrunk = torch.rand(6, 2, generator=torch.Generator().manual_seed(0)) * 1e-20
    assert count_shared_points(vectors, shrunk) == 0
    assert count_shared_points(vectors, shrunk, min_point_size=1e-6) == 6
    assert count_shared_points(vectors, torch.full((6, 2), torch.nan)) == 6


@pytest.mark.parametrize("kind", ["tsne", "umap"])
def test_a_collapsed_layout_gives_way_to_pca(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def collapse(vectors: Tensor, dimensions: int, seed: int) -> Tensor:
        positions = vectors[:, :dimensions].clone()
        positions[3] = positions[8]
        return positions

    vectors, _ = make_clusters(12, 9)
    monkeypatch.setattr(projection_module, f"compute_{kind}", collapse)
    projection = project_vectors(vectors, kind, 2, seed=0)
    linear = project_vectors(vectors, "pca", 2, seed=0)
    assert projection.kind == "pca"
    assert torch.allclose(projection.positions, linear.positions, atol=1e-4)
    assert "put 2 images of different features on points" in projection.note
    assert linear.note == ""


def test_pca_notes_vectors_that_only_a_further_component_separates() -> None:
    plane = torch.tensor([[9.0, 0], [-9, 0], [0, 5], [0, -5]])
    vectors = torch.cat([plane, plane])
    height = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])
    projection = project_vectors(torch.cat([vectors, height[:, None]], 1), "pca", 2, seed=0)
    assert projection.note == (
        "PCA puts 8 images on points that they share: their features differ only in further "
        "components."
    )
