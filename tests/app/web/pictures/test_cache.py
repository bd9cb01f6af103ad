"""Pictures by the digest of what they depend on: made once, whole or absent."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.app.web.pictures import cache as cache_file
from sightline.app.web.pictures.cache import (
    PICTURE_NAME,
    PictureCache,
    compute_key_digest,
    encode_as_webp,
)
from sightline.errors import SightlineError


def test_a_digest_is_that_of_the_whole_key() -> None:
    key = {"picture": "patches", "layer": "conv1", "unit": 7}
    digest = compute_key_digest(key)
    assert digest == compute_key_digest(dict(reversed(list(key.items()))))
    assert PICTURE_NAME.fullmatch(f"{digest}.webp")
    for name, value in (("unit", 8), ("layer", "conv2"), ("picture", "patch"), ("side", 64)):
        assert compute_key_digest({**key, name: value}) != digest
    with pytest.raises(TypeError):
        compute_key_digest({"tensor": torch.zeros(1)})


def test_another_version_of_the_code_makes_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compute_key_digest({"unit": 7})
    monkeypatch.setattr(cache_file, "PICTURE_VERSION", cache_file.PICTURE_VERSION + 1)
    assert compute_key_digest({"unit": 7}) != before


def test_a_picture_survives_the_process(pictures: PictureCache) -> None:
    picture = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    name = pictures.add({"unit": 7}, lambda: picture, quality=100)
    content = pictures.read(name)
    assert content is not None
    later = PictureCache(pictures.folder)
    assert later.has(name)
    assert later.read(name) == content
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.shape == (9, 14, 3)
    np.testing.assert_array_equal(pixels, (picture[0].permute(1, 2, 0) * 255).round().numpy())


def test_what_nobody_asked_for_is_not_there(pictures: PictureCache) -> None:
    assert pictures.read("0" * 32 + ".webp") is None


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "x.webp", "0" * 32, "0" * 32 + ".png", "0" * 32 + ".webp\n", ""]
)
def test_other_names_never_become_a_path(pictures: PictureCache, name: str) -> None:
    with pytest.raises(SightlineError, match="no picture"):
        pictures.find_path(name)


def test_requests_are_forgotten_the_oldest_first(
    pictures: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file, "MAX_REQUESTS", 2)
    names = [pictures.add({"unit": unit}, lambda: torch.zeros(1, 3, 2, 2)) for unit in range(3)]
    assert pictures.read(names[0]) is None
    assert pictures.read(names[2]) is not None


def test_a_picture_that_is_not_kept(pictures: PictureCache) -> None:
    name = pictures.add({"unit": 1}, lambda: b"jpeg", suffix=".jpg", is_kept=False)
    assert pictures.read(name) == b"jpeg"
    assert not pictures.has(name)


def test_a_disk_that_is_full_leaves_nothing_half_written(
    pictures: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    name = pictures.add({"unit": 1}, lambda: torch.zeros(1, 3, 20, 20))
    with pytest.raises(SightlineError, match="No space left on device"):
        pictures.read(name)
    assert [path for path in pictures.folder.rglob("*") if path.is_file()] == []


def test_numbers_by_their_key(pictures: PictureCache) -> None:
    assert pictures.read_numbers({"n": 1}, None) is None
    assert pictures.read_numbers({"n": 1}, lambda: {"x": [1, 2.5]}) == {"x": [1, 2.5]}
    assert pictures.read_numbers({"n": 1}, lambda: pytest.fail("kept")) == {"x": [1, 2.5]}
    assert pictures.read_numbers({"n": 2}, None) is None


def test_a_better_quality_takes_more_bytes() -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sizes = [len(encode_as_webp(picture, quality)) for quality in (20, 60, 100)]
    assert sizes == sorted(sizes)


WRITER = """
import sys, torch
from pathlib import Path
from sightline.app.web.pictures.cache import PictureCache
pictures = PictureCache(Path(sys.argv[1]))
for unit in range(10**9):
    picture = torch.full((1, 3, 200, 200), unit % 7 / 7)
    pictures.keep({"unit": unit}, picture, 100)
    if unit == 0:
        print("one is kept", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal of POSIX systems")
def test_a_kill_leaves_whole_pictures_only(tmp_path: Path) -> None:
    for seconds in (0.05, 0.11):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    kept = [path for path in tmp_path.rglob("*") if PICTURE_NAME.fullmatch(path.name)]
    assert kept
    for path in kept:
        with Image.open(path) as picture:
            picture.load()
