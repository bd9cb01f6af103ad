"""What every method promises.

The tests run over the registry, so a new method is held to all of it without a line here.
"""

import ast
import copy
import inspect
import json
import pickle
import random
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import LABELS, ROOT, small_network, smooth
from torch import Tensor
from torchvision.models import VisionTransformer

import sightline as sl
from sightline.app.cli.main import main
from sightline.methods import load_methods
from sightline.registry.method import Method
from sightline.registry.parameter import ParameterSpec

METHODS = load_methods()
GALLERY = ROOT / "gallery"
# Parameters that keep a run short.
SHORT: dict[str, dict[str, Any]] = {
    "activations": {"k": 4},
    "adversarial": {"steps": 3, "target": "least", "early": False},
    "contrast": {"ascent_size": 32, "steps": 3},
    "deepdream": {"octaves": 1, "steps": 4, "frames": 2},
    "adversarial_patch": {"steps": 3, "k": 2},
    "boundary": {"cells": 5, "steps": 5},
    "filters": {"k": 4},
    "inversion": {"k": 2, "steps": 2},
    "labels": {"k": 3, "max_units": 2},
    "neighbors": {"k": 3},
    "occlusion": {"window": 8, "stride": 8},
    "patches": {"k": 4, "unit": 3},
    "pointing": {"methods": ("gradcam", "saliency:smoothgrad")},
    "predictions": {"k": 3},
    "rise": {"samples": 6, "cells": 4, "batch": 2},
    "saliency": {"kind": "smoothgrad", "samples": 3},
    "transfer": {"steps": 3},
    "universal": {"steps": 3, "k": 2},
    "stylize": {"styles": ("scream", "minotaur")},
    "norms": {"size": 32},
    "synthesis": {"steps": 4, "size": 32},
    "style": {"steps": 2, "start": "noise"},
    "texture": {"side": 40},
}
# Choices that take seconds to set up; a test of their own runs them.
SLOW = {("embedding", "method"): ("umap",)}
# Methods that do the same to each image of a batch, without randomness.
DETERMINISTIC = (
    "activations",
    "attention",
    "cam",
    "gradcam",
    "guided",
    "neighbors",
    "norms",
    "occlusion",
    "predictions",
    "rise",
    "saliency",
    "segment",
    "stylize",
)

HEIGHT, WIDTH = 32, 40


def name_method(method: Method) -> str:
    return method.name


def parametrize_methods(condition: Callable[[Method], object]) -> Any:
    """Parametrizes over those methods that meet a condition."""
    methods = [method for method in METHODS.values() if condition(method)]
    return pytest.mark.parametrize("method", methods, ids=name_method)


every_method = parametrize_methods(lambda method: True)
every_image_method = parametrize_methods(lambda method: method.subject == "image")
every_method_with_callback = parametrize_methods(lambda method: "callback" in method.parameters)
every_method_with_seed = parametrize_methods(lambda method: "seed" in method.parameters)


def parametrize_parameters(condition: Callable[[ParameterSpec], object]) -> Any:
    """Parametrizes over those parameters of all methods that meet a condition."""
    pairs: list[tuple[Method, ParameterSpec]] = []
    for method in METHODS.values():
        for parameter in method.parameters.values():
            if condition(parameter):
                pairs.append((method, parameter))
    names = [f"{method.name}-{parameter.name}" for method, parameter in pairs]
    return pytest.mark.parametrize(("method", "parameter"), pairs, ids=names)


