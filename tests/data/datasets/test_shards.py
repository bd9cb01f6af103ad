"""Archives and tables: members that are images, their classes, rows across blocks and files."""

import io
import random
import tarfile
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sightline as sl
from sightline.data.datasets import shards
from sightline.data.datasets.shards import Rows, Tar


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_members_and_their_classes(tmp_path: Path) -> None:
    members = {
        "./ant/1.png": b"GIF89a first",
        "ant/.hidden.png": b"hidden",
        "ant/2.json": b"{}",
        "ant/3.png": b"GIF89a second one",
        "ant/3.cls": b" wasp\n",
        "4.png": b"GIF89a",
    }
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", {"bee/deep/5.png": b"GIF89a last"})
    dataset = Tar([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    assert dataset.source == f"{tmp_path}/*.tar"
    images = [dataset.read_image(position) for position in range(len(dataset))]
    assert images == [b"GIF89a first", b"GIF89a second one", b"GIF89a", b"GIF89a last"]
    assert dataset.class_names == ("ant", "bee", "wasp")
    assert dataset.labels == [0, 2, -1, 1]
    assert dataset.get_path(3) == f"{tmp_path}/b.tar/bee/deep/5.png"


def make_table(first: int, count: int, labels: list[int | None]) -> pa.Table:
    images = [f"image {number}".encode() for number in range(first, first + count)]
    return pa.table({"other": [0] * count, "image": images, "label": labels})


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_rows_in_any_order_across_blocks_and_files(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine rows in two files, in blocks of 3, 3 and 1, and of 2; classes sort as numbers."""
    monkeypatch.setattr(shards, "LANCE_BLOCK_ROWS", 3)
    labels = [2, 10, 2, None, 0, 10, 2, 10, 0]
    tables = {"a": make_table(0, 7, labels[:7]), "b": make_table(7, 2, labels[7:])}
    for name, table in tables.items():
        if suffix == ".parquet":
            pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
        else:
            lancedb.connect(tmp_path).create_table(name, table)
    files = [str(tmp_path / f"{name}{suffix}") for name in tables]
    dataset = shards.ARCHIVE_OPENERS[suffix](files)
    assert isinstance(dataset, Rows)
    assert dataset.block_ends == [3, 6, 7, 9]
    assert dataset.class_names == ("0", "2", "10")
    assert [dataset.get_label(position) for position in range(9)] == [1, 2, 1, -1, 0, 2, 1, 2, 0]
    positions = list(range(9)) * 2
    random.Random(0).shuffle(positions)
    for position in positions:
        assert dataset.read_image(position) == f"image {position}".encode()
    assert dataset.get_path(6) == f"{files[0]}[6]"
    assert dataset.get_path(8) == f"{files[1]}[1]"
    for position in (9, -1):
        with pytest.raises(IndexError):
            dataset.read_image(position)


def test_a_row_without_bytes_is_an_error_of_that_row(tmp_path: Path) -> None:
    images = [{"bytes": b"here", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"picture": images}), tmp_path / "a.parquet")
    dataset = shards.ARCHIVE_OPENERS[".parquet"]([str(tmp_path / "a.parquet")])
    assert dataset.read_image(0) == b"here"
    assert dataset.class_names == ()
    with pytest.raises(sl.SightlineError, match="this row has no image bytes"):
        dataset.read_image(1)


def test_classes_may_be_texts(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1", b"2", b"3"], "class": ["wasp", None, "bee"]})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = shards.ARCHIVE_OPENERS[".parquet"]([str(tmp_path / "a.parquet")])
    assert dataset.class_names == ("bee", "wasp")
    assert [dataset.get_label(position) for position in range(3)] == [1, -1, 0]


def test_parquet_files_do_not_stay_open(tmp_path: Path) -> None:
    """A process may have fewer file handles than there are shards."""
    paths = [tmp_path / f"{number}.parquet" for number in range(20)]
    for path in paths:
        pq.write_table(make_table(0, 1, [0]), path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    dataset = shards.ARCHIVE_OPENERS[".parquet"]([str(path) for path in paths])
    assert dataset.read_image(19) == b"image 0"
    assert len(list(Path("/proc/self/fd").iterdir())) < open_before + 10
