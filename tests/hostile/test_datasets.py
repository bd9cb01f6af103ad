"""Where images lie: archives of one name, folders whose names are patterns or that are very deep.

And lists and tables as other programs write them.
"""

import codecs
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import smooth
from PIL import Image

import sightline as sl
from sightline.data.datasets.open import open_dataset
from sightline.images.io.library import find_pictures_below


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a picture that can be read."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    sl.write(smooth(side=16)[:, :, :9], path)
    return path.read_bytes()


# ── archives ──


def write_tar(path: Path, names: Sequence[str]) -> Path:
    """An archive of pictures of different colors, whose levels of red are the names' numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            content = io.BytesIO()
            Image.new("RGB", (40, 40), (int(Path(name).stem), 0, 0)).save(content, "PNG")
            member = tarfile.TarInfo(name)
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    return path


def read_reds(scan: sl.Scan) -> list[int]:
    """The red level of every image of a scan, read again from where it came from."""
    return [round(float(scan.image(id)[0, 0].mean() * 255)) for id in range(scan.images)]


@pytest.mark.parametrize(
    ("pattern", "reds"),
    [
        ("some/b*.tar", [20, 30, 40, 50]),  # not all archives of the folder
        ("nested", [1, 2, 3, 4]),  # archives in folders of a folder
        ("**/[bt]*.tar", [1, 2, 3, 4, 20, 30, 40, 50]),
        ("odd[1]", [60, 61, 62]),
        ("odd[1]/*.tar", [60, 61, 62]),
        ("odd[1]/6.tar", [60, 61]),
    ],
)
def test_images_of_archives_are_read_again_from_their_own(
    pattern: str, reds: list[int], tmp_path: Path, tiny: sl.Model
) -> None:
    write_tar(tmp_path / "some/a.tar", ["0.png", "10.png"])
    write_tar(tmp_path / "some/b1.tar", ["20.png", "30.png"])
    write_tar(tmp_path / "some/b2.tar", ["40.png", "sub/50.png"])
    write_tar(tmp_path / "nested/test/t.tar", ["1.png", "2.png"])
    write_tar(tmp_path / "nested/train/t.tar", ["3.png", "4.png"])
    write_tar(tmp_path / "odd[1]/6.tar", ["60.png", "61.png"])
    write_tar(tmp_path / "odd[1]/7.tar", ["62.png"])
    scan = sl.scan(tiny, str(tmp_path / pattern), store=tmp_path / "a.scan")
    assert read_reds(scan) == reds


def test_members_of_one_name_are_told_apart(tmp_path: Path, tiny: sl.Model) -> None:
    twins = write_tar(tmp_path / "a.tar", ["5.png", "./5.png", "/5.png", "a.tar/5.png"])
    other = write_tar(tmp_path / "b.tar", ["9.png"]).read_bytes()
    with tarfile.open(twins, "a") as archive:
        member = tarfile.TarInfo("5.png")
        content = other[512 : 512 + int(other[124:135], 8)]
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    scan = sl.scan(tiny, str(twins), store=tmp_path / "a.scan")
    assert read_reds(scan) == [5, 5, 5, 5, 9]


def test_a_store_opens_no_other_archive_than_that_of_the_image(
    tmp_path: Path, tiny: sl.Model
) -> None:
    """What it calls its source may be the whole disk."""
    write_tar(tmp_path / "data/a.tar", ["5.png", "6.png"])
    scan = sl.scan(tiny, str(tmp_path / "data"), store=tmp_path / "a.scan")
    description = json.loads((tmp_path / "a.scan/scan.json").read_text(encoding="utf-8"))
    description["collection"]["source"] = "/**/*.tar"
    (tmp_path / "a.scan/scan.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    os.mkfifo(tmp_path / "data/pipe.tar")
    assert read_reds(sl.Scan.open(tmp_path / "a.scan")) == read_reds(scan) == [5, 6]


# ── folders ──


@pytest.mark.parametrize("name", ["photos[1]", "photos[a-z]", "what?", "star*", "[", "[!x]"])
def test_patterns_below_folders_whose_names_are_patterns(
    name: str, tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture)
    (folder / "sub/b.png").write_bytes(picture)
    assert len(open_dataset(f"{folder}/*.png")) == 1
    assert len(open_dataset(f"{folder}/**/*.png")) == 2
    monkeypatch.chdir(folder)
    assert len(open_dataset("*.png")) == 1
    assert len(open_dataset("s?b/*.png")) == 1


@pytest.mark.parametrize("source", ["", "\0", "photos/\0", "a\0*.png"])
def test_what_is_no_path_at_all(source: str, tmp_path: Path, picture: bytes) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        open_dataset(source)
    assert "\n" not in str(caught.value)
    assert "there is no folder, list or archive" in str(caught.value)


def test_folders_of_any_depth(tmp_path: Path, picture: bytes) -> None:
    """Deeper than Python's functions may call each other, as deep as a path can be."""
    (tmp_path / "a.png").write_bytes(picture)
    start = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        Path("b.png").write_bytes(picture)
    finally:
        os.chdir(start)
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 2
    assert [dataset.read_image(position) for position in (0, 1)] == [picture, picture]
    assert len(find_pictures_below(tmp_path)) == 2
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest's own removal is recursive


# ── lists and tables ──


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_lists_as_programs_of_windows_write_them(
    encoding: str, tmp_path: Path, picture: bytes
) -> None:
    (tmp_path / "é.png").write_bytes(picture)
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    content = mark + "é.png\tcat\r\né.png\tdog\r\n".encode(encoding)
    (tmp_path / "list.txt").write_bytes(content)
    dataset = open_dataset(str(tmp_path / "list.txt"))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.read_image(1) == picture


def test_damaged_lists_of_windows_are_refused(tmp_path: Path) -> None:
    for ending in (b"\0", b"\n\0\0\xd8", b"\n\0\0\0"):
        content = "a.png".encode("utf-16") + ending
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(sl.SightlineError, match="is no folder, text list"):
            open_dataset(tmp_path / "list.txt")


def test_lists_of_too_many_lines_are_refused(tmp_path: Path) -> None:
    """Each line takes a hundred bytes of memory, however short it is."""
    for content in (b"\n" * 199_000_000, b"ab\n" * 40_000_000):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(sl.SightlineError, match="lines; at most 10,000,000 are read"):
            open_dataset(tmp_path / "list.txt")


@pytest.mark.parametrize("kind", ["dictionary", "large dictionary", "view", "large"])
def test_columns_of_bytes_of_any_kind(kind: str, tmp_path: Path, picture: bytes) -> None:
    images = pa.array([picture, picture, b"no picture"])
    column = {
        "dictionary": images.dictionary_encode,
        "large dictionary": lambda: images.cast(pa.large_binary()).dictionary_encode(),
        "view": lambda: images.cast(pa.binary_view()),
        "large": lambda: images.cast(pa.large_binary()),
    }[kind]()
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    dataset = open_dataset(tmp_path / "a.parquet")
    assert [dataset.read_image(row) for row in range(3)] == images.to_pylist()