def make_image(seed: int = 0) -> Tensor:
    """A smooth image that is neither square nor symmetric: 1×3×32×40."""
    return smooth(side=WIDTH, seed=seed)[..., :HEIGHT, :]


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Nobody may change it."""
    return make_image()


@cache
def load_transformer() -> sl.Model:
    """A small vision transformer whose output differs between images."""
    global_state = torch.get_rng_state()
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
        num_classes=len(LABELS),
    )
    torch.nn.init.normal_(network.heads.head.weight)  # type: ignore[arg-type, union-attr]
    torch.set_rng_state(global_state)
    return sl.load(network, labels=LABELS, size=32)


def suit_model(method: Method, model: sl.Model) -> sl.Model:
    """The model, or a transformer for a method that needs one."""
    return load_transformer() if method.name == "attention" else model


def suit_image(method: Method, image: Tensor) -> Tensor:
    """The image, or the square that the transformer takes."""
    return image[..., :32, :32] if method.name == "attention" else image


@pytest.fixture(scope="session", autouse=True)
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder of a few images for the methods that read one."""
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(12):
        class_folder = folder / LABELS[number % 3]
        class_folder.mkdir(exist_ok=True)
        sl.write(make_image(seed=20 + number), class_folder / f"{number}.png")
    for method in METHODS.values():
        if {"folder", "store"} <= method.parameters.keys():
            SHORT.setdefault(method.name, {})["folder"] = str(folder)


def run(method: Method, model: sl.Model, image: Any, /, **parameters: Any) -> sl.Result:
    """Runs the method on an image, an objective or the weights alone, with short parameters."""
    subject: list[Any] = []
    if method.subject == "image":
        subject = [suit_image(method, image) if isinstance(image, Tensor) else image]
    elif method.subject == "objective":
        subject = [sl.logit(1) - 0.1 * sl.tv()]
    settings = {**SHORT.get(method.name, {}), **parameters}
    return method.function(suit_model(method, model), *subject, **settings)


@pytest.fixture(scope="module")
def run_once(tiny: sl.Model, image: Tensor) -> Callable[[Method], sl.Result]:
    """The first run of each method on the image, made once."""
    run_by_name = cache(lambda name: run(METHODS[name], tiny, image))
    return lambda method: run_by_name(method.name)


