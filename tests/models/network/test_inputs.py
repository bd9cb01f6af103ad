"""Further inputs of a network and layouts of the image, as a direct call would have them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.network.inputs import (
    NetworkInputs,
    apply_layout,
    make_network_inputs,
    parse_layout_words,
)


class ImageFirst(nn.Module):
    def forward(self, image: Tensor, age: Tensor, mask: Tensor | None = None) -> Tensor:
        return image


class ImageSecond(nn.Module):
    def forward(self, age: Tensor, image: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return image


class AnyInputs(nn.Module):
    def forward(self, image: Tensor, **others: Any) -> Tensor:
        return image


@pytest.mark.parametrize(
    ("network", "extra", "image_parameter"),
    [
        (ImageFirst(), {"age": 3}, ""),
        (ImageSecond(), {"age": 3}, "image"),
        (ImageSecond(), {"mask": 1}, ""),  # the image goes to the first that is left
        (AnyInputs(), {"whatever": 3}, ""),
        (ImageSecond(), lambda batch: {"age": batch}, "image"),
        (ImageFirst(), None, ""),
    ],
)
def test_the_image_goes_to_the_first_parameter_that_is_left(
    network: nn.Module, extra: Any, image_parameter: str
) -> None:
    assert make_network_inputs(network, extra).image_parameter == image_parameter


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"aeg": 3}, "did you mean age"),
        (lambda batch: {"aeg": batch}, "did you mean age"),
        (lambda batch: [batch], "must return a dict .* not list"),
        ([3], "inputs is list; give a dict"),
    ],
)
def test_other_inputs_are_refused(extra: Any, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        make_network_inputs(ImageFirst(), extra)


@pytest.mark.parametrize(
    ("form", "shape"), [("column", (4, 1)), ("vector", (4,)), ("number", None)]
)
def test_numbers_are_repeated_for_each_image(form: Any, shape: tuple[int, ...] | None) -> None:
    inputs = NetworkInputs({"age": 30, "weight": 2.5, "flag": True, "name": "a"}, "", form)
    assert inputs.holds_numbers
    arguments = inputs.make_arguments(4, torch.zeros(1, dtype=torch.float64))
    assert arguments["flag"] is True
    assert arguments["name"] == "a"
    if shape is None:
        assert (arguments["age"], arguments["weight"]) == (30, 2.5)
        return
    assert arguments["age"].equal(torch.full(shape, 30))
    assert arguments["weight"].equal(torch.full(shape, 2.5, dtype=torch.float64))


def test_tensors_of_one_row_are_repeated_and_take_the_precision() -> None:
    row = torch.rand(1, 3, 2, requires_grad=True)
    whole = torch.arange(5)
    scalar = torch.tensor(1.5)
    inputs = NetworkInputs({"row": row, "whole": whole, "scalar": scalar})
    assert not inputs.holds_numbers
    arguments = inputs.make_arguments(4, torch.zeros(1, dtype=torch.float16))
    assert arguments["row"].equal(row.detach().half().repeat(4, 1, 1))
    assert not arguments["row"].requires_grad
    assert arguments["whole"].equal(whole)  # no floats: as it is
    assert arguments["scalar"].equal(scalar.half())


def test_a_function_gets_the_size_of_each_batch() -> None:
    inputs = NetworkInputs(lambda batch: {"rows": torch.full((batch, 2), 7.0)})
    assert not inputs.holds_numbers
    for batch in (1, 3):
        assert inputs.make_arguments(batch, torch.zeros(1))["rows"].shape == (batch, 2)


# ── layouts ──


def test_a_function_of_inputs_that_fails() -> None:
    def fail_for_two(batch: int) -> dict[str, float]:
        return {"age": {1: 40.0}[batch]}

    def fail(batch: int) -> dict[str, float]:
        raise ZeroDivisionError("by zero\nsecond line")

    message = r"^the function given as inputs fails for 1 images \(ZeroDivisionError: by zero\)$"
    with pytest.raises(SightlineError, match=message):
        make_network_inputs(ImageFirst(), fail)
    inputs = make_network_inputs(ImageFirst(), fail_for_two)
    with pytest.raises(SightlineError, match=r"fails for 2 images \(KeyError: 2\)"):
        inputs.make_arguments(2, torch.rand(2, 3))


@pytest.mark.parametrize("preprocess", [3, {"bgr"}, 0.5])
def test_what_is_no_preprocessing(preprocess: Any) -> None:
    with pytest.raises(SightlineError, match=r"preprocess is .*; give a function .*bgr, 0\.\.255"):
        Model(nn.Flatten(), preprocess=preprocess)


def test_layouts_against_plain_indexing() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 4, 5, generator=generator) * 1.4 - 0.2
    pixels = image.numpy()
    assert apply_layout(image, ()).equal(image)
    assert (apply_layout(image, ("bgr",)).numpy() == pixels[:, ::-1]).all()
    assert (apply_layout(image, ("nhwc",)).numpy() == pixels.transpose(0, 2, 3, 1)).all()
    words = parse_layout_words("uint8 nhwc bgr 0..255")
    levels = (pixels[:, ::-1] * 255).round().clip(0, 255).astype("uint8").transpose(0, 2, 3, 1)
    assert apply_layout(image, words).dtype == torch.uint8
    assert (apply_layout(image, words).numpy() == levels).all()


def test_words_of_a_layout_in_text_or_list() -> None:
    assert parse_layout_words("bgr  nhwc") == parse_layout_words(["bgr", "nhwc"]) == ("bgr", "nhwc")
    with pytest.raises(SightlineError, match="did you mean bgr"):
        parse_layout_words("bgrr")


class ByName(nn.Module):
    """Takes everything by name only."""

    def forward(self, *, pixel_values: Tensor, age: Tensor | None = None) -> Tensor:
        mean = pixel_values.mean((2, 3))
        return mean if age is None else mean * age


@pytest.mark.parametrize("extra", [None, {"age": torch.tensor([[3.0]])}])
def test_an_image_that_is_taken_by_name_only(extra: dict[str, Tensor] | None) -> None:
    image = torch.rand(2, 3, 6, 8)
    inputs = make_network_inputs(ByName(), extra)
    assert inputs.image_parameter == "pixel_values"
    model = Model(ByName(), size=(6, 8), mean=(0,) * 3, std=(1,) * 3, inputs=extra)
    expected = image.mean((2, 3)) * (1 if extra is None else 3)
    torch.testing.assert_close(model.logits(image), expected)


class TextFirst(nn.Module):
    """As networks of images and texts take them."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        if input_ids is None:
            raise ValueError("You have to specify `input_ids`")
        assert pixel_values is not None
        return pixel_values.mean((2, 3)) * input_ids.shape[1] * scale


