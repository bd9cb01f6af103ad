"""Whether a network gets what it was trained on: a picture normalized for another one gives features that mean nothing, and no error.

Nothing in a network says what it wants, unless its weights are known. (Batch norm remembers how strongly the first layer answered in
training; `perceptual` asks it. Tried on seven networks and left out: how far features follow the picture rather than the biases, how
they grow with its contrast. Right pairs of some networks look there like wrong ones of others.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.hooks import Capture
from sightline.models.weights.published import (
    PublishedWeights,
    find_first_convolution,
    recognize_published_weights,
)

NORMALIZATION_TOLERANCE = 0.25  # of the input's range: 256 for 255, one deviation for all channels and the like pass, anything else is another scale


def check_known_weights_input(
    network: nn.Module, normalize: Callable[[Tensor], Tensor], size: int, name: str
) -> None:
    """Raises SightlineError where `body` has weights that are known and its first convolution gets, after `normalize` and whatever
    stands before it, another range or order of channels than they were trained on."""
    known, first = recognize_published_weights(network), find_first_convolution(network)
    fed = measure_color_transform(network, normalize, size, first[0]) if first and known else None
    if known is None or fed is None:
        return
    wanted = make_expected_color_transform(known)
    apart = max(float((one - other).abs().max()) for one, other in zip(fed, wanted, strict=True))
    if apart > NORMALIZATION_TOLERANCE * float(wanted[0].abs().max()):
        architecture = known.name.split()[-1].lower().replace("-", "")
        raise SightlineError(
            f"{name} has the weights of {known.name}, which were trained on {describe_color_range(wanted)}, but its first layer is fed {describe_color_range(fed)}; "
            f"let sl.load({architecture!r}, weights=FILE) choose mean and std, or give those of its training"
        )


def measure_color_transform(
    network: nn.Module, normalize: Callable[[Tensor], Tensor], size: int, conv_path: str
) -> tuple[Tensor, Tensor] | None:
    """What colours of [0, 1] become at the input of a convolution, as a matrix 3×3 and an offset 3; None where they don't get
    there by such a map, or all channels get the same luminance."""
    colours = torch.cat([torch.zeros(1, 3), torch.eye(3), torch.full((1, 3), 0.5)])
    watch = Capture(network, [f"{conv_path}:in"])
    try:
        with torch.inference_mode(False), torch.no_grad():
            watch.run_forward_pass(
                lambda: network(normalize(colours[:, :, None, None].expand(-1, -1, size, size)))
            )
    except Exception:  # noqa: BLE001 - the caller's own code; it will say so itself when it is asked
        return None
    found = watch.tensors.get(f"{conv_path}:in")
    if found is None or found.ndim != 4 or found.shape[:2] != (5, 3):
        return None
    black, *pure, gray = found[:, :, found.shape[2] // 2, found.shape[3] // 2].float().cpu()
    matrix = torch.stack([colour - black for colour in pure], 1)
    straight = (black + matrix.sum(1) / 2 - gray).abs().max() <= 0.02 * matrix.abs().max()
    colourless = (matrix - matrix.mean(0)).abs().max() <= 0.02 * matrix.abs().max()
    return (matrix, black) if bool(straight and not colourless) else None


def make_expected_color_transform(published: PublishedWeights) -> tuple[Tensor, Tensor]:
    """The matrix and the offset that published weights want."""
    mean, std = torch.tensor(published.mean), torch.tensor(published.std)
    rows = ["RGB".index(letter) for letter in published.channel_order]
    return torch.diag(1 / std)[rows], (-mean / std)[rows]


def describe_color_range(color_transform: tuple[Tensor, Tensor]) -> str:
    """«RGB from -2.12 to 2.64»."""
    matrix, black = color_transform
    order = "".join("RGB"[index] for index in matrix.abs().argmax(1).tolist())
    return f"{order} from {float(black.min()):.3g} to {float((black + matrix.sum(1)).max()):.3g}"


def check_library_normalization(
    library_settings: Mapping[str, Any], given_settings: Mapping[str, Any], name: str
) -> None:
    """Raises SightlineError where `mean` or `std` was given for a library's own weights, and is not what they were trained with."""
    for key in ("mean", "std"):
        own, other = (
            tuple(library_settings[key]),
            tuple(given_settings.get(key, library_settings[key])),
        )
        scale = min(library_settings["std"])
        if len(own) != len(other) or any(
            abs(a - b) > NORMALIZATION_TOLERANCE * scale for a, b in zip(own, other, strict=True)
        ):
            raise SightlineError(
                f"{name}'s own weights were trained with {key} {format_rounded_values(own)}; given was {format_rounded_values(other)}: leave it out, "
                "or give the weights that go with it as weights=FILE"
            )


def format_rounded_values(values: Sequence[float]) -> str:
    """«(0.485, 0.456, 0.406)»."""
    return f"({', '.join(f'{value:.3g}' for value in values)})"
