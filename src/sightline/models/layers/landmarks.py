"""Landmarks of a network: the layers that methods use by default, found by running it.

Two different images run together. What is a map of the image shows in the shapes of the outputs;
which maps the answer depends on, and at how many positions, in the gradient of the scores.
"""

import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, guard_backward
from sightline.models.layers.attention_matrices import drop_attention_matrices
from sightline.models.layers.capture import Layer
from sightline.models.layers.feature_maps import describe_views, find_view_layers
from sightline.models.layers.layouts import FeatureLayout
from sightline.models.layers.placement import (
    ProbedModel,
    choose_layout_by_evidence,
    find_feature_layout,
)
from sightline.models.overrides.mode import is_transformed

LANDMARK_NAMES = ("first", "middle", "last_conv", "penultimate", "logits")

# A network with fewer convolutions uses them to cut the image into patches.
MIN_CONVOLUTIONS = 3

# An image that is not square shows better than a square one which axes are rows and columns.
LONG_SIDE_RATIO = 1.25
SIDE_STEP = 32

# Why a network has no such landmark.
MISSING_LANDMARKS = {
    "first": "when it is run, no layer with weights sees the image",
    "middle": "none of its layers is a convolution or a map of the image",
    "last_conv": "when it is run, no layer gives a map of the image on which its answer depends at "
    "more than one position",
    "penultimate": "when it is run, its answer comes from no layer with weights",
    "logits": "it gives no scores",
}
CUT_OFF = (
    "its scores have no gradient with respect to its layers, as after no_grad, detach, rounding or "
    "quantization; methods that only run the network work, such as occlusion and rise"
)
TRANSFORMED = (
    "it runs its layers inside a transform of torch.func, such as torch.vmap, where nothing can be "
    "seen of them; load the network inside it, or ask saliency or occlusion, which need no layer"
)
# Layers that are proposed where a landmark is missing.
MAX_PROPOSED_LAYERS = 5

# What has weights and is not merely a scale.
WEIGHTED_MODULES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # pyright: ignore[reportPrivateUsage]


class InspectedModel(ProbedModel, Protocol):
    """What of a model is needed to find its landmarks."""

    image_size: tuple[int, int]

    @property
    def findings(self) -> Any: ...

    def make_probe_images(self) -> Tensor: ...


@dataclass(frozen=True)
class LayerEvidence:
    """What two images show of the layers.

    Attributes:
        shape: of the images: their number, channels, height and width.
        outputs: of the layers for the images, and their inputs as NAME:in.
        gradients: of the scores with respect to the outputs that they depend on.
    """

    shape: tuple[int, ...]
    outputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


def find_landmarks(model: InspectedModel, known: Collection[str] = ()) -> dict[str, str]:
    """`first`, `middle`, `last_conv`, `penultimate` and `logits` as layer names.

    `NAME:in` is the input of a layer's module. A landmark that the network does not have is left
    out, and so are those in `known`.
    """
    layers = list(model.layers.values())
    convolutions = list_convolutions(model)
    landmarks: dict[str, str | None] = {"logits": "logits"}
    evidence = collect_evidence(model)
    if evidence is not None and runs_images_in_turn(model, evidence):
        evidence = collect_evidence(model, most_at_once=1) or evidence
    if evidence is not None:
        layers = list_image_layers(evidence, layers)
        layers = drop_attention_matrices(evidence.outputs, layers)
        convolutions = [layer for layer in convolutions if layer in layers]
    landmarks["middle"] = find_middle_layer(*list_used_layers(evidence, layers, convolutions))
    if evidence is None:
        landmarks |= guess_landmarks_by_shape(model, layers)
    else:
        landmarks["first"] = find_first_layer(model, evidence, add_viewing_layers(model, layers))
        if "last_conv" not in known:
            landmarks["last_conv"] = find_last_map(model, evidence, layers) or find_joined_map(
                model, evidence
            )
        # By its input: a head that was never trained may give zeros.
        used = [name for name in evidence.gradients if sees_images(evidence, f"{name}:in")]
        landmarks["penultimate"] = find_head_input(model, used or evidence.gradients)
    return {name: layer for name, layer in landmarks.items() if layer is not None}


def list_convolutions(model: InspectedModel) -> list[Layer]:
    """The layers that are calls of a convolution."""
    layers = [layer for layer in model.layers.values() if not layer.step]
    return [layer for layer in layers if isinstance(model.module(layer.name), nn.Conv2d)]


