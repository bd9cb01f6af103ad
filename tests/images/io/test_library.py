"""Pictures in folders: which files count, which are drawn, and how they are cut."""

from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.errors import SightlineError
from sightline.images.decode.formats import IMAGE_FILE_SUFFIXES
from sightline.images.io.library import (
    PAINTING_NAMES,
    find_pictures_below,
    read_random_images,
    read_style_picture,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five gray pictures of 20×30, told apart by their brightness, and a file that is none."""
    for number in range(5):
        sl.write(torch.full((1, 3, 20, 30), number / 5), tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def read_numbers(images: list[Tensor]) -> list[int]:
    return [round(float(image.mean()) * 5) for image in images]


def test_images_are_drawn_without_repeats_while_there_are_enough(folder: Path) -> None:
    numbers = read_numbers(read_random_images(str(folder), 5, 0, 8, 10))
    assert sorted(numbers) == [0, 1, 2, 3, 4]
    assert read_numbers(read_random_images(str(folder), 3, 0, 8, 10)) == numbers[:3]
    assert read_numbers(read_random_images(str(folder), 12, 0, 8, 10)) == [
        *numbers,
        *numbers,
        *numbers[:2],
    ]
    draws = {
        tuple(read_numbers(read_random_images(str(folder), 5, seed, 8, 10))) for seed in range(9)
    }
    assert len(draws) > 5


@pytest.mark.parametrize(("height", "width"), [(20, 30), (10, 10), (10, 40), (50, 20)])
def test_images_cover_the_size_from_their_center(tmp_path: Path, height: int, width: int) -> None:
    """One channel grows from top to bottom, the others from left to right."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij")
    sl.write(torch.stack([y, x, x]), tmp_path / "ramp.png")
    (image,) = read_random_images(str(tmp_path), 1, 0, height, width)
    assert image.shape == (3, height, width)
    scale = max(height / 40, width / 60)
    for channel, (side, image_side) in ((0, (height, 40)), (1, (width, 60))):
        ramp = image[channel].mean(1 if channel == 0 else 0)
        assert abs(float(ramp.mean()) - 0.5) < 0.04
        covered = side / (image_side * scale)
        between_centers = covered * (1 - 1 / side)
        assert float(ramp[-1] - ramp[0]) == pytest.approx(between_centers, abs=0.03)


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(SightlineError, match="there is no such folder"):
        read_random_images(str(missing), 1, 0, 8, 10)
    with pytest.raises(SightlineError, match="no folder"):
        find_pictures_below(missing)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SightlineError, match=r"it holds no pictures \(\.jpg, \.jpeg, \.png"):
        read_random_images(str(tmp_path), 1, 0, 8, 10)
    with pytest.raises(SightlineError, match=r"holds no picture \(\.jpg, \.jpeg, \.png"):
        find_pictures_below(tmp_path)


def test_pictures_are_found_in_folders_below_by_their_suffix(tmp_path: Path) -> None:
    names = [f"{number}{suffix}" for number, suffix in enumerate(IMAGE_FILE_SUFFIXES)]
    names += ["b/x.JPG", "a/c/y.png", "z.txt", "a/notes", "jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    expected = sorted(tmp_path / name for name in names[: len(IMAGE_FILE_SUFFIXES) + 2])
    assert find_pictures_below(tmp_path) == expected


def test_a_painting_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = PAINTING_NAMES[0]
    painting = read_style_picture(name)
    assert painting.shape[:2] == (1, 3)
    image = smooth()[..., :20, :30]
    assert read_style_picture(image) is image
    sl.write(image, tmp_path / "mine.png")
    (tmp_path / "mine.png").rename(tmp_path / name)
    assert read_style_picture(name).shape == (1, 3, 20, 30), "a file of that name comes first"
