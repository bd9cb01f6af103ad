"""What a network is called with beside the image, and how the image is laid out for it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, make_unknown_name_error

# What `preprocess` may say in words.
LAYOUT_WORDS = ("bgr", "0..255", "nhwc", "uint8")

# What Hugging Face calls the image.
IMAGE_PARAMETER = "pixel_values"

Preprocess = Callable[[Tensor], Any] | str | Sequence[str]

ExtraInputs = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]

# How a number may be given to the network: as N×1, as N, or as the number itself.
NumberForm = Literal["column", "vector", "number"]
NUMBER_FORMS: tuple[NumberForm, ...] = ("column", "vector", "number")


@dataclass
class NetworkInputs:
    """The further inputs of a network.

    Attributes:
        extra: values by the name of `forward`'s parameter, or a function of the batch size that
            returns them. A number is repeated for each image. A tensor whose first axis is 1 is
            repeated for each image, any other is given as it is.
        image_parameter: the parameter that takes the image; empty for the first one.
        number_form: how numbers are given; the model tries which of them the network takes.
    """

    extra: ExtraInputs = field(default_factory=dict[str, Any])
    image_parameter: str = ""
    number_form: NumberForm = "column"

    @property
    def holds_numbers(self) -> bool:
        """Whether a plain number is among the inputs."""
        values = self.extra.values() if isinstance(self.extra, Mapping) else ()
        return any(isinstance(value, (int, float)) for value in values)

    def make_arguments(self, batch: int, reference: Tensor) -> dict[str, Any]:
        """The keyword arguments for a batch, on the device and in the precision of `reference`."""
        values = call_input_maker(self.extra, batch) if callable(self.extra) else self.extra
        return {name: self._repeat(value, batch, reference) for name, value in values.items()}

    def _repeat(self, value: Any, batch: int, reference: Tensor) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if self.number_form == "number":
                return value
            dtype = reference.dtype if isinstance(value, float) else torch.long
            shape = (batch, 1) if self.number_form == "column" else (batch,)
            return torch.full(shape, value, dtype=dtype, device=reference.device)
        if not isinstance(value, Tensor):
            return value
        tensor = value.detach().to(reference.device)
        if tensor.is_floating_point():
            tensor = tensor.to(reference.dtype)
        if tensor.ndim > 0 and tensor.shape[0] == 1:
            return tensor.expand(batch, *tensor.shape[1:])
        return tensor


def make_network_inputs(network: nn.Module, extra: Any) -> NetworkInputs:
    """The further inputs, checked against the parameters of the network's `forward`.

    The image goes to the first parameter that is not among them. Raises SightlineError for unknown
    names and for anything but a dict or a function.
    """
    if extra is None:
        return NetworkInputs(image_parameter=find_keyword_parameter(network))
    values = list_input_values(extra)
    parameters = inspect.signature(network.forward).parameters
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    for name in values:
        if name not in parameters and not takes_any:
            raise make_unknown_name_error("input", name, parameters)
    names = list(parameters)
    image_parameter = next((name for name in names if name not in values), "")
    if IMAGE_PARAMETER in parameters and IMAGE_PARAMETER not in values:
        image_parameter = IMAGE_PARAMETER
    is_first = not names or image_parameter == names[0]
    if is_first:
        image_parameter = find_keyword_parameter(network)
    return NetworkInputs(cast(ExtraInputs, extra), image_parameter)


def list_input_values(extra: Any) -> Mapping[str, Any]:
    """The further inputs for one image, by name.

    Raises SightlineError for anything but a dict or a function that returns one.
    """
    if callable(extra):
        values = call_input_maker(extra, 1)
        if not isinstance(values, Mapping):
            raise SightlineError(
                "inputs is a function; it must return a dict of the network's further inputs for "
                f"a batch size, not {type(values).__name__}"
            )
        return cast(Mapping[str, Any], values)
    if not isinstance(extra, Mapping):
        raise SightlineError(
            f"inputs is {type(extra).__name__}; give a dict of the network's further inputs by "
            "name, or a function of the batch size that returns it"
        )
    return cast(Mapping[str, Any], extra)


def call_input_maker(make_inputs: Callable[[int], Any], batch: int) -> Any:
    """What the caller's own function gives for a batch; raises SightlineError if it fails."""
    try:
        return make_inputs(batch)
    except (SightlineError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the caller's own code
        raise SightlineError(
            f"the function given as inputs fails for {batch} images "
            f"({type(error).__name__}: {get_first_error_line(error):.200})"
        ) from error


def find_keyword_parameter(network: nn.Module) -> str:
    """The parameter that takes the image where it has to be named, else an empty text.

    That is the first one of `forward` where it is taken by name only, and one that has Hugging
    Face's name for an image, where a text or another input comes first.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    if IMAGE_PARAMETER in [parameter.name for parameter in parameters[1:]]:
        return IMAGE_PARAMETER
    is_by_name = bool(parameters) and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY
    return parameters[0].name if is_by_name else ""


def parse_layout_words(preprocess: str | Sequence[str]) -> tuple[str, ...]:
    """The words of a layout such as "bgr 0..255 nhwc". Raises SightlineError for unknown ones."""
    if not isinstance(cast(object, preprocess), (str, list, tuple)):
        raise SightlineError(
            f"preprocess is {preprocess!r:.60}; give a function of the image, or words: "
            f"{', '.join(LAYOUT_WORDS)}"
        )
    words = preprocess.split() if isinstance(preprocess, str) else list(preprocess)
    for word in words:
        if word not in LAYOUT_WORDS:
            raise make_unknown_name_error("layout in preprocess", word, LAYOUT_WORDS)
    return tuple(words)


def apply_layout(normalized: Tensor, words: Sequence[str]) -> Tensor:
    """A normalized image N×C×H×W as a layout says: other order, range, axes or type."""
    image = normalized
    if "bgr" in words:
        image = image.flip(1)
    if "0..255" in words:
        image = image * 255
    if "nhwc" in words:
        image = image.permute(0, 2, 3, 1)
    if "uint8" in words:
        image = image.round().clamp(0, 255).to(torch.uint8)
    return image
