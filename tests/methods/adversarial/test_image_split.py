"""The images that a change is learned from and tested on are two halves of a folder."""

from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.image_split import split_attack_images


def write_gray_pictures(folder: Path, count: int) -> None:
    """Pictures that differ by their gray."""
    for index in range(count):
        sl.write(torch.full((3, 20, 30), (20 + 10 * index) / 255), folder / f"{index}.png")


def read_grays(images: Tensor) -> set[int]:
    return {round(float(image.mean()) * 255) for image in images}


@pytest.mark.parametrize(("count", "train_count"), [(6, 3), (7, 4)])
def test_the_halves_are_disjoint_and_cover_the_folder(
    tiny: sl.Model, tmp_path: Path, count: int, train_count: int
) -> None:
    write_gray_pictures(tmp_path, count)
    image = torch.zeros(1, 3, 12, 18)
    train_images, test_images = split_attack_images(tiny, image, str(tmp_path), 64, seed=0)
    assert test_images is not None
    assert train_images.shape == (train_count, 3, 12, 18)
    assert test_images.shape == (count - train_count, 3, 12, 18)
    grays = {20 + 10 * index for index in range(count)}
    assert read_grays(train_images) | read_grays(test_images) == grays
    assert not read_grays(train_images) & read_grays(test_images)
    other_images, _ = split_attack_images(tiny, image, str(tmp_path), 64, seed=1)
    assert read_grays(other_images) != read_grays(train_images), "the seed decides"


def test_no_more_pictures_than_asked_for(tiny: sl.Model, tmp_path: Path) -> None:
    write_gray_pictures(tmp_path, 6)
    image = torch.zeros(1, 3, 12, 18)
    train_images, test_images = split_attack_images(tiny, image, str(tmp_path), 3, seed=0)
    assert test_images is not None
    assert (len(train_images), len(test_images)) == (2, 1)
    train_images, test_images = split_attack_images(tiny, image, str(tmp_path), 1, seed=0)
    assert len(train_images) == 1
    assert test_images is None


def test_without_a_folder_the_images_are_their_own(tiny: sl.Model) -> None:
    image = smooth(count=2)[..., :20]
    train_images, test_images = split_attack_images(tiny, image, None, 64, seed=0)
    assert train_images is image
    assert test_images is None
