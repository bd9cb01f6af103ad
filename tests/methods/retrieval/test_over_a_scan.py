"""The methods that read a scan: neighbours, the map, the patches, on a small collection of two classes."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import LABELS, small_network, smooth
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import sightline as sl
from sightline.app.cli.main import main
from sightline.data.scan.run import scan
from sightline.data.store.reader import Scan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("photos")
    for number in range(14):
        (found / LABELS[number % 2]).mkdir(exist_ok=True)
        sl.write(smooth(seed=number), found / LABELS[number % 2] / f"{number:02}.png")
    return found


@pytest.fixture(scope="module")
def kept(tiny: sl.Model, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scan(tiny, folder, store=tmp_path_factory.mktemp("stores") / "tiny.scan")


def pictures(kept: Scan) -> Tensor:
    return torch.cat([kept.image(id) for id in range(kept.images)])


# ── neighbours ──


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_neighbors_are_sklearns(kept: Scan, tiny: sl.Model, photo: Tensor, metric: str) -> None:
    with torch.no_grad():
        features, query = (
            tiny.features(images, "penultimate")["penultimate"].double().numpy()
            for images in (pictures(kept), photo)
        )
    referee = NearestNeighbors(
        metric={"l2": "euclidean"}.get(metric, metric), algorithm="brute"
    ).fit(features)
    expected, at = referee.kneighbors(query, 5)
    values = sl.neighbors(tiny, photo, store=kept.path, k=5, metric=metric).values
    assert values["ids"].tolist() == at.tolist()
    assert torch.allclose(values["distance"].double(), torch.from_numpy(expected), atol=1e-5)
    assert values["paths"][0] == [kept.paths[i] for i in at[0]]


def test_a_stored_image_is_not_its_own_neighbour(kept: Scan) -> None:
    values = sl.neighbors(kept, id=3, k=13).values
    assert (
        sorted(values["ids"][0].tolist())
        == sorted(values["pixel_ids"][0].tolist())
        == [i for i in range(14) if i != 3]
    )


def test_a_unit_asks_for_its_direction(kept: Scan) -> None:
    vectors = kept.vectors()
    share = vectors[:, 4] / vectors.norm(dim=1)
    assert (
        sl.neighbors(kept, unit=4, k=4).values["ids"][0].tolist()
        == share.argsort(descending=True, stable=True)[:4].tolist()
    )


def test_logits_are_a_layer_too(tiny: sl.Model, folder: Path, tmp_path: Path) -> None:
    kept = scan(
        tiny, folder, store=tmp_path / "logits.scan", layers=("logits",), vectors=("logits",)
    )
    with torch.no_grad():
        logits = tiny.logits(pictures(kept))
    assert torch.allclose(kept.vectors("logits"), logits, atol=1e-5)
    assert kept.top("logits").ids[0].tolist() == logits.argmax(0).tolist()


def test_a_region_is_asked_for_alone(kept: Scan, tiny: sl.Model) -> None:
    one = pictures(kept)[5:6]
    values = sl.neighbors(tiny, one, store=kept.path, box=(0, 0, 32, 32), k=1).values
    assert values["ids"].tolist() == [[5]]
    part = torch.nn.functional.interpolate(
        one[:, :, 4:20, 8:24], (32, 32), mode="bilinear", antialias=True
    )
    direct = sl.neighbors(tiny, part, store=kept.path, k=3).values
    assert (
        sl.neighbors(tiny, one, store=kept.path, box=(4, 8, 20, 24), k=3).values["ids"].tolist()
        == direct["ids"].tolist()
    )


# ── the map ──


@pytest.mark.parametrize("dimensions", [2, 3])
def test_pca_is_the_svd(kept: Scan, dimensions: int) -> None:
    values = sl.embedding(kept, method="pca", dimensions=dimensions).values
    centered = kept.vectors().double() - kept.vectors().double().mean(0)
    _, spread, axes = torch.linalg.svd(centered, full_matrices=False)
    expected = centered @ axes[:dimensions].T
    assert torch.allclose(values["places"].double().abs(), expected.abs(), atol=1e-4)
    assert torch.allclose(
        values["explained"].double(), (spread**2 / (spread**2).sum())[:dimensions], atol=1e-5
    )


def test_page_has_every_image(kept: Scan) -> None:
    result = sl.embedding(kept, method="pca")
    data = json.loads(
        re.findall(
            r'<script type="application/json" id="data">(.*?)</script>',
            result.pages["map"],
            re.DOTALL,
        )[0]
    )
    assert all(path.endswith(name) for name, path in zip(data["names"], kept.paths, strict=True))
    assert [group["label"] for group in data["groups"]] == ["label", "prediction", "error"]
    assert len(data["sheets"]) == 1
    assert "http" not in result.pages["map"]
    assert "NaN" not in result.pages["map"]


# ── patches ──


@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_patches_are_the_strongest_and_what_moves_them(
    kept: Scan, tiny: sl.Model, layer: str
) -> None:
    values = sl.patches(tiny, store=kept.path, layer=layer, unit=2, k=4).values
    with torch.no_grad():
        maps = tiny.features(pictures(kept), layer)[layer][:, 2]
    order = maps.flatten(1).amax(1).argsort(descending=True, stable=True)[:4]
    assert values["ids"].tolist() == order.tolist()
    for place, id in enumerate(order.tolist()):
        row, column = int(values["row"][place]), int(values["column"][place])
        assert maps[id, row, column] == maps[id].max()
        leaf = pictures(kept)[id : id + 1].requires_grad_()
        (slope,) = torch.autograd.grad(tiny.features(leaf, layer)[layer][0, 2, row, column], leaf)
        rows, columns = slope[0].abs().sum(0).nonzero().unbind(1)
        top, left, bottom, right = values["box"][place].tolist()
        assert max(top, 0) <= rows.min() <= rows.max() < min(bottom, 32)
        assert max(left, 0) <= columns.min() <= columns.max() < min(right, 32)
        if layer == "conv1":  # without a ReLU before it, every pixel that is seen counts
            seen = (
                rows.min().item(),
                columns.min().item(),
                rows.max().item() + 1,
                columns.max().item() + 1,
            )
            assert (max(top, 0), max(left, 0), min(bottom, 32), min(right, 32)) == seen


def test_a_sheet_has_the_same_patches(kept: Scan, tiny: sl.Model) -> None:
    sheet = sl.patches(tiny, store=kept.path, layer="conv2", k=5).values
    assert sheet["ids"].shape == (12, 4)
    one = sl.patches(tiny, store=kept.path, layer="conv2", unit=7, k=4).values
    assert sheet["ids"][7].tolist() == one["ids"].tolist()
    assert sheet["box"][7].tolist() == one["box"].tolist()


# ── what is refused, and the command line ──


def test_refusals(kept: Scan, tiny: sl.Model, photo: Tensor) -> None:
    other = sl.load(small_network(), mean=(0.4, 0.4, 0.4), labels=LABELS, size=32)
    for run, words in (
        (lambda: sl.neighbors(kept, id=14), "id is 14; it must lie between 0 and 13"),
        (lambda: sl.neighbors(kept, id=1, k=14), "k is 14; it must lie between 1 and 13"),
        (lambda: sl.neighbors(kept), "exactly one of them"),
        (lambda: sl.neighbors(kept, id=1, unit=1), "exactly one of them"),
        (lambda: sl.neighbors(kept, unit=16), "unit is 16; penultimate has units 0 to 15"),
        (lambda: sl.neighbors(kept, unit=1, metric="l2"), "goes with metric"),
        (lambda: sl.neighbors(kept, id=1, layer="conv2"), "conv2"),
        (
            lambda: sl.neighbors(tiny, photo, store=kept.path, box=(0, 0, 40, 8)),
            "inside the image's 32×32 pixels",
        ),
        (lambda: sl.neighbors(other, photo, store=kept.path), "another preprocessing"),
        (lambda: sl.embedding(kept, folder="photos"), "a Scan is read as it is"),
        (lambda: sl.patches(tiny, store=kept.path, layer="relu1", unit=0), "relu1"),
        (
            lambda: sl.patches(tiny, store=kept.path, layer="conv1", unit=8),
            "unit is 8; conv1 has units 0 to 7",
        ),
        (
            lambda: sl.patches(tiny, store=kept.path, layer="conv1", unit=0, k=20),
            "k is 20; it must lie between 1 and 14",
        ),
    ):
        with pytest.raises(sl.SightlineError, match=re.escape(words)) as error:
            run()
        assert "\n" not in str(error.value)


def test_a_store_alone_needs_no_network(
    kept: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "neighbors",
                "--store",
                str(kept.path),
                "--id",
                "3",
                "--k",
                "2",
                "--out",
                str(tmp_path / "a"),
                "--json",
            ]
        )
        == 0
    )
    assert (
        json.loads(capsys.readouterr().out)["values"]["ids"]
        == sl.neighbors(kept, id=3, k=2).values["ids"].tolist()
    )
    assert (
        main(
            [
                "embedding",
                "--store",
                str(kept.path),
                "--method",
                "pca",
                "--out",
                str(tmp_path / "b"),
            ]
        )
        == 0
    )
    assert (tmp_path / "b" / "map.html").is_file()
    assert (
        main(["neighbors", "rocket", "--store", str(kept.path), "--out", str(tmp_path / "c")]) == 1
    )
    assert "built in code" in capsys.readouterr().err
