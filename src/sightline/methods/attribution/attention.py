"""Attention of a transformer, followed through its layers.

Attention rollout (Abnar & Zuidema 2020) and gradient-weighted relevance (Chefer, Gur & Wolf 2021,
«Generic attention-model explainability»).
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sightline.errors import SightlineError
from sightline.images.plotting.maps import (
    arrange_in_row,
    overlay_heatmap,
    render_heatmap,
    upsample_maps,
)
from sightline.models.heads.target_text import TargetChoice
from sightline.models.layers.feature_maps import reshape_to_feature_maps
from sightline.models.model import Model
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.result import Result

AttentionKind = Literal["relevance", "rollout"]

HeadFusion = Literal["mean", "max", "min"]


@register_method(
    chapter="analytical",
    title="Attention",
    question="Which regions of the image does a transformer's output draw on, through all layers?",
    reading="Bright regions pass the most on to the output: by the attention weights alone "
    "(rollout), or by the weights that raise the class score (relevance).",
    caution="Attention says where information flows, not what it says. Rollout is the same for "
    "every class; both ignore what happens between the attention layers.",
    # Most networks have no attention; a report on them should not have to say so.
    tour_runs=(),
    attribution=AttributionSpec("map", "kind"),
)
def attention(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    target: TargetChoice | None = None,
    kind: AttentionKind = "relevance",
    fusion: HeadFusion = "mean",
) -> Result:
    """Relevance of each token for the output, from the attention weights A of all layers.

    rollout: product of (A + I)/2 over the layers, heads fused first. relevance: R ← R + mean over
    heads of (∂score/∂A ⊙ A)⁺ R, starting from R = I. Both are read at the tokens from which the
    network computes its output: the class token, or all patches where they are averaged.

    `values["tokens"]` is N×T, at least 0, unscaled; `values["relevance"]`, N×h×w, the same without
    class tokens on the grid of patches. `values["attribution"]` is that enlarged to N×H×W
    (bilinear), as the picture shows it; also under its older name, `values["map"]`.
    `values["layers"]` is the number of attention layers, `values["label"]`, N, the class indices.

    Args:
        kind: "relevance" (for one class, by gradients) or "rollout" (for the output as a whole).
        fusion: How "rollout" combines the weights of all heads: "mean", "max" or "min".
    """
    model = model.with_target(target)
    index = model.choose(label, image)
    weights, gradients = compute_attention_gradients(model, image, index)
    if kind == "rollout":
        relation = compute_rollout(weights, fusion)
        description = f"{fusion} attention rollout"
    else:
        relation = propagate_relevance(weights, gradients)
        label_names = ", ".join(model.labels[i] for i in index.tolist())
        description = f"relevance for {label_names}"

    height, width = image.shape[-2:]
    tokens = average_output_rows(relation, gradients[-1]).float().cpu()
    grid = reshape_to_feature_maps(tokens[:, :, None], height, width)[:, 0]
    attribution = upsample_maps(grid, (height, width))

    picture = model.to_picture(image)
    overlay = overlay_heatmap(picture, attribution)
    panel = arrange_in_row(picture, render_heatmap(attribution), overlay)
    rows, columns = grid.shape[1:]
    caption = (
        f"Image, {description} through {len(weights)} attention layers ({rows}×{columns} patches, "
        f"black 0, brightest {float(attribution[0].max()):.3g}), and their overlay."
    )
    values = {
        "attribution": attribution,
        "relevance": grid,
        "map": attribution,
        "tokens": tokens,
        "label": index,
        "layers": len(weights),
    }
    return Result({"attention": panel}, values, {"attention": caption})


# ── relations between tokens ──


def compute_rollout(weights: Sequence[Tensor], fusion: HeadFusion) -> Tensor:
    """Product of (A + I)/2 over the layers, N×T×T (Abnar & Zuidema 2020, section 3).

    Row i holds how much token i at the end has of each token at the start.
    """
    relation = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for layer_weights in weights:
        fused = fuse_heads(layer_weights, fusion)
        identity = torch.eye(fused.shape[-1]).to(fused)
        with_residual = (fused + identity) / 2
        # After max or min the rows no longer sum to 1; the paper uses the mean, whose rows do.
        normalized = with_residual / with_residual.sum(2, keepdim=True)
        relation = normalized @ relation.to(fused)
    return relation


def fuse_heads(weights: Tensor, fusion: HeadFusion) -> Tensor:
    """Attention weights N×heads×T×T as N×T×T."""
    if fusion == "mean":
        return weights.mean(1)
    if fusion == "max":
        return weights.amax(1)
    return weights.amin(1)


def propagate_relevance(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """R ← R + E_heads[(∂score/∂A ⊙ A)⁺] R over the layers, N×T×T (Chefer 2021, eq. 5 and 6)."""
    relation = torch.eye(weights[0].shape[-1]).to(weights[0])
    for layer_weights, layer_gradients in zip(weights, gradients, strict=True):
        contributions = (layer_gradients * layer_weights).relu()
        relation = relation + contributions.mean(1) @ relation
    return relation


def average_output_rows(relation: Tensor, gradient: Tensor) -> Tensor:
    """The mean row of the relation N×T×T over the tokens that the output is computed from, N×T.

    Those are the tokens whose row of the last layer's attention has a gradient; all tokens if none
    has one.
    """
    # The papers assume a class token. This finds it, and also suits networks that average patches.
    has_gradient = (gradient != 0).any(3).any(1)
    none_has_gradient = ~has_gradient.any(1, keepdim=True)
    is_read = has_gradient | none_has_gradient
    row_sum = (relation * is_read[:, :, None]).sum(1)
    return row_sum / is_read.sum(1, keepdim=True)


# ── attention weights ──


def compute_attention_gradients(
    model: Model, image: Tensor, index: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Attention weights N×heads×T×T of each layer, and the class score's gradients for them.

    The score is the one before the softmax. Raises SightlineError for a network without attention
    between all of its tokens.
    """
    with torch.enable_grad(), AttentionRecorder() as recorder:
        leaf = image.to(model.device).detach().requires_grad_()
        scores = model.run(leaf, ["logits"])["logits"].gather(1, index.view(-1, 1))
        # A pooling head's attention is not tokens × tokens: it does not belong in the product.
        weights = [
            candidate
            for candidate in recorder.weights
            if candidate.shape[2] == candidate.shape[3] > 1
        ]
        if not weights:
            raise SightlineError(
                f"{model.name} has no attention between image tokens; "
                "use a vision transformer, or gradcam or saliency"
            )
        for layer_weights in weights:
            same_tokens = layer_weights.shape[2:] == weights[0].shape[2:]
            if not same_tokens or len(layer_weights) != len(image):
                raise SightlineError(
                    f"{model.name} has attention among parts of its tokens or between different "
                    "sets of them; use gradcam or saliency"
                )
        gradients = torch.autograd.grad(
            scores.sum(), weights, allow_unused=True, materialize_grads=True
        )
    return [layer_weights.detach() for layer_weights in weights], list(gradients)


