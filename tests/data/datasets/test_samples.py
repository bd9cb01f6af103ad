"""The default dataset: tiles that cover the sample photographs."""

import torch

from sightline.data.datasets.open import open_dataset
from sightline.data.datasets.samples import Tiles, list_tile_boxes
from sightline.images.io.pictures import sample


def test_tiles_are_a_third_of_the_short_side_half_a_tile_apart() -> None:
    boxes = list_tile_boxes(30, 44)
    tops = [0, 5, 10, 15, 20]
    lefts = [0, 5, 10, 15, 20, 25, 30]
    assert boxes == [(top, left, 10) for top in tops for left in lefts]


def test_the_default_dataset_is_tiles() -> None:
    dataset = open_dataset()
    assert isinstance(dataset, Tiles)
    assert 300 <= len(dataset) <= 600
    assert dataset.digest == open_dataset().digest
    assert dataset.class_names[dataset.get_label(0)] == "rocket"
    names = [dataset.get_path(position) for position in range(len(dataset))]
    assert len(set(names)) == len(names)


def test_a_tile_is_the_part_of_the_photograph_that_its_name_says() -> None:
    dataset = Tiles()
    wide = max(range(len(dataset)), key=lambda position: dataset.boxes[position][2])
    for position in (1, wide, len(dataset) - 1):
        name, ranges = dataset.get_path(position).rstrip("]").split("[")
        rows, columns = (slice(*map(int, text.split(":"))) for text in ranges.split(","))
        assert torch.equal(dataset.read_image(position), sample(name)[..., rows, columns])
        assert dataset.class_names[dataset.get_label(position)] == name
