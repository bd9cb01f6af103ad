"""Class activation maps: which positions of a layer contribute to the class?

CAM (Zhou 2016), Grad-CAM and Guided Grad-CAM (Selvaraju 2017), Grad-CAM++ (Chattopadhay 2018),
HiResCAM (Draelos & Carin 2020), Layer-CAM (Jiang 2021), XGrad-CAM (Fu 2020), Score-CAM (Wang 2020),
Eigen-CAM (Muhammad & Yeasin 2020); of several layers together, RefineCAM (Domeniconi 2026).
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.figures import Heatmap
from sightline.images.plotting.maps import (
    arrange_in_row,
    find_gradient_limit,
    overlay_heatmap,
    overlay_signed_map,
    render_around_gray,
    render_heatmap,
    render_signed_map,
    upsample_maps,
)
from sightline.methods.attribution.cam_maps import (
    CamKind,
    CamSettings,
    LayerCam,
    LayerFusion,
    compute_layer_cam,
    fuse_layer_maps,
)
from sightline.methods.attribution.guided import NeuronGradients, backpropagate_given_neurons
from sightline.models.heads.labels import ClassChoice
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

CAM_DESCRIPTIONS = {
    "cam": "class activation map of {label}",
    "gradcam": "Grad-CAM of {label}",
    "gradcam++": "Grad-CAM++ of {label}",
    "hirescam": "HiResCAM of {label}",
    "layercam": "Layer-CAM of {label}",
    "xgradcam": "XGrad-CAM of {label}",
    "scorecam": "Score-CAM of {label}",
    "eigencam": "Eigen-CAM, of no class,",
    "guided_gradcam": "Grad-CAM of {label}",
}

DEFAULT_LAYER = "last_conv"


@register_method(
    chapter="analytical",
    title="Grad-CAM",
    question="Which positions of a deep layer contribute to the class?",
    reading="Warm positions hold features that raise the class score. In a network that ends in "
    "global average pooling and one linear layer, the result at the last layer is exactly the "
    "class activation map.",
    caution="The map has only as many positions as the layer and is enlarged smoothly: fine "
    "outlines in it mean nothing. Evidence against the class is cut off.",
    attribution=AttributionSpec("map"),
)
def gradcam(
    model: Model,
    image: Tensor,
    *,
    label: ClassChoice = "top",
    target: TargetChoice | None = None,
    layer: str = DEFAULT_LAYER,
) -> Result:
    """Grad-CAM: ReLU(Σ_k mean(∂score/∂A_k) A_k) of a layer's channels A (Selvaraju 2017, eq. 1, 2).

    `values["cam"]` is N×h×w at the layer's resolution, at least 0, unscaled.
    `values["attribution"]` is the same enlarged to N×H×W (bilinear), as the picture shows it; also
    under its older name, `values["map"]`. `values["label"]`, N, holds the class indices. The tokens
    of a transformer are laid on their grid.
    """
    model = model.with_target(target)
    layer_cam = compute_layer_cam(model, image, label, layer, CamSettings("gradcam"))
    description = describe_cam(model, layer_cam.index, "gradcam", layer)
    panel, caption = draw_cam_panel(model.to_picture(image), layer_cam.activation_map, description)
    values = collect_cam_values(image, layer_cam.activation_map, layer_cam.index)
    heatmap = describe_cam_heatmap(values["attribution"][0], layer_cam.activation_map, description)
    return Result({"gradcam": panel}, values, {"gradcam": caption}, figures={"gradcam": heatmap})


@register_method(
    chapter="analytical",
    title="Class activation maps",
    question="Do the ways to weight a layer's channels agree on where the class is?",
    reading="Warm positions hold features that raise the class score. Where the kinds agree, the "
    "position matters whatever the weights. Several layers together (layers) give finer outlines "
    "than a deep layer alone.",
    caution="Only cam and hirescam give shares of the score, and only at a layer followed by a "
    "mean and one linear layer. eigencam shows what stands out in the layer, for no class. The "
    "map is as coarse as the layer. guided_gradcam owes its fine lines to guided backpropagation, "
    "which draws edges almost whatever the network has learned.",
    tour_runs=(),
    # Only Score-CAM uses `channels`; each costs a forward pass in every randomized network.
    attribution=AttributionSpec(
        "map", "kind", costly_kinds=("scorecam",), test_parameters={"channels": 32}
    ),
)
def cam(
    model: Model,
    image: Tensor,
    *,
    label: ClassChoice = "top",
    target: TargetChoice | None = None,
    layer: str = DEFAULT_LAYER,
    layers: tuple[str, ...] | None = None,
    fusion: LayerFusion = "mean",
    kind: CamKind = "gradcam",
    channels: Annotated[int | None, ValueRange(1, 100_000)] = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
) -> Result:
    """Class activation maps of one layer or several, in kinds that weight channels A differently.

    `values["cam"]` is N×h×w at the layer's resolution, unscaled. `values["attribution"]` is the
    same enlarged to N×H×W (bilinear), as the picture shows it; also under its older name,
    `values["map"]`. Both are signed for "cam" and "eigencam" and at least 0 for the other kinds.
    `values["label"]`, N, holds the class indices. The tokens of a transformer are laid on their
    grid.

    With `layers`, each layer's map is enlarged to the image, cut off below 0 and divided by its
    maximum in that image, and `fusion` makes them one: `values["cam"]` and `["attribution"]` are
    that map, N×H×W in [0, 1], and `values["by_layer"]`, N×L×H×W, has the enlarged maps, unscaled.

    "guided_gradcam" multiplies the enlarged Grad-CAM by the guided backpropagation of the score:
    `values["per_channel"]`, N×3×H×W, is that product, signed and unscaled, `values["attribution"]`
    its largest magnitude over the channels, and `values["cam"]` the Grad-CAM alone.
    `values["relus"]` is how many ReLUs the guided rule met.

    Args:
        layers: Several layers instead of `layer`, by name, alias, landmark or pattern; None for
            `layer` alone.
        fusion: How several layers' maps become one: their "mean", or their "product" (RefineCAM;
            bright only where all layers agree).
        kind: With g the gradient of the score with respect to A: "cam" (weights of the last linear
            layer), "gradcam" (mean g), "gradcam++" (g > 0, weighted by position), "hirescam" (g·A
            at each position), "layercam" (the same where g > 0), "xgradcam" (mean of g weighted by
            A), "scorecam" (the score of the image masked by A; no gradient), "eigencam" (first
            principal component of A; no class), "guided_gradcam" (Grad-CAM times guided
            backpropagation).
        channels: How many channels "scorecam" runs, those that vary most; None for all.
        batch: How many masked images "scorecam" runs at once; None for the fastest number on a CPU
            that `memory` allows.
    """
    model = model.with_target(target)
    settings = CamSettings(kind, channels, batch, memory)
    picture = model.to_picture(image)
    extra_values: dict[str, Any] = {}
    shown_maps: Sequence[Tensor] = ()
    if layers is None:
        layer_cam = compute_layer_cam(model, image, label, layer, settings)
        description = describe_cam(model, layer_cam.index, kind, layer)
    else:
        check_layer_choice(layer, layers)
        layer_cam, shown_maps = compute_fused_cam(model, image, label, layers, fusion, settings)
        extra_values["by_layer"] = torch.stack(tuple(shown_maps), 1)
        description = describe_cam(model, layer_cam.index, kind, ", ".join(layers), fusion)
    chosen = {} if layer_cam.batch is None else {"batch": layer_cam.batch}
    values = {
        **collect_cam_values(image, layer_cam.activation_map, layer_cam.index),
        **extra_values,
    }
    if kind != "guided_gradcam":
        panel, caption = draw_cam_panel(picture, layer_cam.activation_map, description, shown_maps)
        return Result({"cam": panel}, values, {"cam": caption}, chosen=chosen)

    guided = backpropagate_class_score(model, image, layer_cam.index)
    product = guided.gradient * values["map"][:, None]
    attribution = product.abs().amax(1)
    values.update(attribution=attribution, map=attribution, per_channel=product, relus=guided.relus)
    panel, caption = draw_guided_panel(
        picture, layer_cam.activation_map, model.to_picture(product), description
    )
    if not guided.relus:
        caption += " The network has no ReLU: the guided rule is the plain gradient."
    return Result({"cam": panel}, values, {"cam": caption}, chosen=chosen)


# ── several layers, and guided backpropagation ──


def check_layer_choice(layer: str, layers: Sequence[str]) -> None:
    """Raises SightlineError for no layers, and for both one layer and several."""
    if not layers:
        raise SightlineError("layers is empty; give one layer or more, or leave it out for layer")
    if layer != DEFAULT_LAYER:
        raise SightlineError(
            f"layer is {layer!r} and layers are {', '.join(layers)}; give one of them"
        )


def compute_fused_cam(  # noqa: PLR0917 - what `cam` was asked
    model: Model,
    image: Tensor,
    label: ClassChoice,
    layers: Sequence[str],
    fusion: LayerFusion,
    settings: CamSettings,
) -> tuple[LayerCam, list[Tensor]]:
    """One map N×H×W in [0, 1] of several layers, and each layer's enlarged map, unscaled."""
    layer_cams = [compute_layer_cam(model, image, label, layer, settings) for layer in layers]
    enlarged = [
        upsample_maps(layer_cam.activation_map, image.shape[-2:]) for layer_cam in layer_cams
    ]
    fused = fuse_layer_maps(enlarged, fusion)
    return LayerCam(fused, layer_cams[0].index, layer_cams[0].batch), enlarged


