"""Help is composed from what is declared, and each thing is said once."""

import sys
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from torch import Tensor

import sightline as sl
from sightline.registry.docstring import (
    SHARED_PARAMETER_DOCS,
    SUBJECT_DOCS,
    compose_help,
    read_docstring,
)
from sightline.registry.method import parse_method_signature


def blur(
    model: sl.Model, image: Tensor, *, sigma: float = 0.5, seed: int = 0, names: tuple[str, ...]
) -> sl.Result:
    """Blurs an image
    twice.

    First this way,
    then that way. Returns: nothing of note.

    Args:
        sigma: Deviation
            in pixels.
        names: What for.

    Returns:
        `values["blurred"]`: N×3×H×W in [0, 1].
        `values["sigma"]`: a number.

    Raises:
        SightlineError: For a negative sigma.

    Source: Gauss 1809, book 2
    """
    return sl.Result({}, {})


def describe(model: "sl.Model | sl.Scan", objective: str = "", *, seed: int = 0) -> sl.Result:
    """Describes."""
    return sl.Result({}, {})


def compose(function: Callable[..., sl.Result], **example_parameters: Any) -> str:
    docstring = read_docstring(function)
    parameters = parse_method_signature(function, docstring).parameters
    hints = get_type_hints(function, include_extras=True)
    return compose_help(function, docstring, hints, parameters, example_parameters)


def test_a_docstring_is_read_in_sections() -> None:
    docstring = read_docstring(blur)
    assert docstring.summary == "Blurs an image twice."
    assert docstring.description == "First this way,\nthen that way. Returns: nothing of note."
    assert docstring.parameter_docs == {"sigma": "Deviation in pixels.", "names": "What for."}
    assert docstring.sections == {
        "Returns": '`values["blurred"]`: N×3×H×W in [0, 1].\n`values["sigma"]`: a number.',
        "Raises": "SightlineError: For a negative sigma.",
        "Source": "Gauss 1809, book 2",
    }


def test_help_completes_what_the_author_wrote() -> None:
    text = compose(blur, names=("a",))
    prose, _ = text.split("\n\nArgs:\n")
    assert prose == (
        "Blurs an image twice.\n\nFirst this way,\nthen that way. Returns: nothing of note."
    )
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Args:", "Returns:", "Raises:", "Source:", "Example:"]
    words = " ".join(text.split())
    assert f"model: {SUBJECT_DOCS['model']}" in words
    assert f"image: {SUBJECT_DOCS['image']}" in words
    assert "sigma: Deviation in pixels. Default 0.5." in words
    assert f"seed: {SHARED_PARAMETER_DOCS['seed']} From 0 to 4,294,967,295; default 0." in words
    assert "names: What for. Required." in words
    assert '`values["blurred"]`: N×3×H×W in [0, 1]. `values["sigma"]`: a number.' in words
    assert "SightlineError: For a negative sigma. SightlineError: A parameter that does" in words
    assert "Source: Gauss 1809, book 2 Example:" in words
    assert words.endswith('sl.blur(model, model.fit(sl.sample("golf_ball")), names=("a",))')


def test_help_without_sections_is_complete_too() -> None:
    words = " ".join(compose(describe).split())
    assert "A Scan can be given instead" in words
    assert f"objective: {SUBJECT_DOCS['objective']} May be left out." in words
    assert "Returns: A Result." in words
    assert "Raises: SightlineError:" in words
    assert "N×3×H×W" not in words, "it takes no image"
    assert words.endswith('model = sl.load(); sl.describe(model, "golf ball")')


def test_a_sample_of_the_report_is_the_image_of_the_example() -> None:
    assert compose(blur, image="gravel").endswith('sl.blur(model, model.fit(sl.sample("gravel")))')


@pytest.mark.parametrize(
    ("module_doc", "source"),
    [
        ("Blur (Witkin 1983, section 2).", "Witkin 1983, section 2"),
        ("Blur (Witkin 1983), also\n(Deriche\n1993).", "Witkin 1983; Deriche 1993"),
        ("Blur (Witkin 1983; Lindeberg 1994): (see there).", "Witkin 1983; Lindeberg 1994"),
        ("Blur, from 1983 (in 2 steps) to (1999).", ""),
        (None, ""),
    ],
)
def test_the_papers_are_those_that_the_module_cites(
    module_doc: str | None, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__doc__", module_doc)
    text = compose(describe)
    assert (f"Source:\n    {source}\n" in text) if source else ("Source" not in text)


def test_lines_are_no_longer_than_the_code() -> None:
    text = compose(blur, names=("a",))
    assert max(map(len, text.splitlines())) <= 100


def test_a_function_without_docstring_is_refused() -> None:
    def silent(model: sl.Model) -> sl.Result:
        return sl.Result({}, {})

    with pytest.raises(TypeError, match="silent has no docstring"):
        read_docstring(silent)
