"""Facets: groups of a unit's images by their features, each with its start and its centre."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.synthesis.facets import (
    cluster_facets,
    compute_facet_codes,
    find_unit_facets,
    match_own_facets,
    project_on_main_axes,
)


def make_two_kinds() -> Tensor:
    """Five reddish and three bluish images, 8×3×32×32, in turns."""
    noise = 0.1 * torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tints = torch.zeros(8, 3, 1, 1)
    is_blue = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0])
    tints[is_blue == 0, 0] = 0.8
    tints[is_blue == 1, 2] = 0.8
    return noise + tints


def test_the_largest_group_is_first_and_its_images_are_alike(tiny: sl.Model) -> None:
    images = make_two_kinds()
    red, blue = cluster_facets(tiny, images, 2, seed=0)
    assert sorted(red.indices.tolist()) == [1, 3, 4, 6, 7]
    assert sorted(blue.indices.tolist()) == [0, 2, 5]
    assert (red.image_count, blue.image_count) == (5, 3)
    assert (red.index, blue.index) == (0, 1)
    torch.testing.assert_close(blue.start_image, images[[0, 2, 5]].mean(0))
    codes = compute_facet_codes(tiny, images)
    torch.testing.assert_close(red.centers[1], codes[[0, 2, 5]].mean(0))
    assert match_own_facets(tiny, images[[1, 0]], [red, blue]).tolist() == [True, True]
    assert match_own_facets(tiny, images[[0, 1]], [red, blue]).tolist() == [False, False]


def test_codes_have_length_one_and_do_not_depend_on_the_batch(tiny: sl.Model) -> None:
    images = make_two_kinds()
    codes = compute_facet_codes(tiny, images)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(8))
    alone = torch.cat([compute_facet_codes(tiny, image) for image in images.split(1)])
    torch.testing.assert_close(alone, codes, rtol=0, atol=1e-5)


def test_main_axes_keep_distances() -> None:
    codes = torch.rand(6, 20, generator=torch.Generator().manual_seed(1))
    projected = project_on_main_axes(codes)
    assert projected.shape[1] <= 20
    torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(codes, codes))


def test_too_few_images_are_said_in_words(tiny: sl.Model) -> None:
    class Exemplars:
        units = (4, 4)
        top_images = tuple(type("Top", (), {"ids": torch.arange(3)}) for _ in units)

        def describe_unit(self, picture_index: int) -> str:
            return f"unit {self.units[picture_index]} of conv1"

    exemplars: Any = Exemplars()
    with pytest.raises(sl.SightlineError, match="unit 4 of conv1 is asked for 2 times, and the"):
        find_unit_facets(tiny, exemplars, 32, seed=0)
