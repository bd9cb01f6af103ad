"""Attention of a transformer, followed through its layers.

Attention rollout (Abnar & Zuidema 2020), gradient-weighted relevance (Chefer, Gur & Wolf 2021,
«Generic attention-model explainability») and LeGrad (Bousselham et al. 2024).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError, guard_backward
from sightline.images.plotting.maps import (
    arrange_in_row,
    overlay_heatmap,
    render_heatmap,
    upsample_maps,
)
from sightline.models.heads.labels import ClassChoice
from sightline.models.heads.target_text import TargetChoice
from sightline.models.layers.attention.weights import AttentionLayer, AttentionRecorder
from sightline.models.layers.attention.windows import (
    WindowedAttention,
    average_window_gradients,
    check_global_places,
    locate_attention_windows,
    propagate_through_windows,
)
from sightline.models.layers.feature_maps import reshape_to_feature_maps
from sightline.models.model import Model
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.result import Result

AttentionKind = Literal["relevance", "rollout", "legrad"]

HeadFusion = Literal["mean", "max", "min"]


@register_method(
    chapter="analytical",
    title="Attention",
    question="Which regions of the image does a transformer's output draw on, through all layers?",
    reading="Bright regions pass the most on to the output: by the attention weights alone "
    "(rollout), by the weights that raise the class score (relevance), or where more attention "
    "would raise it (legrad).",
    caution="Attention says where information flows, not what it says. Rollout is the same for "
    "every class; all kinds ignore what happens between the attention layers.",
    # Most networks have no attention; a report on them should not have to say so.
    tour_runs=(),
    attribution=AttributionSpec("map", "kind"),
)
def attention(
    model: Model,
    image: Tensor,
    *,
    label: ClassChoice = "top",
    target: TargetChoice | None = None,
    kind: AttentionKind = "relevance",
    fusion: HeadFusion = "mean",
) -> Result:
    """Relevance of each token for the output, from the attention weights A of all layers.

    rollout: product of (A + I)/2 over the layers, heads fused first. relevance: R ← R + mean over
    heads of (∂score/∂A ⊙ A)⁺ R, starting from R = I. Both are read at the tokens from which the
    network computes its output: the class token, or all patches where they are averaged. legrad:
    mean over layers, heads and queries of (∂score/∂A)⁺, with the network's own score for all
    layers.

    Attention in windows (Swin) is followed window by window, and through the merging of patches; a
    pooled key's share (PVT, MViT) is divided among the patches that it was pooled from.

    `values["tokens"]` is N×T, at least 0, unscaled; `values["relevance"]`, N×h×w, the same without
    class tokens on the grid of patches. `values["attribution"]` is that enlarged to N×H×W
    (bilinear), as the picture shows it; also under its older name, `values["map"]`.
    `values["layers"]` is the number of attention layers, `values["label"]`, N, the class indices.

    Args:
        kind: "relevance" (for one class, by gradients), "rollout" (for the output as a whole) or
            "legrad" (for one class, by gradients alone).
        fusion: How "rollout" combines the weights of all heads: "mean", "max" or "min".
    """
    model = model.with_target(target)
    index = model.choose(label, image)
    layers = compute_attention_gradients(model, image, index)
    weights = [layer.weights for layer in layers]
    gradients = [layer.gradient for layer in layers]
    if kind == "rollout":
        description = f"{fusion} attention rollout"
    else:
        label_names = ", ".join(model.labels[i] for i in index.tolist())
        description = f"{'LeGrad' if kind == 'legrad' else 'relevance'} for {label_names}"

    height, width = image.shape[-2:]
    if is_global_attention(weights):
        check_global_places(model, image)
        tokens = compute_token_relevance(kind, weights, gradients, fusion).float().cpu()
        grid = reshape_to_feature_maps(tokens[:, :, None], height, width)[:, 0]
    else:
        windows = locate_attention_windows(model, layers, image)
        grid = compute_windowed_relevance(kind, windows, fusion).float().cpu()
        tokens = grid.flatten(1)
    attribution = upsample_maps(grid, (height, width))

    picture = model.to_picture(image)
    overlay = overlay_heatmap(picture, attribution)
    panel = arrange_in_row(picture, render_heatmap(attribution), overlay)
    rows, columns = grid.shape[1:]
    caption = (
        f"Image, {description} through {len(layers)} attention layers ({rows}×{columns} patches, "
        f"black 0, brightest {float(attribution[0].max()):.3g}), and their overlay."
    )
    values = {
        "attribution": attribution,
        "relevance": grid,
        "map": attribution,
        "tokens": tokens,
        "label": index,
        "layers": len(layers),
    }
    return Result({"attention": panel}, values, {"attention": caption})


# ── relations between tokens ──


def is_global_attention(weights: Sequence[Tensor]) -> bool:
    """Whether all layers' weights, N×K×heads×T×T, are among the same tokens, without windows."""
    tokens = weights[0].shape[3]
    same_tokens = all(layer.shape[3:] == (tokens, tokens) for layer in weights)
    return same_tokens and all(layer.shape[1] == 1 for layer in weights)


