"""Tables: rows across blocks and files, their classes, and rows without an image."""

import pickle
import random
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sightline as sl
from sightline.data.datasets import tables as table_files
from sightline.data.datasets.tables import Rows


def open_rows(*files: Path) -> Rows:
    suffix = files[0].suffix
    return Rows([str(file) for file in files], suffix, table_files.TABLE_KINDS[suffix])


def make_table(first: int, count: int, labels: list[int | None]) -> pa.Table:
    images = [f"image {number}".encode() for number in range(first, first + count)]
    return pa.table({"other": [0] * count, "image": images, "label": labels})


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_rows_in_any_order_across_blocks_and_files(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine rows in two files, in blocks of 3, 3 and 1, and of 2; classes sort as numbers."""
    monkeypatch.setattr(table_files, "LANCE_BLOCK_ROWS", 3)
    labels = [2, 10, 2, None, 0, 10, 2, 10, 0]
    tables = {"a": make_table(0, 7, labels[:7]), "b": make_table(7, 2, labels[7:])}
    for name, table in tables.items():
        if suffix == ".parquet":
            pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
        else:
            lancedb.connect(tmp_path).create_table(name, table)
    files = [tmp_path / f"{name}{suffix}" for name in tables]
    dataset = open_rows(*files)
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
    dataset = open_rows(tmp_path / "a.parquet")
    assert dataset.read_image(0) == b"here"
    assert dataset.class_names == ()
    with pytest.raises(sl.SightlineError, match="this row has no image bytes"):
        dataset.read_image(1)


def test_classes_may_be_texts(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1", b"2", b"3"], "class": ["wasp", None, "bee"]})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = open_rows(tmp_path / "a.parquet")
    assert dataset.class_names == ("bee", "wasp")
    assert [dataset.get_label(position) for position in range(3)] == [1, -1, 0]


def test_parquet_files_do_not_stay_open(tmp_path: Path) -> None:
    """A process may have fewer file handles than there are shards."""
    paths = [tmp_path / f"{number}.parquet" for number in range(20)]
    for path in paths:
        pq.write_table(make_table(0, 1, [0]), path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    dataset = open_rows(*paths)
    assert dataset.read_image(19) == b"image 0"
    assert len(list(Path("/proc/self/fd").iterdir())) < open_before + 10


def test_tables_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    """Without the rows that are in memory."""
    pq.write_table(make_table(0, 5, [0, 1, 1, 0, 1]), tmp_path / "a.parquet")
    lancedb.connect(tmp_path).create_table("b", make_table(0, 5, [0, 1, 1, 0, 1]))
    for name in ("a.parquet", "b.lance"):
        dataset = open_rows(tmp_path / name)
        size_before = len(pickle.dumps(dataset))
        assert dataset.read_image(3) == b"image 3"
        packed = pickle.dumps(dataset)
        assert len(packed) == size_before
        assert pickle.loads(packed)[4] == b"image 4"


def test_values_that_repeat_are_in_memory_once(tmp_path: Path) -> None:
    """Parquet keeps each different value once; so does the block in memory."""
    images = [bytes(100_000), b"other"] * 200
    for name, column in {"flat": images, "struct": [{"bytes": image} for image in images]}.items():
        pq.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet")
        dataset = open_rows(tmp_path / f"{name}.parquet")
        assert dataset.read_image(398) == images[398]
        assert dataset.read_image(399) == b"other"
        assert dataset._cached_columns[0].nbytes < 1_000_000
