"""A method is read once, from its signature and docstring; every call is checked and recorded."""

import inspect
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
from sightline.registry import method as registry
from sightline.registry.docstring import SHARED_PARAMETER_DOCS, read_docstring
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
def methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, registry.Method]]:
    """A copy of the registry to register in; the registry itself must stay as it is."""
    load_methods()
    original = dict(METHODS)
    copied = dict(METHODS)
    monkeypatch.setattr(registry, "METHODS", copied)
    yield copied
    assert original == METHODS


@pytest.fixture
def image() -> Tensor:
    """Smooth, and neither square nor symmetric: 1×3×24×30."""
    return smooth()[..., :24, :30]


def register(function: Callable[..., sl.Result], **declaration: Any) -> Callable[..., sl.Result]:
    """The function as a method of the weights chapter."""
    return register_method(**{**TEXTS, **declaration})(function)


def parse(function: Callable[..., sl.Result]) -> registry.MethodSignature:
    return parse_method_signature(function, read_docstring(function))


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


def test_reads_signature_and_docstring(methods: Mapping[str, registry.Method]) -> None:
    function = register(trial, quick_parameters={"k": 1})
    method = methods["trial"]
    assert method.function is function
    assert method.name == "trial"
    assert method.summary == "Tries things."
    assert method.subject == "image"
    assert not method.subject_optional
    assert {name: getattr(method, name) for name in TEXTS} == TEXTS
    assert method.tour_runs == ({},)
    assert method.quick_parameters == {"k": 1}
    assert list(method.parameters) == ["label", "k", "share", "rule", "names", "seed"]
    assert method.parameters["k"] == ParameterSpec(
        "k", int, 3, "How many, told on two lines.", ValueRange(1, 9)
    )
    assert method.parameters["share"] == ParameterSpec(
        "share", float | None, None, "Part.", ValueRange(0, 1)
    )
    assert method.parameters["rule"].choices == ("one", "two")
    assert method.parameters["seed"].doc == SHARED_PARAMETER_DOCS["seed"]
    assert list(load_methods())[-1] == "trial", "what the table of contents does not know is last"
    assert set(load_methods()) == {*METHODS, "trial"}


def test_the_function_keeps_its_signature_and_gets_its_help() -> None:
    function = register(trial)
    assert inspect.signature(function) == inspect.signature(trial)
    assert function.__name__ == "trial"
    assert function.__doc__
    assert function.__doc__.startswith("Tries things.\n\nMore of it.\n\nArgs:\n    model: ")
    assert "    k: How many, told on two lines. From 1 to 9; default 3.\n" in function.__doc__


def test_the_recipe_holds_all_parameters(tiny: sl.Model, image: Tensor) -> None:
    recipe = register(trial)(tiny, image, k=5).recipe
    assert recipe["method"] == "trial"
    assert recipe["knobs"] == {
        "label": "top",
        "k": 5,
        "share": None,
        "rule": "one",
        "names": ["a", "b"],
        "seed": 0,
    }
    assert recipe["image"] == {"shape": [1, 3, 24, 30], "sha256": hash_tensor(image)}
    assert recipe["model"] == {"model": "Sequential", "built_in_code": True}
    assert recipe["versions"].keys() == {"sightline", "torch", "python"}
    assert json.loads(json.dumps(dict(recipe))) == recipe


