"""Training photographs: decoded once, cropped at random, and drawn by seed and step."""

import json
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.generators.training import dataset
from sightline.generators.training.dataset import PhotoDataset, decode_photo_folder
from sightline.images.io import pictures as images
from sightline.images.transforms import crop_center, resize_short_side


@pytest.fixture(scope="module")
def photos() -> PhotoDataset:
    """Twelve images, each pixel of which occurs once."""
    random = np.random.default_rng(0)
    return PhotoDataset(random.integers(0, 256, (12, 40, 40, 3), np.uint8), "noise")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of different sizes, one broken file, and one that is no picture."""
    folder = tmp_path / "photos"
    for seed in range(3):
        picture = smooth(side=50, seed=seed)[..., : 40 + 5 * seed]
        images.write(picture, folder / "deep" / f"{seed}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_photos_are_decoded_to_the_square_in_the_middle(folder: Path, tmp_path: Path) -> None:
    progress: list[float] = []
    with pytest.warns(UserWarning, match=r"1 of 4 pictures are left out; the first: broken\.jpg"):
        photos = decode_photo_folder(folder, 32, tmp_path / "cache", progress.append)
    assert (len(photos), photos.side) == (3, 32)
    assert progress[-1] == 1
    for number in range(3):
        picture = images.read(folder / "deep" / f"{number}.png")
        resized = resize_short_side(picture, 32)
        expected = crop_center(resized, 32, 32)[0].permute(1, 2, 0).numpy()
        assert np.abs(photos.pixels[number] / 255.0 - expected).max() < 0.003


def test_photos_are_decoded_once_for_the_same_files(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (folder / "broken.jpg").unlink()
    first = decode_photo_folder(folder, 32, cache)
    written = (cache / "photos.u8").stat().st_mtime_ns
    second = decode_photo_folder(folder, 32, cache)
    assert (cache / "photos.u8").stat().st_mtime_ns == written
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.pixels, first.pixels)

    assert decode_photo_folder(folder, 24, cache).side == 24
    images.write(smooth(side=50, seed=9), folder / "new.png")
    larger = decode_photo_folder(folder, 32, cache)
    assert len(larger) == 4
    assert larger.fingerprint != first.fingerprint
    (cache / "photos.u8").unlink()
    assert len(decode_photo_folder(folder, 32, cache)) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("photos.json", None),
        ("photos.json", b""),
        ("photos.json", b"[]"),
        ("photos.json", b'{"key": "'),
        ("photos.json", b'{"key": 1, "count": 3}'),
        ("photos.json", b'{"count": 3}'),
        ("photos.u8", None),
        ("photos.u8", b""),
        ("photos.u8", b"0" * 24 * 24 * 3),
    ],
)
def test_a_damaged_cache_is_written_again(
    name: str, content: bytes | None, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (folder / "broken.jpg").unlink()
    expected = decode_photo_folder(folder, 24, cache).pixels.copy()
    (cache / name).unlink()
    if content is not None:
        (cache / name).write_bytes(content)
    assert np.array_equal(decode_photo_folder(folder, 24, cache).pixels, expected)


def test_a_count_that_the_file_does_not_hold_is_not_believed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (folder / "broken.jpg").unlink()
    decode_photo_folder(folder, 24, cache)
    facts = json.loads((cache / "photos.json").read_text(encoding="utf-8"))
    for count in (-3, 0, 2, 4, 10**30, 3.0, True):
        (cache / "photos.json").write_text(json.dumps({**facts, "count": count}), "utf-8")
        assert len(decode_photo_folder(folder, 24, cache)) == 3


def test_killed_between_pixels_and_facts_other_pictures_are_not_taken_for_these(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (folder / "broken.jpg").unlink()
    expected = decode_photo_folder(folder, 24, cache).pixels.copy()
    for seed in range(3):
        images.write(smooth(side=50, seed=20 + seed), tmp_path / "others" / f"{seed}.png")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_text", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decode_photo_folder(tmp_path / "others", 24, cache)
    assert np.array_equal(decode_photo_folder(folder, 24, cache).pixels, expected)


def test_batches_depend_on_seed_and_step_alone(photos: PhotoDataset) -> None:
    batch = photos.draw_batch(0, 3, 4, 24)
    assert batch.shape == (4, 3, 24, 24)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, photos.draw_batch(0, 3, 4, 24))
    assert not torch.equal(batch, photos.draw_batch(0, 4, 4, 24))
    assert not torch.equal(batch, photos.draw_batch(1, 3, 4, 24))


def test_crops_are_windows_half_of_them_mirrored(photos: PhotoDataset) -> None:
    """Row, column and mirroring are drawn in this order, image by image."""
    indices = [3, 7] * 32
    batch = photos.crop_batch(indices, 38, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    offsets: set[tuple[int, int]] = set()
    mirrored_count = 0
    for index, crop in zip(indices, batch, strict=True):
        y, x = rng.integers(0, 3, 2).tolist()
        window = photos.pixels[index, y : y + 38, x : x + 38]
        if rng.random() < 0.5:
            window = window[:, ::-1]
            mirrored_count += 1
        offsets.add((y, x))
        pixels = (crop.permute(1, 2, 0) * 255).round().byte().numpy()
        assert np.array_equal(pixels, window)
    assert len(offsets) == 9
    assert 16 < mirrored_count < 48


def test_samples_are_spread_over_the_dataset(photos: PhotoDataset) -> None:
    samples = photos.pick_evenly(3)
    expected = torch.from_numpy(photos.pixels[[0, 4, 8]]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(samples, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "no folder"),
        ("empty", "holds no picture"),
        ("bad", "none of 1 pictures can be read; the first: a.jpg"),
    ],
)
def test_folders_without_photographs_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    with warnings.catch_warnings(), pytest.raises(sl.SightlineError, match=message):
        decode_photo_folder(tmp_path / name, 32, tmp_path / "cache")
    assert not (tmp_path / "cache" / "photos.u8").exists()
