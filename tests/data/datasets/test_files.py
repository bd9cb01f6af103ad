"""Image files as a dataset: classes, digests, names that are not UTF-8, and what is no file."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.data.datasets.files import Files, hash_source, number_classes


def test_classes_are_numbered_in_the_order_of_their_names() -> None:
    assert number_classes(["cat", None, "ant", "cat"]) == (("ant", "cat"), [1, -1, 0, 1])
    assert number_classes(["cat", "cat", None]) == ((), [-1, -1, -1])
    assert number_classes([]) == ((), [])


def test_the_digest_changes_with_the_order_the_size_and_the_time(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        Path(path).write_bytes(b"12")
        os.utime(path, ns=(1, 1))

    def digest(ordered: list[str]) -> str:
        return Files("source", ordered, [None] * len(ordered)).digest

    digests = [digest(paths), digest(paths[::-1]), digest(paths[:1])]
    os.utime(paths[1], ns=(1, 2))
    digests.append(digest(paths))
    Path(paths[1]).write_bytes(b"123")
    os.utime(paths[1], ns=(1, 2))
    digests.append(digest(paths))
    Path(paths[1]).unlink()
    digests.append(digest(paths))
    assert len(set(digests)) == len(digests)
    assert digest(paths) == digests[-1]


def test_a_name_that_is_not_utf8_is_readable_and_printable(tmp_path: Path) -> None:
    raw_path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(raw_path, "wb") as file:
        file.write(b"GIF89a: no more than its first bytes")
    dataset = Files("source", [os.fsdecode(raw_path)], [None])
    assert dataset.get_path(0) == f"{tmp_path}/caf\\xe9.png"
    assert dataset.read_image(0) == b"GIF89a: no more than its first bytes"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(sl.SightlineError, match="not an image file"):
            Files("source", [str(path)], [None]).read_image(0)


def test_a_source_is_known_by_its_bytes_or_pixels() -> None:
    image = Image.new("RGB", (3, 2), (9, 8, 7))
    changed = image.copy()
    changed.putpixel((2, 1), (9, 8, 6))
    assert hash_source(image) == hash_source(image.copy())
    assert len({hash_source(image), hash_source(changed), hash_source(b""), hash_source(b"a")}) == 4
    assert hash_source(torch.zeros(3, 2, 2)) == ""
