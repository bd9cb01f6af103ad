"""Class activation maps: which places of a layer speak for the class?

CAM (Zhou 2016), Grad-CAM (Selvaraju 2017), Grad-CAM++ (Chattopadhay 2018), HiResCAM (Draelos & Carin 2020), Layer-CAM
(Jiang 2021), XGrad-CAM (Fu 2020), Score-CAM (Wang 2020), Eigen-CAM (Muhammad & Yeasin 2020).
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
from sightline.models.model import Model
from sightline.models.outputs import differentiate_scores, reshape_to_feature_maps
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


@register_method(
    chapter="analytical",
    title="Grad-CAM",
    question="Which places of a deep layer speak for the class?",
    reading="Warm places hold features that raise the class score. In a network that ends in global average pooling and one linear layer, the last layer's "
    "map is exactly the class activation map.",
    caution="The map has only as many places as the layer and is enlarged smoothly; fine outlines in it mean nothing. Evidence against the class is cut off.",
    attribution=AttributionSpec("map"),
)
def gradcam(
    model: Model, image: Tensor, *, label: int | str = "top", layer: str = "last_conv"
) -> Result:
    """Grad-CAM: ReLU(Σ_k mean(∂score/∂A_k) A_k) of a layer's channels A (Selvaraju 2017, eq. 1 and 2).

    `values["cam"]` is N×h×w at the layer's resolution, unscaled; `values["map"]` the same enlarged to N×H×W.
    Token layers of a transformer are laid on their grid.
    """
    maps, slopes, index = compute_maps_and_gradients(
        model, image, find_spatial_layer(model, layer), label
    )
    map_ = combine_channels("gradcam", maps, slopes).relu().float().cpu()
    panel, caption = draw_cam_panel(image, map_, describe_cam(model, index, layer, "gradcam"))
    return Result({"gradcam": panel}, collect_cam_values(image, map_, index), {"gradcam": caption})


@register_method(
    chapter="analytical",
    title="Class activation maps",
    question="Do the ways to weigh a layer's channels agree on where the class is?",
    reading="Warm places hold features that raise the class score. Where the kinds agree, the place matters whatever the weighing.",
    caution="Only cam and hirescam give shares of the score, and only after a layer from which a mean and one linear layer lead to it. "
    "eigencam shows what stands out in the layer, for no class. The map is as coarse as the layer.",
    tour_runs=(),
    # The other kinds have no use for `channels`; each is a forward pass of Score-CAM, in every randomized network.
    attribution=AttributionSpec(
        "map", "kind", costly_kinds=("scorecam",), test_parameters={"channels": 32}
    ),
)
def cam(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    layer: str = "last_conv",
    kind: CamKind = "gradcam",
    channels: Annotated[int | None, ValueRange(1, 100_000)] = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
) -> Result:
    """Class activation maps of one layer in eight kinds, which weigh its channels A differently, by gradients g or without.

    `values["cam"]` is N×h×w at the layer's resolution, unscaled; `values["map"]` the same enlarged to N×H×W. Negative places are
    kept by "cam" and "eigencam" and cut off by the others. Token layers of a transformer are laid on their grid.

    Args:
        kind: "cam" (weights of the last linear layer), "gradcam" (mean g), "gradcam++" (g > 0 weighed by place), "hirescam" (g·A
            place by place), "layercam" (the same where g > 0), "xgradcam" (mean of g weighed by A), "scorecam" (the score of the
            image masked by A; no gradient), "eigencam" (first principal component of A; no class).
        channels: How many channels "scorecam" tries, those that vary most; None for all.
        batch: How many masked images "scorecam" runs at once; None for as many as are fastest on a processor, or as `memory` allows.
    """
    name = find_spatial_layer(model, layer)
    if kind in ("cam", "scorecam", "eigencam"):
        with torch.no_grad():
            found = model.run(image, [name, "logits"])
        maps, index = (
            reshape_to_feature_maps(found[name], *image.shape[-2:]),
            model.choose(label, image, found["logits"]),
        )
        if kind == "cam":
            map_ = torch.einsum(
                "nk,nkhw->nhw", read_head_weights(model, image, name, layer)[index], maps
            )
        elif kind == "eigencam":
            map_ = project_on_first_component(maps)
        else:
            size = batch or choose_batch_size(model, image, memory, gradients=False)
            each = zip(image, maps, index.tolist(), strict=True)
            map_ = torch.stack(
                [
                    compute_score_cam(model, one, select_varied_channels(some, channels), i, size)
                    for one, some, i in each
                ]
            )
    else:
        maps, slopes, index = compute_maps_and_gradients(model, image, name, label)
        map_ = combine_channels(kind, maps, slopes).relu()
    map_ = map_.float().cpu()
    panel, caption = draw_cam_panel(image, map_, describe_cam(model, index, layer, kind))
    return Result({"cam": panel}, collect_cam_values(image, map_, index), {"cam": caption})


# ── a layer's channels and what they count ──


def find_spatial_layer(model: Model, layer: str) -> str:
    """The layer's own name; raises SightlineError for the logits."""
    name = model.layer(layer)
    if name == "logits":
        raise SightlineError(
            "the logits have no places; choose a convolutional layer, such as last_conv"
        )
    return name


