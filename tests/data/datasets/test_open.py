"""Datasets of every kind hold the same images with the same classes."""

import tarfile
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.data.datasets.files import Files, hash_source
from sightline.data.datasets.open import open_dataset, open_file_list, reread_image
from sightline.images.io import pictures as images

CLASSES = ("ant", "ant", "ant", "ant", "bee", "bee")
COUNT = len(CLASSES)
LABELS = [0, 0, 0, 0, 1, 1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four images of 16×24 pixels in one folder and two in another."""
    root = tmp_path_factory.mktemp("photos")
    paths = [root / class_name / f"{number}.png" for number, class_name in enumerate(CLASSES)]
    for path, image in zip(paths, smooth(COUNT, side=24)[:, :, :16], strict=True):
        path.parent.mkdir(exist_ok=True)
        images.write(image, path)
    return paths


class PairDataset:
    """A dataset object whose items are a tensor and a label."""

    classes = ("ant", "bee")

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> Any:
        return images.read(self.files[position])[0], LABELS[position]


def write_sources(files: list[Path], folder: Path) -> dict[str, Any]:
    """The same images in every form that `open_dataset` takes."""
    lines = [f"{path}\t{path.parent.name}\n" for path in files]
    folder.joinpath("list.txt").write_text("".join(lines), encoding="utf-8")
    for number in (0, 1):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for path in files[number * 3 : number * 3 + 3]:
                archive.add(path, f"{path.parent.name}/{path.name}")
    columns = {"image": [{"bytes": path.read_bytes()} for path in files], "label": LABELS}
    table = pa.table(columns)
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    lancedb.connect(folder).create_table("rows", table)
    root = files[0].parent.parent
    return {
        "folder": root,
        "pattern": f"{root}/*/*.png",
        "list": folder / "list.txt",
        "tar": f"{folder}/*.tar",
        "parquet": folder / "rows.parquet",
        "lance": folder / "rows.lance",
        "dataset": PairDataset(files),
    }


def test_every_form_gives_the_same(files: list[Path], tiny: sl.Model, tmp_path: Path) -> None:
    for kind, source in write_sources(files, tmp_path).items():
        dataset = open_dataset(source)
        assert len(dataset) == COUNT, kind
        for position in range(COUNT):
            image = dataset.read_image(position)
            if kind == "dataset":
                assert torch.equal(image, images.read(files[position])[0])
            else:
                assert image == files[position].read_bytes(), kind
        assert [dataset.get_label(position) for position in range(COUNT)] == LABELS, kind
        class_names = ("0", "1") if kind in ("parquet", "lance") else ("ant", "bee")
        assert dataset.class_names == class_names, kind

        scanned = sl.scan(tiny, source, store=tmp_path / f"{kind}.scan")
        assert (scanned.images, len(scanned.errors)) == (COUNT, 0)
        if kind == "dataset":
            with pytest.raises(sl.SightlineError, match="came from a dataset object in code"):
                scanned.image(2)
        else:
            expected = tiny.fit(images.read(files[2]))
            assert scanned.image(2).shape == (1, 3, 32, 32)
            assert (scanned.image(2) - expected).abs().max() < 0.01, kind


def test_a_list_of_paths_keeps_its_order_and_has_no_classes(files: list[Path]) -> None:
    dataset = open_dataset([files[4], str(files[0])])
    assert [dataset.get_path(position) for position in (0, 1)] == [str(files[4]), str(files[0])]
    assert dataset.class_names == ()
    assert dataset.get_label(0) == -1


# ── folders and lists ──


def test_lines_of_a_list(tmp_path: Path) -> None:
    """Blank lines are skipped, relative paths start from the list, a class may hold spaces."""
    path = tmp_path / "list.txt"
    path.write_text("  b.png \tbig cat\n\n   \nsub/../a.png\n/far/c.png\tant\n", encoding="utf-8")
    dataset = open_file_list(str(path))
    assert dataset.paths == [str(tmp_path / "b.png"), str(tmp_path / "a.png"), "/far/c.png"]
    assert dataset.class_names == ("ant", "big cat")
    assert dataset.labels == [1, -1, 0]


# ── reading again ──


def test_an_image_is_read_again_from_its_source(files: list[Path], tmp_path: Path) -> None:
    sources = write_sources(files, tmp_path)
    for kind in ("folder", "tar", "parquet", "lance"):
        dataset = open_dataset(sources[kind])
        descriptor = {"kind": type(dataset).__name__, "source": dataset.source}
        image, digest = reread_image(descriptor, 3, dataset.get_path(3))
        assert image == files[3].read_bytes(), kind
        assert digest == hash_source(files[3].read_bytes())


def test_an_image_that_is_gone(files: list[Path], tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.png")
    with pytest.raises(
        sl.SightlineError, match=r"absent.png can't be read any more \(No such file"
    ):
        reread_image({"kind": "Files", "source": str(tmp_path)}, 0, absent)
    sources = write_sources(files, tmp_path)
    parquet = open_dataset(sources["parquet"])
    descriptor = {"kind": "Rows", "source": parquet.source}
    for row in (f"[{COUNT}]", "[-1]", "", "[1", "[9999999999999999999]"):
        path = parquet.get_path(0).partition("[")[0] + row
        with pytest.raises(sl.SightlineError, match="can't be read any more"):
            reread_image(descriptor, 0, path)
    tar = open_dataset(sources["tar"])
    for path in (f"{tar.get_path(0)}x", "/nowhere.tar/a.png", "a row"):
        with pytest.raises(sl.SightlineError, match="can't be read any more"):
            reread_image({"kind": "Tar", "source": tar.source}, 0, path)


# ── what is refused ──


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "zeros.bin").write_bytes(b"\0" * 100)
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    (tmp_path / "mixed").mkdir()
    for name in ("a.tar", "b.parquet"):
        (tmp_path / "mixed" / name).touch()
    tarfile.open(tmp_path / "empty.tar", "w").close()
    pq.write_table(pa.table({"number": [1]}), tmp_path / "plain.parquet")
    for name, text in {
        "photo.jpg": "is no folder, text list",
        "zeros.bin": "is no folder, text list",
        "broken.tar": "can't be read as an uncompressed tar",
        "broken.parquet": "can't be read as Parquet",
        "plain.parquet": "has no column of image bytes; its columns are number",
        "empty.tar": "there are no images in .*empty.tar",
        "mixed": "mixes .parquet and .tar files; give one kind",
        "*.png": "no file matches",
        "absent": "there is no folder, list or archive",
    }.items():
        with pytest.raises(sl.SightlineError, match=text):
            open_dataset(tmp_path / name)
    with pytest.raises(sl.SightlineError, match="there are no images in the list"):
        open_dataset([])


def test_a_pattern_of_files_in_folders_has_classes(files: list[Path]) -> None:
    dataset = open_dataset(f"{files[0].parent.parent}/**/*.png")
    assert isinstance(dataset, Files)
    assert dataset.paths == [str(path) for path in files]
    assert dataset.labels == LABELS
