"""One line that says what was given, what is allowed and what comes close."""

import pytest

from sightline.errors import (
    SightlineError,
    escape_for_display,
    get_first_error_line,
    is_out_of_memory,
    join_words,
    make_out_of_range_error,
    make_unknown_name_error,
    suggest_closest_name,
)


@pytest.mark.parametrize(
    ("requested", "allowed", "clause"),
    [
        ("conv53", ["conv5_3", "relu5_3", "fc7"], "; did you mean conv5_3?"),
        ("GOOSE", ["tench", "goose"], "; did you mean goose?"),
        ("goose", ["Tench", "Goose"], "; did you mean Goose?"),
        ("go", ["tench", "goose"], "; did you mean goose?"),
        ("g", ["tench", "goose"], "; choose from tench, goose"),
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
        ("fire.1", ["fire.0", "fire.1.a", "fire.1.b"], "; inside it are fire.1.a, fire.1.b"),
    ],
)
def test_suggests_the_closest_name(requested: str, allowed: list[str], clause: str) -> None:
    assert suggest_closest_name(requested, allowed) == clause


def test_an_unknown_name() -> None:
    assert (
        str(make_unknown_name_error("layer", "conv53", ["conv5_3"]))
        == "no layer named 'conv53'; did you mean conv5_3?"
    )
    assert str(make_unknown_name_error("label", 7, [])) == "no label named '7'"
    assert "\n" not in str(make_unknown_name_error("layer", "two\nlines", ["one"]))


def test_a_number_out_of_range() -> None:
    assert (
        str(make_out_of_range_error("octaves", 40, 1, 12))
        == "octaves is 40; it must lie between 1 and 12"
    )


def test_is_a_value_error() -> None:
    assert issubclass(SightlineError, ValueError)
    assert isinstance(make_unknown_name_error("layer", "a", []), SightlineError)
    assert isinstance(make_out_of_range_error("k", 0, 1, 2), SightlineError)


def test_of_another_library_s_error_the_first_line_is_quoted() -> None:
    assert get_first_error_line(ValueError("\n  bad header\ntraceback\n")) == "bad header"
    assert get_first_error_line(ValueError()) == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("köln ☃ 🐕", "köln ☃ 🐕"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\udcffb", "a\\xffb"),
        ("\ud800", "\\ud800"),
        ("gpj.\u202egod", "gpj.\\u202egod"),
        ("a\u2028b", "a\\u2028b"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("", ""),
    ],
    ids=[
        "plain",
        "lines",
        "escape",
        "c1",
        "byte",
        "surrogate",
        "bidi",
        "separator",
        "zwnj",
        "empty",
    ],
)
def test_names_are_shown_on_one_printable_line(name: str, shown: str) -> None:
    assert escape_for_display(name) == shown
    shown.encode()


def test_long_names_are_cut_to_200_characters() -> None:
    assert escape_for_display("x" * 200) == "x" * 200
    assert escape_for_display("x" * 201) == "x" * 199 + "…"
    assert escape_for_display("\n" * 300) == "\\n" * 99 + "\\…"
    assert escape_for_display("abc", 2) == "a…"


def test_an_error_is_one_line_whatever_is_in_it() -> None:
    error = SightlineError("no folder 'a\nb\x1b[2J\udcfe'")
    assert str(error) == "no folder 'a\\nb\\x1b[2J\\xfe'"


def test_words_are_joined_as_one_says_them() -> None:
    assert join_words([]) == ""
    assert join_words(["a"]) == "a"
    assert join_words(["a", "b"]) == "a and b"
    assert join_words(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for the convolution forward propagation", False),
        ("Its data is not allocated yet. You will need to actually allocate memory.", False),
        ("Given groups=1, weight of size [8, 5, 3, 3]", False),
    ],
)
def test_what_means_that_memory_lacks(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is expected
