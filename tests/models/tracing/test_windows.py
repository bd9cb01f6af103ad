"""Covered images, against plain indexing in numpy."""

import numpy as np
import torch
from helpers import smooth

import sightline as sl
from sightline.models.tracing.batch_size import split_into_batches
from sightline.models.tracing.windows import OcclusionWindows, run_occluded_images

# Windows of 5×5 pixels: at a corner, at the far edges, and two that overlap.
POSITIONS = ((0, 0), (27, 35), (10, 3), (12, 6), (0, 35))


def make_windows() -> OcclusionWindows:
    image, fill = (smooth(side=40, seed=seed)[..., :32, :] for seed in (1, 2))
    return OcclusionWindows(image, fill, POSITIONS, 5)


def test_each_copy_has_its_window_covered() -> None:
    windows = make_windows()
    covered = windows.occlude_windows((3, 1, 4)).numpy()
    for copy, index in zip(covered, (3, 1, 4), strict=True):
        top, left = POSITIONS[index]
        is_inside = np.zeros((32, 40), bool)
        is_inside[top : top + 5, left : left + 5] = True
        expected = np.where(is_inside, windows.fill[0].numpy(), windows.image[0].numpy())
        np.testing.assert_array_equal(copy, expected)
    original = make_windows()
    assert windows.image.equal(original.image)
    assert windows.fill.equal(original.fill)


def test_crops_of_any_source() -> None:
    windows = make_windows()
    source = torch.arange(2.0 * 32 * 40).view(1, 2, 32, 40)
    crops = windows.crop_windows((1, 2), source)
    assert crops.shape == (2, 2, 5, 5)
    assert crops[0].equal(source[0, :, 27:32, 35:40])
    assert crops[1].equal(source[0, :, 10:15, 3:8])


def test_scores_are_those_of_the_copies_whatever_the_batch(tiny: sl.Model) -> None:
    windows = make_windows()
    copies = windows.occlude_windows(range(len(POSITIONS)))
    expected = torch.cat([tiny.logits(copy[None]) for copy in copies])
    for size in (1, 2, 5, 9):
        parts = split_into_batches(len(POSITIONS), size)
        batches = list(run_occluded_images(tiny, windows, parts))
        assert list(map(len, batches)) == list(map(len, parts))
        torch.testing.assert_close(torch.cat(batches), expected, rtol=1e-4, atol=1e-5)
