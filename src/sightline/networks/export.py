"""A style network as ONNX, any number of images of any size: `image` N×3×H×W in [0, 1] in, `made` out.

Of one with given styles `mix` N×styles says how much of each; of one for any style `style` N×3×h×w is its picture and
`alpha` N its strength.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic import replacing
from ..errors import SightlineError
from .adain import AnyStyle
from .files import AnyStyles, Styles
from .stylizer import LEAST_SIDE

OPSET = 20
AT = 4 * LEAST_SIDE, 5 * LEAST_SIDE  # the size of the pictures that are traced
Axes = dict[str, dict[int, Any]]


def export(styles: Styles | AnyStyles, path: Path) -> str:
    """Writes the network, with the names of given styles in the metadata, whole or not at all; tells its inputs.
    Raises SightlineError without the package `onnx`."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise SightlineError(f"export needs the packages onnx and onnxscript ({error}); pip install onnx onnxscript") from error
    module, given, axes = any_style(styles) if isinstance(styles, AnyStyles) else given_styles(styles)
    with replacing(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.cpu().eval(), given, dynamo=True, verbose=False, opset_version=OPSET, external_data=False,
            input_names=list(axes), output_names=["made"], dynamic_shapes=axes,
        )  # fmt: skip
        model: Any = program.model_proto  # pyright: ignore[reportOptionalMemberAccess]
        if isinstance(styles, Styles):
            onnx.helper.set_model_props(model, {"styles": ",".join(styles.names)})
        onnx.save(model, temporary)
    if isinstance(styles, AnyStyles):
        return "image N×3×H×W and style N×3×h×w in [0, 1], alpha N"
    return f"image N×3×H×W in [0, 1], mix N×{len(styles.names)} ({', '.join(styles.names)})"


# Written at batch 2: the exporter takes an axis of length 1 for a constant.


def given_styles(styles: Styles) -> tuple[nn.Module, tuple[Tensor, ...], Axes]:
    """The module, inputs at which it is traced, and their axes that may vary."""
    count, height, width = dimensions("count", "height", "width")
    given = torch.rand(2, 3, *AT), styles.mix(styles.names[0]).cpu().repeat(2, 1)
    return styles.network, given, {"image": {0: count, 2: height, 3: width}, "mix": {0: count}}


def any_style(styles: AnyStyles) -> tuple[nn.Module, tuple[Tensor, ...], Axes]:
    """As `given_styles`."""
    count, height, width, rows, columns = dimensions("count", "height", "width", "rows", "columns")
    given = torch.rand(2, 3, *AT), torch.rand(2, 3, AT[1], AT[0] + AT[1]), torch.ones(2)
    axes = {"image": {0: count, 2: height, 3: width}, "style": {0: count, 2: rows, 3: columns}, "alpha": {0: count}}
    return Whole(styles.network), given, axes


def dimensions(*names: str) -> list[Any]:
    return [torch.export.Dim(name, min=1 if name == "count" else LEAST_SIDE) for name in names]


class Whole(nn.Module):
    """Encoder, adaptive instance norm and decoder as one module without hooks."""

    def __init__(self, network: AnyStyle) -> None:
        super().__init__()
        self.network, self.encoder, self.normalize = network, beginning(network.model.body, network.deepest), network.model.normalize

    def forward(self, image: Tensor, style: Tensor, alpha: Tensor) -> Tensor:
        content, manner = (self.encoder(self.normalize(picture)) for picture in (image, style))
        return self.network.painted(content, self.network.told(manner, alpha), *image.shape[-2:])


def beginning(body: nn.Module, layer: str) -> nn.Sequential:
    """The layers up to one, of a network that calls them one after the other, as all `ENCODERS` do."""
    own, _, inner = layer.partition(".")
    found: list[nn.Module] = []
    for name, child in body.named_children():
        found.append(beginning(child, inner) if name == own and inner else child)
        if name == own:
            break
    return nn.Sequential(*found)
