"""Figures of a synthesis: each image stands beside the natural images of its own unit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor

from sightline.images.plotting.maps import make_contact_sheet
from sightline.methods.synthesis.facets import Facet
from sightline.methods.synthesis.figure import (
    EXEMPLAR_COLUMNS,
    blend_over_checkerboard,
    describe_response_ratio,
    format_unit_names,
    make_exemplar_row,
    make_facet_row,
    make_quartet_rows,
)

IMAGE_COUNT = 3


class Exemplars:
    """Natural images of three units, without a store: those of unit n have the value n / 10."""

    scan = SimpleNamespace(images=20)
    top_images = tuple(SimpleNamespace(ids=torch.arange(4 + index)) for index in range(IMAGE_COUNT))

    def load_examples(self, picture_index: int, ranks: Tensor) -> Any:
        images = torch.full((len(ranks), 3, 5, 7), picture_index / 10)
        return SimpleNamespace(
            patches=list(images.split(1)),
            images=images,
            describe_examples=lambda _scan: [f"rank {rank}" for rank in ranks.tolist()],
        )

    def describe_unit(self, picture_index: int) -> str:
        return f"unit {picture_index}"


EXEMPLARS: Any = Exemplars()


@pytest.fixture
def picture() -> Tensor:
    """Three different images, 3×3×24×24."""
    return smooth(IMAGE_COUNT, side=24, seed=2)


@pytest.mark.parametrize("index", range(IMAGE_COUNT))
def test_a_row_has_one_image_and_the_patches_of_its_unit(index: int, picture: Tensor) -> None:
    row = make_exemplar_row(EXEMPLARS, picture, index, 1.5)
    assert row.title == f"unit {index}"
    assert row.lead_count == 1
    assert torch.equal(row.pictures[0], picture[index][None])
    assert len(row.pictures) == 1 + 4 + index
    for patch in row.pictures[1:]:
        assert patch.unique().tolist() == pytest.approx([index / 10])
    assert row.captions[:2] == ["synthesis\n× 1.50", "rank 0"]
    assert len(row.captions) == len(row.pictures)


@pytest.mark.parametrize("index", range(IMAGE_COUNT))
def test_a_facet_s_row_has_its_image_its_start_and_its_group(index: int, picture: Tensor) -> None:
    start = smooth(side=24, seed=9)[0]
    facet = Facet(torch.arange(30).flip(0), 30, 1, torch.zeros(2, 4), start)
    row = make_facet_row(EXEMPLARS, picture, index, 0.25, facet)
    assert row.title == f"unit {index}, facet 2 of 2: 30 images"
    assert row.lead_count == 2
    assert torch.equal(row.pictures[0], picture[index][None])
    assert torch.equal(row.pictures[1], start[None])
    assert len(row.pictures) == 2 + EXEMPLAR_COLUMNS - 1
    assert row.captions[:3] == ["synthesis\n× 0.25", "start\n(a mean)", "rank 29"]


def test_squares_of_four_are_laid_in_rows(picture: Tensor) -> None:
    (row,) = make_quartet_rows(EXEMPLARS, picture, torch.tensor([0.5, 1.0, 2.0]))
    assert row.captions == ["unit 0\n× 0.50", "unit 1\n× 1.00", "unit 2\n× 2.00"]
    four = make_contact_sheet(torch.zeros(4, 3, 24, 24), columns=2)
    for index, tile in enumerate(row.pictures):
        assert tile.shape == four.shape
        top = tile[0, :, : tile.shape[2] // 2, : tile.shape[3] // 2]
        # The upper left quarter shows the image itself, whatever the gap around it.
        assert float(top.mean()) == pytest.approx(float(picture[index].mean()), abs=0.15)
    assert not torch.equal(row.pictures[0], row.pictures[1])


def test_an_opaque_image_stays_and_a_transparent_one_shows_squares() -> None:
    image = torch.full((1, 3, 8, 12), 0.5)
    opacity = torch.zeros(1, 8, 12)
    opacity[..., 6:] = 1
    blended = blend_over_checkerboard(image, opacity)
    assert torch.equal(blended[..., 6:], image[..., 6:])
    assert blended[..., :6].unique().tolist() == pytest.approx([0.45, 0.55])
    assert float(blended[0, 0, 0, 0]) == float(blended[0, 0, 1, 1])
    assert float(blended[0, 0, 0, 0]) != float(blended[0, 0, 0, 2])


def test_units_in_words() -> None:
    model: Any = SimpleNamespace(labels=["ant", "bee", "cat"])
    assert format_unit_names(model, "logits", (2, 0)) == "cat, ant"
    assert format_unit_names(model, "conv", (4, 5, 6)) == "4 to 6"
    assert format_unit_names(model, "conv", (4,)) == "4"
    assert format_unit_names(model, "conv", (4, 6)) == "4, 6"


def test_the_response_beside_natural_images_in_words() -> None:
    assert describe_response_ratio(torch.zeros(2)).startswith("No natural image")
    assert "1.50 times" in describe_response_ratio(torch.tensor([1.5]))
    several = describe_response_ratio(torch.tensor([1.0, 2.0, 9.0]))
    assert "2.00 times" in several
    assert "median over the images" in several