def list_image_layers(evidence: LayerEvidence, layers: Sequence[Layer]) -> list[Layer]:
    """The layers of the image that is explained.

    Others have the heads of an attention among their images, or are of a part of the image, or of
    another image that the network is given too. A layer that is silent for each image is kept.
    """
    image_layers = [layer for layer in layers if keeps_images(evidence, layer.name)]
    seeing = [
        layer
        for layer in image_layers
        if sees_images(evidence, layer.name) or not evidence.outputs[layer.name].any()
    ]
    return seeing or image_layers


def add_viewing_layers(model: InspectedModel, layers: Sequence[Layer]) -> list[Layer]:
    """The layers, and those that see several views of each image in one batch, in their order."""
    convolutions = [
        layer for layer in model.layers.values() if layer.batch > 1 and is_feature_map(layer)
    ]
    views = find_view_layers(model) if convolutions else {}
    return [layer for layer in model.layers.values() if layer in layers or layer.name in views]


def make_missing_landmark_error(name: str, model: InspectedModel) -> SightlineError:
    """The error for a landmark that a network does not have, with layers to name in its place."""
    views = find_view_layers(model)
    map_views = [count for name, count in views.items() if has_positions(model.layers[name])]
    if map_views:
        return SightlineError(f"there is no {name}: {describe_views(model, map_views[-1])}")
    candidates = [
        layer.name
        for layer in model.layers.values()
        if name == "penultimate" or has_positions(layer)
    ]
    if not candidates and runs_in_transform(model):
        return SightlineError(f"{model.name} has no {name}: {TRANSFORMED}")
    proposal = "; none of its layers has rows and columns or tokens"
    if candidates and name == "last_conv" and is_cut_off(model):
        return SightlineError(f"{model.name} has no {name}: {CUT_OFF}")
    if candidates:
        listed = ", ".join(candidates[-MAX_PROPOSED_LAYERS:])
        proposal = f"; name one yourself with layer=, such as {listed}"
    return SightlineError(f"{model.name} has no {name}: {MISSING_LANDMARKS[name]}{proposal}")


def is_cut_off(model: InspectedModel) -> bool:
    """Whether a network's scores have no gradient with respect to any of its layers."""
    evidence = collect_evidence(model)
    return evidence is not None and not evidence.gradients


def runs_in_transform(model: InspectedModel) -> bool:
    """Whether a network runs modules inside its own `torch.vmap`, or another such transform."""
    network = model.module("")
    found: list[bool] = []

    def note_transform(_module: nn.Module, _inputs: Any) -> None:
        found.append(is_transformed())

    with ExitStack() as contexts:
        for module in network.modules():
            contexts.callback(module.register_forward_pre_hook(note_transform).remove)
        with suppress(SightlineError), torch.no_grad():
            model.run(model.blank(), ["logits"])
    return any(found)


def guess_landmarks_by_shape(model: InspectedModel, layers: Sequence[Layer]) -> dict[str, str]:
    """Landmarks of a network that can't be run on random images, by the shapes of its outputs."""
    landmarks: dict[str, str] = {}
    weighted = [layer.name for layer in layers if is_weighted_layer(model, layer)]
    if weighted:
        landmarks["first"] = weighted[0]
        landmarks["penultimate"] = f"{weighted[-1]}:in"
    maps = [layer.name for layer in layers if has_positions(layer)]
    if maps:
        landmarks["last_conv"] = maps[-1]
    return landmarks


# ── evidence ──


def collect_evidence(model: InspectedModel, most_at_once: int = 2) -> LayerEvidence | None:
    """Runs two images, non-square where the network takes them; None where it takes no image."""
    if model.device.type == "meta":
        return None  # its tensors have no values
    if model.findings.runs_one_by_one:
        most_at_once = 1
    for images in iterate_evidence_images(model, most_at_once):
        try:
            return run_evidence_pass(model, images)
        except SightlineError:
            continue
    return None


def iterate_evidence_images(model: InspectedModel, most_at_once: int) -> Iterator[Tensor]:
    """The images to try, one or two at once, until the network takes them."""
    height, width = model.image_size
    longer = math.ceil(width * LONG_SIDE_RATIO / SIDE_STEP) * SIDE_STEP
    for count, size in ((2, (height, longer)), (2, (height, width)), (1, (height, width))):
        if count <= most_at_once:
            generator = torch.Generator().manual_seed(0)
            noise = torch.rand(count, model.channels, *size, generator=generator)
            yield noise.to(model.device)
    # That by which the layers were listed: it takes the same branches.
    yield model.make_probe_images()[-1:]