@pytest.mark.parametrize("further", [{}, {"scale": 2.0}])
def test_an_image_behind_a_text_is_found_by_its_name(further: dict[str, float]) -> None:
    image = torch.rand(2, 3, 6, 8)
    settings: dict[str, Any] = {"size": (6, 8), "mean": (0,) * 3, "std": (1,) * 3}
    texts = {"input_ids": torch.zeros(4, 5, dtype=torch.long)}
    model = Model(TextFirst(), **settings, inputs={**texts, **further})
    expected = image.mean((2, 3)) * 5 * further.get("scale", 1)
    torch.testing.assert_close(model.logits(image), expected)
    without_text = Model(TextFirst(), **settings, inputs=further)
    with pytest.raises(SightlineError, match=r"specify `input_ids`.*inputs={'input_ids': VALUE}"):
        without_text.logits(image)


class PerPair(nn.Module):
    """Runs with a label of N×1 too, and then gives a number for each pair of images."""

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        return image.mean((2, 3)) - nn.functional.one_hot(label, 3)


def test_a_number_is_given_in_the_form_that_is_meant() -> None:
    image = torch.rand(4, 3, 6, 8)
    model = Model(PerPair(), size=(6, 8), mean=(0,) * 3, std=(1,) * 3, inputs={"label": 1})
    expected = image.mean((2, 3)) - torch.tensor([0, 1, 0])
    torch.testing.assert_close(model.logits(image), expected)