def undocumented_parameter(model: sl.Model, *, depth: int = 1) -> sl.Result:
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
    ("function", "message"),
    [
        (
            undocumented_parameter,
            "undocumented_parameter: the parameter 'depth' has no line under Args:",
        ),
        (empty_line, "empty_line: the parameter 'depth' has no line under Args:"),
        (no_docstring, "no_docstring has no docstring"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_documented_is_no_method(
    function: Callable[..., sl.Result], message: str, methods: Mapping[str, registry.Method]
) -> None:
    with pytest.raises(TypeError, match=message):
        register(function)
    assert function.__name__ not in methods


def test_subjects() -> None:
    def weights(model: sl.Model, *, seed: int = 0) -> sl.Result:
        """Weights."""
        return sl.Result({}, {})

    def goal(model: sl.Model, objective: str = "", *, seed: int = 0) -> sl.Result:
        """Goal."""
        return sl.Result({}, {})

    signatures = [parse(function) for function in (weights, goal, trial)]
    assert [signature.subject for signature in signatures] == ["", "objective", "image"]
    assert [signature.subject_optional for signature in signatures] == [False, True, False]


def test_the_methods_are_in_the_order_of_the_table_of_contents() -> None:
    modules = [
        method.function.__module__.removeprefix("sightline.methods.")
        for method in load_methods().values()
    ]
    assert list(dict.fromkeys(modules)) == list(TOPICS)


# ── what a call checks ──


def test_checks_before_the_work(tiny: sl.Model, image: Tensor) -> None:
    def never(
        model: sl.Model, image: Tensor, *, k: Annotated[int, ValueRange(1, 9)] = 3
    ) -> sl.Result:
        """Never runs.

        Args:
            k: How many.
        """
        pytest.fail("the work began")

    function = register(never)
    with pytest.raises(SightlineError, match=r"no parameter of never named 'kk'; did you mean k\?"):
        function(tiny, image, kk=3)
    with pytest.raises(SightlineError, match="k is 10; it must lie between 1 and 9"):
        function(tiny, image, k=10)
    with pytest.raises(SightlineError, match="an image is N×3×H×W in"):
        function(tiny, image * 2)
    with pytest.raises(TypeError, match="image"):
        function(tiny)


def test_model_and_image_may_be_given_by_name(tiny: sl.Model, image: Tensor) -> None:
    function = register(trial)
    expected = function(tiny, image, k=2)
    for result in (function(tiny, image=image, k=2), function(k=2, image=image, model=tiny)):
        assert torch.equal(result.panels["trial"], image)
        assert result.recipe == expected.recipe


def test_the_image_arrives_as_float_without_history(tiny: sl.Model, image: Tensor) -> None:
    images: list[Tensor] = []

    def look(model: sl.Model, image: Tensor, *, seed: int = 0) -> sl.Result:
        """Looks."""
        images.append(image)
        return sl.Result({}, {})

    register(look)(tiny, image.double().requires_grad_())
    assert images[0].dtype == torch.float32
    assert not images[0].requires_grad


def test_the_step_of_a_stop_is_recorded(tiny: sl.Model) -> None:
    def count(model: sl.Model, *, callback: Callable[[sl.Step], object] | None = None) -> sl.Result:
        """Counts to 5."""
        step_count = 0
        for index in range(1, 6):
            step_count = index
            if callback and callback(sl.Step(index, 5, torch.zeros(1), smooth())):
                break
        return sl.Result({}, {"steps": step_count})

    function = register(count)
    stopped = function(tiny, callback=lambda step: step.index >= 3)
    assert stopped.values["steps"] == 3
    assert stopped.recipe["stopped_after"] == 3
    for callback in (None, lambda step: None):
        result = function(tiny, callback=callback)
        assert result.values["steps"] == 5
        assert "stopped_after" not in result.recipe


def test_a_bare_network_is_refused(image: Tensor) -> None:
    with pytest.raises(
        SightlineError, match=r"saliency takes a Model: sl\.load\(network\), not the Conv2d itself"
    ):
        sl.saliency(torch.nn.Conv2d(3, 2, 1), image)  # type: ignore[arg-type]
    with pytest.raises(SightlineError, match=r"saliency takes a Model first, as sl\.load gives it"):
        sl.saliency("vgg16", image)  # type: ignore[arg-type]


def test_methods_work_in_inference_mode(tiny: sl.Model, image: Tensor) -> None:
    """There nothing has a gradient, and what is made there never gets one."""
    expected = sl.saliency(tiny, image).tensors["gradient"]
    with torch.inference_mode():
        for inference_image in (image, image.clone()):
            gradient = sl.saliency(tiny, inference_image).tensors["gradient"]
            assert torch.equal(gradient, expected)


# ── images as parameters ──


def paint(
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
    return sl.Result({"painted": image.clone()}, {"styles": len(styles)})


def test_images_are_recorded_by_path_or_digest(tiny: sl.Model, image: Tensor) -> None:
    styles: Any = ["brick", Path("a.png"), image]
    recipe = register(paint)(tiny, image, styles=styles, guide=image).recipe
    recorded_image = {"shape": [1, 3, 24, 30], "sha256": hash_tensor(image)}
    assert recipe["knobs"] == {
        "styles": ["brick", "a.png", recorded_image],
        "guide": recorded_image,
    }
    assert json.loads(json.dumps(dict(recipe)))["knobs"] == recipe["knobs"]


def test_digest_is_of_the_content() -> None:
    image = smooth()[..., :24, :30]
    digest = hash_tensor(image)
    assert hash_tensor(image.clone(memory_format=torch.channels_last)) == digest
    assert hash_tensor(image.double()) == digest
    assert hash_tensor(image + 1e-6) != digest
    assert hash_tensor(image.flip(3)) != digest
