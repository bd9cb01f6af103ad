"""The bytes of picture files: nothing is read of what is no picture, or too large."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from sightline.errors import SightlineError
from sightline.images.decode import source
from sightline.images.decode.source import (
    check_file_size,
    check_regular_file,
    read_packed_picture,
    read_picture_source,
)


@pytest.fixture
def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 3), (9, 8, 7)).save(file, "PNG")
    return file.getvalue()


def test_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    check_regular_file(tmp_path / "a.png")
    with pytest.raises(SightlineError, match=r"^a folder, not an image file$"):
        check_regular_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_regular_file(tmp_path / "b.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SightlineError, match=r"^a pipe, socket or device, not a recipe$"):
        check_regular_file(tmp_path / "pipe", "a recipe")
    with pytest.raises(SightlineError, match="a pipe, socket or device"):
        read_picture_source(str(tmp_path / "pipe"))


def test_sizes_up_to_the_limit() -> None:
    check_file_size(1_000_000_000)
    check_file_size(7, 7)
    with pytest.raises(SightlineError, match=r"^1,000 MB, over the limit of 1,000 MB for a pict"):
        check_file_size(1_000_000_001)
    with pytest.raises(SightlineError, match="over the limit of 7 MB"):
        check_file_size(7_000_001, 7_000_000)


def test_a_small_file_is_read_and_a_large_one_named(
    tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture)
    assert read_picture_source(str(path)) == picture
    monkeypatch.setattr(source, "MAX_WHOLE_FILE_BYTES", len(picture))
    assert read_picture_source(str(path)) == picture
    monkeypatch.setattr(source, "MAX_WHOLE_FILE_BYTES", len(picture) - 1)
    assert read_picture_source(str(path)) == path


@pytest.mark.parametrize("is_large", [False, True])
def test_what_does_not_begin_as_a_picture(
    is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture" * 9)
    if is_large:
        monkeypatch.setattr(source, "MAX_WHOLE_FILE_BYTES", 50)
    with pytest.raises(SightlineError):
        read_picture_source(str(path))


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path, picture: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture)
    with path.open("r+b") as file:
        file.truncate(1_000_000_001)  # takes no room on the disk
    with pytest.raises(SightlineError, match="over the limit"):
        read_picture_source(str(path))


def test_a_picture_within_an_archive(picture: bytes) -> None:
    archive = io.BytesIO(b"head" + picture + b"tail")
    archive.seek(4)
    assert read_packed_picture(archive, len(picture)) == picture
    assert archive.read() == b"tail"
    archive.seek(4)
    assert read_packed_picture(archive, len(picture) + 100) == picture + b"tail"  # to its end
    archive.seek(0)
    with pytest.raises(SightlineError):
        read_packed_picture(archive, 4)
    archive.seek(4)
    with pytest.raises(SightlineError, match="over the limit of 256 MB"):
        read_packed_picture(archive, 256_000_001)
