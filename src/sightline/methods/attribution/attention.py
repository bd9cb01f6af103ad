"""Attention of a transformer, followed through its layers: attention rollout (Abnar & Zuidema 2020) and gradient-weighted
relevance (Chefer, Gur & Wolf 2021, «Generic attention-model explainability»)."""

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
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_feature_maps
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.result import Result

AttentionKind = Literal["relevance", "rollout"]

HeadFusion = Literal["mean", "max", "min"]


@register_method(
    chapter="analytical",
    title="Attention",
    question="Which parts of the image does a transformer's answer draw on, through all its layers?",
    reading="Bright parts pass on the most to the answer: by the attention weights alone (rollout), or by those that raise the class score (relevance).",
    caution="Attention says where information flows, not what it says. Rollout is the same for every class; both ignore what happens "
    "between the attention layers.",
    # Most networks have no attention, and a report on them should not have to say so.
    tour_runs=(),
    attribution=AttributionSpec("map", "kind"),
)
def attention(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    kind: AttentionKind = "relevance",
    fusion: HeadFusion = "mean",
) -> Result:
    """Relevance of every token for the answer, from the attention weights A of all layers of a vision transformer.

    rollout: product of (A + I)/2, heads fused first. relevance: R ← R + mean over heads of (∂score/∂A ⊙ A)⁺ R, from R = I.
    Read off at the tokens from which the network reads its answer: the class token, or all patches where they are averaged.
    `values["tokens"]` is N×T, unscaled; `values["relevance"]` N×h×w the same without class tokens on the grid of patches;
    `values["map"]` enlarged to N×H×W; `values["layers"]` the number of attention layers.

    Args:
        kind: "relevance" (of one class, by gradients) or "rollout" (of the answer as a whole).
        fusion: How "rollout" makes one weight of all heads': "mean", "max" or "min".
    """
    index = model.choose(label, image)
    weights, slopes = compute_attention_gradients(model, image, index)
    relation = (
        compute_rollout(weights, fusion)
        if kind == "rollout"
        else propagate_relevance(weights, slopes)
    )
    tokens = average_output_rows(relation, slopes[-1]).float().cpu()
    grid = reshape_to_feature_maps(tokens[:, :, None], *image.shape[-2:])[:, 0]
    map_ = upsample_maps(grid, image.shape[-2:])
    panel = arrange_in_row(image, render_heatmap(map_), overlay_heatmap(image, map_))
    what = (
        f"{fusion} attention rollout"
        if kind == "rollout"
        else f"relevance for {', '.join(model.labels[i] for i in index.tolist())}"
    )
    scale = (
        f"{grid.shape[1]}×{grid.shape[2]} patches, black 0, brightest {float(map_[0].max()):.3g}"
    )
    caption = f"Image, {what} through {len(weights)} attention layers ({scale}), and both."
    values = {
        "relevance": grid,
        "map": map_,
        "tokens": tokens,
        "label": index,
        "layers": len(weights),
    }
    return Result({"attention": panel}, values, {"attention": caption})


# ── relations between tokens ──


def compute_rollout(weights: Sequence[Tensor], fusion: HeadFusion) -> Tensor:
    """Product of (A + I)/2 over the layers (Abnar & Zuidema 2020, section 3), N×T×T: what each token has of each at the start."""
    found = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for layer in weights:
        fused = (
            layer.mean(1)
            if fusion == "mean"
            else layer.amax(1)
            if fusion == "max"
            else layer.amin(1)
        )
        mixed = (fused + torch.eye(fused.shape[-1]).to(fused)) / 2
        # Of max and min the rows no longer add up to 1; the paper has the mean, whose rows do.
        found = mixed / mixed.sum(2, keepdim=True) @ found.to(fused)
    return found


