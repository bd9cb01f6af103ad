"""A parameter: what its annotation declares, which values it takes, and what help says of it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.errors import SightlineError
from sightline.registry.parameter import (
    ParameterSpec,
    ValueRange,
    describe_parameter_type,
    make_parameter_spec,
)

COUNT = ParameterSpec("k", int, 3, "", ValueRange(1, 9))
NUMBER = ParameterSpec("lr", float, 0.1, "", ValueRange(0, 1))
OPTION = ParameterSpec("decay", float | None, None, "", ValueRange(0, 1))
FILL = ParameterSpec("fill", float | Literal["mean", "blur"], 0.5, "", ValueRange(0, 1))
FLAG = ParameterSpec("fast", bool, True, "")
FOLDER = ParameterSpec("folder", str | Path | None, None, "")
UNLIMITED = ParameterSpec("scale", float, 1.0, "")
SEED = ParameterSpec("seed", int, 0, "")
LABEL = ParameterSpec("label", int | str, "top", "")
CLASSES = ParameterSpec("label", int | str | tuple[int | str, ...], "top", "")
TARGET = ParameterSpec("target", int | str | None, None, "")
LAYER = ParameterSpec("layer", str, "first", "")
LAYERS = ParameterSpec("layers", tuple[str, ...], (), "")
RULE = ParameterSpec("rule", Literal["one", "two"], "one", "", None, ("one", "two"))
CALLBACK = ParameterSpec("callback", Callable[[sl.Step], bool | None] | None, None, "")
STYLES = ParameterSpec("styles", tuple[Tensor | str | Path, ...], (), "")
NAN = float("nan")
INFINITE = float("inf")

ALLOWED = [
    *((COUNT, value) for value in (1, 3, 9)),
    *((NUMBER, value) for value in (0, 1, 0.0, 1.0, 0.5, -0.0)),
    *((OPTION, value) for value in (None, 0, 0.5)),
    *((FILL, value) for value in (0, 0.25, "mean", "blur")),
    *((FLAG, value) for value in (True, False)),
    *((FOLDER, value) for value in (None, "a", Path("a"))),
    *((UNLIMITED, value) for value in (-3, 1e30)),
    *((SEED, value) for value in (0, -1, 2**63 - 1)),
    *((LABEL, value) for value in (0, "3", "top", "")),
    *((TARGET, value) for value in (None, 3, "goose")),
    *((LAYERS, value) for value in (("a",), ["a", "b"], ())),
    *((RULE, value) for value in ("one", "two")),
    *((CALLBACK, value) for value in (None, print)),
    (LAYER, "conv1"),
    (STYLES, ["brick", Path("a.png"), torch.zeros(1)]),
]
REFUSED = [
    (COUNT, 0, "k is 0; it must lie between 1 and 9"),
    (COUNT, 10, "k is 10; it must lie between 1 and 9"),
    *(
        (COUNT, value, f"k is {value!r}; it must be a whole number")
        for value in (3.0, 3.5, True, False, None, "3", NAN, INFINITE)
    ),
    (COUNT, [3], "k is of type list; it must be a whole number"),
    (COUNT, torch.rand(1, 1), "k is of type Tensor; it must be a whole number"),
    (COUNT, np.float32(2.5), "k is of type float32; it must be a whole number"),
    (COUNT, np.int64(10), "k is 10; it must lie between 1 and 9"),
    (NUMBER, -1e-9, "lr is -1e-09; it must lie between 0 and 1"),
    (NUMBER, INFINITE, "lr is inf; it must lie between 0 and 1"),
    *(
        (NUMBER, value, f"lr is {value!r}; it must be a number")
        for value in (True, None, "0.5", NAN)
    ),
    (OPTION, 2, "decay is 2; it must lie between 0 and 1"),
    *(
        (OPTION, value, f"decay is {value!r}; it must be a number or None")
        for value in (True, "none", NAN)
    ),
    (FILL, 1.5, "fill is 1.5; it must lie between 0 and 1"),
    *(
        (FILL, value, f'fill is {value!r}; it must be a number or "mean" or "blur"')
        for value in ("median", None, True, NAN)
    ),
    (FILL, torch.zeros(2), 'fill is of type Tensor; it must be a number or "mean" or "blur"'),
    *(
        (FLAG, value, f"fast is {value!r}; it must be True or False")
        for value in (1, 0.0, None, "yes")
    ),
    (FOLDER, 3, "folder is 3; it must be text or a path or None"),
    (UNLIMITED, NAN, "scale is nan; it must be a number"),
    *(
        (SEED, value, f"seed is {value!r}; it must be a whole number")
        for value in (0.0, True, None, NAN)
    ),
    *(
        (LABEL, value, f"label is {value!r}; it must be a whole number or text")
        for value in (1.5, True, None, NAN)
    ),
    (LABEL, torch.tensor(3.5), "label is of type Tensor; it must be a whole number or text"),
    (LABEL, torch.tensor(True), "label is of type Tensor; it must be a whole number or text"),
    (LABEL, np.array([3, 4]), "label is of type ndarray; it must be a whole number or text"),
    (TARGET, True, "target is True; it must be a whole number or text or None"),
    (LAYER, 5, "layer is 5; it must be text"),
    (LAYER, None, "layer is None; it must be text"),
    (LAYERS, "conv1", "layers is 'conv1'; it must be a list, each text"),
    (LAYERS, ("conv1", 2), "layers is of type tuple; it must be a list, each text"),
    (LAYERS, None, "layers is None; it must be a list, each text"),
    (RULE, "tow", "no rule named 'tow'; did you mean two?"),
    (RULE, None, "no rule named 'None'; did you mean one?"),
    (RULE, 1, "no rule named '1'; choose from one, two"),
    (RULE, ["one"], "no rule named \"['one']\"; did you mean one?"),
    (CALLBACK, 3, "callback is 3; it must be a function or None"),
    *(
        (STYLES, value, "it must be a list, each an image tensor or text or a path")
        for value in (3, "brick", [3], [None])
    ),
]


def name_case(value: Any) -> str:
    return getattr(value, "name", repr(value)[:20])


@pytest.mark.parametrize(("parameter", "value"), ALLOWED, ids=name_case)
def test_allowed_values_are_returned(parameter: ParameterSpec, value: object) -> None:
    assert parameter.check_value(value) is value


@pytest.mark.parametrize(
    ("parameter", "value", "number"),
    [
        (COUNT, torch.tensor(3), 3),
        (COUNT, np.uint8(3), 3),
        (LABEL, torch.arange(5).argmax(), 4),
        (LABEL, np.arange(5).argmax(), 4),
        (NUMBER, np.float32(0.5), 0.5),
        (NUMBER, torch.tensor(0.25), 0.25),
        (CLASSES, np.array([3, 4]), (3, 4)),
        (CLASSES, [np.int64(3), torch.tensor(4), 5], (3, 4, 5)),
        (CLASSES, torch.tensor([3, 4]), (3, 4)),
    ],
    ids=name_case,
)
def test_numbers_of_numpy_and_torch_are_numbers(
    parameter: ParameterSpec, value: object, number: object
) -> None:
    checked = parameter.check_value(value)
    assert checked == number
    assert type(checked) is type(number)


@pytest.mark.parametrize(("parameter", "value", "message"), REFUSED, ids=name_case)
def test_refused_values(parameter: ParameterSpec, value: object, message: str) -> None:
    with pytest.raises(SightlineError) as error:
        parameter.check_value(value)
    if parameter is STYLES:
        assert str(error.value).endswith(message)
    else:
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("hint", "kind", "value_range", "choices"),
    [
        (int, int, None, ()),
        (Annotated[int, ValueRange(1, 9)], int, ValueRange(1, 9), ()),
        (Annotated[int, "a remark", ValueRange(1, 9)], int, ValueRange(1, 9), ()),
        (Annotated[float | None, ValueRange(0, 1)], float | None, ValueRange(0, 1), ()),
        (Literal["one", "two"], Literal["one", "two"], None, ("one", "two")),
        (float | Literal["mean"], float | Literal["mean"], None, ()),
    ],
)
def test_reads_an_annotation(
    hint: Any, kind: Any, value_range: ValueRange | None, choices: tuple[str, ...]
) -> None:
    parameter = inspect.Parameter("k", inspect.Parameter.KEYWORD_ONLY, default=3)
    expected = ParameterSpec("k", kind, 3, "How many.", value_range, choices)
    assert make_parameter_spec(parameter, hint, "How many.") == expected


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (float | Literal["mean", "blur"], 'a number or "mean" or "blur"'),
        (tuple[int | str, ...], "a list, each a whole number or text"),
        (Callable[[int], bool] | None, "a function or None"),
        (bytes, "a bytes"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert describe_parameter_type(kind) == words


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        (ParameterSpec("k", int, 3, "How many.", ValueRange(1, 1_000_000)), "From 1 to 1,000,000"),
        (ParameterSpec("k", int, 3, "How many.", ValueRange(1, 9)), "From 1 to 9; default 3."),
        (ParameterSpec("lr", float, 8e-10, "Rate.", ValueRange(1e-6, 0.5)), "From 1e-06 to 0.5;"),
        (ParameterSpec("lr", float, 8e-10, "Rate."), "Default 8e-10."),
        (ParameterSpec("rule", str, "one", "", None, ("one", "two")), 'One of "one", "two"; def'),
        (ParameterSpec("rule", str, "one", '"one" or "two".', None, ("one", "two")), "Default"),
        (ParameterSpec("names", tuple[str, ...], ("a",), "Names."), 'Default ("a",).'),
        (ParameterSpec("names", tuple[str, ...], ("a", "b"), "Names."), 'Default ("a", "b").'),
        (ParameterSpec("folder", str | None, None, "Folder."), "Default None."),
        (ParameterSpec("folder", str, inspect.Parameter.empty, "Folder."), "Required."),
    ],
)
def test_describes_range_choices_and_default(parameter: ParameterSpec, sentence: str) -> None:
    assert parameter.describe().startswith(f"{parameter.doc} {sentence}")
