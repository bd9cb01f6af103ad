"""Neighbours by features and pixels, against scikit-learn and by hand."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import LABELS, small_network, smooth
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.store.reader import Scan
from sightline.methods.retrieval import neighbors as neighbors_module


def compute_features(model: sl.Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.features(images, "penultimate")["penultimate"].double()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_neighbors_are_those_of_scikit_learn(
    stored: Scan, stored_images: Tensor, tiny: sl.Model, photos: Tensor, metric: str
) -> None:
    peer_metric = {"l2": "euclidean", "cosine": "cosine"}[metric]
    peer = NearestNeighbors(metric=peer_metric, algorithm="brute")
    peer.fit(compute_features(tiny, stored_images).numpy())
    expected, indices = peer.kneighbors(compute_features(tiny, photos).numpy(), 5)
    values = sl.neighbors(tiny, photos, store=stored.path, k=5, metric=metric).values
    assert values["ids"].tolist() == indices.tolist()
    assert torch.allclose(values["distance"].double(), torch.from_numpy(expected), atol=1e-5)
    assert values["paths"][1] == [stored.paths[image_id] for image_id in indices[1]]
    assert values["recall"] == 1


def test_pixels_are_compared_in_the_middle_square_at_32_pixels(
    stored: Scan, tiny: sl.Model, photos: Tensor
) -> None:
    values = sl.neighbors(tiny, photos, store=stored.path, k=3).values
    squares = torch.cat([stored.thumbnail(image_id) for image_id in range(stored.images)])
    queries = photos[:, :, :, 4:36]
    distances = (queries[:, None] - squares[None]).double().flatten(2).norm(dim=2)
    expected, order = distances.sort(dim=1)
    assert values["pixel_ids"].tolist() == order[:, :3].tolist()
    assert torch.allclose(values["pixel_distance"].double(), expected[:, :3], atol=1e-4)


def test_accuracy_is_the_leave_one_out_vote_of_five(stored: Scan) -> None:
    assert stored.classes is not None
    values = sl.neighbors(stored, id=0).values
    vectors = stored.vectors().double()
    cosines = F.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    hits = 0
    for i in range(stored.images):
        order = [j for j in cosines[i].argsort(descending=True).tolist() if j != i]
        votes = [int(stored.classes[j]) for j in order[:5]]
        hits += int(sum(votes) > 2) == int(stored.classes[i])
    assert values["accuracy"] == pytest.approx(hits / stored.images)
    caption = sl.neighbors(stored, id=0).captions["neighbors"]
    assert f"right class of {hits / stored.images:.1%} of the dataset by features" in caption


def test_a_stored_image_is_not_its_own_neighbour(stored: Scan) -> None:
    values = sl.neighbors(stored, id=3, k=13).values
    remaining = [image_id for image_id in range(14) if image_id != 3]
    assert sorted(values["ids"][0].tolist()) == remaining
    assert sorted(values["pixel_ids"][0].tolist()) == remaining


def test_a_unit_is_a_direction(stored: Scan) -> None:
    vectors = stored.vectors()
    cosines = vectors[:, 4] / vectors.norm(dim=1)
    result = sl.neighbors(stored, unit=4, k=4)
    order = cosines.argsort(descending=True, stable=True)
    assert result.values["ids"][0].tolist() == order[:4].tolist()
    assert "pixel_ids" not in result.values
    assert "nearest in pixels" not in result.captions["neighbors"]


def test_logits_are_a_layer_too(
    tiny: sl.Model, folder: Path, stored_images: Tensor, tmp_path: Path
) -> None:
    store = tmp_path / "logits.scan"
    scan = sl.scan(tiny, folder, store=store, layers=("logits",), vectors=("logits",))
    with torch.no_grad():
        logits = tiny.logits(stored_images)
    assert torch.allclose(scan.vectors("logits"), logits, atol=1e-5)
    assert scan.top("logits").ids[0].tolist() == logits.argmax(0).tolist()


@pytest.mark.parametrize("by_id", [False, True])
def test_a_region_is_an_image_of_its_own(
    stored: Scan, stored_images: Tensor, tiny: sl.Model, by_id: bool
) -> None:
    image = stored_images[5:6]
    region = F.interpolate(image[:, :, 4:20, 8:31], (32, 32), mode="bilinear", antialias=True)
    expected = sl.neighbors(tiny, region, store=stored.path, k=3).values
    box = (4, 8, 20, 31)
    if by_id:
        values = sl.neighbors(tiny, store=stored.path, id=5, box=box, k=3).values
    else:
        values = sl.neighbors(tiny, image, store=stored.path, box=box, k=3).values
    assert values["ids"].tolist() == expected["ids"].tolist()
    assert torch.allclose(values["distance"], expected["distance"], atol=1e-5)
    whole = sl.neighbors(tiny, image, store=stored.path, box=(0, 0, 32, 32), k=1).values
    assert whole["ids"].tolist() == [[5]]


def test_the_figure_has_a_row_by_features_and_one_by_pixels(
    stored: Scan, tiny: sl.Model, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_rows = []
    compose = neighbors_module.compose_figure_rows

    def record_rows(rows: list[neighbors_module.FigureRow]) -> Tensor:
        drawn_rows.extend(rows)
        return compose(rows)

    monkeypatch.setattr(neighbors_module, "compose_figure_rows", record_rows)
    box = (2, 3, 30, 20)
    values = sl.neighbors(tiny, photos, store=stored.path, k=2, box=box).values
    assert [row.title for row in drawn_rows] == [
        "nearest in the features of penultimate",
        "nearest in pixels",
    ] * 2
    for number, row in enumerate(drawn_rows):
        prefix = "pixel_" if number % 2 else ""
        image_ids = values[f"{prefix}ids"][number // 2].tolist()
        distances = values[f"{prefix}distance"][number // 2].tolist()
        query_picture = row.pictures[0]
        outline = (query_picture != photos[number // 2]).any(1)[0].nonzero()
        assert outline.amin(0).tolist() == [2, 3]
        assert outline.amax(0).tolist() == [29, 19]
        for picture, image_id in zip(row.pictures[1:], image_ids, strict=True):
            assert torch.equal(picture, stored.thumbnail(image_id))
        names = [Path(stored.paths[image_id]).parent.name for image_id in image_ids]
        captions = [f"{name}\n{d:.3g}" for name, d in zip(names, distances, strict=True)]
        assert row.captions == ["the region", *captions]


def test_refusals(stored: Scan, tiny: sl.Model, photos: Tensor) -> None:
    other_model = sl.load(small_network(), mean=(0.4, 0.4, 0.4), labels=LABELS, size=32)
    path = stored.path
    exactly_one = "give exactly one of image=, id= or unit="
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: sl.neighbors(stored, id=14), "id is 14; it must lie between 0 and 13"),
        (lambda: sl.neighbors(stored, id=1, k=14), "k is 14; it must lie between 1 and 13"),
        (lambda: sl.neighbors(stored), exactly_one),
        (lambda: sl.neighbors(stored, id=1, unit=1), exactly_one),
        (lambda: sl.neighbors(stored, photos, unit=1), exactly_one),
        (lambda: sl.neighbors(stored, photos, id=1), exactly_one),
        (lambda: sl.neighbors(stored, unit=16), "unit is 16; penultimate has units 0 to 15"),
        (lambda: sl.neighbors(stored, unit=1, metric="l2"), "goes with metric"),
        (lambda: sl.neighbors(stored, unit=1, box=(0, 0, 8, 8)), "without a box"),
        (lambda: sl.neighbors(stored, id=1, layer="conv2"), "conv2"),
        (lambda: sl.neighbors(other_model, photos, store=path), "another preprocessing"),
    ]
    for box in ((0, 0, 33, 8), (0, 0, 8, 41), (5, 0, 5, 8), (0, 0, 8), (-1, 0, 8, 8)):
        cases.append(
            (
                lambda box=box: sl.neighbors(tiny, photos, store=path, box=box),
                "inside the image's 32×40 pixels",
            )
        )
    for run, message in cases:
        with pytest.raises(sl.SightlineError, match=re.escape(message)) as error:
            run()
        assert "\n" not in str(error.value)


def test_a_store_alone_needs_no_network(
    stored: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["neighbors", "--store", str(stored.path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--id", "3", "--k", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["values"]["ids"] == sl.neighbors(stored, id=3, k=2).values["ids"].tolist()
    command = ["neighbors", "rocket", "--store", str(stored.path), "--out", str(tmp_path / "c")]
    assert main(command) == 1
    assert "built in code" in capsys.readouterr().err


# ── small datasets and unusual networks ──


def write_classes(folder: Path, counts: tuple[int, ...]) -> Path:
    """Different images of 36×40 pixels, `counts` of them in each class."""
    seed = 70
    for label, count in zip(LABELS, counts, strict=False):
        (folder / label).mkdir(parents=True)
        for _ in range(count):
            sl.write(smooth(seed=seed, side=40)[:, :, :36], folder / label / f"{seed}.png")
            seed += 1
    return folder


def test_the_default_k_is_lowered_to_a_small_dataset(
    tiny: sl.Model, photos: Tensor, tmp_path: Path
) -> None:
    folder = write_classes(tmp_path / "few", (2, 1))
    result = sl.neighbors(tiny, photos, folder=folder)
    assert result.values["ids"].shape == (2, 3)
    assert "There are only 3 images to choose from." in result.captions["neighbors"]
    assert "vote" not in result.captions["neighbors"], "the dataset says nothing of the photograph"
    stored_result = sl.neighbors(tiny, id=1, folder=folder)
    assert "vote of the 2 nearest others" in stored_result.captions["neighbors"]
    assert sorted(stored_result.values["ids"][0].tolist()) == [0, 2]
    assert "only 2 images" in stored_result.captions["neighbors"]
    with pytest.raises(sl.SightlineError, match="k is 8; it must lie between 1 and 3"):
        sl.neighbors(tiny, photos, folder=folder, k=8)

    single = write_classes(tmp_path / "single", (1,))
    assert sl.neighbors(tiny, photos, folder=single).values["ids"].tolist() == [[0], [0]]
    with pytest.raises(sl.SightlineError, match="the dataset has no other image"):
        sl.neighbors(tiny, id=0, folder=single)


def test_a_large_enough_dataset_gives_eight(stored: Scan) -> None:
    result = sl.neighbors(stored, id=2)
    assert result.values["ids"].shape == (1, 8)
    assert "There are only" not in result.captions["neighbors"]


def test_a_network_without_linear_layers_is_compared_by_what_its_last_convolution_is_given(
    folder: Path, photos: Tensor
) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 5, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    model = sl.load(network.eval(), size=32)
    queries = photos[:, :, :, 4:36]
    result = sl.neighbors(model, queries, folder=folder)
    last_map = model.features(queries, "2:in")["2:in"].mean((2, 3))
    vectors = sl.scan(model, folder).vectors()
    cosines = F.cosine_similarity(last_map[:, None].cpu(), vectors[None], dim=2)
    assert result.values["ids"].tolist() == cosines.argsort(1, descending=True)[:, :8].tolist()
    assert "features of penultimate under" in result.captions["neighbors"]
    chosen = sl.neighbors(model, queries, folder=folder, layer="1", k=2)
    assert "features of 1 under" in chosen.captions["neighbors"]
