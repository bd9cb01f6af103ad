"""Collections of every kind hold the same pictures with the same classes."""

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import smooth

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.images import io as images

COUNT = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures in each of two folders."""
    root, pictures = tmp_path_factory.mktemp("photos"), smooth(COUNT, side=16)
    paths = [root / name / f"{number}.png" for number, name in enumerate(["ant"] * 3 + ["bee"] * 3)]
    for path, picture in zip(paths, pictures, strict=True):
        path.parent.mkdir(exist_ok=True)
        images.write(picture, path)
    return paths


class Pictures:
    """A dataset object that gives tensors."""

    classes = ("ant", "bee")

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> Any:
        return images.read(self.files[position])[0], position // 3


def sources(files: list[Path], folder: Path) -> dict[str, Any]:
    """The pictures in every form."""
    import lancedb

    folder.joinpath("list.txt").write_text(
        "".join(f"{path}\t{path.parent.name}\n" for path in files), encoding="utf-8"
    )
    for number in (0, 1):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for path in files[number * 3 : number * 3 + 3]:
                archive.add(path, f"{path.parent.name}/{path.name}")
    table = pa.table(
        {"image": [{"bytes": path.read_bytes()} for path in files], "label": [0, 0, 0, 1, 1, 1]}
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=4)
    lancedb.connect(folder).create_table("rows", table)
    root = files[0].parent.parent
    return {
        "folder": root,
        "pattern": f"{root}/*/*.png",
        "list": folder / "list.txt",
        "tar": f"{folder}/*.tar",
        "parquet": folder / "rows.parquet",
        "lance": folder / "rows.lance",
        "dataset": Pictures(files),
    }


def test_every_form_gives_the_same(files: list[Path], tiny: sl.Model, tmp_path: Path) -> None:
    for kind, source in sources(files, tmp_path).items():
        found = open_dataset(source)
        assert len(found) == COUNT, kind
        for position in range(COUNT):
            got = found.read_image(position)
            assert (
                (got == files[position].read_bytes())
                if isinstance(got, bytes)
                else got.shape == (3, 16, 16)
            ), kind  # type: ignore[union-attr]
        assert [found.get_label(position) for position in range(COUNT)] == [0, 0, 0, 1, 1, 1], kind
        assert found.class_names == (
            ("0", "1") if kind in ("parquet", "lance") else ("ant", "bee")
        ), kind
        scanned = sl.scan(tiny, source, store=tmp_path / f"{kind}.scan")
        assert (scanned.images, len(scanned.errors)) == (COUNT, 0)
        if kind == "dataset":
            with pytest.raises(sl.SightlineError, match="came from a dataset object in code"):
                scanned.image(2)
        else:
            assert scanned.image(2).shape == (1, 3, 32, 32)


def test_default_collection_is_tiles() -> None:
    found, again = open_dataset(), open_dataset()
    assert 300 <= len(found) <= 600
    assert found.digest == again.digest
    assert found.class_names[found.get_label(0)] == "rocket"
    assert len({found.get_path(position) for position in range(len(found))}) == len(found)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 100)
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    pq.write_table(pa.table({"number": [1]}), tmp_path / "plain.parquet")
    for name, text in {
        "photo.jpg": "is no folder, text list",
        "broken.tar": "can't be read as an uncompressed tar",
        "broken.parquet": "can't be read as Parquet",
        "plain.parquet": "has no column of image bytes; its columns are number",
        "*.png": "no file matches",
    }.items():
        with pytest.raises(sl.SightlineError, match=text):
            open_dataset(tmp_path / name)
    with pytest.raises(sl.SightlineError, match="this is 3"):
        open_dataset(3)
