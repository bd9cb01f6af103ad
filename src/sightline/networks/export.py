"""A style network as ONNX: `image` N×3×H×W in [0, 1] and `mix` N×styles in, `made` out, any number of images of any size."""

import warnings
from pathlib import Path
from typing import Any

import torch

from ..atomic import replacing
from ..errors import SightlineError
from .files import Styles
from .stylizer import LEAST_SIDE

OPSET = 20


def export(styles: Styles, path: Path) -> None:
    """Writes the network with the names of its styles in the metadata, whole or not at all. Raises SightlineError without the package `onnx`."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise SightlineError(f"export needs the packages onnx and onnxscript ({error}); pip install onnx onnxscript") from error
    # Written at batch 2: the exporter takes an axis of length 1 for a constant.
    image, mix = torch.rand(2, 3, 4 * LEAST_SIDE, 5 * LEAST_SIDE), styles.mix(styles.names[0]).cpu().repeat(2, 1)
    count, height, width = (
        torch.export.Dim(name, min=least) for name, least in (("count", 1), ("height", LEAST_SIDE), ("width", LEAST_SIDE))
    )
    with replacing(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            styles.network.cpu().eval(), (image, mix), dynamo=True, verbose=False, opset_version=OPSET, external_data=False,
            input_names=["image", "mix"], output_names=["made"],
            dynamic_shapes={"image": {0: count, 2: height, 3: width}, "mix": {0: count}},
        )  # fmt: skip
        model: Any = program.model_proto  # pyright: ignore[reportOptionalMemberAccess]
        onnx.helper.set_model_props(model, {"styles": ",".join(styles.names)})
        onnx.save(model, temporary)