def is_same_value(value: object, expected: object) -> bool:
    """Whether two values are equal to the bit."""
    if isinstance(expected, Tensor):
        is_tensor = isinstance(value, Tensor)
        return is_tensor and value.dtype == expected.dtype and torch.equal(value, expected)
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping) or list(value) != list(expected):
            return False
        return all(is_same_value(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and value == expected


def is_same_result(result: sl.Result, expected: sl.Result) -> bool:
    """Whether two results have the same pictures, values and captions."""
    return (
        is_same_value(result.panels, expected.panels)
        and is_same_value(result.values, expected.values)
        and is_same_value(result.captions, expected.captions)
    )


def assert_valid(result: sl.Result) -> None:
    """The pictures are pictures, and all numbers are finite."""
    for panel in result.panels.values():
        assert panel.isfinite().all()
        assert 0 <= panel.min() <= panel.max() <= 1
    for tensor in result.tensors.values():
        assert tensor.isfinite().all()
        assert not tensor.requires_grad


def is_one_line(error: pytest.ExceptionInfo[sl.SightlineError]) -> bool:
    message = str(error.value)
    return message != "" and "\n" not in message


# ── what a method says of itself ──


@every_method
def test_all_texts_are_there(method: Method) -> None:
    texts = {
        name: getattr(method, name)
        for name in ("title", "summary", "question", "reading", "caution", "chapter")
    }
    assert all(text.strip() == text != "" for text in texts.values()), texts
    assert method.subject in ("image", "objective", "")
    assert getattr(sl, method.name) is method.function, (
        "its public name is missing from __init__.pyi"
    )


@every_method
def test_every_parameter_is_documented_and_its_default_allowed(method: Method) -> None:
    for parameter in method.parameters.values():
        assert parameter.doc.strip(), parameter.name
        assert "\n" not in parameter.doc
        if parameter.name != "callback":
            assert parameter.check_value(parameter.default) is parameter.default


@every_method
def test_parameters_of_the_report_are_allowed(method: Method) -> None:
    for run_parameters in (*method.tour_runs, method.quick_parameters):
        parameters = dict(run_parameters)
        if method.subject == "image":
            parameters.pop("image", None)
        method.check_parameter_names(parameters)
        for name, value in parameters.items():
            method.parameters[name].check_value(value)


@every_method
def test_command_line_help_shows_every_parameter(
    method: Method, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([method.name, "--help"]) == 0
    output = capsys.readouterr().out
    for name in method.parameters:
        if name != "callback":
            assert f"--{name.replace('_', '-')}" in output
    assert method.summary.split()[0] in output


@every_method
def test_size_of_the_command_means_one_thing(method: Method) -> None:
    """`--size` is that of the photograph, or of what a method without one makes."""
    assert method.subject != "image" or "size" not in method.parameters


@every_method
def test_has_a_gallery_script(method: Method) -> None:
    assert (GALLERY / f"{method.name}.py").is_file()


# ── what help() shows ──


def read_help(method: Method) -> dict[str, str]:
    """The sections of a method's docstring by title, each on one line; the prose under ""."""
    text = inspect.getdoc(method.function) or ""
    prose, *parts = re.split(r"^(Args|Returns|Raises|Source|Example):$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    return {"": prose, **sections}


@every_method
def test_help_documents_every_parameter(method: Method) -> None:
    """One entry an argument, in the order of the signature, with documentation and default."""
    arguments = read_help(method)["Args"]
    entries = re.split(r"\n    (\w+): ", arguments)[1:]
    docs = {
        name: " ".join(doc.split()) for name, doc in zip(entries[::2], entries[1::2], strict=True)
    }
    signature = inspect.signature(method.function)
    assert list(docs) == list(signature.parameters)
    for name, parameter in method.parameters.items():
        assert docs[name].startswith(parameter.doc), name
        assert re.search(r"\b([Dd]efault .+|[Rr]equired)\.$", docs[name]), name
        if parameter.value_range:
            limits = re.findall(r"[Ff]rom (\S+) to ([^;]+);", docs[name])[-1]
            low, high = (float(limit.replace(",", "")) for limit in limits)
            assert low == pytest.approx(parameter.value_range.low), name
            assert high == pytest.approx(parameter.value_range.high), name
        for choice in parameter.choices:
            assert f'"{choice}"' in docs[name], name
    for name in signature.parameters.keys() - method.parameters.keys():
        assert len(docs[name]) > 20, name


@every_method
def test_help_is_complete(method: Method) -> None:
    sections = read_help(method)
    assert sections[""].startswith(method.summary)
    assert sections["Returns"].strip()
    assert "SightlineError: " in sections["Raises"]
    module_doc = sys.modules[method.function.__module__].__doc__ or ""
    for year in re.findall(r"\((?:[^()]*\D)?((?:19|20)\d\d)[^()]*\)", module_doc):
        assert year in sections["Source"]


@every_method
def test_the_example_of_help_can_be_called(method: Method) -> None:
    load, call = ast.parse(read_help(method)["Example"].strip()).body
    assert ast.unparse(load) == "model = sl.load()"
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert ast.unparse(call.value.func) == f"sl.{method.name}"
    parameters = {
        keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.value.keywords
    }
    inspect.signature(method.function).bind(*call.value.args, **parameters)
    for name, value in parameters.items():
        method.parameters[name].check_value(value)


# ── what it gives ──


@every_method
def test_panels_are_pictures_with_captions(
    method: Method, run_once: Callable[[Method], sl.Result]
) -> None:
    result = run_once(method)
    assert result.panels
    assert set(result.captions) == {*result.panels, *result.pages}
    assert all(caption.strip() for caption in result.captions.values())
    for panel in result.panels.values():
        assert panel.shape[:2] == (1, 3)
        assert panel.dtype == torch.float32
        assert not panel.requires_grad
    assert_valid(result)


@every_method
def test_values_are_finite_and_plain(
    method: Method, run_once: Callable[[Method], sl.Result]
) -> None:
    result = run_once(method)
    assert result.values
    assert_valid(result)
    assert json.loads(json.dumps(result.numbers, allow_nan=False)) == result.numbers


@every_method
def test_a_result_shows_itself(method: Method, run_once: Callable[[Method], sl.Result]) -> None:
    result = run_once(method)
    assert "\n" not in repr(result)
    assert method.name in repr(result)
    page = result._repr_html_()
    assert page.count("<img ") == len(result.panels)
    assert page.count("<figcaption") == len(result.panels)


@every_method
def test_a_result_can_be_copied_and_pickled(
    method: Method, run_once: Callable[[Method], sl.Result]
) -> None:
    result = run_once(method)
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert is_same_result(twin, result)
        assert (twin.captions, twin.recipe, twin.pages) == (
            result.captions,
            result.recipe,
            result.pages,
        )
        assert list(twin.figures) == list(result.figures)
        with pytest.raises(TypeError):
            twin.values["new"] = 1  # type: ignore[index]


@every_method
def test_same_seed_same_bits(
    method: Method, tiny: sl.Model, image: Tensor, run_once: Callable[[Method], sl.Result]
) -> None:
    assert is_same_result(run(method, tiny, image), run_once(method))


@every_method_with_seed
def test_another_seed_another_picture(
    method: Method, tiny: sl.Model, image: Tensor, run_once: Callable[[Method], sl.Result]
) -> None:
    result = run(method, tiny, image, seed=5)
    assert not is_same_result(result, run_once(method))
    assert is_same_result(result, run(method, tiny, image, seed=5))


@every_method
def test_works_where_gradients_are_off(
    method: Method, tiny: sl.Model, image: Tensor, run_once: Callable[[Method], sl.Result]
) -> None:
    with torch.no_grad():
        result = run(method, tiny, image)
        assert not torch.is_grad_enabled()
    assert is_same_result(result, run_once(method))


@every_image_method
def test_takes_a_batch(method: Method, tiny: sl.Model, image: Tensor) -> None:
    result = run(method, tiny, torch.cat([image, make_image(seed=1)]))
    for panel in result.panels.values():
        assert panel.shape[:2] == (1, 3)
        assert panel.isfinite().all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_batch_is_its_images_one_by_one(name: str, tiny: sl.Model, image: Tensor) -> None:
    images = [image, make_image(seed=1)]
    together = run(METHODS[name], tiny, torch.cat(images))
    alone = [run(METHODS[name], tiny, single) for single in images]
    for key, value in together.values.items():
        first, second = (result.values[key] for result in alone)
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, torch.cat([first, second]), rtol=1e-4, atol=1e-5)
        elif isinstance(value, list):
            assert value in (first, [*first, *second])
        else:
            assert value == first


# ── what it leaves alone ──


def read_flags(network: torch.nn.Module) -> list[tuple[object, ...]]:
    """Everything but the numbers that a method could change in a network."""
    hook_kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    flags: list[tuple[object, ...]] = []
    for module in network.modules():
        hooks = [tuple(getattr(module, kind).items()) for kind in hook_kinds]
        flags.append((module.training, getattr(module, "inplace", None), *hooks))
    for weight in network.parameters():
        flags.append((weight.requires_grad, weight._version, id(weight.grad), weight.data_ptr()))
    return flags


@every_method
def test_leaves_the_network_alone(method: Method, image: Tensor) -> None:
    network = small_network()
    hook_calls: list[int] = []
    network.get_submodule("conv1").register_forward_hook(lambda *_: hook_calls.append(1))
    network.register_buffer("count", torch.ones(3))
    network.get_parameter("conv2.weight").requires_grad_(False)
    network.get_parameter("fc.bias").grad = torch.full((len(LABELS),), 7.0)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    flags = read_flags(network)

    run(method, sl.load(network, labels=LABELS, size=32), image)

    assert not hook_calls, "the caller's hook ran"
    assert is_same_value(network.state_dict(), weights)
    assert read_flags(network) == flags
    assert network.get_parameter("fc.bias").grad.unique().tolist() == [7.0]  # type: ignore[union-attr]


@every_image_method
def test_leaves_the_image_alone(method: Method, tiny: sl.Model) -> None:
    image = suit_image(method, make_image()).clone().requires_grad_()
    original = image.detach().clone()
    version = image._version
    run(method, tiny, image)
    assert torch.equal(image, original)
    assert (image._version, image.grad, image.requires_grad) == (version, None, True)


@every_method
def test_leaves_global_state_alone(method: Method, tiny: sl.Model, image: Tensor) -> None:
    def read_global_state() -> list[Any]:
        return [
            random.getstate(),
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
        ]

    state = read_global_state()
    run(method, tiny, image)
    assert read_global_state() == state


# ── progress, and stopping it ──


@every_method_with_callback
def test_callback_counts_to_the_total(method: Method, tiny: sl.Model, image: Tensor) -> None:
    steps: list[sl.Step] = []
    run(method, tiny, image, callback=steps.append)
    assert [step.index for step in steps] == list(range(1, steps[-1].total + 1))
    assert {step.total for step in steps} == {steps[-1].total}
    for step in steps:
        assert step.image.shape[1] == 3
        assert len(step.scores) == len(step.image)
    assert all(step.image is not following.image for step, following in pairwise(steps))


@every_method_with_callback
def test_callback_stops_and_keeps_the_picture(
    method: Method, tiny: sl.Model, image: Tensor
) -> None:
    indices: list[int] = []

    def stop_at_two(step: sl.Step) -> bool:
        indices.append(step.index)
        return step.index == 2

    result = run(method, tiny, image, callback=stop_at_two)
    assert indices == [1, 2]
    assert result.panels
    assert result.tensors
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())


@every_method_with_callback
def test_watching_changes_nothing(
    method: Method, tiny: sl.Model, image: Tensor, run_once: Callable[[Method], sl.Result]
) -> None:
    watched = run(method, tiny, image, callback=lambda step: step.image.zero_() is None)
    assert is_same_result(watched, run_once(method))


# ── the recipe ──


def save_and_repeat(
    result: sl.Result, method: Method, model: sl.Model, image: Tensor, folder: Path
) -> sl.Result:
    """The result, saved and made again from its recipe.json."""
    result.save(folder)
    return sl.again(
        folder / "recipe.json",
        model=suit_model(method, model),
        image=suit_image(method, image) if method.subject == "image" else None,
    )


@every_method
def test_recipe_repeats_it(
    method: Method,
    tiny: sl.Model,
    image: Tensor,
    tmp_path: Path,
    run_once: Callable[[Method], sl.Result],
) -> None:
    result = run_once(method)
    recipe = dict(result.recipe)
    assert json.loads(json.dumps(recipe, allow_nan=False)).keys() == recipe.keys()
    assert recipe["knobs"].keys() == method.parameters.keys() - {"callback"}
    assert is_same_result(save_and_repeat(result, method, tiny, image, tmp_path), result)


@every_method_with_callback
def test_recipe_repeats_a_stopped_run(
    method: Method, tiny: sl.Model, image: Tensor, tmp_path: Path
) -> None:
    stopped = run(method, tiny, image, callback=lambda step: step.index == 2)
    repeated = save_and_repeat(stopped, method, tiny, image, tmp_path)
    assert is_same_result(repeated, stopped)
    assert repeated.recipe == stopped.recipe


@every_image_method
def test_recipe_knows_its_image(
    method: Method, tiny: sl.Model, run_once: Callable[[Method], sl.Result]
) -> None:
    recipe = run_once(method).recipe
    with pytest.raises(sl.SightlineError, match="not the image that the recipe was made with"):
        sl.again(recipe, model=tiny, image=make_image(seed=1))
    with pytest.raises(sl.SightlineError, match="give it with image="):
        sl.again(recipe, model=tiny)


@every_image_method
def test_takes_model_and_image_by_name(
    method: Method, tiny: sl.Model, image: Tensor, run_once: Callable[[Method], sl.Result]
) -> None:
    result = method.function(
        model=suit_model(method, tiny),
        image=suit_image(method, image),
        **SHORT.get(method.name, {}),
    )
    assert is_same_result(result, run_once(method))
    assert result.recipe == run_once(method).recipe


# ── what it refuses ──


@every_method
def test_refuses_an_unknown_parameter(method: Method, tiny: sl.Model, image: Tensor) -> None:
    name = next(iter(method.parameters))
    with pytest.raises(
        sl.SightlineError, match=f"{method.name}.*{name}x.*did you mean {name}?"
    ) as error:
        run(method, tiny, image, **{f"{name}x": 1})
    assert is_one_line(error)


@parametrize_parameters(lambda parameter: parameter.value_range)
def test_refuses_a_number_out_of_range(
    method: Method, parameter: ParameterSpec, tiny: sl.Model, image: Tensor
) -> None:
    assert parameter.value_range
    low = parameter.value_range.low
    high = parameter.value_range.high
    for value in (low - 1, high + 1, "many", True, float("nan")):
        with pytest.raises(sl.SightlineError, match=parameter.name) as error:
            run(method, tiny, image, **{parameter.name: value})
        assert is_one_line(error)
        if value is not True and value in (low - 1, high + 1):
            assert f"must lie between {low} and {high}" in str(error.value)


@parametrize_parameters(lambda parameter: parameter.choices)
def test_refuses_a_wrong_choice(
    method: Method, parameter: ParameterSpec, tiny: sl.Model, image: Tensor
) -> None:
    for value in (f"{parameter.choices[0]}x", "", None, 3):
        with pytest.raises(sl.SightlineError, match=parameter.name) as error:
            run(method, tiny, image, **{parameter.name: value})
        assert any(choice in str(error.value) for choice in parameter.choices)
        assert is_one_line(error)


@parametrize_parameters(lambda parameter: parameter.name in ("label", "layer", "layers", "target"))
def test_refuses_a_name_that_does_not_exist(
    method: Method, parameter: ParameterSpec, tiny: sl.Model, image: Tensor
) -> None:
    for name in ("no such thing", 2.5, b"conv1", torch.full((2, 2), 0.5), [[]]):
        value = (name,) if parameter.name == "layers" else name
        with pytest.raises(sl.SightlineError) as error:
            run(method, tiny, image, **{parameter.name: value})
        assert is_one_line(error)


@parametrize_parameters(lambda parameter: parameter.name in ("layer", "layers"))
def test_every_layer_gives_a_result_or_a_reason(
    method: Method, parameter: ParameterSpec, tiny: sl.Model, image: Tensor
) -> None:
    for name in (*tiny.layers, *tiny.landmarks, "conv1:in", "fc:in", "conv1:1"):
        value = (name,) if parameter.name == "layers" else name
        with suppress(sl.SightlineError):
            assert_valid(run(method, tiny, image, **{parameter.name: value}))


@parametrize_parameters(lambda parameter: parameter.choices)
def test_every_choice_gives_a_result_or_a_reason(
    method: Method, parameter: ParameterSpec, tiny: sl.Model, image: Tensor
) -> None:
    slow_choices = SLOW.get((method.name, parameter.name), ())
    results: list[sl.Result] = []
    for choice in parameter.choices:
        if choice not in slow_choices:
            with suppress(sl.SightlineError):
                results.append(run(method, tiny, image, **{parameter.name: choice}))
    assert results
    for result in results:
        assert_valid(result)


@parametrize_parameters(lambda parameter: parameter.name == "callback")
def test_refuses_a_callback_that_cannot_be_called(
    method: Method, parameter: ParameterSpec, tiny: sl.Model, image: Tensor
) -> None:
    with pytest.raises(sl.SightlineError, match="callback"):
        run(method, tiny, image, callback=3)


@every_image_method
@pytest.mark.parametrize(
    "value",
    [
        torch.full((1, 3, HEIGHT, WIDTH), 2.0),
        torch.full((1, 3, HEIGHT, WIDTH), -0.1),
        torch.rand(3, HEIGHT, WIDTH),
        torch.rand(1, 1, HEIGHT, WIDTH),
        torch.rand(0, 3, HEIGHT, WIDTH),
        torch.full((1, 3, HEIGHT, WIDTH), torch.nan),
        torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8),
        np.zeros((1, 3, HEIGHT, WIDTH), dtype=np.float32),
        "photo.jpg",
        None,
    ],
    ids=["over", "under", "dims", "gray", "empty", "nan", "uint8", "numpy", "path", "none"],
)
def test_refuses_what_is_no_image(method: Method, value: Any, tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="an image is N×3×H×W in") as error:
        run(method, tiny, value)
    assert is_one_line(error)
