"""Names that are not UTF-8 become text for a store, from which their file is found again."""

import os
import sys
from pathlib import Path

import pytest

from sightline.data.datasets.names import encode_name, find_stored_file, make_storable_name

BYTE_NAME = os.fsdecode(b"caf\xe9.png")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo.png", "photo.png"),
        ("café 北.png", "café 北.png"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\udc80\udcff", r"\x80\xff"),
        ("half \ud83d.png", r"half \ud83d.png"),
        ("", ""),
    ],
    ids=["plain", "unicode", "byte", "first and last byte", "lone surrogate", "empty"],
)
def test_stored_names_are_utf8(name: str, expected: str) -> None:
    stored = make_storable_name(name)
    assert stored == expected
    stored.encode()
    assert make_storable_name(stored) == stored


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_file_is_found_by_its_stored_name(tmp_path: Path) -> None:
    path = os.path.join(tmp_path, BYTE_NAME)
    Path(path).touch()
    stored = make_storable_name(path)
    assert stored != path
    assert find_stored_file(stored) == path
    # A file that really has the escapes in its name comes first.
    Path(stored).touch()
    assert find_stored_file(stored) == stored
    gone = os.path.join(tmp_path, r"gone\xe9.png")
    assert find_stored_file(gone) == gone


def test_bytes_of_a_name() -> None:
    assert encode_name("a北") == "a北".encode()
    assert encode_name("caf\udce9") == b"caf\xe9"
    assert encode_name("\ud83d") == b"\xed\xa0\xbd"
    assert encode_name("caf\udce9") != encode_name(r"caf\xe9")
