"""What every method promises, run over the catalogue: a new method is held to all of it without a line here."""

import json
import random
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
# Knobs that keep a run short.
SHORT: dict[str, dict[str, Any]] = {
    "activations": {"k": 4},
    "adversarial": {"steps": 3, "target": "least", "early": False},
    "deepdream": {"octaves": 1, "steps": 4, "frames": 2},
    "adversarial_patch": {"steps": 3, "k": 2},
    "boundary": {"cells": 5, "steps": 5},
    "filters": {"k": 4},
    "inversion": {"k": 2, "steps": 2},
    "labels": {"k": 3, "units": 2},
    "neighbors": {"k": 3},
    "occlusion": {"window": 8, "stride": 8},
    "patches": {"k": 4, "unit": 3},
    "pointing": {"methods": ("gradcam", "saliency:smoothgrad")},
    "predictions": {"k": 3},
    "rise": {"masks": 6, "cells": 4, "batch": 2},
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
# Methods that ask the same of each image of a batch, without drawing at random.
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

every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
of_images = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if m.subject == "image"], ids=lambda m: m.name
)
with_callback = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if "callback" in m.parameters], ids=lambda m: m.name
)
with_seed = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if "seed" in m.parameters], ids=lambda m: m.name
)


def knobs_where(wanted: Callable[[ParameterSpec], object]) -> Any:
    """Parametrizes over those knobs of all methods."""
    pairs = [
        (method, knob)
        for method in METHODS.values()
        for knob in method.parameters.values()
        if wanted(knob)
    ]
    return pytest.mark.parametrize(
        ("method", "knob"), pairs, ids=[f"{method.name}-{knob.name}" for method, knob in pairs]
    )


@cache
def transformer() -> sl.Model:
    """A small vision transformer that answers differently to different images."""
    torch_state = torch.get_rng_state()
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
    torch.set_rng_state(torch_state)
    return sl.load(network, labels=LABELS, size=32)


def suited(method: Method, model: sl.Model) -> sl.Model:
    """The model, or a transformer for a method that needs one."""
    return transformer() if method.name == "attention" else model


@pytest.fixture(scope="session", autouse=True)
def collection(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder of a few images for the methods that read one."""
    folder = tmp_path_factory.mktemp("collection")
    for number in range(12):
        (folder / LABELS[number % 3]).mkdir(exist_ok=True)
        sl.write(smooth(seed=20 + number), folder / LABELS[number % 3] / f"{number}.png")
    for method in METHODS.values():
        if {"folder", "store"} <= method.parameters.keys():
            SHORT.setdefault(method.name, {})["folder"] = str(folder)


def called(method: Method, model: sl.Model, image: Tensor, /, **knobs: Any) -> sl.Result:
    """The method on the image, on an objective or on the weights alone, with short knobs."""
    subject = {"image": [image], "objective": [sl.logit(1) - 0.1 * sl.tv()], "": []}[method.subject]
    return method.function(
        suited(method, model), *subject, **{**SHORT.get(method.name, {}), **knobs}
    )


@pytest.fixture(scope="module")
def first(tiny: sl.Model, photo: Tensor) -> Callable[[Method], sl.Result]:
    """The first run of each method, made once."""
    found = cache(lambda name: called(METHODS[name], tiny, photo))
    return lambda method: found(method.name)


def same(one: object, other: object) -> bool:
    """Whether two values are equal to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping)
            and list(one) == list(other)
            and all(same(one[key], other[key]) for key in one)
        )
    return type(one) is type(other) and one == other


def identical(one: sl.Result, other: sl.Result) -> bool:
    """Whether two results hold the same pictures, numbers and words."""
    return (
        same(one.panels, other.panels)
        and same(one.values, other.values)
        and same(one.captions, other.captions)
    )


def one_line(error: pytest.ExceptionInfo[sl.SightlineError]) -> bool:
    """Whether an error is told in one line."""
    return str(error.value) != "" and "\n" not in str(error.value)


# ── what a method says of itself ──


@every
def test_speaks_for_itself(method: Method) -> None:
    texts = {
        name: getattr(method, name)
        for name in ("title", "summary", "question", "reading", "caution", "chapter")
    }
    assert all(text.strip() == text != "" for text in texts.values()), texts
    assert method.subject in ("image", "objective", "")
    assert getattr(sl, method.name) is method.function, (
        "its public name is missing from __init__.pyi"
    )


