"""Class activation maps: which positions of a layer contribute to the class?

CAM (Zhou 2016), Grad-CAM (Selvaraju 2017), Grad-CAM++ (Chattopadhay 2018), HiResCAM (Draelos &
Carin 2020), Layer-CAM (Jiang 2021), XGrad-CAM (Fu 2020), Score-CAM (Wang 2020), Eigen-CAM (Muhammad
& Yeasin 2020).
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.plotting.maps import (
    arrange_in_row,
    overlay_heatmap,
    render_heatmap,
    render_signed_map,
    upsample_maps,
)
from sightline.methods.attribution.gradients import compute_class_scores
from sightline.models.heads.gradients import differentiate_scores
from sightline.models.heads.target_text import TargetChoice
from sightline.models.layers.feature_maps import reshape_to_feature_maps, reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

CamKind = Literal[
    "cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "scorecam", "eigencam"
]

CAM_DESCRIPTIONS = {
    "cam": "class activation map of {label}",
    "gradcam": "Grad-CAM of {label}",
    "gradcam++": "Grad-CAM++ of {label}",
    "hirescam": "HiResCAM of {label}",
    "layercam": "Layer-CAM of {label}",
    "xgradcam": "XGrad-CAM of {label}",
    "scorecam": "Score-CAM of {label}",
    "eigencam": "Eigen-CAM, of no class,",
}

GRADIENT_FREE_KINDS = ("cam", "scorecam", "eigencam")


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
    label: int | str = "top",
    target: TargetChoice | None = None,
    layer: str = "last_conv",
) -> Result:
    """Grad-CAM: ReLU(Σ_k mean(∂score/∂A_k) A_k) of a layer's channels A (Selvaraju 2017, eq. 1, 2).

    `values["cam"]` is N×h×w at the layer's resolution, at least 0, unscaled.
    `values["attribution"]` is the same enlarged to N×H×W (bilinear), as the picture shows it; also
    under its older name, `values["map"]`. `values["label"]`, N, holds the class indices. The tokens
    of a transformer are laid on their grid.
    """
    model = model.with_target(target)
    layer_name = find_spatial_layer(model, layer)
    maps, gradients, index = compute_maps_and_gradients(model, image, layer_name, label)
    activation_map = combine_channels("gradcam", maps, gradients).relu()
    activation_map = activation_map.float().cpu()

    description = describe_cam(model, index, layer, "gradcam")
    panel, caption = draw_cam_panel(model.to_picture(image), activation_map, description)
    values = collect_cam_values(image, activation_map, index)
    return Result({"gradcam": panel}, values, {"gradcam": caption})


@register_method(
    chapter="analytical",
    title="Class activation maps",
    question="Do the ways to weight a layer's channels agree on where the class is?",
    reading="Warm positions hold features that raise the class score. Where the kinds agree, the "
    "position matters whatever the weights.",
    caution="Only cam and hirescam give shares of the score, and only at a layer followed by a "
    "mean and one linear layer. eigencam shows what stands out in the layer, for no class. The "
    "map is as coarse as the layer.",
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
    label: int | str = "top",
    target: TargetChoice | None = None,
    layer: str = "last_conv",
    kind: CamKind = "gradcam",
    channels: Annotated[int | None, ValueRange(1, 100_000)] = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
) -> Result:
    """Class activation maps of one layer in eight kinds, which weight its channels A differently.

    `values["cam"]` is N×h×w at the layer's resolution, unscaled. `values["attribution"]` is the
    same enlarged to N×H×W (bilinear), as the picture shows it; also under its older name,
    `values["map"]`. Both are signed for "cam" and "eigencam" and at least 0 for the other kinds.
    `values["label"]`, N, holds the class indices. The tokens of a transformer are laid on their
    grid.

    Args:
        kind: With g the gradient of the score with respect to A: "cam" (weights of the last linear
            layer), "gradcam" (mean g), "gradcam++" (g > 0, weighted by position), "hirescam" (g·A
            at each position), "layercam" (the same where g > 0), "xgradcam" (mean of g weighted by
            A), "scorecam" (the score of the image masked by A; no gradient), "eigencam" (first
            principal component of A; no class).
        channels: How many channels "scorecam" runs, those that vary most; None for all.
        batch: How many masked images "scorecam" runs at once; None for the fastest number on a CPU
            that `memory` allows.
    """
    model = model.with_target(target)
    layer_name = find_spatial_layer(model, layer)
    chosen: dict[str, int] = {}
    if kind in GRADIENT_FREE_KINDS:
        with torch.no_grad():
            outputs = model.run(image, [layer_name, "logits"])
        height, width = image.shape[-2:]
        maps = reshape_to_feature_maps(
            outputs[layer_name], height, width, batch=len(image), model=model, layer=layer_name
        )
        index = model.choose(label, image, outputs["logits"])
        if kind == "cam":
            head_weights = read_head_weights(model, image, layer_name, layer)
            activation_map = torch.einsum("nk,nkhw->nhw", head_weights[index], maps)
        elif kind == "eigencam":
            activation_map = project_on_first_component(maps)
        else:
            masks = min(channels or maps.shape[1], maps.shape[1]) * len(image)
            at_once = batch or choose_batch_size(
                model, image, memory, image_count=masks, gradients=False
            )
            chosen["batch"] = at_once
            activation_map = compute_score_cams(model, image, maps, index, channels, at_once)
    else:
        maps, gradients, index = compute_maps_and_gradients(model, image, layer_name, label)
        activation_map = combine_channels(kind, maps, gradients).relu()

    activation_map = activation_map.float().cpu()
    description = describe_cam(model, index, layer, kind)
    panel, caption = draw_cam_panel(model.to_picture(image), activation_map, description)
    values = collect_cam_values(image, activation_map, index)
    return Result({"cam": panel}, values, {"cam": caption}, chosen=chosen)


# ── a layer's channels and their weights ──


def find_spatial_layer(model: Model, layer: str) -> str:
    """The layer's full name. Raises SightlineError for the logits, which have no positions."""
    name = model.layer(layer)
    if name == "logits":
        raise SightlineError(
            "the logits have no positions in the image; "
            "choose a convolutional layer, such as last_conv"
        )
    return name


