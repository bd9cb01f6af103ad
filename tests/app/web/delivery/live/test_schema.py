"""What the live tab may be asked: numbers in their ranges, and nothing unknown."""

from typing import Any

import pytest
from pydantic import ValidationError

from sightline.app.web.delivery.live.schema import LiveRequest

FINE = {
    "image": "u-abcdefghijklmnopqrstuv",
    "cover": [[0, 1, 2, 3]],
    "brush": "AA==",
    "off": {"layer1.0/relu": [0, 7]},
    "layer": None,
    "units": 64,
    "attribution": "gradcam",
}


def test_a_request_is_read_as_it_is() -> None:
    request = LiveRequest.model_validate(FINE)
    assert request.cover == [(0, 1, 2, 3)]
    assert request.off == {"layer1.0/relu": [0, 7]}
    assert LiveRequest(image="s-0").units == 12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", "u-short"),
        ("image", "s-"),
        ("image", "s--1"),
        ("image", "s-1\n"),
        ("image", "../x"),
        ("image", "s-" + "9" * 13),
        ("cover", [[0, 1, 2]]),
        ("cover", [[-1, 0, 1, 1]]),
        ("cover", [[0, 0, 1, 10**9]]),
        ("cover", [[0, 0, 1, 1]] * 65),
        ("brush", "A" * 1_000_001),
        ("off", {"a": [-1]}),
        ("off", {"a" * 1001: [1]}),
        ("off", {str(number): [1] for number in range(257)}),
        ("units", 0),
        ("units", 65),
        ("attribution", "rise"),
        ("unknown", 1),
    ],
)
def test_anything_else_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        LiveRequest.model_validate({**FINE, name: value})