def backpropagate_class_score(model: Model, image: Tensor, index: Tensor) -> NeuronGradients:
    """The guided backpropagation of each image's class score to the pixels."""
    first = torch.zeros_like(index)
    return backpropagate_given_neurons(model, image, "logits", "guided", (index, first, first))


# ── values and figure ──


def collect_cam_values(image: Tensor, activation_map: Tensor, index: Tensor) -> dict[str, Any]:
    """The result's values: the map N×h×w, the same enlarged to the image, and the class indices."""
    enlarged = upsample_maps(activation_map, image.shape[-2:])
    return {
        "attribution": enlarged,
        "cam": activation_map,
        "map": enlarged,
        "label": index,
    }


def describe_cam(
    model: Model, index: Tensor, kind: CamKind, place: str, fusion: LayerFusion | None = None
) -> str:
    """Kind, labels and layers of a map in words."""
    label_names = ", ".join(model.labels[i] for i in index.tolist())
    description = CAM_DESCRIPTIONS[kind].format(label=label_names)
    if fusion is None:
        return f"{description} at {place}"
    return f"{description} at {place} and the {fusion} of these, each up to 1"


def draw_cam_panel(
    image: Tensor, activation_map: Tensor, description: str, layer_maps: Sequence[Tensor] = ()
) -> tuple[Tensor, str]:
    """Image, enlarged map N×h×w and overlay in a row; and the caption with the map's scale.

    `layer_maps` are shown before the map that was made of them, each up to its own maximum.
    """
    enlarged = upsample_maps(activation_map, image.shape[-2:])
    limit = enlarged.abs().flatten(1).amax(1)
    first_limit = float(limit[0])
    if (activation_map < 0).any():
        heatmap = render_signed_map(enlarged)
        overlay = overlay_signed_map(image, enlarged, limit)
        scale = f"white 0, full colour ±{first_limit:.3g}"
    else:
        heatmap = render_heatmap(enlarged)
        overlay = overlay_heatmap(image, enlarged, limit)
        scale = f"black 0, brightest {first_limit:.3g}"
    layer_heatmaps = [render_heatmap(layer_map.clamp_min(0)) for layer_map in layer_maps]

    rows, columns = activation_map.shape[1:]
    caption = f"Image, {description} ({rows}×{columns} positions, {scale}), and their overlay."
    if not activation_map[0].any():
        caption += " The map is empty: no position of this layer raises the score."
    return arrange_in_row(image, *layer_heatmaps, heatmap, overlay), caption