def compute_maps_and_gradients(
    model: Model, image: Tensor, layer: str, label: int | str
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's channels and the gradient of the class score with respect to them.

    Both are N×K×h×w; the score is the one before the softmax. Also returns the class indices, N.
    """
    index = None if label == "top" else model.choose(label, image)
    with torch.enable_grad():
        plain_image = image.to(model.device).detach()
        outputs = model.run(plain_image, [layer, "logits"], leaf=layer)
        if not outputs["logits"].requires_grad:
            # The layer returns several tensors, or the score does not depend on it.
            outputs = model.run(plain_image.requires_grad_(), [layer, "logits"])
        if index is None:
            index = model.choose("top", image, outputs["logits"])
        scores = outputs["logits"].gather(1, index.view(-1, 1))
        gradient = differentiate_scores(scores, outputs[layer], layer)

    height, width = image.shape[-2:]
    maps, gradients = (
        reshape_to_feature_maps(
            tensor.detach(), height, width, batch=len(image), model=model, layer=layer
        )
        for tensor in (outputs[layer], gradient)
    )
    return maps, gradients, index


def combine_channels(kind: CamKind, maps: Tensor, gradients: Tensor) -> Tensor:
    """The signed sum N×h×w of channels A, N×K×h×w, weighted by their gradients g as `kind` says."""
    if kind == "hirescam":
        return (gradients * maps).sum(1)
    if kind == "layercam":
        return (gradients.relu() * maps).sum(1)
    if kind == "gradcam":
        weights = gradients.flatten(2).mean(2)
    elif kind == "xgradcam":
        weights = divide_safely((gradients * maps).sum((2, 3)), maps.sum((2, 3)))
    else:
        # Grad-CAM++. Eq. 19 is g² / (2g² + g³ ΣA), here divided by g²; where g is 0 the ReLU is 0
        # as well. Y in eq. 10 is exp(score). Its factor exp(score) is left out: it only scales the
        # map, and overflows.
        map_sums = maps.sum((2, 3), keepdim=True)
        alpha = divide_safely(torch.ones_like(gradients), 2 + gradients * map_sums)
        weights = (alpha * gradients.relu()).sum((2, 3))
    return (weights[:, :, None, None] * maps).sum(1)


def divide_safely(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    nonzero = denominator.abs() > 1e-12
    return torch.where(nonzero, numerator / torch.where(nonzero, denominator, 1), 0)


def read_head_weights(model: Model, image: Tensor, layer_name: str, layer: str) -> Tensor:
    """Weights classes×K of the last linear layer (Zhou 2016, eq. 1).

    Raises SightlineError unless the logits are that layer's output for the mean of layer
    `layer_name` over its positions. `layer` is the name the caller used, for the message.
    """
    linear_names = [
        layer.name
        for layer in model.layers.values()
        if not layer.step and isinstance(model.module(layer.name), nn.Linear)
    ]
    if linear_names:
        linear = model.module(linear_names[-1])
        input_name = f"{linear_names[-1]}:in"
        outputs = model.run(image, [layer_name, input_name, "logits"])
        linear_input = outputs[input_name]

        maps = reshape_to_unit_grid(outputs[layer_name], image, model, layer_name)
        takes_mean = is_nearly_equal(maps.flatten(2).mean(2), linear_input)
        gives_logits = is_nearly_equal(linear(linear_input), outputs["logits"])
        if takes_mean and gives_logits:
            return torch.as_tensor(linear.weight)
    raise SightlineError(
        "the class activation map needs a mean over the layer's positions and one linear layer "
        f"that gives the score; {layer} of {model.name} is not followed by these: choose another "
        "kind, such as gradcam or hirescam"
    )


def is_nearly_equal(tensor: Tensor, reference: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if tensor.shape != reference.shape:
        return False
    difference = float((tensor - reference).abs().max())
    return difference <= 1e-3 * float(reference.abs().max())


def project_on_first_component(maps: Tensor) -> Tensor:
    """Channels N×K×h×w projected on the first right singular vector, N×h×w.

    The vector is that of the positions×channels matrix.
    """
    # There is no decomposition in half precision.
    matrix = maps.float().flatten(2).transpose(1, 2)
    left_vectors, singular_values, _ = torch.linalg.svd(matrix, full_matrices=False)
    scores = left_vectors[:, :, 0] * singular_values[:, :1]
    projection = scores.unflatten(1, maps.shape[2:])

    # The sign of a singular vector is arbitrary. Channels after a ReLU all point the same way, so
    # the sign with a positive sum is right.
    negative = projection.sum((1, 2), keepdim=True) < 0
    return torch.where(negative, -projection, projection)


def select_varied_channels(maps: Tensor, limit: int | None) -> Tensor:
    """Of channels K×h×w at most `limit` with the largest variance over positions, largest first."""
    variance = maps.flatten(1).var(1, correction=0)
    order = variance.argsort(descending=True, stable=True)[:limit]
    # A constant channel makes no mask (0/0 in eq. 8), as in the authors' code.
    varied = order[variance[order] > 0]
    return maps[varied]


def compute_score_cams(  # noqa: PLR0917 - the images and what belongs to each of them
    model: Model, image: Tensor, maps: Tensor, index: Tensor, channels: int | None, batch: int
) -> Tensor:
    """Score-CAM N×h×w of images N×3×H×W from at most `channels` of their channels N×K×h×w."""
    score_cams: list[Tensor] = []
    for single_image, image_maps, i in zip(image, maps, index.tolist(), strict=True):
        varied = select_varied_channels(image_maps, channels)
        score_cams.append(compute_score_cam(model, single_image, varied, i, batch))
    return torch.stack(score_cams)


def compute_score_cam(
    model: Model, image: Tensor, channels: Tensor, index: int, batch: int
) -> Tensor:
    """Score-CAM h×w of one image 3×H×W from its channels A, K×h×w.

    It is ReLU(Σ softmax_k(score of the image masked by A_k) A_k).
    """
    if not len(channels):
        return channels.new_zeros(channels.shape[1:])
    image = image.to(model.device)
    # The authors multiply the normalized image by the mask: hidden pixels turn to the network's
    # mean colour, not to black.
    fill = model.mean[0].expand(len(image), 1, 1)

    def mask_image(channel: Tensor) -> Tensor:
        enlarged = upsample_maps(channel[None], image.shape[-2:])
        lowest = enlarged.min()
        value_range = (enlarged.max() - lowest).clamp_min(1e-12)
        mask = (enlarged - lowest) / value_range
        return fill + (image - fill) * mask

    masked_images = map(mask_image, channels)
    scores = compute_class_scores(model, masked_images, index, batch).to(channels)
    return torch.einsum("k,khw->hw", scores.softmax(0), channels).relu()


# ── values and figure ──


def collect_cam_values(image: Tensor, activation_map: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The result's values: the map N×h×w, the same enlarged to the image, and the class indices."""
    enlarged = upsample_maps(activation_map, image.shape[-2:])
    return {
        "attribution": enlarged,
        "cam": activation_map,
        "map": enlarged,
        "label": index,
    }


def describe_cam(model: Model, index: Tensor, layer: str, kind: CamKind) -> str:
    """Kind, labels and layer of a map in words."""
    label_names = ", ".join(model.labels[i] for i in index.tolist())
    description = CAM_DESCRIPTIONS[kind].format(label=label_names)
    return f"{description} at {layer}"


def draw_cam_panel(image: Tensor, activation_map: Tensor, description: str) -> tuple[Tensor, str]:
    """Image, enlarged map N×h×w and overlay in a row; and the caption with the map's scale."""
    enlarged = upsample_maps(activation_map, image.shape[-2:])
    first_limit = float(enlarged[0].abs().max())
    if (activation_map < 0).any():
        heatmap = render_signed_map(enlarged)
        scale = f"white 0, full colour ±{first_limit:.3g}"
    else:
        heatmap = render_heatmap(enlarged)
        scale = f"black 0, brightest {first_limit:.3g}"
    limit = enlarged.abs().flatten(1).amax(1)
    overlay = overlay_heatmap(image, enlarged.clamp_min(0), limit)

    rows, columns = activation_map.shape[1:]
    caption = f"Image, {description} ({rows}×{columns} positions, {scale}), and their overlay."
    if not activation_map[0].any():
        caption += " The map is empty: no position of this layer raises the score."
    return arrange_in_row(image, heatmap, overlay), caption
