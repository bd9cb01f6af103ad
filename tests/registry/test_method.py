"""A method is read once, from its signature and docstring; what it does not say it may not have."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.errors import SightlineError
from sightline.methods import TOPICS, load_methods
from sightline.registry import method as catalog
from sightline.registry.method import METHODS, hash_tensor, parse_method_signature, register_method
from sightline.registry.parameter import ParameterSpec, ValueRange

TEXTS = {
    "chapter": "weights",
    "title": "Trial",
    "question": "What?",
    "reading": "So.",
    "caution": "Beware.",
}


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, catalog.Method]]:
    """The catalogue, which must be as before after each test but for what the test puts into a copy."""
    load_methods()
    before, copied = dict(METHODS), dict(METHODS)
    monkeypatch.setattr(catalog, "METHODS", copied)
    yield copied
    assert before == METHODS


def registered(function: Callable[..., sl.Result], **more: Any) -> Callable[..., sl.Result]:
    """The function as a method of the weights chapter."""
    return register_method(**{**TEXTS, **more})(function)


# ── what is read ──


def trial(
    model: sl.Model,
    image: Tensor,
    *,
    label: int | str = "top",
    k: Annotated[int, ValueRange(1, 9)] = 3,
    share: Annotated[float | None, ValueRange(0, 1)] = None,
    rule: Literal["one", "two"] = "one",
    names: tuple[str, ...] = ("a", "b"),
    seed: int = 0,
) -> sl.Result:
    """Tries things.

    More of it.

    Args:
        k: How many, told
            on two lines.
        share: Part.
        rule: "one" or "two".
        names: What they are called.
    """
    generator = torch.Generator().manual_seed(seed)
    return sl.Result(
        {"trial": image.clone()},
        {"k": k, "noise": torch.rand(3, generator=generator)},
        {"trial": f"{label} {share} {rule} {names}"},
    )


def test_reads_signature_and_docstring(
    catalogue: Mapping[str, catalog.Method], tiny: sl.Model, photo: Tensor
) -> None:
    function = registered(trial, quick_parameters={"k": 1})
    entry = catalogue["trial"]
    assert entry.function is function
    assert (entry.name, entry.chapter, entry.summary, entry.subject) == (
        "trial",
        "weights",
        "Tries things.",
        "image",
    )
    assert {name: getattr(entry, name) for name in TEXTS} == TEXTS
    assert (entry.tour_runs, entry.quick_parameters) == (({},), {"k": 1})
    assert list(entry.parameters) == ["label", "k", "share", "rule", "names", "seed"]
    assert entry.parameters["k"] == ParameterSpec(
        "k", int, 3, "How many, told on two lines.", ValueRange(1, 9)
    )
    assert entry.parameters["share"] == ParameterSpec(
        "share", float | None, None, "Part.", ValueRange(0, 1)
    )
    assert entry.parameters["rule"].choices == ("one", "two")
    assert entry.parameters["seed"].doc == catalog.SHARED_PARAMETER_DOCS["seed"]
    assert list(load_methods())[-1] == "trial", "what the table of contents doesn't know comes last"
    assert set(load_methods()) == {*METHODS, "trial"}
    result = function(tiny, photo, k=5)
    assert result.recipe["knobs"] == {
        "label": "top",
        "k": 5,
        "share": None,
        "rule": "one",
        "names": ["a", "b"],
        "seed": 0,
    }
    assert result.recipe["image"] == {"shape": [1, 3, 32, 32], "sha256": hash_tensor(photo)}
    assert result.recipe["model"] == {"model": "Sequential", "built_in_code": True}
    assert result.recipe["versions"].keys() == {"sightline", "torch", "python"}
    assert json.loads(json.dumps(dict(result.recipe)))["method"] == "trial"


def undocumented_knob(model: sl.Model, *, depth: int = 1) -> sl.Result:
    """Goes down."""
    return sl.Result({}, {})


def no_docstring(model: sl.Model, *, seed: int = 0) -> sl.Result:
    return sl.Result({}, {})


def empty_line(model: sl.Model, *, depth: int = 1) -> sl.Result:
    """Goes down.

    Args:
        depth:
    """
    return sl.Result({}, {})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (undocumented_knob, "undocumented_knob: the knob 'depth' has no line under Args:"),
        (empty_line, "empty_line: the knob 'depth' has no line under Args:"),
        (no_docstring, "no_docstring has no docstring"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_documented_is_no_method(
    function: Callable[..., sl.Result], said: str, catalogue: Mapping[str, catalog.Method]
) -> None:
    with pytest.raises(TypeError, match=said):
        registered(function)
    assert function.__name__ not in catalogue


def test_subjects() -> None:
    def weights(model: sl.Model, *, seed: int = 0) -> sl.Result:
        """Weights."""
        return sl.Result({}, {})

    def goal(model: sl.Model, objective: str, *, seed: int = 0) -> sl.Result:
        """Goal."""
        return sl.Result({}, {})

    assert [parse_method_signature(function)[2] for function in (weights, goal, trial)] == [
        "",
        "objective",
        "image",
    ]


def test_the_real_catalogue_is_the_table_of_contents() -> None:
    modules = [
        entry.function.__module__.removeprefix("sightline.methods.")
        for entry in load_methods().values()
    ]
    assert list(dict.fromkeys(modules)) == list(TOPICS)


# ── what a call checks ──


def test_checks_before_the_work(tiny: sl.Model, photo: Tensor) -> None:
    def never(
        model: sl.Model, image: Tensor, *, k: Annotated[int, ValueRange(1, 9)] = 3
    ) -> sl.Result:
        """Never runs.

        Args:
            k: How many.
        """
        pytest.fail("the work began")

    function = registered(never)
    with pytest.raises(sl.SightlineError, match=r"no knob of never named 'kk'; did you mean k\?"):
        function(tiny, photo, kk=3)
    with pytest.raises(sl.SightlineError, match="k is 10; it must lie between 1 and 9"):
        function(tiny, photo, k=10)
    with pytest.raises(sl.SightlineError, match="an image is N×3×H×W in"):
        function(tiny, photo * 2)
    with pytest.raises(TypeError, match="image"):
        function(tiny)


def test_the_image_comes_as_float_without_history(tiny: sl.Model) -> None:
    seen: list[Tensor] = []

    def look(model: sl.Model, image: Tensor, *, seed: int = 0) -> sl.Result:
        """Looks."""
        seen.append(image)
        return sl.Result({}, {})

    registered(look)(tiny, smooth().double().requires_grad_())
    assert (seen[0].dtype, seen[0].requires_grad) == (torch.float32, False)


# ── one knob ──

WHOLE = ParameterSpec("k", int, 3, "", ValueRange(1, 9))
NUMBER = ParameterSpec("lr", float, 0.1, "", ValueRange(0, 1))
OPTION = ParameterSpec("decay", float | None, None, "", ValueRange(0, 1))
FLAG = ParameterSpec("fast", bool, True, "")
FOLDER = ParameterSpec("folder", str | Path | None, None, "")
FREE = ParameterSpec("scale", float, 1.0, "")
SEED = ParameterSpec("seed", int, 0, "")
LABEL = ParameterSpec("label", int | str, "top", "")
TARGET = ParameterSpec("target", int | str | None, None, "")
LAYER = ParameterSpec("layer", str, "first", "")
LAYERS = ParameterSpec("layers", tuple[str, ...], (), "")
RULE = ParameterSpec("rule", Literal["one", "two"], "one", "", None, ("one", "two"))
WATCH = ParameterSpec("callback", Callable[[sl.Step], bool | None] | None, None, "")
NAN, INFINITE = float("nan"), float("inf")

ALLOWED = [
    *((WHOLE, value) for value in (1, 3, 9)),
    *((NUMBER, value) for value in (0, 1, 0.0, 1.0, 0.5, -0.0)),
    *((OPTION, value) for value in (None, 0, 0.5)),
    *((FLAG, value) for value in (True, False)),
    *((FOLDER, value) for value in (None, "a", Path("a"))),
    *((FREE, value) for value in (-3, 1e30)),
    *((SEED, value) for value in (0, -1, 10**30)),
    *((LABEL, value) for value in (0, "3", "top", "")),
    *((TARGET, value) for value in (None, 3, "goose")),
    *((LAYERS, value) for value in (("a",), ["a", "b"], ())),
    *((RULE, value) for value in ("one", "two")),
    *((WATCH, value) for value in (None, print)),
    (LAYER, "conv1"),
]
REFUSED = [
    *((WHOLE, value, "k is 0; it must lie between 1 and 9") for value in (0,)),
    (WHOLE, 10, "k is 10; it must lie between 1 and 9"),
    *(
        (WHOLE, value, f"k is {value!r}; it must be a whole number")
        for value in (3.0, 3.5, True, False, None, "3", NAN, INFINITE)
    ),
    (WHOLE, [3], "k is of type list; it must be a whole number"),
    (WHOLE, torch.tensor(3), "k is of type Tensor; it must be a whole number"),
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
    *(
        (FLAG, value, f"fast is {value!r}; it must be True or False")
        for value in (1, 0.0, None, "yes")
    ),
    (FOLDER, 3, "folder is 3; it must be text or a path or None"),
    (FREE, NAN, "scale is nan; it must be a number"),
    *(
        (SEED, value, f"seed is {value!r}; it must be a whole number")
        for value in (0.0, True, None, NAN)
    ),
    *(
        (LABEL, value, f"label is {value!r}; it must be a whole number or text")
        for value in (1.5, True, None, NAN)
    ),
    (LABEL, torch.tensor(3), "label is of type Tensor; it must be a whole number or text"),
    (TARGET, True, "target is True; it must be a whole number or text or None"),
    (LAYER, 5, "layer is 5; it must be text"),
    (LAYER, None, "layer is None; it must be text"),
    (LAYERS, "conv1", "layers is 'conv1'; it must be a list, each text"),
    (LAYERS, ("conv1", 2), "layers is of type tuple; it must be a list, each text"),
    (LAYERS, None, "layers is None; it must be a list, each text"),
    (RULE, "tow", "no rule named 'tow'; did you mean two?"),
    (RULE, None, "no rule named 'None'; did you mean one?"),
    (RULE, 1, "no rule named '1'; choose from one, two"),
    (WATCH, 3, "callback is 3; it must be a function or None"),
]


@pytest.mark.parametrize(
    ("knob", "value"), ALLOWED, ids=lambda value: getattr(value, "name", repr(value)[:20])
)
def test_allowed(knob: ParameterSpec, value: object) -> None:
    assert knob.check_value(value) is value


@pytest.mark.parametrize(
    ("knob", "value", "said"), REFUSED, ids=lambda value: getattr(value, "name", repr(value)[:20])
)
def test_refused(knob: ParameterSpec, value: object, said: str) -> None:
    with pytest.raises(sl.SightlineError) as error:
        knob.check_value(value)
    assert str(error.value) == said


def test_digest_is_of_the_content() -> None:
    image = smooth()
    assert (
        hash_tensor(image)
        == hash_tensor(image.clone(memory_format=torch.channels_last))
        == hash_tensor(image.double())
    )
    assert hash_tensor(image) != hash_tensor(image + 1e-6)
    assert hash_tensor(image) != hash_tensor(image.flip(3))


def test_a_bare_network_is_refused(photo: Tensor) -> None:
    with pytest.raises(
        SightlineError, match=r"saliency takes a Model: sl\.load\(network\), not the Conv2d itself"
    ):
        sl.saliency(torch.nn.Conv2d(3, 2, 1), photo)


# ── images as knobs ──


def painted(
    model: sl.Model,
    image: Tensor,
    *,
    styles: tuple[Tensor | str | Path, ...] = ("brick",),
    guide: Tensor | str | None = None,
) -> sl.Result:
    """Takes images.

    Args:
        styles: Pictures.
        guide: Another.
    """
    return sl.Result(
        {"painted": image.clone()}, {"styles": len(styles), "guided": guide is not None}
    )


def test_images_as_knobs_are_recorded_by_path_or_digest(tiny: sl.Model, photo: Tensor) -> None:
    result = registered(painted)(tiny, photo, styles=["brick", Path("a.png"), photo], guide=photo)  # type: ignore[arg-type]
    told = {"shape": [1, 3, 32, 32], "sha256": hash_tensor(photo)}
    assert result.recipe["knobs"] == {"styles": ["brick", "a.png", told], "guide": told}
    assert json.loads(json.dumps(dict(result.recipe)))["knobs"] == result.recipe["knobs"]


@pytest.mark.parametrize("styles", [3, "brick", [3], [None]])
def test_refuses_what_is_no_list_of_images(styles: Any, tiny: sl.Model, photo: Tensor) -> None:
    with pytest.raises(
        SightlineError,
        match=r"styles is .* it must be a list, each an image tensor or text or a path",
    ):
        registered(painted)(tiny, photo, styles=styles)


def test_methods_work_in_inference_mode(tiny: sl.Model) -> None:
    """There nothing has a gradient, and what is made there never gets one."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = sl.saliency(tiny, image).tensors["gradient"]
    with torch.inference_mode():
        for given in (image, image.clone()):
            assert torch.equal(sl.saliency(tiny, given).tensors["gradient"], expected)
