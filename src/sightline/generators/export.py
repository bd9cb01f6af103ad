"""A style network as ONNX, any number of images of any size: `image` N×3×H×W in [0, 1] in, `made` out.

Of one with given styles `mix` N×styles says how much of each; of one for any style `style` N×3×h×w is its picture and
`alpha` N its strength.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.generators.architectures.adain import AdaINStylizer
from sightline.generators.architectures.style import MIN_STYLIZER_SIDE
from sightline.generators.checkpoint import AnyStyleNetwork, FixedStyleNetwork
from sightline.images.files import replace_atomically

ONNX_OPSET = 20

TRACE_SIZES = (
    4 * MIN_STYLIZER_SIDE,
    5 * MIN_STYLIZER_SIDE,
)  # the size of the pictures that are traced

DynamicAxes = dict[str, dict[int, Any]]


def export_onnx(style_network: FixedStyleNetwork | AnyStyleNetwork, path: Path) -> str:
    """Writes the network, with the names of given styles in the metadata, whole or not at all; tells its inputs.
    Raises SightlineError without the package `onnx`."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise SightlineError(
            f"export needs the packages onnx and onnxscript ({error}); pip install onnx onnxscript"
        ) from error
    module, given, axes = (
        prepare_any_style_export(style_network)
        if isinstance(style_network, AnyStyleNetwork)
        else prepare_fixed_style_export(style_network)
    )
    with replace_atomically(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.cpu().eval(), given, dynamo=True, verbose=False, opset_version=ONNX_OPSET, external_data=False,
            input_names=list(axes), output_names=["made"], dynamic_shapes=axes,
        )  # fmt: skip
        model: Any = program.model_proto  # pyright: ignore[reportOptionalMemberAccess]
        if isinstance(style_network, FixedStyleNetwork):
            onnx.helper.set_model_props(model, {"styles": ",".join(style_network.names)})
        onnx.save(model, temporary)
    if isinstance(style_network, AnyStyleNetwork):
        return "image N×3×H×W and style N×3×h×w in [0, 1], alpha N"
    return f"image N×3×H×W in [0, 1], mix N×{len(style_network.names)} ({', '.join(style_network.names)})"


# Written at batch 2: the exporter takes an axis of length 1 for a constant.


def prepare_fixed_style_export(
    style_network: FixedStyleNetwork,
) -> tuple[nn.Module, tuple[Tensor, ...], DynamicAxes]:
    """The module, inputs at which it is traced, and their axes that may vary."""
    count, height, width = make_dynamic_dims("count", "height", "width")
    given = (
        torch.rand(2, 3, *TRACE_SIZES),
        style_network.make_mix(style_network.names[0]).cpu().repeat(2, 1),
    )
    return (
        style_network.network,
        given,
        {"image": {0: count, 2: height, 3: width}, "mix": {0: count}},
    )


def prepare_any_style_export(
    style_network: AnyStyleNetwork,
) -> tuple[nn.Module, tuple[Tensor, ...], DynamicAxes]:
    """As `given_styles`."""
    count, height, width, rows, columns = make_dynamic_dims(
        "count", "height", "width", "rows", "columns"
    )
    given = (
        torch.rand(2, 3, *TRACE_SIZES),
        torch.rand(2, 3, TRACE_SIZES[1], TRACE_SIZES[0] + TRACE_SIZES[1]),
        torch.ones(2),
    )
    axes = {
        "image": {0: count, 2: height, 3: width},
        "style": {0: count, 2: rows, 3: columns},
        "alpha": {0: count},
    }
    return ExportableStylizer(style_network.network), given, axes


def make_dynamic_dims(*names: str) -> list[Any]:
    return [
        torch.export.Dim(name, min=1 if name == "count" else MIN_STYLIZER_SIDE) for name in names
    ]


class ExportableStylizer(nn.Module):
    """Encoder, adaptive instance norm and decoder as one module without hooks."""

    def __init__(self, network: AdaINStylizer) -> None:
        super().__init__()
        self.network, self.encoder, self.normalize = (
            network,
            truncate_network(network.model.network, network.deepest_layer),
            network.model.normalize,
        )

    def forward(self, image: Tensor, style: Tensor, alpha: Tensor) -> Tensor:
        content, manner = (self.encoder(self.normalize(picture)) for picture in (image, style))
        return self.network.stylize_features(
            content, self.network.pack_style_row(manner, alpha), *image.shape[-2:]
        )


def truncate_network(network: nn.Module, last_layer: str) -> nn.Sequential:
    """The layers up to one, of a network that calls them one after the other, as all `ENCODERS` do."""
    own, _, inner = last_layer.partition(".")
    found: list[nn.Module] = []
    for name, child in network.named_children():
        found.append(truncate_network(child, inner) if name == own and inner else child)
        if name == own:
            break
    return nn.Sequential(*found)
