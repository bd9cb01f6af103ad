"""Attention in windows, laid on the image and followed from the output back to its first layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.plotting.maps import upsample_maps
from sightline.models.layers.attention_weights import (
    AttentionCall,
    AttentionLayer,
    AttentionRecorder,
)
from sightline.models.layers.layouts import FeatureLayout
from sightline.models.layers.placement import (
    ProbedModel,
    make_quadrant_images,
    pick_agreeing_layout,
)


@dataclass(frozen=True)
class WindowedAttention:
    """One layer's weights and gradients N×K×heads×T×T, and where its tokens lie in the image."""

    weights: Tensor
    gradient: Tensor
    layout: FeatureLayout

    @property
    def token_indices(self) -> Tensor:
        """Of each position, rows×columns, the number of its token among all windows' tokens."""
        windows, _, tokens = self.weights.shape[1:4]
        numbers = torch.arange(windows * tokens, device=self.weights.device)
        return self.layout.arrange_as_maps(numbers.view(windows, tokens, 1))[0, 0]

    def arrange_as_maps(self, tokens: Tensor) -> Tensor:
        """Numbers of the tokens, N×K×T, as N×rows×columns."""
        return tokens.flatten(1)[:, self.token_indices]

    def cut_into_windows(self, maps: Tensor) -> Tensor:
        """Numbers of the positions, N×rows×columns, as N×K×T."""
        windows, _, tokens = self.weights.shape[1:4]
        cut = maps.new_zeros(len(maps), windows * tokens)
        cut[:, self.token_indices.flatten()] = maps.flatten(1)
        return cut.unflatten(1, (windows, tokens))


def locate_attention_windows(
    model: ProbedModel, layers: Sequence[AttentionLayer], image: Tensor
) -> list[WindowedAttention]:
    """Where each layer's tokens lie: the values of a token change with its part of the image.

    Raises SightlineError for layers whose tokens have no place in the image.
    """
    height, width = image.shape[-2:]
    probes = make_quadrant_images(model.channels, (height, width), model.device)
    with torch.no_grad(), AttentionRecorder() as recorder:
        model.run(probes, ["logits"])
    located: list[WindowedAttention] = []
    calls = recorder.list_token_calls(len(probes))
    for layer, call in zip(layers, calls, strict=True):
        tokens = arrange_values_as_tokens(call, len(probes))
        layout = pick_agreeing_layout([tokens], (height, width))
        if layout is None or layout.extra_tokens:
            windows, _, token_count = layer.weights.shape[1:4]
            raise SightlineError(
                f"{model.name} has attention among {token_count} tokens in {windows} windows whose "
                "places in the image were not found; use gradcam or saliency"
            )
        located.append(WindowedAttention(layer.weights, layer.gradient, layout))
    return located


def arrange_values_as_tokens(call: AttentionCall, count: int) -> Tensor:
    """The values of `count` images as (N·K)×T×C, heads among the channels."""
    by_window = call.arrange_by_window(call.values, count)
    return by_window.flatten(0, 1).transpose(1, 2).flatten(2)


def propagate_through_windows(
    windows: Sequence[WindowedAttention], steps: Sequence[Tensor]
) -> Tensor:
    """The mean row of the product of all steps N×K×T×T, over the tokens that the output reads.

    On the grid of the first layer, N×rows×columns. Where patches were merged between two layers, a
    patch's share is divided among those it was merged from.
    """
    last = windows[-1]
    has_gradient = (last.gradient != 0).any(4).any(2)
    none_has_gradient = ~has_gradient.flatten(1).any(1)
    is_read = (has_gradient | none_has_gradient[:, None, None]).to(steps[-1])
    shares = last.arrange_as_maps(is_read / is_read.sum((1, 2), keepdim=True))
    for layer, step in zip(reversed(windows), reversed(steps), strict=True):
        shares = divide_among_positions(shares, (layer.layout.rows, layer.layout.columns))
        rows = layer.cut_into_windows(shares)
        shares = layer.arrange_as_maps(torch.einsum("nkt,nkts->nks", rows, step))
    return shares


def divide_among_positions(shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Shares N×h×w on a grid of another size, with the same sum."""
    divided = shares
    for axis, length in ((1, size[0]), (2, size[1])):
        if divided.shape[axis] != length:
            fine = torch.eye(length).to(divided)
            mean_of_fine = F.adaptive_avg_pool1d(fine, divided.shape[axis])
            divided = torch.movedim(divided.movedim(axis, -1) @ mean_of_fine.T, -1, axis)
    return divided


def average_window_gradients(windows: Sequence[WindowedAttention]) -> Tensor:
    """Mean over layers, heads and queries of the positive gradients, on the first layer's grid."""
    first = windows[0].layout
    maps: list[Tensor] = []
    for layer in windows:
        by_key = layer.gradient.relu().mean((2, 3))
        maps.append(upsample_maps(layer.arrange_as_maps(by_key), (first.rows, first.columns)))
    return torch.stack(maps).mean(0)
