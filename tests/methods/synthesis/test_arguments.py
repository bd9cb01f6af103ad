"""The arguments of a synthesis: units in words, presets, and what does not go together."""

import pytest

import sightline as sl
from sightline.methods.synthesis.arguments import (
    choose_synthesis_preset,
    find_objective_units,
    override_preset_constants,
    parse_unit_ranges,
    resolve_objective,
    resolve_subject,
)
from sightline.methods.synthesis.presets import SYNTHESIS_PRESETS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", (3,)),
        ("0-3,7", (0, 1, 2, 3, 7)),
        (" 5, 3 ", (5, 3)),
        ("9-9", (9,)),
        ("2,2", (2, 2)),
    ],
)
def test_ranges_of_units(text: str, expected: tuple[int, ...]) -> None:
    assert parse_unit_ranges(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "this layer has units 0 to 9"),
        ("3-1", "this layer has units 0 to 9"),
        ("0-10", "this layer has units 0 to 9"),
        ("", "write numbers and ranges"),
        ("1,,2", "write numbers and ranges"),
        ("-1", "write numbers and ranges"),
        ("a-b", "write numbers and ranges"),
    ],
)
def test_what_is_no_range_is_refused(text: str, message: str) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        parse_unit_ranges(text, 10)


def test_without_units_the_first_are_taken(tiny: sl.Model) -> None:
    logits = resolve_objective(tiny, "", None, None)
    assert find_objective_units(tiny, logits) == ("logits", (0, 1, 2, 3, 4))
    units = resolve_objective(tiny, "", "conv2", "10-11,0")
    assert find_objective_units(tiny, units) == ("conv2", (10, 11, 0))
    first = resolve_objective(tiny, "", "conv3", None)
    assert find_objective_units(tiny, first) == ("conv3", tuple(range(16)))


def test_a_class_is_found_by_its_name(tiny: sl.Model) -> None:
    assert find_objective_units(tiny, sl.logit("cat")) == ("logits", (2,))
    assert find_objective_units(tiny, sl.logit("dog") - 0.1 * sl.tv()) == ("logits", (3,))


def test_an_objective_and_units_do_not_go_together(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="leave out one"):
        resolve_subject(tiny, "logit(cat)", "conv1", None)
    with pytest.raises(sl.SightlineError, match="leave out one"):
        resolve_subject(tiny, sl.logit(1), None, "3")
    with pytest.raises(sl.SightlineError, match="not a int"):
        resolve_subject(tiny, 3, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "photo", "expected"),
    [
        ("auto", None, "smooth"),
        ("auto", "rocket", "accentuation"),
        ("gray", None, "lecture"),
        ("generator", None, "generator"),
    ],
)
def test_the_start_chooses_the_preset(start: str, photo: str | None, expected: str) -> None:
    assert (
        choose_synthesis_preset("auto", start, photo, None, "auto") == (SYNTHESIS_PRESETS[expected])
    )


def test_black_has_no_noise_and_the_focus_is_replaced() -> None:
    zero = choose_synthesis_preset("lecture", "zero", None, None, "auto")
    assert (zero.start, zero.noise) == ("zero", 0.0)
    assert zero.lr == SYNTHESIS_PRESETS["lecture"].lr
    assert choose_synthesis_preset("smooth", "auto", None, None, "alpha").focus == "alpha"


@pytest.mark.parametrize(
    ("preset", "start", "photo", "focus", "message"),
    [
        ("accentuation", "auto", None, "auto", "needs a photo="),
        ("maco", "auto", "rocket", "auto", "does not start from a photograph"),
        ("lecture", "auto", None, "alpha", "optimizes pixels"),
        ("generator", "auto", None, "alpha", "optimizes a code"),
        ("smooth", "gray", None, "auto", "start='gray' does not go with it"),
        ("maco", "fourier", None, "auto", "does not go with it"),
        ("auto", "facets", None, "auto", "name a scan of them with store="),
    ],
)
def test_what_does_not_go_together_is_refused(
    preset: str, start: str, photo: str | None, focus: str, message: str
) -> None:
    with pytest.raises(sl.SightlineError, match=message):
        choose_synthesis_preset(preset, start, photo, None, focus)


def test_constants_replace_the_preset_s() -> None:
    lecture = SYNTHESIS_PRESETS["lecture"]
    changed = override_preset_constants(lecture, lr=0.5, decay=None, blur=0.0, clip=0.4)
    assert (changed.lr, changed.decay, changed.sigma) == (0.5, lecture.decay, 0.0)
    assert (changed.small, changed.idle) == (0.2, 0.2)
    assert override_preset_constants(lecture, None, None, None, None) == lecture
    generator = SYNTHESIS_PRESETS["generator"]
    assert override_preset_constants(generator, None, 0.3, None, None).decay == 0.3
    with pytest.raises(sl.SightlineError, match="blur works on pixels"):
        override_preset_constants(generator, None, None, 1.0, None)
    with pytest.raises(sl.SightlineError, match="decay works on pixels"):
        override_preset_constants(SYNTHESIS_PRESETS["smooth"], None, 0.1, None, None)


def test_a_target_stands_in_the_place_of_the_classes(tiny: sl.Model) -> None:
    text = "unit('conv2', 3)"
    for subject in (sl.unit("conv2", 3), text):
        model, objective = resolve_subject(tiny, subject, None, None)
        assert model.output_kind == "target"
        assert str(objective) == text
        assert objective.layers == ("logits",)
        assert find_objective_units(model, objective) == ("logits", ())


def test_objectives_and_labels_are_no_targets(tiny: sl.Model) -> None:
    for subject in (sl.logit(1), "logit(1)", "dog", "", "channel('conv2', 1) - 0.1 * tv()"):
        model, _ = resolve_subject(tiny, subject, None, None)
        assert model is tiny


def test_a_function_is_a_target_that_text_cannot_hold(tiny: sl.Model) -> None:
    _, objective = resolve_subject(tiny, lambda output: output[:, 1], None, None)
    assert str(objective).startswith("score(")
    with pytest.raises(sl.SightlineError, match="a text can't hold"):
        resolve_subject(tiny, "score(measure)", None, None)
    with pytest.raises(sl.SightlineError, match="leave out one"):
        resolve_subject(tiny, sl.unit("conv2", 3), "conv1", None)
