"""Attention in windows or to pooled keys, laid on the image and followed from the output back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.plotting.maps import upsample_maps
from sightline.models.layers.attention.weights import (
    AttentionCall,
    AttentionLayer,
    AttentionRecorder,
)
from sightline.models.layers.layouts import FeatureLayout, list_feature_layouts
from sightline.models.layers.placement import (
    LAYOUT_PROBES,
    ProbedModel,
    find_known_reading,
    make_quadrant_images,
    pick_agreeing_layout,
)


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of K windows lie in the image."""

    layout: FeatureLayout
    windows: int
    tokens: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the positions."""
        return self.layout.rows, self.layout.columns

    @property
    def token_indices(self) -> Tensor:
        """Of each position, rows×columns, the number of its token among all windows' tokens."""
        numbers = torch.arange(self.windows * self.tokens)
        return self.layout.arrange_as_maps(numbers.view(self.windows, self.tokens, 1))[0, 0]

    def arrange_as_maps(self, tokens: Tensor) -> Tensor:
        """Numbers of the tokens, N×K×T, as N×rows×columns."""
        return tokens.flatten(1)[:, self.token_indices.to(tokens.device)]

    def cut_into_windows(self, maps: Tensor) -> Tensor:
        """Numbers of the positions, N×rows×columns, as N×K×T."""
        cut = maps.new_zeros(len(maps), self.windows * self.tokens)
        cut[:, self.token_indices.flatten().to(maps.device)] = maps.flatten(1)
        return cut.unflatten(1, (self.windows, self.tokens))


@dataclass(frozen=True)
class WindowedAttention:
    """One layer's weights and gradients N×K×heads×queries×keys, and where these lie."""

    weights: Tensor
    gradient: Tensor
    queries: TokenGrid
    keys: TokenGrid


def check_global_places(model: ProbedModel, image: Tensor) -> None:
    """Raises SightlineError where tokens, laid on the image in their order, lie at wrong places.

    The first attention tells: its values are not mixed yet. Attention among channels (XCiT) and
    further tokens behind those of the image (YOLOS) are refused by it.
    """
    try:
        probes, calls = run_probes(model, image)
    except SightlineError:
        return  # it takes no batch of such images
    if not calls:
        return  # it is run one image at a time
    size = (image.shape[-2], image.shape[-1])
    tokens = arrange_as_tokens(calls[0], calls[0].values, len(probes))
    layout = pick_agreeing_layout([tokens], size)
    sees_image = bool((tokens != tokens[:1]).any())
    if sees_image and (layout is None or layout.order == "NCT"):
        raise make_no_places_error(model, calls[0], size)


def locate_attention_windows(
    model: ProbedModel, layers: Sequence[AttentionLayer], image: Tensor
) -> list[WindowedAttention]:
    """Where each layer's tokens lie: the values of a token change with its part of the image.

    Pooled keys have a coarser grid than the queries. Raises SightlineError for layers whose tokens
    have no place in the image.
    """
    probes, calls = run_probes(model, image)
    size = (image.shape[-2], image.shape[-1])
    if len(calls) != len(layers):
        raise SightlineError(
            f"{model.name} has {len(layers)} attention layers for this image and {len(calls)} for "
            "others, so that the places of their tokens are not known; use gradcam or saliency"
        )
    located: list[WindowedAttention] = []
    layouts: list[FeatureLayout] = []
    for layer, call in zip(layers, calls, strict=True):
        values = arrange_as_tokens(call, call.values, len(probes))
        by_channel = pick_agreeing_layout([values], size)
        if by_channel is not None and by_channel.order == "NCT":
            raise make_no_places_error(model, call, size)
        keys = locate_tokens(values, size, layouts)
        if keys is None:
            raise make_no_places_error(model, call, size)
        layouts.append(keys.layout)
        queries = keys
        if call.query_count != call.weights.shape[-1]:
            # A query's weights change most where the query itself does.
            telling = call.weights.detach() if call.queries is None else call.queries
            tokens = arrange_as_tokens(call, telling, len(probes))
            queries = locate_tokens(tokens, size, layouts)
            if queries is None:
                raise make_no_places_error(model, call, size)
        layouts.append(queries.layout)
        located.append(WindowedAttention(layer.weights, layer.gradient, queries, keys))
    return located