def compute_token_relevance(
    kind: AttentionKind, weights: Sequence[Tensor], gradients: Sequence[Tensor], fusion: HeadFusion
) -> Tensor:
    """What the output draws from each token, N×T."""
    token_weights = [layer[:, 0] for layer in weights]
    token_gradients = [layer[:, 0] for layer in gradients]
    if kind == "legrad":
        by_layer = [gradient.relu().mean((1, 2)) for gradient in token_gradients]
        return torch.stack(by_layer).mean(0)
    if kind == "rollout":
        relation = compute_rollout(token_weights, fusion)
    else:
        relation = propagate_relevance(token_weights, token_gradients)
    return average_output_rows(relation, token_gradients[-1])


def compute_windowed_relevance(
    kind: AttentionKind, windows: Sequence[WindowedAttention], fusion: HeadFusion
) -> Tensor:
    """What the output draws from each position of the first layer, N×h×w."""
    if kind == "legrad":
        return average_window_gradients(windows)
    steps: list[Tensor] = []
    for layer in windows:
        if kind == "rollout":
            fused = fuse_heads(layer.weights.flatten(0, 1), fusion)
            steps.append(fused.unflatten(0, layer.weights.shape[:2]))
        else:
            steps.append((layer.gradient * layer.weights).relu().mean(2))
    return propagate_through_windows(windows, steps, normalized=kind == "rollout")


def compute_rollout(weights: Sequence[Tensor], fusion: HeadFusion) -> Tensor:
    """Product of (A + I)/2 over the layers, N×T×T (Abnar & Zuidema 2020, section 3).

    Row i holds how much token i at the end has of each token at the start.
    """
    relation = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for layer_weights in weights:
        step = add_residual(fuse_heads(layer_weights, fusion))
        relation = step @ relation.to(step)
    return relation


def add_residual(fused: Tensor) -> Tensor:
    """(A + I)/2 of weights N×T×T, with rows that sum to 1."""
    identity = torch.eye(fused.shape[-1]).to(fused)
    with_residual = (fused + identity) / 2
    # After max or min the rows no longer sum to 1; the paper uses the mean, whose rows do.
    return with_residual / with_residual.sum(2, keepdim=True)


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


def compute_attention_gradients(model: Model, image: Tensor, index: Tensor) -> list[AttentionLayer]:
    """The layers' attention weights among T tokens, and the class score's gradients for them.

    The score is the one before the softmax. Raises SightlineError for a network without attention
    between tokens of the image.
    """
    with torch.enable_grad(), AttentionRecorder() as recorder:
        leaf = image.to(model.device).detach().requires_grad_()
        scores = model.run(leaf, ["logits"])["logits"].gather(1, index.view(-1, 1))
    calls = recorder.list_token_calls(len(image))
    if model.has_further_inputs:
        # Attention among the words of a text that is given too says nothing of the image.
        calls = [call for call in calls if call.weights.requires_grad]
    if not calls:
        other_attention = recorder.describe_calls()
        raise SightlineError(
            f"{model.name} has no attention between image tokens{other_attention}; "
            "use a vision transformer, or gradcam or saliency"
        )
    gradients = differentiate_weights(scores.sum(), [call.weights for call in calls])
    return [
        AttentionLayer(
            call.arrange_by_window(call.weights.detach(), len(image)),
            call.arrange_by_window(gradient, len(image)),
        )
        for call, gradient in zip(calls, gradients, strict=True)
    ]


def differentiate_weights(score: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The score's gradients for the weights; 0 for those that don't depend on the image."""
    learned = [layer for layer in weights if layer.requires_grad]
    gradients: list[Tensor] = []
    if learned:
        with guard_backward():
            gradients.extend(
                torch.autograd.grad(score, learned, allow_unused=True, materialize_grads=True)
            )
    return [
        gradients.pop(0) if layer.requires_grad else torch.zeros_like(layer) for layer in weights
    ]
