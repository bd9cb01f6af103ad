"""Names, folders and images that something is wrong with: the others are scanned all the same."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.data.datasets.subset import draw_subset
from sightline.data.scan.access import name_image_classes
from sightline.data.store.maintenance import summarize_store, verify_store
from sightline.data.store.memory import MemoryStore

OPTIONS: dict[str, Any] = {"batch": 3, "k": 2}


def write_pictures(paths: list[bytes]) -> None:
    """Different pictures at paths that may not be UTF-8."""
    for number, path in enumerate(paths):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        picture = Path(os.fsdecode(os.path.dirname(path))) / "temporary.png"
        sl.write(smooth(seed=number)[:, :, :20], picture)
        os.rename(picture, path)


# ── bytes that are not UTF-8 ──


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Pictures whose names and folders are not UTF-8, or would move a terminal's cursor."""
    root = os.fsencode(tmp_path) + b"/caf\xe9"
    names = [
        b"\xff/1.png",
        b"\xff/\xc3\x28.png",
        b"a\\xe9/3.png",
        b"b\n\x1b[31m/4\r.png",
        b"b\n\x1b[31m/5.png",
    ]
    write_pictures([root + b"/" + name for name in names])
    return Path(os.fsdecode(root))


def test_such_names_are_scanned_and_read_again(odd_folder: Path, tiny: sl.Model) -> None:
    store = odd_folder.parent / "a.scan"
    scan = sl.scan(tiny, odd_folder, store=store, **OPTIONS)
    assert (scan.images, scan.errors) == (5, [])
    assert all(path.encode() for path in scan.paths)
    assert [name.encode() for name in scan.class_names] == [b"a\\xe9", b"b\n\x1b[31m", b"\\xff"]
    for id in range(5):
        assert scan.image(id).shape == (1, 3, 32, 32)
    assert len({float(scan.image(id).sum()) for id in range(5)}) == 5
    assert verify_store(store) == []
    assert json.dumps(summarize_store(store)).encode()
    # Opened again it is complete, and the same.
    assert sl.scan(tiny, odd_folder, store=store, **OPTIONS).paths == scan.paths


def test_the_default_store_has_a_plain_name(odd_folder: Path, tiny: sl.Model) -> None:
    scan = sl.scan(tiny, odd_folder, **OPTIONS)
    assert scan.complete
    assert scan.path.name.isascii()


def test_such_names_are_shown_escaped(odd_folder: Path, tiny: sl.Model) -> None:
    scan = sl.scan(tiny, odd_folder, store=odd_folder.parent / "a.scan", **OPTIONS)
    names = name_image_classes(scan, range(5))
    assert sorted(set(names)) == ["\\xff", "a\\xe9", "b\\n\\x1b[31m"]
    assert scan._repr_html_().isprintable()
    assert repr(scan).isprintable()
    assert draw_subset(str(odd_folder), 3).description.isprintable()


def test_a_part_of_such_a_folder_is_a_list(odd_folder: Path, tiny: sl.Model) -> None:
    subset = draw_subset(str(odd_folder), 4)
    dataset = open_dataset(subset.source)
    # A list has a line for each image, so it can't hold a name of two lines.
    assert len(dataset) == subset.count >= 2
    assert sl.scan(tiny, subset.source, store=MemoryStore(), **OPTIONS).errors == []


def test_a_store_is_not_made_where_it_can_not_be_read(odd_folder: Path, tiny: sl.Model) -> None:
    """LanceDB opens no path that is not UTF-8."""
    with pytest.raises(
        sl.SightlineError, match="is not UTF-8, or has control characters, which a store's path"
    ):
        sl.scan(tiny, odd_folder, store=odd_folder / "a.scan", **OPTIONS)
    assert not (odd_folder / "a.scan").exists()


@pytest.mark.parametrize(
    "name",
    ["a\0b.png", "x" * 5000, "\ud800.png", "", "\n", "."],
    ids=["null", "long", "surrogate", "empty", "line", "dot"],
)
def test_a_path_that_cannot_be_opened_is_an_error(
    name: str, tiny: sl.Model, tmp_path: Path
) -> None:
    write_pictures([os.fsencode(tmp_path) + b"/good.png"])
    paths = [str(tmp_path / "good.png"), str(tmp_path / name) if name else str(tmp_path)]
    scan = sl.scan(tiny, paths, store=tmp_path / "a.scan", **OPTIONS)
    assert scan.images == 1
    [(path, reason)] = scan.errors
    assert path.encode()
    assert reason.isprintable()


def test_long_names_of_classes_are_cut_where_they_are_shown(tiny: sl.Model, tmp_path: Path) -> None:
    write_pictures([os.fsencode(tmp_path) + b"/1.png", os.fsencode(tmp_path) + b"/2.png"])
    list_path = tmp_path / "list.txt"
    list_path.write_text(f"1.png\t{'x' * 5000}\n2.png\tb\n", encoding="utf-8")
    scan = sl.scan(tiny, list_path, store=tmp_path / "a.scan", **OPTIONS)
    assert [len(name) for name in name_image_classes(scan, [0, 1])] == [200, 1]
    assert len(scan._repr_html_()) < 3000