def describe_cam_heatmap(enlarged: Tensor, activation_map: Tensor, description: str) -> Heatmap:
    """The first image's map, H×W, enlarged from N×h×w; at least 0."""
    rows, columns = activation_map.shape[1:]
    text = f"{description}, {rows}×{columns} positions."
    if not activation_map[0].any():
        text += " The map is empty: no position of this layer raises the score."
    return Heatmap(enlarged.cpu(), float(enlarged.max()), False, text)


def draw_guided_panel(
    image: Tensor, activation_map: Tensor, product: Tensor, description: str
) -> tuple[Tensor, str]:
    """Image, overlay of the map N×h×w and the product N×3×H×W around gray in a row; the caption."""
    enlarged = upsample_maps(activation_map, image.shape[-2:])
    overlay = overlay_heatmap(image, enlarged, enlarged.flatten(1).amax(1))
    limit = find_gradient_limit(product)
    panel = arrange_in_row(image, overlay, render_around_gray(product, limit))
    rows, columns = activation_map.shape[1:]
    caption = (
        f"Image, {description} ({rows}×{columns} positions), and Guided Grad-CAM: the same times "
        f"the guided backpropagation of the score. Gray is zero; full colour ±{limit:.3g}, the "
        "99.5th percentile."
    )
    return panel, caption
