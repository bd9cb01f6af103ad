"""What elements see along one axis, against sets of pixels carried along one by one."""

import numpy as np
import pytest
import torch

from sightline.models.tracing.receptive_rules import (
    BORDER_INDEX_RULES,
    NO_PIXEL,
    ReceptiveSpan,
    iterate_nested_tensors,
)

LENGTH = 11
PADDING_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def make_span() -> ReceptiveSpan:
    """Element i sees pixels 2i to 2i + 2, as after a window of 3 elements with stride 2."""
    first = 2 * np.arange(LENGTH)
    return ReceptiveSpan(0, first, first + 2, 0, 2, 2)


def make_sets() -> list[set[int]]:
    return [{2 * i, 2 * i + 1, 2 * i + 2} for i in range(LENGTH)]


@pytest.mark.parametrize("border", PADDING_MODES)
@pytest.mark.parametrize("length", [4, 7])
def test_borders_are_those_of_numpys_padding(border: str, length: int) -> None:
    margin = 3
    padded = np.pad(np.arange(length), margin, mode=PADDING_MODES[border])  # type: ignore[call-overload]
    index = np.arange(-margin, length + margin)
    np.testing.assert_array_equal(BORDER_INDEX_RULES[border](index, length - 1), padded)


@pytest.mark.parametrize(
    ("size", "stride", "start", "dilation"),
    [(1, 1, 0, 1), (3, 1, -1, 1), (3, 2, -1, 1), (2, 2, 0, 1), (3, 1, -2, 2), (2, 3, 1, 2)],
)
@pytest.mark.parametrize("border", ["constant", *PADDING_MODES])
def test_windows_see_what_their_elements_see(
    size: int, stride: int, start: int, dilation: int, border: str
) -> None:
    count = 4
    sets = make_sets()
    expected: list[set[int]] = []
    for window in range(count):
        indices = [start + stride * window + dilation * step for step in range(size)]
        seen: set[int] = set()
        for index in indices:
            inside = int(BORDER_INDEX_RULES[border](np.array(index), LENGTH - 1))
            if 0 <= inside < LENGTH:
                seen |= sets[inside]
        expected.append(seen)
    span = make_span().slide_window(
        count, size=size, stride=stride, start=start, dilation=dilation, border=border
    )
    ranges = [(min(seen), max(seen) + 1) if seen else (0, 0) for seen in expected]
    assert span.list_pixel_ranges() == tuple(ranges)
    assert span.step == 2 * stride
    # Away from the border: the first window of a tensor without one.
    assert span.low == 2 * start
    assert span.high == 2 * (start + dilation * (size - 1)) + 2


def test_windows_outside_see_nothing() -> None:
    span = make_span().slide_window(2, size=2, stride=20, start=-2)
    assert span.list_pixel_ranges() == ((0, 0), (0, 0))
    assert span.first.tolist() == [NO_PIXEL, NO_PIXEL]
    assert span.last.tolist() == [-1, -1]


def test_a_sum_sees_what_either_sees() -> None:
    span = make_span()
    shifted = ReceptiveSpan(0, span.first + 1, span.last + 5, 1, 7, 2)
    union = span | shifted
    assert union is not None
    assert union.list_pixel_ranges() == tuple((2 * i, 2 * i + 8) for i in range(LENGTH))
    assert (union.low, union.high, union.step) == (0, 7, 2)
    assert span | None is None
    assert span | ReceptiveSpan(1, span.first, span.last, 0, 2, 2) is None
    assert span | ReceptiveSpan(0, span.first, span.last, 0, 2, 1) is None
    assert span | ReceptiveSpan(0, span.first[1:], span.last[1:], 0, 2, 2) is None


def test_tensors_in_nested_containers() -> None:
    first, second, third = torch.zeros(1), torch.ones(2), torch.ones(3)
    nested: list[object] = [first, {"a": (second, 3), "b": None}, "text", third]
    nested.append(nested)  # a container of itself
    assert [id(tensor) for tensor in iterate_nested_tensors(nested)] == [
        id(first), id(second), id(third),
    ]  # fmt: skip