def run_probes(model: ProbedModel, image: Tensor) -> tuple[Tensor, list[AttentionCall]]:
    """Images of which each has another quadrant changed, and the attention among their tokens."""
    size = (image.shape[-2], image.shape[-1])
    probes = make_quadrant_images(model.channels, size, model.device)
    with torch.no_grad(), AttentionRecorder() as recorder:
        model.run(probes, ["logits"])
    return probes, recorder.list_token_calls(len(probes))


def locate_tokens(
    tokens: Tensor, size: tuple[int, int], known: Sequence[FeatureLayout]
) -> TokenGrid | None:
    """The places of tokens (N·K)×T×C of the probes; None where they are not found.

    Where the probes don't tell, as on the small grids of deep layers, the tokens are read as those
    of an earlier layer.
    """
    layout = pick_agreeing_layout([tokens], size, tokens_last=False)
    if layout is None:
        layouts = list_feature_layouts(tokens.shape, LAYOUT_PROBES, *size)
        layout = find_known_reading(layouts, known)
    if layout is None or layout.extra_tokens:
        return None
    return TokenGrid(layout, len(tokens) // LAYOUT_PROBES, tokens.shape[1])


def make_no_places_error(
    model: ProbedModel, call: AttentionCall, size: tuple[int, int]
) -> SightlineError:
    """The error for attention of the probes whose tokens were not found in the image."""
    by_window = call.arrange_by_window(call.values, LAYOUT_PROBES)
    windows, _, tokens, _ = by_window.shape[1:]
    # XCiT and DaViT mix the channels of each head, N×channels×positions.
    layout = pick_agreeing_layout([by_window[:, 0, 0]], size) if windows == 1 else None
    if layout is not None and layout.order == "NCT":
        return SightlineError(
            f"{model.name} has attention among {tokens} channels, which are no places of the "
            "image; use gradcam or saliency"
        )
    in_windows = f" in {windows} windows" if windows > 1 else ""
    return SightlineError(
        f"{model.name} has attention among {tokens} tokens{in_windows} whose places in the image "
        "were not found; use gradcam or saliency"
    )


def arrange_as_tokens(call: AttentionCall, tensor: Tensor, count: int) -> Tensor:
    """Values, queries or weights of `count` images as (N·K)×T×C, heads among the channels."""
    by_window = call.arrange_by_window(tensor, count)
    return by_window.flatten(0, 1).transpose(1, 2).flatten(2)


def propagate_through_windows(
    windows: Sequence[WindowedAttention], steps: Sequence[Tensor], *, normalized: bool
) -> Tensor:
    """The mean row of the product of all layers, over the tokens that the output reads.

    A layer is what its queries keep of themselves, I, plus its step N×K×queries×keys;
    `normalized`, each row of that is divided by its sum. On the grid of the first layer,
    N×rows×columns. Where patches were merged between two layers, or are pooled to keys, a share is
    divided among those it was merged from.
    """
    last = windows[-1]
    has_gradient = (last.gradient != 0).any(4).any(2)
    none_has_gradient = ~has_gradient.flatten(1).any(1)
    is_read = (has_gradient | none_has_gradient[:, None, None]).to(steps[-1])
    shares = last.queries.arrange_as_maps(is_read / is_read.sum((1, 2), keepdim=True))
    for layer, step in zip(reversed(windows), reversed(steps), strict=True):
        shares = divide_among_positions(shares, layer.queries.size)
        rows = layer.queries.cut_into_windows(shares)
        if normalized:
            rows = rows / (1 + step.sum(-1))
        skipped = layer.queries.arrange_as_maps(rows)
        attended = layer.keys.arrange_as_maps(torch.einsum("nkq,nkqs->nks", rows, step))
        finer = (
            max(layer.queries.size[0], layer.keys.size[0]),
            max(layer.queries.size[1], layer.keys.size[1]),
        )
        shares = divide_among_positions(skipped, finer) + divide_among_positions(attended, finer)
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
    first = windows[0].queries
    maps: list[Tensor] = []
    for layer in windows:
        by_key = layer.gradient.relu().mean((2, 3))
        maps.append(upsample_maps(layer.keys.arrange_as_maps(by_key), first.size))
    return torch.stack(maps).mean(0)
