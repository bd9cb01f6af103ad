"""One line that says what was given, what is allowed and what is near."""

import pytest

from sightline.errors import SightlineError, nearest, outside, unknown


@pytest.mark.parametrize(
    ("given", "allowed", "clause"),
    [
        ("conv53", ["conv5_3", "relu5_3", "fc7"], "; did you mean conv5_3?"),
        ("GOOSE", ["tench", "goose"], "; did you mean goose?"),
        ("goose", ["Tench", "Goose"], "; did you mean Goose?"),
        ("zebra", ["tench", "goose"], "; choose from tench, goose"),
        ("zebra", ["tench", "tench"], "; choose from tench"),
        ("zebra", [], ""),
        ("", ["tench"], "; choose from tench"),
        ("zebra", [f"layer{i}" for i in range(12)], "; choose from " + ", ".join(f"layer{i}" for i in range(12))),
        ("zebra", [f"layer{i}" for i in range(13)], ""),
        ("tensch", (name for name in ("tench", "goose")), "; did you mean tench?"),
    ],
)
def test_nearest(given: str, allowed: list[str], clause: str) -> None:
    assert nearest(given, allowed) == clause


def test_unknown() -> None:
    assert str(unknown("layer", "conv53", ["conv5_3"])) == "no layer named 'conv53'; did you mean conv5_3?"
    assert str(unknown("label", 7, [])) == "no label named '7'"
    assert "\n" not in str(unknown("layer", "two\nlines", ["one"]))


def test_outside() -> None:
    assert str(outside("octaves", 40, 1, 12)) == "octaves is 40; it must lie between 1 and 12"


def test_is_a_value_error() -> None:
    assert issubclass(SightlineError, ValueError)
    assert isinstance(unknown("layer", "a", []), SightlineError)
    assert isinstance(outside("k", 0, 1, 2), SightlineError)
