"""Rectangles and brush strokes: the right pixels become gray, and no others."""

import base64

import numpy as np
import pytest
import torch

from sightline.app.web.delivery.live.changes import cover_image, decode_brush
from sightline.errors import SightlineError


def make_image() -> torch.Tensor:
    return torch.rand(1, 3, 7, 11, generator=torch.Generator().manual_seed(0)) * 0.4


def test_rectangles_are_top_left_bottom_right() -> None:
    image = make_image()
    covered = cover_image(image, [(1, 2, 4, 9), (6, 0, 99, 3)], None)
    expected = image.clone()
    expected[:, :, 1:4, 2:9] = 0.5
    expected[:, :, 6:, 0:3] = 0.5
    assert torch.equal(covered, expected)
    assert torch.equal(cover_image(image, [(3, 3, 3, 9)], None), image)


def test_a_brush_has_a_bit_for_each_pixel() -> None:
    image = make_image()
    bits = np.zeros((7, 11), bool)
    bits[2, 3] = bits[6, 10] = bits[0, 1] = True
    brush = base64.b64encode(np.packbits(bits)).decode()
    covered = cover_image(image, [(0, 0, 1, 1)], brush)
    changed = (covered != image).any(1)[0].numpy()
    bits[0, 0] = True
    np.testing.assert_array_equal(changed, bits)


@pytest.mark.parametrize("brush", ["", "AAAA", "no base64", "€", "A" * 99, "AAA="])
def test_another_brush_is_refused(brush: str) -> None:
    with pytest.raises(SightlineError, match="brush"):
        decode_brush(brush, 7, 11)


def test_without_a_change_the_image_is_the_same() -> None:
    image = make_image()
    assert cover_image(image, [], None) is image