def runs_images_in_turn(model: InspectedModel, evidence: LayerEvidence) -> bool:
    """Whether a network has its layers run once for each image, as detectors of lists do."""
    maps = [layer for layer in model.layers.values() if is_feature_map(layer)]
    return (
        bool(maps)
        and not any(keeps_images(evidence, layer.name) for layer in maps)
        and all(
            len(evidence.outputs[layer.name]) == 1
            for layer in maps
            if layer.name in evidence.outputs
        )
    )


def run_evidence_pass(model: InspectedModel, images: Tensor) -> LayerEvidence:
    """One pass and one backward pass of images; raises SightlineError as `Model.run`."""
    names = list(model.layers)
    inputs = [f"{name}:in" for name in names if is_weighted_layer(model, model.layers[name])]
    with torch.inference_mode(False), torch.enable_grad():
        outputs = model.run(images.clone().requires_grad_(), [*names, *inputs, "logits"])
        logits = outputs.pop("logits")
        # Any class may be asked for, so that each has a weight of its own.
        generator = torch.Generator().manual_seed(1)
        weights = torch.rand(logits.shape, generator=generator).to(logits)
        gradients = differentiate_outputs((logits * weights).sum(), outputs)
        head_input = find_head_input(model, gradients)
        if head_input in gradients and not gradients[head_input].any():
            # A head that was never trained may be zero; what it is given still tells.
            gradients |= differentiate_outputs(outputs[head_input].square().sum(), outputs)
    detached = {name: tensor.detach() for name, tensor in outputs.items()}
    return LayerEvidence(images.shape, detached, gradients)