# ── folders ──


def test_a_folder_that_cannot_be_listed_is_an_error(
    tiny: sl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.fsencode(tmp_path) + b"/photos"
    write_pictures(
        [folder + name for name in (b"/ant/1.png", b"/ant/2.png", b"/bee/3.png", b"/cat/4.png")]
    )
    scandir = os.scandir

    def refuse(path: Any) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(os.fspath(path).rstrip("/")) == "bee":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    scan = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan", **OPTIONS)
    assert scan.errors == [(f"{tmp_path}/photos/bee/", "Permission denied")]
    assert [os.path.basename(path) for path in scan.paths] == ["1.png", "2.png", "4.png"]
    assert scan.class_names == ["ant", "bee", "cat"]
    assert verify_store(scan.path) == []


@pytest.mark.parametrize("name", ["a.scan", "results", "a.jpg"])
def test_a_store_in_the_scanned_folder_is_left_out(
    name: str, tiny: sl.Model, tmp_path: Path
) -> None:
    root = os.fsencode(tmp_path)
    write_pictures([root + b"/1.png", root + b"/old.scan/2.png", root + b"/deep/3.png"])
    store = tmp_path / "deep" / name
    first = sl.scan(tiny, tmp_path, store=store, callback=lambda _: True, **{**OPTIONS, "batch": 1})
    assert first.done == 1
    second = sl.scan(tiny, tmp_path, store=store, **OPTIONS)
    assert (second.images, second.errors, second.complete) == (3, [], True)
    shutil.copytree(store, tmp_path / "a copy")
    assert len(open_dataset(tmp_path)) == 3
    with pytest.raises(sl.SightlineError, match="is the store of a scan, not a dataset"):
        sl.scan(tiny, store)


# ── images ──


class Overflow(nn.Module):
    """Features that are NaN for bright images and infinite for dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean((1, 2, 3))
        features = self.conv(x).relu().mean((2, 3))
        features = features.where(brightness[:, None] < 0.9, torch.nan)
        features = features.where(brightness[:, None] > 0.1, torch.inf)
        return self.fc(features)


def test_images_of_features_that_are_not_finite_are_errors(tmp_path: Path) -> None:
    """The rest is as if they were not there: values, ids, sample and classes."""
    torch.manual_seed(0)
    model = sl.load(Overflow(), mean=(0, 0, 0), std=(1, 1, 1), labels=LABELS, size=16)
    pictures = [smooth(side=16, seed=seed) for seed in range(9)]
    for number in (1, 2, 6):
        pictures[number] = torch.ones(1, 3, 16, 16)
    pictures[4] = torch.zeros(1, 3, 16, 16)
    for number, picture in enumerate(pictures):
        for folder in ("all", "good"):
            path = tmp_path / folder / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if folder == "all" or number not in (1, 2, 4, 6):
                sl.write(picture, path)

    options: dict[str, Any] = {"batch": 4, "k": 3}
    scan = sl.scan(model, tmp_path / "all", store=tmp_path / "all.scan", **options)
    assert scan.complete
    assert sorted(os.path.basename(path) for path, _ in scan.errors) == [
        "1.png",
        "2.png",
        "4.png",
        "6.png",
    ]
    reasons = {reason for _, reason in scan.errors}
    assert reasons == {"the network's features of fc:in are not finite for this image"}
    assert verify_store(scan.path) == []

    good = sl.scan(model, tmp_path / "good", store=tmp_path / "good.scan", **options)
    names = [[os.path.basename(path) for path in paths] for paths in (scan.paths, good.paths)]
    assert names[0] == names[1]
    torch.testing.assert_close(scan.vectors(), good.vectors())
    assert scan.top("conv").ids.equal(good.top("conv").ids)
    torch.testing.assert_close(scan.top("conv").values, good.top("conv").values)
    assert scan.class_top("conv").ids.equal(good.class_top("conv").ids)
    torch.testing.assert_close(scan.class_means("conv"), good.class_means("conv"))
    torch.testing.assert_close(scan.sample("conv").values, good.sample("conv").values)


class FailingDataset:
    """Items of which one raises, one has a foreign label and one is no image."""

    classes = ("ant", "bee")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> Any:
        if position == 5:
            raise RuntimeError("a broken\nrecord")
        image: Any = smooth(seed=position)[0] if position != 7 else "no image"
        return image, 9 if position == 6 else position % 2


def test_items_that_fail_are_errors(tiny: sl.Model, tmp_path: Path) -> None:
    scan = sl.scan(tiny, FailingDataset(), store=tmp_path / "a.scan", **OPTIONS)
    assert scan.images == 37
    assert [reason for _, reason in scan.errors] == [
        "the dataset has no item 5: a broken",
        "its label is 9; the dataset has 2 classes",
        "item 7 of the dataset is of type str; it must be an image, a tensor or the bytes of a "
        "file",
    ]
