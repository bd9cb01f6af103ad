"""What is an image, and in which words anything else is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.validation import add_batch_axis, check_image


def test_an_image_is_returned_as_it_is() -> None:
    image = torch.rand(2, 3, 4, 5, requires_grad=True)
    assert check_image(image) is image
    check_image(torch.full((1, 3, 1, 1), 1.00009))
    check_image(torch.full((1, 3, 1, 1), -0.00009))


def test_other_float_types_become_float32_and_keep_their_gradient() -> None:
    image = torch.rand(2, 3, 4, 5, requires_grad=True)
    double = image.double()
    assert check_image(double).dtype == torch.float32
    check_image(double).sum().backward()
    assert torch.equal(image.grad, torch.ones_like(image))
    assert check_image(torch.rand(1, 3, 4, 5).half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            torch.tensor([-2.06, 2.06, 0]).reshape(1, 3, 1, 1).expand(1, 3, 8, 9),
            "(1, 3, 8, 9) in [-2.06, 2.06]",
        ),
        (torch.full((1, 3, 1, 1), 1.0002), "(1, 3, 1, 1) in [1.0002, 1.0002]"),
        (torch.full((1, 3, 1, 1), -0.0002), "(1, 3, 1, 1) in [-0.0002, -0.0002]"),
        (torch.full((1, 3, 1, 1), torch.inf), "(1, 3, 1, 1) in [inf, inf]"),
        (torch.tensor([0, torch.nan, 0]).reshape(1, 3, 1, 1), "(1, 3, 1, 1) with NaN"),
        (torch.rand(8, 9), "(8, 9)"),
        (torch.rand(3, 8, 9), "(3, 8, 9); image[None] is a batch of one"),
        (
            torch.rand(8, 9, 3),
            "(8, 9, 3); image.permute(2, 0, 1)[None] is a batch of one",
        ),
        (
            torch.rand(1, 8, 9, 3),
            "(1, 8, 9, 3); image.permute(0, 3, 1, 2) has the channels first",
        ),
        (torch.rand(0, 3, 8, 9), "(0, 3, 8, 9)"),
        (torch.rand(1, 3, 0, 9), "(1, 3, 0, 9)"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "of torch.uint8; divide 0 to 255 by 255"),
        (
            np.zeros((1, 3, 8, 9)),
            "of type ndarray, not a tensor; torch.from_numpy(array) makes one",
        ),
        (
            Image.new("RGB", (8, 9)),
            "of type Image, not a tensor; torchvision's to_tensor(picture)[None] makes one",
        ),
        ("cat.jpg", "of type str, not a tensor; model.fit(FILE) reads and fits a file"),
        (None, "of type NoneType, not a tensor"),
    ],
)
def test_anything_else_is_refused(value: Tensor, problem: str) -> None:
    with pytest.raises(SightlineError) as error:
        check_image(value)
    assert str(error.value) == f"an image is N×3×H×W in [0, 1]; this tensor is {problem}"
    with pytest.raises(SightlineError, match="the style is"):
        check_image(value, "the style")


def test_the_tolerance_is_the_caller_s() -> None:
    image = torch.full((1, 3, 2, 4), 1.0009)
    assert check_image(image, tolerance=1e-3) is image
    with pytest.raises(SightlineError, match=r"in \[1\.0009, 1\.0009\]"):
        check_image(image)


def test_a_single_image_becomes_a_batch() -> None:
    image = torch.rand(3, 4, 5)
    assert torch.equal(add_batch_axis(image), image[None])
    batch = torch.rand(2, 3, 4, 5)
    assert add_batch_axis(batch) is batch
    assert add_batch_axis("cat.jpg") == "cat.jpg"  # type: ignore[arg-type, comparison-overlap]