def propagate_relevance(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """R ← R + E_heads[(∂score/∂A ⊙ A)⁺] R over the layers (Chefer 2021, eq. 5 and 6), N×T×T."""
    found = torch.eye(weights[0].shape[-1]).to(weights[0])
    for layer, slope in zip(weights, gradients, strict=True):
        found = found + (slope * layer).relu().mean(1) @ found
    return found


def average_output_rows(relation: Tensor, gradient: Tensor) -> Tensor:
    """The relation's mean row over the tokens that the answer is read from, N×T.

    Those are the ones whose row of the last attention has a gradient; all of them if none has.
    """
    # The papers have a class token; this finds it, and does right by networks that average their patches.
    read = (gradient != 0).any(3).any(1)
    read = read | ~read.any(1, keepdim=True)
    return (relation * read[:, :, None]).sum(1) / read.sum(1, keepdim=True)


# ── attention weights ──


def compute_attention_gradients(
    model: Model, image: Tensor, index: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Attention weights N×heads×T×T of every layer, and the gradients of the score before the softmax with respect to them.

    Raises SightlineError for a network without attention between all of its tokens.
    """
    with torch.enable_grad(), AttentionRecorder() as seen:
        leaf = image.to(model.device).detach().requires_grad_()
        scores = model.run(leaf, ["logits"])["logits"].gather(1, index.view(-1, 1))
        # A pooling head's attention is not tokens × tokens: it stands outside the product.
        weights = [one for one in seen.weights if one.shape[2] == one.shape[3] > 1]
        if not weights:
            raise SightlineError(
                f"{model.name} has no attention between image tokens; take a vision transformer, or ask gradcam or saliency"
            )
        if any(one.shape[2:] != weights[0].shape[2:] or len(one) != len(image) for one in weights):
            raise SightlineError(
                f"{model.name} has attention among parts of its tokens or between different ones; ask gradcam or saliency"
            )
        slopes = torch.autograd.grad(
            scores.sum(), weights, allow_unused=True, materialize_grads=True
        )
    return [one.detach() for one in weights], list(slopes)


class AttentionRecorder(TorchFunctionMode):
    """Context in which `scaled_dot_product_attention` and `multi_head_attention_forward` are computed step by step.

    Fused attention never forms its weights; here they are formed, kept in `weights` in order, and are part of the gradient's
    graph. Results are the same up to rounding. No module is touched.
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
            told = MULTI_HEAD_SIGNATURE.bind(*args, **kwargs)
            told.apply_defaults()
            if is_standard_attention(told.arguments):
                return self.compute_multi_head_attention(told.arguments)
        return func(*args, **kwargs)

    def compute_attention(  # noqa: PLR0917 - the signature of the function it stands for
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
        """softmax(Q Kᵀ · scale + mask) V, with `scale` 1/√d unless given. Without dropout: networks are in evaluation mode."""
        if enable_gqa:
            key, value = (
                part.repeat_interleave(query.shape[-3] // part.shape[-3], -3)
                for part in (key, value)
            )
        scores = (
            query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        )
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            scores = (
                scores.masked_fill(~attn_mask, -torch.inf)
                if attn_mask.dtype == torch.bool
                else scores + attn_mask
            )
        weights = scores.softmax(-1)
        if weights.ndim == 4:
            self.weights.append(weights)
        return weights @ value

    def compute_multi_head_attention(
        self, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """What `multi_head_attention_forward` gives for T×N×E inputs: outputs T×N×E and, where asked for, the weights."""
        biases = (
            (None,) * 3 if arguments["in_proj_bias"] is None else arguments["in_proj_bias"].chunk(3)
        )
        projections = zip(
            (arguments["query"], arguments["key"], arguments["value"]),
            arguments["in_proj_weight"].chunk(3),
            biases,
            strict=True,
        )
        query, key, value = (
            F.linear(*parts).unflatten(2, (arguments["num_heads"], -1)).permute(1, 2, 0, 3)
            for parts in projections
        )
        mixed = self.compute_attention(query, key, value).permute(2, 0, 1, 3).flatten(2)
        weights = self.weights[-1] if arguments["need_weights"] else None
        if weights is not None and arguments["average_attn_weights"]:
            weights = weights.mean(1)
        return F.linear(mixed, arguments["out_proj_weight"], arguments["out_proj_bias"]), weights


MULTI_HEAD_SIGNATURE = inspect.signature(F.multi_head_attention_forward)

UNSUPPORTED_ARGUMENTS = (
    "bias_k", "bias_v", "add_zero_attn", "training", "key_padding_mask", "attn_mask", "use_separate_proj_weight", "static_k", "static_v",
)  # fmt: skip


def is_standard_attention(arguments: dict[str, Any]) -> bool:
    """Whether a multi-head attention is the one of vision transformers: a batch, without masks or additions to the keys."""
    return arguments["query"].ndim == 3 and all(
        arguments[name] is None or arguments[name] is False for name in UNSUPPORTED_ARGUMENTS
    )