def compute_maps_and_gradients(
    model: Model, image: Tensor, layer: str, label: int | str
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's channels, the gradient of the score before the softmax with respect to them, N×K×h×w each, and the classes N."""
    known = None if label == "top" else model.choose(label, image)
    with torch.enable_grad():
        found = model.run(image.to(model.device).detach(), [layer, "logits"], leaf=layer)
        if not found[
            "logits"
        ].requires_grad:  # the layer gives more than one tensor, or the score does not depend on it
            found = model.run(image.to(model.device).detach().requires_grad_(), [layer, "logits"])
        index = model.choose("top", image, found["logits"]) if known is None else known
        gradient = differentiate_scores(
            found["logits"].gather(1, index.view(-1, 1)), found[layer], layer
        )
    maps, slopes = (
        reshape_to_feature_maps(value.detach(), *image.shape[-2:])
        for value in (found[layer], gradient)
    )
    return maps, slopes, index


def combine_channels(kind: CamKind, maps: Tensor, gradients: Tensor) -> Tensor:
    """Channels A, N×K×h×w, added up by their gradients g as the kind has it: N×h×w with its sign."""
    if kind in ("hirescam", "layercam"):
        return ((gradients.relu() if kind == "layercam" else gradients) * maps).sum(1)
    if kind == "gradcam":
        weights = gradients.flatten(2).mean(2)
    elif kind == "xgradcam":
        weights = divide_safely((gradients * maps).sum((2, 3)), maps.sum((2, 3)))
    else:
        # Eq. 19 is g² / (2g² + g³ ΣA), here divided by g²; where g is 0 the ReLU is 0 as well. Y in eq. 10 is exp(score),
        # whose factor exp(score) is left out: it scales the whole map and overflows.
        share = divide_safely(
            torch.ones_like(gradients), 2 + gradients * maps.sum((2, 3), keepdim=True)
        )
        weights = (share * gradients.relu()).sum((2, 3))
    return (weights[:, :, None, None] * maps).sum(1)


def divide_safely(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is."""
    safe = denominator.abs() > 1e-12
    return torch.where(safe, numerator / torch.where(safe, denominator, 1), 0)


def read_head_weights(model: Model, image: Tensor, layer_name: str, layer: str) -> Tensor:
    """Weights classes×K of the last linear layer (Zhou 2016, eq. 1).

    Raises SightlineError unless the scores are that layer of the mean over the places of layer `name`.
    """
    heads = [called for called in model.layers if isinstance(model.module(called), nn.Linear)]
    if heads:
        entry, linear = f"{heads[-1]}:in", model.module(heads[-1])
        found = model.run(image, [layer_name, entry, "logits"])
        means = reshape_to_feature_maps(found[layer_name], *image.shape[-2:]).flatten(2).mean(2)
        if is_nearly_equal(means, found[entry]) and is_nearly_equal(
            linear(found[entry]), found["logits"]
        ):
            return torch.as_tensor(linear.weight)
    raise SightlineError(
        f"the class activation map needs a mean over the layer's places and one linear layer to give the score; from {layer} of {model.name} "
        "that is not so: choose another kind, such as gradcam or hirescam"
    )


def is_nearly_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return tensor.shape == other.shape and float((tensor - other).abs().max()) <= 1e-3 * float(
        other.abs().max()
    )


def project_on_first_component(maps: Tensor) -> Tensor:
    """N×K×h×w projected on the first right singular vector of its places × channels matrix, N×h×w; the sum is not negative."""
    left, size, _ = torch.linalg.svd(maps.flatten(2).transpose(1, 2), full_matrices=False)
    # A singular vector has no sign of its own; channels after a ReLU all point to the same side.
    found = (left[:, :, 0] * size[:, :1]).unflatten(1, maps.shape[2:])
    return torch.where(found.sum((1, 2), keepdim=True) < 0, -found, found)


def select_varied_channels(maps: Tensor, limit: int | None) -> Tensor:
    """Of channels K×h×w those that vary over the places, at most `count`, the most varied first."""
    spread = maps.flatten(1).var(1, correction=0)
    chosen = spread.argsort(descending=True, stable=True)[:limit]
    # A constant channel makes no mask (0/0 in eq. 8), as in the authors' code.
    return maps[chosen[spread[chosen] > 0]]


def compute_score_cam(
    model: Model, image: Tensor, channels: Tensor, index: int, batch: int
) -> Tensor:
    """Score-CAM of one image 3×H×W and its channels A, K×h×w: ReLU(Σ softmax_k(score of the image masked by A_k) A_k), h×w."""
    if not len(channels):
        return channels.new_zeros(channels.shape[1:])
    image, fill = image.to(model.device), model.mean[0].expand(3, 1, 1)

    def masked(channel: Tensor) -> Tensor:
        large = upsample_maps(channel[None], image.shape[-2:])
        mask = (large - large.min()) / (large.max() - large.min()).clamp_min(1e-12)
        # The authors multiply the normalized image: what is masked turns to the network's mean colour, not to black.
        return fill + (image - fill) * mask

    scores = compute_class_scores(model, map(masked, channels), index, batch).to(channels)
    return torch.einsum("k,khw->hw", scores.softmax(0), channels).relu()


# ── pictures ──


def collect_cam_values(image: Tensor, activation_map: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The map N×h×w, the same enlarged to the image, and the classes."""
    return {
        "cam": activation_map,
        "map": upsample_maps(activation_map, image.shape[-2:]),
        "label": index,
    }


def describe_cam(model: Model, index: Tensor, layer: str, kind: CamKind) -> str:
    """What a map is, in words."""
    return f"{CAM_DESCRIPTIONS[kind].format(label=', '.join(model.labels[i] for i in index.tolist()))} at {layer}"


def draw_cam_panel(image: Tensor, activation_map: Tensor, description: str) -> tuple[Tensor, str]:
    """The image, the map N×h×w enlarged and both, and the caption with the map's scale."""
    enlarged, signed = (
        upsample_maps(activation_map, image.shape[-2:]),
        bool((activation_map < 0).any()),
    )
    shown = render_signed_map(enlarged) if signed else render_heatmap(enlarged)
    panel = arrange_in_row(
        image,
        shown,
        overlay_heatmap(image, enlarged.clamp_min(0), enlarged.abs().flatten(1).amax(1)),
    )
    top = float(enlarged[0].abs().max())
    scale = f"white 0, full colour ±{top:.3g}" if signed else f"black 0, brightest {top:.3g}"
    caption = f"Image, {description} ({activation_map.shape[1]}×{activation_map.shape[2]} places, {scale}), and both."
    if not activation_map[0].any():
        caption += " The map is empty: no place of this layer raises the score."
    return panel, caption
