"""The map of images: PCA against the SVD, agreement by hand, and each picture near its position."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.scan.access import load_center_crops
from sightline.data.store.reader import Scan


@pytest.mark.parametrize("dimensions", [2, 3])
def test_pca_is_the_svd(stored: Scan, dimensions: int) -> None:
    result = sl.embedding(stored, method="pca", dimensions=dimensions)
    vectors = stored.vectors().double()
    centered = vectors - vectors.mean(0)
    _, singular_values, axes = torch.linalg.svd(centered, full_matrices=False)
    expected = centered @ axes[:dimensions].T
    shares = (singular_values**2 / (singular_values**2).sum())[:dimensions]
    assert torch.allclose(result.values["places"].double().abs(), expected.abs(), atol=1e-4)
    assert torch.allclose(result.values["explained"].double(), shares, atol=1e-5)
    for share in shares.tolist():
        assert f"{share:.1%}" in result.captions["embedding"]


def count_votes(vectors: Tensor, classes: Tensor, k: int) -> float:
    """The share of vectors whose class is the most frequent of their k nearest, by hand."""
    hits = 0
    for i in range(len(vectors)):
        order = (vectors - vectors[i]).norm(dim=1).argsort().tolist()
        votes = [int(classes[j]) for j in order if j != i][:k]
        winner = max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)))
        hits += winner == int(classes[i])
    return hits / len(vectors)


def test_agreement_is_the_vote_of_the_ten_nearest(stored: Scan) -> None:
    values = sl.embedding(stored, method="pca").values
    assert stored.classes is not None
    positions = values["places"].double()
    assert values["agreement"] == pytest.approx(count_votes(positions, stored.classes, 10))
    features = stored.vectors().double()
    assert values["feature_agreement"] == pytest.approx(count_votes(features, stored.classes, 10))


def test_the_mosaic_has_every_picture_once_near_its_position(stored: Scan) -> None:
    """4×4 cells for 14 pictures: x to the right, y upwards."""
    result = sl.embedding(stored, method="pca")
    panel = result.panels["embedding"]
    tile = panel.shape[-1] // 4
    assert tile == 96
    pictures = load_center_crops(stored, range(14), tile)
    cells = panel[0].unfold(1, tile, tile).unfold(2, tile, tile)
    rows: list[int] = []
    columns: list[int] = []
    for picture in pictures:
        is_here = (cells == picture[:, None, None]).all(0).all(-1).all(-1)
        ((row, column),) = is_here.nonzero().tolist()
        rows.append(row)
        columns.append(column)
    positions = result.values["places"]
    correlation_x = torch.corrcoef(torch.stack([positions[:, 0], torch.tensor(columns).float()]))
    correlation_y = torch.corrcoef(torch.stack([positions[:, 1], torch.tensor(rows).float()]))
    assert correlation_x[0, 1] > 0.8
    assert correlation_y[0, 1] < -0.8


def test_a_large_dataset_is_shown_in_part(stored: Scan) -> None:
    result = sl.embedding(stored, method="pca", tiles=5)
    assert "Snapped to a grid, 5 of them:" in result.captions["embedding"]
    assert result.values["places"].shape == (14, 2)
    panel = result.panels["embedding"]
    tile = panel.shape[-1] // 3
    cells = panel[0].unfold(1, tile, tile).unfold(2, tile, tile)
    for image_id in (0, 3, 6, 10, 13):
        picture = load_center_crops(stored, [image_id], tile)[0]
        assert (cells == picture[:, None, None]).all(0).all(-1).all(-1).sum() == 1


def test_a_scan_goes_without_a_folder(stored: Scan) -> None:
    with pytest.raises(sl.SightlineError, match="a Scan is read as it is"):
        sl.embedding(stored, folder="photos")


def test_the_command_line_writes_the_page(stored: Scan, tmp_path: Path) -> None:
    arguments = ["--store", str(stored.path), "--method", "pca", "--out", str(tmp_path)]
    assert main(["embedding", *arguments]) == 0
    assert (tmp_path / "map.html").is_file()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_small_dataset_of_classes(tiny: sl.Model, tmp_path: Path, method: str) -> None:
    for number in range(5):
        path = tmp_path / LABELS[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        sl.write(smooth(seed=80 + number, side=40)[:, :, :36], path)
    result = sl.embedding(tiny, folder=tmp_path, method=method)
    scan = sl.scan(tiny, tmp_path)
    assert scan.classes is not None
    expected = count_votes(result.values["places"].double(), scan.classes, 4)
    assert result.values["agreement"] == pytest.approx(expected)
    assert "among the 4 nearest here. The 4 nearest on the map" in result.captions["embedding"]


def test_a_collapsed_layout_is_named_in_the_caption(
    stored: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collapse(vectors: Tensor, dimensions: int, seed: int) -> Tensor:
        return torch.zeros(len(vectors), dimensions)

    monkeypatch.setattr("sightline.data.search.projection.compute_tsne", collapse)
    caption = sl.embedding(stored).captions["embedding"]
    assert caption.startswith("PCA of the features of penultimate of 14 images")
    assert "t-SNE put 14 images of different features on points that they share" in caption
    assert "The axes (left to right" in caption
