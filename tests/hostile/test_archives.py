"""Archives, tables and lists that somebody made to break what reads them.

Each gives one line, or a row of errors beside the images that can be read; nothing is read that
is larger than a picture.
"""

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import smooth

import sightline as sl
from sightline.data.datasets import tables
from sightline.data.datasets.open import open_dataset

MAX_TRACED_BYTES = 30_000_000  # while a hostile file of a few kilobytes is opened and read


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a picture that can be read."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    sl.write(smooth(side=16)[:, :, :9], path)
    return path.read_bytes()


@contextmanager
def limit_memory() -> Iterator[None]:
    """Fails if the block needs much memory of Python."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_TRACED_BYTES


def read_all(path: Path) -> tuple[int, list[str]]:
    """How many images of a dataset can be read, and why the others can't."""
    dataset = open_dataset(path)
    readable_count = 0
    reasons: list[str] = []
    for position in range(len(dataset)):
        assert dataset.get_path(position).encode()
        try:
            assert dataset.read_image(position)
            readable_count += 1
        except (sl.SightlineError, OSError) as error:
            reasons.append(str(error))
    return readable_count, reasons


def refuse_file(path: Path, message: str) -> None:
    with limit_memory(), pytest.raises(sl.SightlineError, match=message) as caught:
        read_all(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


# ── tar ──


def make_member(name: str, content: bytes, **changes: object) -> bytes:
    """A member's header with some fields changed, and its content in blocks."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in changes.items():
        setattr(info, field, value)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.GNU_FORMAT) + content + padding


END = bytes(2 * tarfile.BLOCKSIZE)


def test_odd_names_of_members(tmp_path: Path, picture: bytes) -> None:
    names = [
        "",
        "/",
        "//",
        ".",
        "..",
        "../../etc/a.png",
        "/abs/b.png",
        "a\nb/c.png",
        "\udcff/d.png",
    ]
    names += ["x" * 3000 + ".png", ".cls", "a/.png", "con\0trol.png"]
    content = b"".join(make_member(name, picture) for name in names)
    (tmp_path / "a.tar").write_bytes(content + END)
    readable_count, reasons = read_all(tmp_path / "a.tar")
    assert readable_count >= 6
    assert reasons == []


@pytest.mark.parametrize(
    "size", [10**9, 2**40, 8 * 2**40, 2**63 - 1, 2**70], ids=["GB", "TB", "8 TB", "max", "huge"]
)
def test_members_that_claim_to_be_large(size: int, tmp_path: Path, picture: bytes) -> None:
    good = make_member("a.png", picture)
    (tmp_path / "a.tar").write_bytes(good + make_member("b.png", picture, size=size) + END)
    with limit_memory():
        readable_count, reasons = read_all(tmp_path / "a.tar")
    assert readable_count == 1
    assert reasons
    (tmp_path / "b.tar").write_bytes(make_member("b.cls", b"cat", size=size) + good + END)
    with limit_memory():
        readable_count, reasons = read_all(tmp_path / "b.tar")
    assert readable_count == 0
    assert reasons


@pytest.mark.parametrize("size", [-1, -512, -10_000])
def test_members_of_negative_size_lead_nowhere(size: int, tmp_path: Path, picture: bytes) -> None:
    good = make_member("a.png", picture)
    (tmp_path / "a.tar").write_bytes(good + make_member("b.png", picture, size=size) + good + END)
    readable_count, reasons = read_all(tmp_path / "a.tar")
    assert readable_count == 1
    assert len(reasons) == 1
    (tmp_path / "b.tar").write_bytes(make_member("b.png", picture, size=size) + END)
    refuse_file(tmp_path / "b.tar", "uncompressed tar archive")


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [2**31, 2**40, -512])
def test_long_headers(type: bytes, size: int, tmp_path: Path, picture: bytes) -> None:
    header = make_member("header", b"", type=type, size=size)
    (tmp_path / "a.tar").write_bytes(header + make_member("a.png", picture) + END)
    refuse_file(tmp_path / "a.tar", "can't be read as an uncompressed tar archive")


@pytest.mark.parametrize(
    "records",
    [
        b"22 size=1099511627776\n",
        b"12 size=-512\n",
        b"11 size=abc\n",
        b"99999999999 a=b\n",
        b"0 a=b\n",
        b"\xff",
    ],
    ids=["TB", "negative", "text", "length", "zero", "byte"],
)
def test_odd_extended_attributes(records: bytes, tmp_path: Path, picture: bytes) -> None:
    header = make_member("header", records, type=tarfile.XHDTYPE)
    good = make_member("a.png", picture)
    (tmp_path / "a.tar").write_bytes(good + header + good + END)
    with limit_memory():
        readable_count, reasons = read_all(tmp_path / "a.tar")
    assert readable_count >= 1
    assert readable_count + len(reasons) >= 2


def test_sparse_members_are_errors(tmp_path: Path, picture: bytes) -> None:
    records = b"".join(
        b"%d %s\n" % (len(record) + 4, record)
        for record in (
            b"GNU.sparse.major=1",
            b"GNU.sparse.minor=0",
            b"GNU.sparse.realsize=8796093022208",
        )
    )
    header = make_member("header", records, type=tarfile.XHDTYPE)
    sparse = make_member("b.png", b"1\n0\n512\n".ljust(512, b"\0") + picture)
    old = bytearray(make_member("c.png", picture, type=tarfile.GNUTYPE_SPARSE))
    good = make_member("a.png", picture)
    for content in (header + sparse, bytes(old)):
        (tmp_path / "a.tar").write_bytes(good + content + END)
        with limit_memory():
            readable_count, reasons = read_all(tmp_path / "a.tar")
        assert readable_count == 1
        assert len(reasons) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\0", END, bytes(100), b"\x1f\x8b", b"a" * 512, b"\xff" * 5000]
)
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    refuse_file(tmp_path / "a.tar", "there are no images|uncompressed tar archive")


def test_a_cut_or_damaged_archive_gives_what_comes_before(tmp_path: Path, picture: bytes) -> None:
    members = [make_member(f"{number}.png", picture) for number in range(3)]
    content = b"".join(members) + END
    for end in range(len(members[0]), len(content), 333):
        (tmp_path / "a.tar").write_bytes(content[:end])
        readable_count, _ = read_all(tmp_path / "a.tar")
        assert readable_count >= 1
    damaged = bytearray(content)
    damaged[len(members[0]) + 150] ^= 255  # the checksum of the second member
    (tmp_path / "a.tar").write_bytes(damaged)
    assert read_all(tmp_path / "a.tar") == (
        1,
        ["what follows the first 1 members can't be read (a damaged header)"],
    )


def test_classes_of_members(tmp_path: Path, picture: bytes) -> None:
    """A text that is too long for a class, or not UTF-8."""
    content = make_member("ant/1.png", picture) + make_member("ant/1.cls", b"x" * 100_000)
    content += make_member("bee/2.png", picture) + make_member("bee/2.cls", b"caf\xe9")
    content += make_member("bee/3.png", picture) + make_member("bee/3.cls", b"\x1b[31m\n")
    (tmp_path / "a.tar").write_bytes(content + END)
    dataset = open_dataset(tmp_path / "a.tar")
    assert dataset.class_names == ("\x1b[31m", "ant", "caf\\xe9")
    assert [dataset.get_label(position) for position in range(3)] == [1, 2, 0]


# ── Parquet and Lance ──


def write_parquet(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, **options)
    return path


def test_two_columns_of_images(tmp_path: Path, picture: bytes) -> None:
    column = pa.array([picture])
    table = pa.Table.from_arrays([column, column], names=["image", "image"])
    refuse_file(write_parquet(tmp_path / "a.parquet", table), "has 2 columns named 'image'")
    table = pa.Table.from_arrays([column, *[pa.array([1])] * 2], names=["image", "label", "label"])
    write_parquet(tmp_path / "b.parquet", table)
    assert read_all(tmp_path / "b.parquet") == (1, [])


@pytest.mark.parametrize("is_struct", [False, True], ids=["flat", "struct"])
def test_values_that_unpack_to_gigabytes(is_struct: bool, tmp_path: Path, picture: bytes) -> None:
    """2.9 GB in a file of some kilobytes: the same megabyte of zeros for each row."""
    dictionary = pa.array([bytes(1_000_000), picture])
    indices = pa.array([0] * 2900 + [1], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, dictionary)
    if is_struct:
        column = pa.StructArray.from_arrays([column], names=["bytes"])
    path = write_parquet(tmp_path / "a.parquet", pa.table({"image": column}), store_schema=False)
    assert path.stat().st_size < 500_000
    before = pa.total_allocated_bytes()
    dataset = open_dataset(path)
    assert dataset.read_image(2900) == picture
    assert len(dataset) == 2901
    assert pa.total_allocated_bytes() - before < 50_000_000


def test_a_row_group_that_unpacks_to_gigabytes_is_errors(
    tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lower here, so that the file is made in no time."""
    monkeypatch.setattr(tables, "MAX_BLOCK_BYTES", 1_000_000)
    images = [bytes(2_000_000 + number) for number in range(3)] + [picture] * 3
    table = pa.table({"image": images})
    write_parquet(tmp_path / "a.parquet", table, row_group_size=3, use_dictionary=False)
    readable_count, reasons = read_all(tmp_path / "a.parquet")
    assert readable_count == 3
    assert len(reasons) == 3
    assert all("its row group unpacks from" in reason for reason in reasons)
    lancedb.connect(tmp_path).create_table("b", table)
    _, reasons = read_all(tmp_path / "b.lance")
    assert any("its rows unpack to more than" in reason for reason in reasons)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["text"]},
        {"image": [1.5]},
        {"image": [[1, 2]]},
        {"image": [{"path": "a.png"}]},
        {"image": [None]},
        {"a\n\x1b[31m": [1]},
        {},
    ],
    ids=["text", "number", "list", "struct", "null", "name", "none"],
)
def test_columns_without_bytes(columns: dict[str, list[object]], tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table(columns))
    refuse_file(path, "has no column of image bytes")


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([1.5, float("nan")]),
        pa.array([b"\xff", b"a"]),
        pa.array(["a\nb", "\x1b[31m"]),
        pa.array(["x" * 100_000, "y"]),
        pa.array([2**63 - 1, -(2**63)]),
        pa.array([None, None], pa.int8()),
        pa.array([True, False]),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
    ids=["list", "struct", "float", "bytes", "lines", "long", "huge", "null", "bool", "dictionary"],
)
def test_labels_of_any_type(labels: pa.Array, tmp_path: Path, picture: bytes) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", pa.table({"image": [picture] * 2, "label": labels})
    )
    assert read_all(path) == (2, [])
    assert all(len(name) <= 1000 for name in open_dataset(path).class_names)


