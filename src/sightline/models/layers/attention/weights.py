"""The attention weights of a network, recorded while it runs."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.models.overrides.mode import ObservingMode

SOFTMAX_FUNCTIONS = (F.softmax, torch.softmax, Tensor.softmax)

PRODUCT_FUNCTIONS = (torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm)


@dataclass(frozen=True)
class AttentionLayer:
    """A layer's weights and the score's gradient for them: N×K×heads×queries×keys, K windows."""

    weights: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class AttentionCall:
    """One attention: its weights …×queries×keys, part of the graph, and what tells their places.

    Attributes:
        weights: of the keys, by query.
        values: …×keys×d, what the weights mix.
        queries: …×queries×d; None where a network spells the attention itself.
    """

    weights: Tensor
    values: Tensor
    queries: Tensor | None = None

    @property
    def query_count(self) -> int:
        """How many queries there are."""
        return self.weights.shape[-2]

    def arrange_by_window(self, tensor: Tensor, count: int) -> Tensor:
        """Weights, values or queries of `count` images as N×K×heads×T×…."""
        if tensor.ndim == 3:
            # Images and heads are one axis.
            return tensor.unflatten(0, (count, 1, -1))
        if tensor.ndim == 4:
            return tensor.unflatten(0, (count, -1))
        return tensor.flatten(1, -4)[:, :, None] if tensor.ndim > 5 else tensor


class AttentionRecorder(ObservingMode):
    """Context in which torch's fused attention functions are computed step by step and recorded.

    Fused attention never forms its weights. Here `scaled_dot_product_attention` and
    `multi_head_attention_forward` form them, keep them in `calls` in order, and make them part of
    the gradient's graph. A softmax whose rows weigh what is multiplied by it is attention too, as
    networks spell it themselves. Outputs are the same up to rounding. No module is changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self.softmax_outputs: dict[int, Tensor] = {}

    @property
    def weights(self) -> list[Tensor]:
        """The weights of all calls in order."""
        return [call.weights for call in self.calls]

    def list_token_calls(self, count: int) -> list["AttentionCall"]:
        """The calls between several tokens of `count` images; keys may be pooled.

        A head that pools the tokens does not belong in the product: its queries are no tokens, and
        it comes last. So the calls end with the last one that is tokens × tokens.
        """
        among_tokens = [
            call
            for call in self.calls
            if min(call.weights.shape[-2:]) > 1 and len(call.weights) % count == 0
        ]
        while among_tokens and among_tokens[-1].weights.shape[-1] != among_tokens[-1].query_count:
            among_tokens.pop()
        return among_tokens

    def describe_calls(self) -> str:
        """What attention there was, to follow «no attention between tokens»."""
        if not self.calls:
            return ""
        shapes = dict.fromkeys(str(tuple(call.weights.shape)) for call in self.calls)
        return f", only weights of {', '.join(list(shapes)[:3])}"

    def run_function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The function's own result, of attention computed step by step and recorded."""
        if func is F.scaled_dot_product_attention:
            return self.compute_attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            call = MULTI_HEAD_SIGNATURE.bind(*args, **kwargs)
            call.apply_defaults()
            if is_standard_attention(call.arguments):
                return self.compute_multi_head_attention(call.arguments)
        if func in PRODUCT_FUNCTIONS:
            self.record_product(args)
        output = func(*args, **kwargs)
        if func in SOFTMAX_FUNCTIONS and output.ndim >= 3:
            self.softmax_outputs[output.data_ptr()] = output
        elif func is Tensor.to and args[0].data_ptr() in self.softmax_outputs:
            # Weights in full precision that are cast to that of the values.
            self.softmax_outputs[output.data_ptr()] = self.softmax_outputs[args[0].data_ptr()]
        return output

    def record_product(self, args: tuple[Any, ...]) -> None:
        """Records a product of a softmax, or what dropout left of it, with values."""
        if len(args) < 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], Tensor):
            return
        weights = self.softmax_outputs.pop(args[0].data_ptr(), None)
        if weights is None or weights.shape != args[0].shape:
            return
        row_sums = weights.detach().float().sum(-1)
        if torch.allclose(row_sums, torch.ones_like(row_sums), atol=1e-3):
            self.calls.append(AttentionCall(weights, args[1].detach()))

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
        if weights.ndim >= 3:
            self.calls.append(AttentionCall(weights, value.detach(), query.detach()))
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
        mask = merge_attention_masks(arguments, query)
        mixed = self.compute_attention(query, key, value, mask)
        mixed = mixed.permute(2, 0, 1, 3).flatten(2)
        output = F.linear(mixed, arguments["out_proj_weight"], arguments["out_proj_bias"])
        if not arguments["need_weights"]:
            return output, None
        weights = self.weights[-1]
        if arguments["average_attn_weights"]:
            weights = weights.mean(1)
        return output, weights


def merge_attention_masks(arguments: dict[str, Any], query: Tensor) -> Tensor | None:
    """What is added to the scores N×heads×T×T of a multi-head attention; None for nothing."""
    masks: list[Tensor] = []
    attention_mask = arguments["attn_mask"]
    if attention_mask is not None:
        is_by_head = attention_mask.ndim == 3
        masks.append(attention_mask.unflatten(0, query.shape[:2]) if is_by_head else attention_mask)
    if arguments["key_padding_mask"] is not None:
        masks.append(arguments["key_padding_mask"][:, None, None])
    merged = None
    for mask in masks:
        # True hides a key here, unlike in scaled_dot_product_attention.
        added = mask
        if mask.dtype == torch.bool:
            added = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -torch.inf)
        merged = added if merged is None else merged + added
    return merged


MULTI_HEAD_SIGNATURE = inspect.signature(F.multi_head_attention_forward)

UNSUPPORTED_ARGUMENTS = (
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "training",
    "use_separate_proj_weight",
    "static_k",
    "static_v",
)


def is_standard_attention(arguments: dict[str, Any]) -> bool:
    """Whether a multi-head attention is a vision transformer's.

    It has a batch dimension, and no additions to the keys.
    """
    if arguments["query"].ndim != 3:
        return False
    return all(
        arguments[name] is None or arguments[name] is False for name in UNSUPPORTED_ARGUMENTS
    )