def differentiate_outputs(score: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a score with respect to the outputs that it depends on."""
    differentiable = {name: tensor for name, tensor in outputs.items() if tensor.requires_grad}
    if not score.requires_grad or not differentiable:
        return {}
    # Tensors that the score does not depend on have no gradient.
    with guard_backward():
        gradients = cast(
            tuple[Tensor | None, ...],
            torch.autograd.grad(
                score, list(differentiable.values()), retain_graph=True, allow_unused=True
            ),
        )
    return {
        name: gradient
        for name, gradient in zip(differentiable, gradients, strict=True)
        if gradient is not None
    }


def is_weighted_layer(model: InspectedModel, layer: Layer) -> bool:
    """Whether a layer is an operation with a weight matrix or kernel."""
    return not layer.step and isinstance(model.module(layer.name), WEIGHTED_MODULES)


def keeps_images(evidence: LayerEvidence, name: str) -> bool:
    """Whether a layer's output has one entry for each image, as far as is known."""
    output = evidence.outputs.get(name)
    if output is None or output.ndim == 0:
        return True
    count = evidence.shape[0]
    has_tokens_first = output.ndim == 3 and output.shape[1] == count
    return output.shape[0] == count or has_tokens_first


def sees_images(evidence: LayerEvidence, name: str) -> bool:
    """Whether a layer's outputs, or inputs as NAME:in, differ between the images, if known."""
    output = evidence.outputs.get(name)
    return output is None or output.ndim == 0 or depends_on_image(output, evidence.shape[0])


# ── landmarks ──


def find_first_layer(
    model: InspectedModel, evidence: LayerEvidence, layers: Sequence[Layer]
) -> str | None:
    """The first convolution or patch projection that sees the image."""
    for layer in layers:
        if not is_weighted_layer(model, layer) or layer.name not in evidence.outputs:
            continue
        # What does not depend on the images is computed from weights, such as a table of positions.
        if depends_on_image(evidence.outputs[layer.name], evidence.shape[0]):
            return layer.name
    return None


def depends_on_image(output: Tensor, count: int) -> bool:
    """Whether the outputs for different images differ."""
    if count < 2 or len(output) % count:
        return True
    first = output[: len(output) // count]
    second = output[len(output) // count : 2 * (len(output) // count)]
    return not torch.equal(first, second)


def list_used_layers(
    evidence: LayerEvidence | None, layers: Sequence[Layer], convolutions: Sequence[Layer]
) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """The layers and convolutions that the answer depends on, all where that is not known."""
    if evidence is None or not evidence.gradients:
        return layers, convolutions
    used_layers = [layer for layer in layers if layer.name in evidence.gradients]
    used_convolutions = [layer for layer in convolutions if layer in used_layers]
    return used_layers, used_convolutions


def find_middle_layer(layers: Sequence[Layer], convolutions: Sequence[Layer]) -> str | None:
    """The ReLU after the middle convolution or, with few convolutions, the middle feature map."""
    if len(convolutions) < MIN_CONVOLUTIONS:
        candidates = [layer for layer in layers if has_positions(layer)]
        if candidates:
            return candidates[len(candidates) // 2].name
    if not convolutions:
        return None
    middle = convolutions[len(convolutions) // 2]
    for layer in layers[layers.index(middle) :]:
        if layer.is_spatial and "ReLU" in layer.kind:
            return layer.name
    return middle.name


def is_feature_map(layer: Layer) -> bool:
    """Whether an output has rows and columns, and is not merely pooled."""
    return layer.is_spatial and "Pool" not in layer.kind


def has_tokens(layer: Layer) -> bool:
    """Whether the output is tokens × channels."""
    return len(layer.shape) == 2


def has_positions(layer: Layer) -> bool:
    """Whether the output's shape may be that of a map or of tokens."""
    return is_feature_map(layer) or has_tokens(layer)


def find_last_map(
    model: InspectedModel, evidence: LayerEvidence, layers: Sequence[Layer]
) -> str | None:
    """The last map of the image on which the answer depends at more than one position.

    A transformer's class score reads a single token after the last attention, so the other tokens
    have a gradient only before it. A linear layer that merely projects tokens, as an attention's
    keys and values, gives way to the tokens that it is given.
    """
    pooled = {
        evidence.outputs[layer.name].data_ptr()
        for layer in layers
        if "Pool" in layer.kind and layer.name in evidence.outputs
    }
    fallback = None
    for layer in reversed(layers):
        output = evidence.outputs.get(layer.name)
        if output is None or output.data_ptr() in pooled:
            continue
        layout = find_used_layout(model, evidence, layer)
        if layout is None or layout.windows is not None:
            continue
        has_maps = layout.order in ("NCHW", "NHWC")
        is_projection = not layer.step and isinstance(model.module(layer.name), nn.Linear)
        if has_maps or not is_projection:
            return layer.name
        fallback = fallback or layer.name
    return fallback


def find_joined_map(model: InspectedModel, evidence: LayerEvidence) -> str | None:
    """The last map whose parts the network runs as one batch, as a bag of patches is.

    It counts where the parts make up the image; those of views that overlap don't.
    """
    for layer in reversed(list(model.layers.values())):
        if layer.batch > 1 and is_feature_map(layer) and layer.name in evidence.outputs:
            layout = find_used_layout(model, evidence, layer)
            if layout is not None and layout.windows is not None:
                return layer.name
    return None


def find_used_layout(
    model: InspectedModel, evidence: LayerEvidence, layer: Layer
) -> FeatureLayout | None:
    """How an output lies on the image; None where it doesn't, or at most one position is used."""
    gradient = evidence.gradients.get(layer.name)
    output = evidence.outputs[layer.name]
    if gradient is None or not gradient.any():
        return None
    layout = find_feature_layout(model, layer.name, output.shape, evidence.shape)
    if layout is None or layout.order == "NETC":
        return None
    # The anchors of a detector fill a grid of the image's shape by chance, at one of two sizes.
    own_shape = (layer.batch, *layer.shape)
    own_image_shape = (1, model.channels, *model.image_size)
    own_layout = find_feature_layout(model, layer.name, own_shape, own_image_shape)
    if own_layout is None:
        return None
    if has_tokens_of_no_size(model, evidence, layer):
        seen_layout = choose_layout_by_evidence(model, layer.name, model.image_size)
        is_seen = seen_layout is not None and seen_layout.is_same_reading(own_layout)
        if not is_seen or own_layout.order != layout.order:
            return None
    try:
        used = (layout.arrange_as_maps(gradient) != 0).any(1)
    except RuntimeError:
        return None  # its tokens for this size of image are others than the layout's
    return layout if int(used.flatten(1).sum(1).min()) > 1 else None


def has_tokens_of_no_size(model: InspectedModel, evidence: LayerEvidence, layer: Layer) -> bool:
    """Whether a layer has as many tokens for images of two sizes, as queries and latents have.

    So does a network that resizes its image; its tokens answer to their own part of it.
    """
    output = evidence.outputs[layer.name]
    if evidence.shape[2:] == model.image_size or len(output) != evidence.shape[0]:
        return False
    return has_tokens(layer) and tuple(output.shape[1:]) == layer.shape


def find_head_input(model: InspectedModel, used: Container[str]) -> str | None:
    """The input of the last operation with weights among the layers that the answer uses."""
    for layer in reversed(list(model.layers.values())):
        if is_weighted_layer(model, layer) and layer.name in used:
            return f"{layer.name}:in"
    return None
