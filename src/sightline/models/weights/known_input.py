"""Checks that a network is fed what it was trained on.

A wrongly normalized image gives features that mean nothing, and no error. Nothing in a network
tells what it expects, unless its weights are known. (Batch norm remembers how strongly the first
layer responded in training, which `perceptual` compares. Two other tests were tried on seven
networks and left out: how far features follow the image rather than the biases, and how they grow
with its contrast. Some networks that are fed correctly look there like others that are not.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.layers.capture import Capture
from sightline.models.weights.published import (
    PublishedWeights,
    find_first_convolution,
    recognize_published_weights,
)

# As a share of the input's range. It lets 256 for 255 pass, or one deviation for all channels;
# anything else is another scale.
NORMALIZATION_TOLERANCE = 0.25

# How far the input may be from an affine function of the color, as a share of its coefficients.
_AFFINE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ColorTransform:
    """An affine map of colors in [0, 1] to a network's input.

    `matrix` is 3×3, a row for each input channel; `offset`, 3, is the input for black.
    """

    matrix: Tensor
    offset: Tensor

    def __str__(self) -> str:
        """«RGB from -2.12 to 2.64»: the order of channels, and the range of the input."""
        strongest_colors = self.matrix.abs().argmax(1).tolist()
        order = "".join("RGB"[index] for index in strongest_colors)
        white = self.offset + self.matrix.sum(1)
        lowest = float(self.offset.min())
        highest = float(white.max())
        return f"{order} from {lowest:.3g} to {highest:.3g}"


def check_known_weights_input(
    network: nn.Module, normalize: Callable[[Tensor], Tensor], size: int, name: str
) -> None:
    """Raises SightlineError where known weights are fed another range or order of channels.

    What counts is the input of the first convolution, after `normalize` and whatever the network
    itself does before it. A network with unknown weights passes.
    """
    published = recognize_published_weights(network)
    first = find_first_convolution(network)
    if published is None or first is None:
        return
    conv_path, _ = first
    actual = measure_color_transform(network, normalize, size, conv_path)
    if actual is None:
        return
    expected = make_expected_color_transform(published)
    matrix_error = float((actual.matrix - expected.matrix).abs().max())
    offset_error = float((actual.offset - expected.offset).abs().max())
    tolerance = NORMALIZATION_TOLERANCE * float(expected.matrix.abs().max())
    if max(matrix_error, offset_error) > tolerance:
        architecture = published.name.split()[-1].lower().replace("-", "")
        raise SightlineError(
            f"{name} has the weights of {published.name}, which were trained on {expected}, "
            f"but its first layer is fed {actual}; let sl.load({architecture!r}, weights=FILE) "
            "choose mean and std, or give those of its training"
        )


def measure_color_transform(
    network: nn.Module, normalize: Callable[[Tensor], Tensor], size: int, conv_path: str
) -> ColorTransform | None:
    """What a convolution is fed for the colors of [0, 1].

    Returns None where that is no affine map of the color, where all channels are fed the same
    luminance, and where the network fails.
    """
    colors = torch.cat([torch.zeros(1, 3), torch.eye(3), torch.full((1, 3), 0.5)])
    images = colors[:, :, None, None].expand(-1, -1, size, size)
    capture = Capture(network, [f"{conv_path}:in"])
    try:
        with torch.inference_mode(False), torch.no_grad():
            capture.run_forward_pass(lambda: network(normalize(images)))
    except Exception:  # noqa: BLE001 - the caller's code, whose error is told when the model runs
        return None
    conv_input = capture.tensors.get(f"{conv_path}:in")
    if conv_input is None or conv_input.ndim != 4 or conv_input.shape[:2] != (5, 3):
        return None

    _, _, height, width = conv_input.shape
    fed_colors = conv_input[:, :, height // 2, width // 2].float().cpu()
    black, red, green, blue, gray = fed_colors
    transform = ColorTransform(torch.stack([red, green, blue], 1) - black[:, None], black)
    return transform if _is_color_transform(transform, gray) else None


def _is_color_transform(transform: ColorTransform, fed_gray: Tensor) -> bool:
    """Whether it also maps gray to what was fed for gray, and tells the colors apart."""
    matrix = transform.matrix
    tolerance = _AFFINE_TOLERANCE * matrix.abs().max()
    expected_gray = transform.offset + matrix.sum(1) / 2
    gray_error = (expected_gray - fed_gray).abs().max()
    # The channels of a luminance all have the same row.
    row_difference = (matrix - matrix.mean(0)).abs().max()
    return bool(gray_error <= tolerance and row_difference > tolerance)


def make_expected_color_transform(published: PublishedWeights) -> ColorTransform:
    """The color transform that published weights were trained with."""
    mean = torch.tensor(published.mean)
    std = torch.tensor(published.std)
    rows = ["RGB".index(letter) for letter in published.channel_order]
    return ColorTransform(matrix=torch.diag(1 / std)[rows], offset=(-mean / std)[rows])


def check_library_normalization(
    library_settings: Mapping[str, Any], user_settings: Mapping[str, Any], name: str
) -> None:
    """Raises SightlineError where the user's mean or std contradicts a library's own weights."""
    tolerance = NORMALIZATION_TOLERANCE * min(library_settings["std"])
    for key in ("mean", "std"):
        expected = tuple(library_settings[key])
        values = tuple(user_settings.get(key, expected))
        if len(values) == len(expected):
            errors = [abs(a - b) for a, b in zip(values, expected, strict=True)]
            if max(errors) <= tolerance:
                continue
        raise SightlineError(
            f"{name}'s own weights were trained with {key} {format_rounded_values(expected)}; "
            f"given was {format_rounded_values(values)}: leave it out, "
            "or give the weights that go with it as weights=FILE"
        )


def format_rounded_values(values: Sequence[float]) -> str:
    """«(0.485, 0.456, 0.406)»."""
    return f"({', '.join(f'{value:.3g}' for value in values)})"