class AttentionRecorder(TorchFunctionMode):
    """Context in which torch's fused attention functions are computed step by step and recorded.

    Fused attention never forms its weights. Here `scaled_dot_product_attention` and
    `multi_head_attention_forward` form them, keep them in `weights` in order, and make them part of
    the gradient's graph. Outputs are the same up to rounding. No module is changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.compute_attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            call = MULTI_HEAD_SIGNATURE.bind(*args, **kwargs)
            call.apply_defaults()
            if is_standard_attention(call.arguments):
                return self.compute_multi_head_attention(call.arguments)
        return func(*args, **kwargs)

    def compute_attention(  # noqa: PLR0917 - the signature of the function it replaces
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(Q Kᵀ · scale + mask) V; `scale` defaults to 1/√d.

        Dropout is ignored: networks are in evaluation mode.
        """
        if enable_gqa:
            group_size = query.shape[-3] // key.shape[-3]
            key = key.repeat_interleave(group_size, -3)
            value = value.repeat_interleave(group_size, -3)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = query @ key.transpose(-2, -1) * factor

        if is_causal:
            all_pairs = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            attn_mask = all_pairs.tril()
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -torch.inf)
            else:
                scores = scores + attn_mask

        weights = scores.softmax(-1)
        if weights.ndim == 4:
            self.weights.append(weights)
        return weights @ value

    def compute_multi_head_attention(
        self, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """The result of `multi_head_attention_forward` for inputs T×N×E.

        Returns outputs T×N×E and, if `need_weights` is set, the weights.
        """
        biases = (None, None, None)
        if arguments["in_proj_bias"] is not None:
            biases = arguments["in_proj_bias"].chunk(3)
        inputs = (arguments["query"], arguments["key"], arguments["value"])
        projection_weights = arguments["in_proj_weight"].chunk(3)
        heads = arguments["num_heads"]
        projections: list[Tensor] = []
        for source, weight, bias in zip(inputs, projection_weights, biases, strict=True):
            projected = F.linear(source, weight, bias).unflatten(2, (heads, -1))
            projections.append(projected.permute(1, 2, 0, 3))  # N×heads×T×E/heads

        query, key, value = projections
        mixed = self.compute_attention(query, key, value)
        mixed = mixed.permute(2, 0, 1, 3).flatten(2)
        output = F.linear(mixed, arguments["out_proj_weight"], arguments["out_proj_bias"])
        if not arguments["need_weights"]:
            return output, None
        weights = self.weights[-1]
        if arguments["average_attn_weights"]:
            weights = weights.mean(1)
        return output, weights


MULTI_HEAD_SIGNATURE = inspect.signature(F.multi_head_attention_forward)

UNSUPPORTED_ARGUMENTS = (
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "training",
    "key_padding_mask",
    "attn_mask",
    "use_separate_proj_weight",
    "static_k",
    "static_v",
)


def is_standard_attention(arguments: dict[str, Any]) -> bool:
    """Whether a multi-head attention is a vision transformer's.

    It has a batch dimension, no masks, and no additions to the keys.
    """
    if arguments["query"].ndim != 3:
        return False
    return all(
        arguments[name] is None or arguments[name] is False for name in UNSUPPORTED_ARGUMENTS
    )
