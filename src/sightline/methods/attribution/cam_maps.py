"""The class activation map of one layer, in all kinds, and how those of several layers become one.

A kind says how a layer's channels are weighted; the papers stand in `cam`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.plotting.maps import upsample_maps
from sightline.methods.attribution.gradients import compute_class_scores
from sightline.models.heads.gradients import differentiate_scores
from sightline.models.heads.labels import ClassChoice
from sightline.models.layers.attention_matrices import refuse_attention_matrix
from sightline.models.layers.feature_maps import reshape_to_feature_maps, reshape_to_unit_grid
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size

CamKind = Literal[
    "cam",
    "gradcam",
    "gradcam++",
    "hirescam",
    "layercam",
    "xgradcam",
    "scorecam",
    "eigencam",
    "guided_gradcam",
]

LayerFusion = Literal["mean", "product"]

GRADIENT_FREE_KINDS = ("cam", "scorecam", "eigencam")


@dataclass(frozen=True)
class CamSettings:
    """How a layer's map is computed: its kind, and how many channels and images Score-CAM runs.

    `channels` is None for all, `batch` None for the fastest number that `memory` gigabytes allow.
    """

    kind: CamKind = "gradcam"
    channels: int | None = None
    batch: int | None = None
    memory: float = 1.0


@dataclass(frozen=True)
class LayerCam:
    """A layer's map N×h×w, unscaled, the class indices N, and how many images ran at once.

    `batch` is None for kinds that run no more images than were given.
    """

    activation_map: Tensor
    index: Tensor
    batch: int | None = None


# ── one layer ──


def find_spatial_layer(model: Model, layer: str) -> str:
    """The layer's full name. Raises SightlineError for the logits, which have no positions."""
    name = model.layer(layer)
    if name == "logits":
        raise SightlineError(
            "the logits have no positions in the image; "
            "choose a convolutional layer, such as last_conv"
        )
    return name


def compute_layer_cam(
    model: Model, image: Tensor, label: ClassChoice, layer: str, settings: CamSettings
) -> LayerCam:
    """The map of a layer, given as the caller named it.

    Raises SightlineError for a layer without positions, and for "cam" where no mean and linear
    layer follow.
    """
    layer_name = find_spatial_layer(model, layer)
    if settings.kind in GRADIENT_FREE_KINDS:
        layer_cam = compute_gradient_free_cam(model, image, label, (layer_name, layer), settings)
    else:
        maps, gradients, index = compute_maps_and_gradients(model, image, layer_name, label)
        layer_cam = LayerCam(combine_channels(settings.kind, maps, gradients).relu(), index)
    return LayerCam(layer_cam.activation_map.float().cpu(), layer_cam.index, layer_cam.batch)


def compute_gradient_free_cam(
    model: Model,
    image: Tensor,
    label: ClassChoice,
    layer_names: tuple[str, str],
    settings: CamSettings,
) -> LayerCam:
    """The map of a layer by a kind without gradients; its names are the full one, the caller's."""
    layer_name, layer = layer_names
    with torch.no_grad():
        outputs = model.run(image, [layer_name, "logits"])
    height, width = image.shape[-2:]
    refuse_attention_matrix(outputs[layer_name], layer_name)
    maps = reshape_to_feature_maps(
        outputs[layer_name], height, width, batch=len(image), model=model, layer=layer_name
    )
    index = model.choose(label, image, outputs["logits"])
    if settings.kind == "cam":
        head_weights = read_head_weights(model, image, layer_name, layer)
        return LayerCam(torch.einsum("nk,nkhw->nhw", head_weights[index], maps), index)
    if settings.kind == "eigencam":
        return LayerCam(project_on_first_component(maps), index)
    masks = min(settings.channels or maps.shape[1], maps.shape[1]) * len(image)
    batch = settings.batch or choose_batch_size(
        model, image, settings.memory, image_count=masks, gradients=False
    )
    score_cams = compute_score_cams(model, image, maps, index, settings.channels, batch)
    return LayerCam(score_cams, index, batch)


# ── several layers ──


def fuse_layer_maps(maps: Sequence[Tensor], fusion: LayerFusion) -> Tensor:
    """Maps N×H×W of several layers as one in [0, 1], N×H×W.

    Each map is cut off below 0 and divided by its maximum before: gradients of layers have
    different orders of magnitude. A map without a positive value stays 0.
    """
    # Jiang 2021 takes the maximum, of shallow layers after tanh; of planted evidence it finds less
    # than the mean does (bench/RESULTS.md).
    scaled: list[Tensor] = []
    for layer_map in maps:
        positive = layer_map.relu()
        peak = positive.amax((1, 2), keepdim=True)
        scaled.append(positive / torch.where(peak > 0, peak, 1))
    stacked = torch.stack(scaled)
    return stacked.mean(0) if fusion == "mean" else stacked.prod(0)


# ── a layer's channels and their weights ──


def compute_maps_and_gradients(
    model: Model, image: Tensor, layer: str, label: ClassChoice
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's channels and the gradient of the class score with respect to them.

    Both are N×K×h×w; the score is the one before the softmax. Also returns the class indices, N.
    """
    index = None if label == "top" else model.choose(label, image)
    if len(image) > 1 and model.findings.runs_one_by_one:
        return _compute_one_by_one(model, image, layer, index)
    with torch.enable_grad():
        plain_image = image.to(model.device).detach()
        outputs = model.run(plain_image, [layer, "logits"], leaf=layer)
        if not (outputs["logits"].requires_grad and outputs[layer].requires_grad):
            # The layer returns several tensors, or the score does not depend on it.
            outputs = model.run(plain_image.requires_grad_(), [layer, "logits"])
        if index is None:
            index = model.choose("top", image, outputs["logits"])
        scores = outputs["logits"].gather(1, index.view(-1, 1))
        gradient = differentiate_scores(scores, outputs[layer], layer)

    height, width = image.shape[-2:]
    refuse_attention_matrix(outputs[layer], layer)
    maps, gradients = (
        reshape_to_feature_maps(
            tensor.detach(), height, width, batch=len(image), model=model, layer=layer
        )
        for tensor in (outputs[layer], gradient)
    )
    return maps, gradients, index


def _compute_one_by_one(
    model: Model, images: Tensor, layer: str, index: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`compute_maps_and_gradients` of images that must not share a batch.

    `index` has their classes; None for the predicted ones.
    """
    labels = ["top"] * len(images) if index is None else index.tolist()
    parts = [
        compute_maps_and_gradients(model, image, layer, label)
        for image, label in zip(images.split(1), labels, strict=True)
    ]
    maps, gradients, indices = (list(tensors) for tensors in zip(*parts, strict=True))
    return torch.cat(maps), torch.cat(gradients), torch.cat(indices)


def combine_channels(kind: CamKind, maps: Tensor, gradients: Tensor) -> Tensor:
    """The signed sum N×h×w of channels A, N×K×h×w, weighted by their gradients g as `kind` says."""
    if kind == "hirescam":
        return (gradients * maps).sum(1)
    if kind == "layercam":
        return (gradients.relu() * maps).sum(1)
    if kind in ("gradcam", "guided_gradcam"):
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
