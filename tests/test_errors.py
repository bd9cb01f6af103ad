"""One line that says what was given, what is allowed and what is near."""

import pytest

from sightline.errors import (
    SightlineError,
    make_out_of_range_error,
    make_unknown_name_error,
    suggest_closest_name,
)


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
        (
            "zebra",
            [f"layer{i}" for i in range(12)],
            "; choose from " + ", ".join(f"layer{i}" for i in range(12)),
        ),
        ("zebra", [f"layer{i}" for i in range(13)], ""),
        ("tensch", (name for name in ("tench", "goose")), "; did you mean tench?"),
    ],
)
def test_nearest(given: str, allowed: list[str], clause: str) -> None:
    assert suggest_closest_name(given, allowed) == clause


def test_unknown() -> None:
    assert (
        str(make_unknown_name_error("layer", "conv53", ["conv5_3"]))
        == "no layer named 'conv53'; did you mean conv5_3?"
    )
    assert str(make_unknown_name_error("label", 7, [])) == "no label named '7'"
    assert "\n" not in str(make_unknown_name_error("layer", "two\nlines", ["one"]))


def test_outside() -> None:
    assert (
        str(make_out_of_range_error("octaves", 40, 1, 12))
        == "octaves is 40; it must lie between 1 and 12"
    )


def test_is_a_value_error() -> None:
    assert issubclass(SightlineError, ValueError)
    assert isinstance(make_unknown_name_error("layer", "a", []), SightlineError)
    assert isinstance(make_out_of_range_error("k", 0, 1, 2), SightlineError)
