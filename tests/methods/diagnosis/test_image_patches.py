"""Patches are where a unit responds most, and only they are changed."""

import numpy as np
import torch
from torch import Tensor

from sightline.methods.diagnosis.image_patches import (
    Patches,
    center_windows,
    cover_with_mean,
    draw_places,
    inpaint,
    paste,
)

HEIGHT = 40
WIDTH = 48


def make_images(count: int) -> Tensor:
    """Gray noise, count×3×40×48."""
    generator = torch.Generator().manual_seed(count)
    return 0.4 + 0.2 * torch.rand(count, 3, HEIGHT, WIDTH, generator=generator)


def test_covering_inpainting_and_pasting_change_the_patch_alone() -> None:
    images = make_images(3)
    patches = Patches(np.array([0, 5, 30]), np.array([40, 3, 7]), 6, 7)
    mask = patches.mark(images)
    assert int(mask.sum()) == 3 * 6 * 7
    covered = cover_with_mean(images, patches)
    means = images.mean((2, 3))
    for row in range(3):
        inside = covered[row][:, mask[row, 0]]
        torch.testing.assert_close(inside, means[row][:, None].expand_as(inside))
    painted = inpaint(images, patches)
    pasted = paste(images, torch.zeros(3, 3, 6, 7), patches)
    for changed in (covered, painted, pasted):
        outside = ~mask.expand_as(images)
        assert torch.equal(changed[outside], images[outside])
        assert not torch.equal(changed, images)
    assert not patches.cut(pasted).any()


def test_other_places_lie_inside_and_apart() -> None:
    patches = Patches(np.array([0, 20, 33]), np.array([0, 11, 40]), 7, 8)
    for seed in range(20):
        places = draw_places(patches, (HEIGHT, WIDTH), seed)
        assert (places.tops >= 0).all()
        assert (places.tops + 7 <= HEIGHT).all()
        assert (places.lefts + 8 <= WIDTH).all()
        apart = (abs(places.tops - patches.tops) >= 7) | (abs(places.lefts - patches.lefts) >= 8)
        assert apart.all()


def test_windows_keep_their_centre_and_stay_inside() -> None:
    starts = np.array([-6, 10, 33])
    stops = np.array([4, 20, 43])
    assert center_windows(starts, stops, 6, HEIGHT).tolist() == [0, 12, 34]