@every
def test_documents_every_knob(method: Method) -> None:
    for knob in method.parameters.values():
        assert knob.doc.strip(), knob.name
        assert "\n" not in knob.doc
        if knob.name != "callback":
            assert knob.check_value(knob.default) is knob.default


@every
def test_report_knobs_are_allowed(method: Method) -> None:
    for told in (*method.tour_runs, method.quick_parameters):
        knobs = {
            name: value
            for name, value in told.items()
            if (name, method.subject) != ("image", "image")
        }
        method.check_parameter_names(knobs)
        for name, value in knobs.items():
            method.parameters[name].check_value(value)


@every
def test_help_tells_every_knob(method: Method, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([method.name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(
        f"--{name.replace('_', '-')}" in shown for name in method.parameters if name != "callback"
    )
    assert method.summary.split()[0] in shown


@every
def test_has_a_gallery_script(method: Method) -> None:
    assert (GALLERY / f"{method.name}.py").is_file()


# ── what it gives ──


@every
def test_panels_are_pictures_with_captions(
    method: Method, first: Callable[[Method], sl.Result]
) -> None:
    result = first(method)
    assert result.panels
    assert set(result.captions) == {*result.panels, *result.pages}
    assert all(caption.strip() for caption in result.captions.values())
    for panel in result.panels.values():
        assert panel.shape[:2] == (1, 3)
        assert panel.dtype == torch.float32
        assert panel.isfinite().all()
        assert 0 <= panel.min() <= panel.max() <= 1
        assert not panel.requires_grad


@every
def test_values_are_finite_and_plain(method: Method, first: Callable[[Method], sl.Result]) -> None:
    result = first(method)
    assert result.values
    assert all(
        tensor.isfinite().all() and not tensor.requires_grad for tensor in result.tensors.values()
    )
    assert json.loads(json.dumps(result.numbers, allow_nan=False)) == result.numbers


@every
def test_same_seed_same_bits(
    method: Method, tiny: sl.Model, photo: Tensor, first: Callable[[Method], sl.Result]
) -> None:
    assert identical(called(method, tiny, photo), first(method))


@with_seed
def test_another_seed_another_picture(
    method: Method, tiny: sl.Model, photo: Tensor, first: Callable[[Method], sl.Result]
) -> None:
    other = called(method, tiny, photo, seed=5)
    assert not identical(other, first(method))
    assert identical(other, called(method, tiny, photo, seed=5))


@every
def test_works_where_gradients_are_off(
    method: Method, tiny: sl.Model, photo: Tensor, first: Callable[[Method], sl.Result]
) -> None:
    with torch.no_grad():
        result = called(method, tiny, photo)
        assert not torch.is_grad_enabled()
    assert identical(result, first(method))


@of_images
def test_takes_a_batch(method: Method, tiny: sl.Model, photo: Tensor) -> None:
    result = called(method, tiny, torch.cat([photo, smooth(seed=1)]))
    assert all(
        panel.shape[:2] == (1, 3) and panel.isfinite().all() for panel in result.panels.values()
    )


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_batch_is_its_images_one_by_one(name: str, tiny: sl.Model, photo: Tensor) -> None:
    images = [photo, smooth(seed=1)]
    together = called(METHODS[name], tiny, torch.cat(images))
    alone = [called(METHODS[name], tiny, image) for image in images]
    for key, value in together.values.items():
        parts = [result.values[key] for result in alone]
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, torch.cat(parts), rtol=1e-4, atol=1e-5)
        else:
            assert (
                value in (parts[0], [*parts[0], *parts[1]])
                if isinstance(value, list)
                else value == parts[0]
            )


# ── what it leaves alone ──


def flags(network: torch.nn.Module) -> list[tuple[object, ...]]:
    """Everything but the numbers that a method could change in a network."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (
            m.training,
            getattr(m, "inplace", None),
            *(tuple(getattr(m, kind).items()) for kind in hooks),
        )
        for m in network.modules()
    ]
    return [
        *modules,
        *((p.requires_grad, p._version, id(p.grad), p.data_ptr()) for p in network.parameters()),
    ]


@every
def test_leaves_the_network_alone(method: Method, photo: Tensor) -> None:
    network, ran = small_network(), []
    network.get_submodule("conv1").register_forward_hook(lambda *_: ran.append(1))
    network.register_buffer("count", torch.ones(3))
    network.get_parameter("conv2.weight").requires_grad_(False)
    network.get_parameter("fc.bias").grad = torch.full((len(LABELS),), 7.0)
    weights, before = (
        {name: value.clone() for name, value in network.state_dict().items()},
        flags(network),
    )
    called(method, sl.load(network, labels=LABELS, size=32), photo)
    assert not ran, "the caller's hook ran"
    assert same(weights, network.state_dict())
    assert flags(network) == before
    assert network.get_parameter("fc.bias").grad.unique().tolist() == [7.0]  # type: ignore[union-attr]


@of_images
def test_leaves_the_image_alone(method: Method, tiny: sl.Model) -> None:
    image = smooth().requires_grad_()
    before, version = image.detach().clone(), image._version
    called(method, tiny, image)
    assert torch.equal(image, before)
    assert (image._version, image.grad, image.requires_grad) == (version, None, True)


@every
def test_leaves_global_state_alone(method: Method, tiny: sl.Model, photo: Tensor) -> None:
    def state() -> list[Any]:
        return [
            random.getstate(),
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
        ]

    before = state()
    called(method, tiny, photo)
    assert state() == before


# ── progress, and stopping it ──


@with_callback
def test_callback_counts_to_the_total(method: Method, tiny: sl.Model, photo: Tensor) -> None:
    steps: list[sl.Step] = []
    called(method, tiny, photo, callback=steps.append)
    assert [step.index for step in steps] == list(range(1, steps[-1].total + 1))
    assert {step.total for step in steps} == {steps[-1].total}
    for step in steps:
        assert step.image.shape[1] == 3
        assert len(step.scores) == len(step.image)
    assert all(one.image is not other.image for one, other in pairwise(steps))


@with_callback
def test_callback_stops_and_keeps_the_picture(
    method: Method, tiny: sl.Model, photo: Tensor
) -> None:
    seen: list[int] = []

    def stop(step: sl.Step) -> bool:
        seen.append(step.index)
        return step.index == 2

    result = called(method, tiny, photo, callback=stop)
    assert seen == [1, 2]
    assert result.panels
    assert result.tensors
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())


@with_callback
def test_watching_changes_nothing(
    method: Method, tiny: sl.Model, photo: Tensor, first: Callable[[Method], sl.Result]
) -> None:
    watched = called(method, tiny, photo, callback=lambda step: step.image.zero_() is None)
    assert identical(watched, first(method))


# ── the recipe ──


def repeated(
    result: sl.Result, method: Method, model: sl.Model, image: Tensor, folder: Path
) -> sl.Result:
    """The result, saved and made again from its recipe.json."""
    result.save(folder)
    return sl.again(
        folder / "recipe.json",
        model=suited(method, model),
        image=image if method.subject == "image" else None,
    )


@every
def test_recipe_repeats_it(
    method: Method,
    tiny: sl.Model,
    photo: Tensor,
    tmp_path: Path,
    first: Callable[[Method], sl.Result],
) -> None:
    recipe = dict(first(method).recipe)
    assert json.loads(json.dumps(recipe, allow_nan=False)).keys() == recipe.keys()
    assert recipe["knobs"].keys() == method.parameters.keys() - {"callback"}
    assert identical(repeated(first(method), method, tiny, photo, tmp_path), first(method))


@with_callback
def test_recipe_repeats_a_stopped_run(
    method: Method, tiny: sl.Model, photo: Tensor, tmp_path: Path
) -> None:
    stopped = called(method, tiny, photo, callback=lambda step: step.index == 2)
    again = repeated(stopped, method, tiny, photo, tmp_path)
    assert identical(again, stopped)
    assert again.recipe == stopped.recipe


@of_images
def test_recipe_knows_its_image(
    method: Method, tiny: sl.Model, first: Callable[[Method], sl.Result]
) -> None:
    with pytest.raises(sl.SightlineError, match="not the image that the recipe was made with"):
        sl.again(first(method).recipe, model=tiny, image=smooth(seed=1))
    with pytest.raises(sl.SightlineError, match="give it with image="):
        sl.again(first(method).recipe, model=tiny)


@of_images
def test_takes_model_and_image_by_name(
    method: Method, tiny: sl.Model, photo: Tensor, first: Callable[[Method], sl.Result]
) -> None:
    named = method.function(model=suited(method, tiny), image=photo, **SHORT.get(method.name, {}))
    assert identical(named, first(method))
    assert named.recipe == first(method).recipe


# ── what it refuses ──


@every
def test_refuses_an_unknown_knob(method: Method, tiny: sl.Model, photo: Tensor) -> None:
    name = next(iter(method.parameters))
    with pytest.raises(
        sl.SightlineError, match=f"{method.name}.*{name}x.*did you mean {name}?"
    ) as error:
        called(method, tiny, photo, **{f"{name}x": 1})
    assert one_line(error)


@knobs_where(lambda knob: knob.value_range)
def test_refuses_a_number_out_of_range(
    method: Method, knob: ParameterSpec, tiny: sl.Model, photo: Tensor
) -> None:
    assert knob.value_range
    low, high = knob.value_range.low, knob.value_range.high
    for wrong in (low - 1, high + 1, "many", True, float("nan")):
        with pytest.raises(sl.SightlineError, match=knob.name) as error:
            called(method, tiny, photo, **{knob.name: wrong})
        assert one_line(error)
        if wrong is not True and wrong in (low - 1, high + 1):
            assert f"must lie between {low} and {high}" in str(error.value)


@knobs_where(lambda knob: knob.choices)
def test_refuses_a_wrong_choice(
    method: Method, knob: ParameterSpec, tiny: sl.Model, photo: Tensor
) -> None:
    for wrong in (f"{knob.choices[0]}x", "", None, 3):
        with pytest.raises(sl.SightlineError, match=knob.name) as error:
            called(method, tiny, photo, **{knob.name: wrong})
        assert any(choice in str(error.value) for choice in knob.choices)
        assert one_line(error)


@knobs_where(lambda knob: knob.name in ("label", "layer", "layers", "target"))
def test_refuses_a_name_that_is_none(
    method: Method, knob: ParameterSpec, tiny: sl.Model, photo: Tensor
) -> None:
    several = knob.name == "layers"
    for wrong in ("no such thing", 2.5, b"conv1", torch.tensor(1), [[]]):
        with pytest.raises(sl.SightlineError) as error:
            called(method, tiny, photo, **{knob.name: (wrong,) if several else wrong})
        assert one_line(error)


@knobs_where(lambda knob: knob.name in ("layer", "layers"))
def test_every_layer_gives_a_result_or_a_reason(
    method: Method, knob: ParameterSpec, tiny: sl.Model, photo: Tensor
) -> None:
    for name in (*tiny.layers, *tiny.landmarks, "conv1:in", "fc:in", "conv1:1"):
        with suppress(sl.SightlineError):
            result = called(
                method, tiny, photo, **{knob.name: (name,) if knob.name == "layers" else name}
            )
            assert all(
                panel.isfinite().all() and 0 <= panel.min() <= panel.max() <= 1
                for panel in result.panels.values()
            )
            assert all(tensor.isfinite().all() for tensor in result.tensors.values())


@knobs_where(lambda knob: knob.choices)
def test_every_choice_gives_a_result_or_a_reason(
    method: Method, knob: ParameterSpec, tiny: sl.Model, photo: Tensor
) -> None:
    results: list[sl.Result] = []
    for choice in (c for c in knob.choices if c not in SLOW.get((method.name, knob.name), ())):
        with suppress(sl.SightlineError):
            results.append(called(method, tiny, photo, **{knob.name: choice}))
    assert results
    for result in results:
        assert all(
            panel.isfinite().all() and 0 <= panel.min() <= panel.max() <= 1
            for panel in result.panels.values()
        )
        assert all(
            tensor.isfinite().all() and not tensor.requires_grad
            for tensor in result.tensors.values()
        )


@knobs_where(lambda knob: knob.name == "callback")
def test_refuses_a_callback_that_cannot_be_called(
    method: Method, knob: ParameterSpec, tiny: sl.Model, photo: Tensor
) -> None:
    with pytest.raises(sl.SightlineError, match="callback"):
        called(method, tiny, photo, callback=3)


@of_images
@pytest.mark.parametrize(
    "image",
    [
        torch.full((1, 3, 32, 32), 2.0),
        torch.full((1, 3, 32, 32), -0.1),
        torch.rand(3, 32, 32),
        torch.rand(1, 1, 32, 32),
        torch.rand(0, 3, 32, 32),
        torch.full((1, 3, 32, 32), torch.nan),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        np.zeros((1, 3, 32, 32), dtype=np.float32),
        "photo.jpg",
        None,
    ],
    ids=["over", "under", "dims", "gray", "empty", "nan", "uint8", "numpy", "path", "none"],
)
def test_refuses_what_is_no_image(method: Method, image: Any, tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="an image is N×3×H×W in") as error:
        called(method, tiny, image)
    assert one_line(error)