def test_images_in_structs_of_other_types(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"image": [{"bytes": 1}, {"bytes": 2}]}))
    assert read_all(path) == (0, ["this row has no image bytes"] * 2)


def test_empty_and_damaged_tables(tmp_path: Path, picture: bytes) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"image": pa.array([], pa.binary())}))
    refuse_file(path, "there are no images")
    table = pa.table({"image": [picture + bytes([number]) for number in range(30)]})
    write_parquet(path, table, row_group_size=10)
    content = path.read_bytes()
    for end in range(0, len(content), 997):
        path.write_bytes(content[:end])
        refuse_file(path, "can't be read as Parquet")
    for offset in range(0, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[offset] ^= 255
        path.write_bytes(damaged)
        try:
            read_all(path)
        except sl.SightlineError as error:
            assert "\n" not in str(error)  # noqa: PT017 - a table that can still be read is fine


@pytest.mark.parametrize("change", ["cut", "removed", "foreign"])
def test_damaged_lance_tables(change: str, tmp_path: Path, picture: bytes) -> None:
    lancedb.connect(tmp_path).create_table("a", pa.table({"image": [picture] * 3}))
    [file] = (tmp_path / "a.lance" / "data").iterdir()
    if change == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif change == "removed":
        file.unlink()
    else:
        file.write_bytes(b"This is no table.\n" * 100)
    readable_count, reasons = read_all(tmp_path / "a.lance")
    assert readable_count == 0
    assert all("can't be read as a Lance table" in reason for reason in reasons)


def test_damaged_versions_of_lance_tables(tmp_path: Path, picture: bytes) -> None:
    lancedb.connect(tmp_path).create_table("a", pa.table({"image": [picture] * 3}))
    for file in (tmp_path / "a.lance" / "_versions").iterdir():
        file.write_bytes(b"no manifest")
    refuse_file(tmp_path / "a.lance", "can't be read as a Lance table")


# ── lists ──


def write_list(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_lists_of_other_systems(tmp_path: Path, picture: bytes) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "b c.png").write_bytes(picture)
    content = b"\xef\xbb\xbfa.png\tant\r\n\r\nb c.png\tbig bee\r\n"
    dataset = open_dataset(write_list(tmp_path / "list.txt", content))
    assert dataset.class_names == ("ant", "big bee")
    assert read_all(tmp_path / "list.txt") == (2, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there are no images"),
        (b"\n\r\n  \n", "there are no images"),
        (b"a.png\0b.png\n", "is no folder, text list"),
        (b"a.png\n" * 100 + b"\0", "is no folder, text list"),
        ("a.png\n".encode("utf-16-le"), "is no folder, text list"),
        (b"a" * 20_000, "line 1 of .* has 20,000 bytes"),
        (b"a.png\n" + b"b" * 5_000_000, "line 2 of .* has 5,000,000 bytes"),
    ],
    ids=["empty", "blank", "null", "late null", "no mark", "long", "very long"],
)
def test_what_is_no_list(content: bytes, message: str, tmp_path: Path) -> None:
    refuse_file(write_list(tmp_path / "list.txt", content), message)


def test_odd_lines_of_lists(tmp_path: Path, picture: bytes) -> None:
    lines = [
        b"\xff.png",
        b"\x1b[31m.png\tred\x1b",
        b"a\t\t",
        b"\t",
        b"\xe2\x80\xa8.png",
        b"x" * 9000,
    ]
    path = write_list(tmp_path / "list.txt", b"\n".join(lines))
    readable_count, reasons = read_all(path)
    assert readable_count == 0
    assert len(reasons) == 5


ARCHIVE_MAKERS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("suffix", [".tar", ".parquet", ".lance", ".txt"])
@pytest.mark.parametrize("kind", ARCHIVE_MAKERS)
def test_names_of_archives_that_are_none(suffix: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    ARCHIVE_MAKERS[kind](path)
    refuse_file(path, "a")


def test_a_tar_that_holds_a_tar_is_no_picture(tmp_path: Path, picture: bytes) -> None:
    inner = io.BytesIO(make_member("a.png", picture) + END)
    (tmp_path / "a.tar").write_bytes(make_member("inner.tar", inner.getvalue()) + END)
    readable_count, [reason] = read_all(tmp_path / "a.tar")
    assert readable_count == 0
    assert "not an image in a known format" in reason
