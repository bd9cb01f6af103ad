"""Exports style networks to ONNX, for any number of images of any size.

The inputs are `image` N×3×H×W in [0, 1] and, for a fixed set of styles, `mix` N×styles with the
weight of each style; for any style, `style` N×3×h×w with its picture and `alpha` N with its
strength. The output is `made` N×3×H×W.
"""

import warnings
from dataclasses import dataclass
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

# Height and width of the images that the networks are traced with.
TRACE_HEIGHT = 4 * MIN_STYLIZER_SIDE
TRACE_WIDTH = 5 * MIN_STYLIZER_SIDE

# The exporter takes an axis of length 1 for a constant.
TRACE_BATCH = 2


@dataclass(frozen=True)
class ExportPlan:
    """A module to trace, example inputs, and each input's name with its axes of variable length."""

    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    dynamic_axes: dict[str, dict[int, Any]]


def export_onnx(style_network: FixedStyleNetwork | AnyStyleNetwork, path: Path) -> str:
    """Writes the network, whole or not at all, and returns a description of its inputs.

    The names of fixed styles are stored in the file's metadata. Raises SightlineError without the
    packages `onnx` and `onnxscript`.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise SightlineError(
            f"export needs the packages onnx and onnxscript ({error}); pip install onnx onnxscript"
        ) from error

    if isinstance(style_network, AnyStyleNetwork):
        plan = plan_any_style_export(style_network)
    else:
        plan = plan_fixed_style_export(style_network)

    with replace_atomically(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            plan.module.cpu().eval(),
            plan.example_inputs,
            dynamo=True,
            verbose=False,
            opset_version=ONNX_OPSET,
            external_data=False,
            input_names=list(plan.dynamic_axes),
            output_names=["made"],
            dynamic_shapes=plan.dynamic_axes,
        )
        model: Any = program.model_proto  # pyright: ignore[reportOptionalMemberAccess]
        if isinstance(style_network, FixedStyleNetwork):
            onnx.helper.set_model_props(model, {"styles": ",".join(style_network.names)})
        onnx.save(model, temporary)

    if isinstance(style_network, AnyStyleNetwork):
        return "image N×3×H×W and style N×3×h×w in [0, 1], alpha N"
    names = style_network.names
    return f"image N×3×H×W in [0, 1], mix N×{len(names)} ({', '.join(names)})"


def plan_fixed_style_export(style_network: FixedStyleNetwork) -> ExportPlan:
    count, height, width = make_dynamic_dims("count", "height", "width")
    image = torch.rand(TRACE_BATCH, 3, TRACE_HEIGHT, TRACE_WIDTH)
    first_style = style_network.names[0]
    mix = style_network.make_mix(first_style).cpu().repeat(TRACE_BATCH, 1)
    dynamic_axes = {"image": {0: count, 2: height, 3: width}, "mix": {0: count}}
    return ExportPlan(style_network.network, (image, mix), dynamic_axes)


def plan_any_style_export(style_network: AnyStyleNetwork) -> ExportPlan:
    count, height, width, rows, columns = make_dynamic_dims(
        "count", "height", "width", "rows", "columns"
    )
    image = torch.rand(TRACE_BATCH, 3, TRACE_HEIGHT, TRACE_WIDTH)
    # Of another size than the image, so that the exporter does not tie their axes together.
    style = torch.rand(TRACE_BATCH, 3, TRACE_WIDTH, TRACE_HEIGHT + TRACE_WIDTH)
    alpha = torch.ones(TRACE_BATCH)
    dynamic_axes = {
        "image": {0: count, 2: height, 3: width},
        "style": {0: count, 2: rows, 3: columns},
        "alpha": {0: count},
    }
    module = ExportableStylizer(style_network.network)
    return ExportPlan(module, (image, style, alpha), dynamic_axes)


def make_dynamic_dims(*names: str) -> list[Any]:
    """Dimensions of variable length: "count" from 1, others from the smallest image side."""
    return [
        torch.export.Dim(name, min=1 if name == "count" else MIN_STYLIZER_SIDE) for name in names
    ]


class ExportableStylizer(nn.Module):
    """Encoder, adaptive instance norm and decoder as one module without hooks."""

    def __init__(self, network: AdaINStylizer) -> None:
        super().__init__()
        self.network = network
        self.encoder = truncate_network(network.model.network, network.deepest_layer)
        self.normalize = network.model.normalize

    def forward(self, image: Tensor, style: Tensor, alpha: Tensor) -> Tensor:
        content_features = self.encoder(self.normalize(image))
        style_features = self.encoder(self.normalize(style))
        mix = self.network.pack_style_row(style_features, alpha)
        height, width = image.shape[-2:]
        return self.network.stylize_features(content_features, mix, height, width)


def truncate_network(network: nn.Module, last_layer: str) -> nn.Sequential:
    """The layers up to and with `last_layer`.

    For networks that call their layers one after the other, as those of `ADAIN_ENCODERS` do up to
    the layers read.
    """
    child_name, _, inner_layer = last_layer.partition(".")
    layers: list[nn.Module] = []
    for name, child in network.named_children():
        if name != child_name:
            layers.append(child)
            continue
        layers.append(truncate_network(child, inner_layer) if inner_layer else child)
        break
    return nn.Sequential(*layers)
