"""Targets as text are those that the same call in Python makes, and no code is run."""

import pytest
import torch

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.heads.target_text import TARGET_TYPES, make_target, parse_target
from sightline.models.heads.targets import box, classes, pixel, region, unit


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unit('layer4', 7)", unit("layer4", 7)),
        (" unit(layer='layer4', channel=7, position=(2, 3)) ", unit("layer4", 7, (2, 3))),
        ("pixel(10, 20, 'cat')", pixel(10, 20, "cat")),
        ("box(10, 20.5, 80, 90)", box(10, 20.5, 80, 90)),
        ("box(1, 2, 3, 4, label=5)", box(1, 2, 3, 4, 5)),
        ("region('mask.png', 'road')", region("mask.png", "road")),
        ("classes(('cat', 3))", classes(("cat", 3))),
    ],
)
def test_text_means_what_python_means(text: str, target: object) -> None:
    parsed = make_target(text)
    assert type(parsed) is type(target)
    assert parsed == target


def test_a_target_is_itself_and_a_function_becomes_one(tiny: sl.Model) -> None:
    target = pixel(1, 2, 0)
    assert make_target(target) is target
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = make_target(lambda output: output[:, 1] - output[:, 0])
    logits = tiny.logits(image)
    expected = (logits[:, 1] - logits[:, 0])[:, None]
    scores = tiny.with_target(made).logits(image)
    assert torch.allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit", "a target is a call such as"),
        ("unit('layer4', 7", "a target is a call such as"),
        ("unit('layer4', 7) + 1", "a target is a call such as"),
        ("sl.unit('layer4', 7)", "a target is a call such as"),
        ("unit('layer4', open('x'))", "a target is a call such as"),
        ("unit('layer4', 2**3)", "a target is a call such as"),
        ("pixle(1, 2, 0)", "did you mean pixel?"),
        ("__import__('os')", "__import__"),
        ("pixel(1, 2, 0, 4, 5, 6)", "a target is a call such as"),
        ("pixel('1', 2, 0)", "y is '1', not a number"),
        ("pixel(1, True, 0)", "x is True, not a number"),
        ("unit(4, 7)", "layer is 4, not a text"),
        ("box(1, 2, 3, None)", "y1 is None, not a number"),
        ("(" * 5000, "a target is a call such as"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SightlineError) as error:
        parse_target(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_what_is_no_target_is_answered_with_their_names() -> None:
    with pytest.raises(SightlineError, match=f"give one of {', '.join(TARGET_TYPES)}"):
        make_target(7)  # type: ignore[arg-type]
