"""Attention rollout and relevance against explicit softmax(QKᵀ/√d).

On small random transformers of torchvision and timm.
"""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer

import sightline as sl
from sightline.methods.attribution.attention import (
    AttentionKind,
    AttentionRecorder,
    compute_attention_gradients,
)

LABELS = ("ant", "bee", "cat", "dog")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def of_torchvision() -> nn.Module:
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
        num_classes=4,
    )
    return lively(network)


def of_timm(**options: object) -> nn.Module:
    torch.manual_seed(0)
    shape = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 1.5,
        "num_classes": 4,
    }
    return lively(TimmTransformer(**{**shape, **options}))


def averaging() -> nn.Module:
    return of_timm(global_pool="avg", class_token=False)


def averaging_with_a_class_token() -> nn.Module:
    return of_timm(global_pool="avg")


def with_registers() -> nn.Module:
    return of_timm(reg_tokens=3, depth=3, num_heads=4)


def wide() -> nn.Module:
    """For images of 32×40; resamples its position embeddings for a Model's square blank."""
    return of_timm(img_size=(32, 40), dynamic_img_size=True)


def lively(network: nn.Module) -> nn.Module:
    """Weights so large that attention is far from uniform."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 1.5 / parameter[0].numel() ** 0.5)
    return network.eval()


NETWORKS = (of_torchvision, of_timm, averaging, averaging_with_a_class_token, with_registers, wide)
every = pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)


def loaded(network: nn.Module) -> sl.Model:
    return sl.load(network, mean=MEAN, std=STD, labels=LABELS, size=32, device="cpu")


def pictures(count: int = 3, width: int = 32) -> Tensor:
    return torch.rand(count, 3, 32, width, generator=torch.Generator().manual_seed(1))


def width_for(make: Callable[[], nn.Module]) -> int:
    """The width of images that a network takes."""
    return 40 if make is wide else 32


# ── the same, written out ──


def by_hand(network: nn.Module, image: Tensor, label: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attention weights heads×T×T of every layer, and their gradients, of one image.

    Every block is spelt out, in float64.
    """
    network = copy.deepcopy(network).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    x = (image[None].double() - mean) / std
    weights: list[Tensor] = []
    score = (
        torchvision_forward(network, x, weights)
        if isinstance(network, VisionTransformer)
        else timm_forward(network, x, weights)
    )
    return [one.detach() for one in weights], list(torch.autograd.grad(score[0, label], weights))


def mixed(qkv: Tensor, heads: int, weights: list[Tensor]) -> Tensor:
    """Multi-head attention of T×3E projections, head by head."""
    query, key, value = qkv.chunk(3, 1)
    width = query.shape[1] // heads
    parts = [slice(h * width, (h + 1) * width) for h in range(heads)]
    weights.append(
        torch.stack([torch.softmax(query[:, p] @ key[:, p].T / width**0.5, 1) for p in parts])
    )
    return torch.cat([weights[-1][h] @ value[:, p] for h, p in enumerate(parts)], 1)


def torchvision_forward(network: VisionTransformer, x: Tensor, weights: list[Tensor]) -> Tensor:
    patches = network.conv_proj(x).flatten(2)[0].T
    tokens = torch.cat([network.class_token[0], patches]) + network.encoder.pos_embedding[0]
    for block in network.encoder.layers:
        inner, layer = block.ln_1(tokens), block.self_attention
        out = mixed(
            F.linear(inner, layer.in_proj_weight, layer.in_proj_bias), layer.num_heads, weights
        )
        tokens = tokens + layer.out_proj(out)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return network.heads(network.encoder.ln(tokens)[:1])


def timm_forward(network: TimmTransformer, x: Tensor, weights: list[Tensor]) -> Tensor:
    tokens = network._pos_embed(network.patch_embed(x))[0]
    for block in network.blocks:
        tokens = tokens + block.attn.proj(
            mixed(block.attn.qkv(block.norm1(tokens)), block.attn.num_heads, weights)
        )
        tokens = tokens + block.mlp(block.norm2(tokens))
    tokens = network.norm(tokens)
    extra = network.num_prefix_tokens
    pooled = tokens[:1] if network.global_pool == "token" else tokens[extra:].mean(0, keepdim=True)
    return network.head(network.fc_norm(pooled))


def row_of(network: nn.Module, relation: Tensor) -> Tensor:
    """The row that the output is read from."""
    if isinstance(network, TimmTransformer) and network.global_pool == "avg":
        return relation[network.num_prefix_tokens :].mean(0)
    return relation[0]


# ── capturing ──


@every
def test_recording_changes_no_output(make: Callable[[], nn.Module]) -> None:
    model = loaded(make())
    with torch.no_grad():
        plain = model.logits(pictures(width=width_for(make)))
        with AttentionRecorder() as recorder:
            recorded = model.logits(pictures(width=width_for(make)))
        assert torch.allclose(plain, recorded, atol=1e-5)
        assert torch.equal(model.logits(pictures(width=width_for(make))), plain)
    assert len(recorder.weights) == (3 if make is with_registers else 2)
    for weights in recorder.weights:
        assert torch.allclose(weights.sum(3), torch.ones(weights.shape[:3]), atol=1e-5)


@every
def test_weights_are_softmax_of_queries_and_keys(make: Callable[[], nn.Module]) -> None:
    network = make()
    model = loaded(network)
    model.logits(pictures(width=width_for(make)))  # what a model finds out once is not recorded
    with torch.no_grad(), AttentionRecorder() as recorder:
        model.logits(pictures(width=width_for(make)))
    for i, image in enumerate(pictures(width=width_for(make))):
        expected, _ = by_hand(network, image, 0)
        for found, one in zip(recorder.weights, expected, strict=True):
            assert torch.allclose(found[i].double(), one, atol=1e-5)
    assert recorder.weights[0].std() > 0.02, "a uniform attention would test nothing"


def attended(**options: object) -> tuple[Tensor, Tensor]:
    """Fused attention of random tensors, and the same computed step by step."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 6, 4, generator=generator)
        for heads in ((4, 2, 2) if "enable_gqa" in options else (4, 4, 4))
    )
    plain = F.scaled_dot_product_attention(query, key, value, **options)
    with AttentionRecorder() as recorder:
        recorded = F.scaled_dot_product_attention(query, key, value, **options)
    assert [one.shape for one in recorder.weights] == [(2, 4, 6, 6)]
    return plain, recorded


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"enable_gqa": True},
        {"attn_mask": torch.eye(6).bool()},
        {"attn_mask": torch.randn(6, 6)},
    ],
    ids=["plain", "causal", "scale", "groups", "mask", "bias"],
)
def test_every_variant_of_fused_attention_gives_the_same(options: dict[str, object]) -> None:
    plain, recorded = attended(**options)
    assert torch.allclose(plain, recorded, atol=1e-6)


@pytest.mark.parametrize(
    "call_options",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": torch.eye(3, 5).bool()},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 7, "vdim": 7}], ids=str
)
def test_every_variant_of_multi_head_attention_gives_the_same(
    call_options: dict[str, object], options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True, **options).eval()
    query = torch.randn(3, 5, 8)
    key = torch.randn(3, 5, 7) if "kdim" in options else query
    plain = layer(query, key, key, **call_options)
    with AttentionRecorder():
        recorded = layer(query, key, key, **call_options)
    assert torch.allclose(plain[0], recorded[0], atol=1e-6)
    assert (plain[1] is None) == (recorded[1] is None)
    if plain[1] is not None:
        assert torch.allclose(plain[1], recorded[1], atol=1e-6)


# ── the two methods ──


@every
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_is_its_product(make: Callable[[], nn.Module], fusion: str) -> None:
    network = make()
    found = sl.attention(
        loaded(network), pictures(width=width_for(make)), kind="rollout", fusion=fusion
    ).values["tokens"]
    for i, image in enumerate(pictures(width=width_for(make))):
        weights, _ = by_hand(network, image, 0)
        product = torch.eye(weights[0].shape[1], dtype=torch.float64)
        for layer in weights:
            fused = {"mean": layer.mean(0), "max": layer.max(0).values, "min": layer.min(0).values}[
                fusion
            ]
            half = 0.5 * fused + 0.5 * torch.eye(len(fused), dtype=torch.float64)
            product = (half / half.sum(1, keepdim=True)) @ product
        assert torch.allclose(found[i].double(), row_of(network, product), atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(3), atol=1e-5)


@every
def test_relevance_is_its_recursion(make: Callable[[], nn.Module]) -> None:
    network = make()
    for label in range(4):
        found = sl.attention(loaded(network), pictures(width=width_for(make)), label=label).values[
            "tokens"
        ]
        for i, image in enumerate(pictures(width=width_for(make))):
            weights, gradients = by_hand(network, image, label)
            relation = torch.eye(weights[0].shape[1], dtype=torch.float64)
            for layer, gradient in zip(weights, gradients, strict=True):
                step = sum(
                    torch.clamp(gradient[h] * layer[h], min=0) for h in range(len(layer))
                ) / len(layer)
                relation = relation + step @ relation
            assert torch.allclose(
                found[i].double(), row_of(network, relation), atol=1e-5, rtol=1e-4
            )


@every
@pytest.mark.parametrize("kind", ["rollout", "relevance"])
def test_patches_are_laid_on_their_grid(make: Callable[[], nn.Module], kind: str) -> None:
    network = make()
    result = sl.attention(loaded(network), pictures(width=width_for(make)), kind=kind)
    extra = network.num_prefix_tokens if isinstance(network, TimmTransformer) else 1
    tokens = result.values["tokens"]
    columns = width_for(make) // 8
    assert tokens.shape == (3, 4 * columns + extra)
    assert torch.equal(result.values["relevance"], tokens[:, extra:].view(3, 4, columns))
    assert result.values["map"].shape == (3, 32, width_for(make))
    assert result.values["layers"] == (3 if make is with_registers else 2)
    assert f"4×{columns} patches" in result.captions["attention"]


def test_relevance_asks_about_a_class_and_rollout_does_not() -> None:
    model = loaded(of_timm())
    one, other = (sl.attention(model, pictures(), label=label).values["tokens"] for label in (0, 1))
    assert not torch.allclose(one, other)
    one, other = (
        sl.attention(model, pictures(), label=label, kind="rollout").values["tokens"]
        for label in (0, 1)
    )
    assert torch.equal(one, other)


@every
@pytest.mark.parametrize("kind", ["rollout", "relevance"])
def test_a_batch_gives_what_its_images_give_alone(make: Callable[[], nn.Module], kind: str) -> None:
    model = loaded(make())
    together = sl.attention(model, pictures(width=width_for(make)), kind=kind).values
    assert (
        together["label"].tolist()
        == model.logits(pictures(width=width_for(make))).argmax(1).tolist()
    )
    for i in range(3):
        alone = sl.attention(model, pictures(width=width_for(make))[i : i + 1], kind=kind).values[
            "tokens"
        ]
        assert torch.allclose(together["tokens"][i : i + 1], alone, atol=1e-5)


def test_a_network_that_heeds_no_patch_has_a_flat_relevance() -> None:
    network = of_torchvision()
    with torch.no_grad():
        network.heads.head.weight.zero_()
    result = sl.attention(loaded(network), pictures(1), label=0)
    assert torch.allclose(result.values["tokens"], torch.full((1, 17), 1 / 17))
    assert result.panels["attention"].isfinite().all()


# ── what it leaves alone, and what it refuses ──


@pytest.mark.parametrize("make", [of_torchvision, of_timm], ids=["torchvision", "timm"])
def test_no_module_is_touched(make: Callable[[], nn.Module]) -> None:
    network, ran = make(), []
    network.train()
    network.register_forward_hook(lambda *_: ran.append(1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    forward = {name: module.forward.__func__ for name, module in network.named_modules()}
    sl.attention(loaded(network), pictures(1))
    assert not ran
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert {name: module.forward.__func__ for name, module in network.named_modules()} == forward
    assert all(parameter.grad is None for parameter in network.parameters())


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


class Windowed(nn.Module):
    """Attention in four windows of 16 tokens, then in a single one.

    The tokens of the last layer have no place: each is a mean over the windows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.embed(x)
        windows = (
            maps.unflatten(2, (2, 4))
            .unflatten(4, (2, 4))
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(-1, 1, 16, 8)
        )
        first = (
            F.scaled_dot_product_attention(windows, windows, windows)
            .view(len(x), 4, 16, 8)
            .mean(1, keepdim=True)
        )
        return self.head(F.scaled_dot_product_attention(first, first, first).mean((1, 2)))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (convolutional, "no attention between image tokens"),
        (Windowed, "places in the image were not found"),
    ],
)
def test_other_networks_are_refused_in_one_line(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(sl.SightlineError, match=why) as caught:
        sl.attention(loaded(make()), pictures(1))
    assert "\n" not in str(caught.value)


# ── windows ──


class ShiftedWindows(nn.Module):
    """Attention in windows of 4×4 positions of an image that is rolled by 2, spelt out.

    The score reads one window alone: rows 2 to 5 and columns 6 to 9 of the positions.
    """

    def __init__(self, *, merges: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 4)
        self.merges = merges

    def forward(self, x: Tensor) -> Tensor:
        maps = self.embed(x)
        if self.merges:
            tokens = maps.flatten(2).transpose(1, 2)
            eye = torch.eye(tokens.shape[1]) * 1e4
            kept = torch.softmax(eye.expand(len(x), 1, -1, -1), -1) @ tokens[:, None]
            kept = kept[:, 0].transpose(1, 2).unflatten(2, maps.shape[2:])
            maps = F.avg_pool2d(kept, 2)
        columns = maps.shape[3]
        rolled = maps.roll((-2, -2), (2, 3))
        windows = rolled.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 3, 5, 1)
        windows = windows.reshape(-1, 1, 16, 8)
        weights = (windows @ windows.transpose(2, 3)).softmax(-1)
        mixed = (weights @ windows).reshape(len(x), -1, 16, 8)
        return self.head(mixed[:, min(1, columns // 4 - 1)].mean(1))


@pytest.mark.parametrize("kind", ["rollout", "relevance", "legrad"])
def test_shifted_windows_are_laid_where_they_were_cut(kind: str) -> None:
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    result = sl.attention(loaded(ShiftedWindows()), image, kind=kind, label=1)
    grid = result.values["relevance"]
    assert grid.shape == (2, 8, 12)
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[2:6, 6:10] = True
    assert (grid[:, ~inside] == 0).all()
    assert (grid[:, inside] > 0).any()
    if kind == "rollout":
        assert torch.allclose(grid.sum((1, 2)), torch.ones(2), atol=1e-5)


def test_merged_patches_share_what_is_drawn_from_them() -> None:
    """A layer that leaves every token alone, then windows among means of 2×2 tokens."""
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    fine = sl.attention(loaded(ShiftedWindows(merges=True)), image, kind="rollout")
    assert fine.values["relevance"].shape == (2, 16, 24)
    assert fine.values["layers"] == 2
    inside = torch.zeros(16, 24, dtype=torch.bool)
    inside[4:12, 12:20] = True
    assert (fine.values["relevance"][:, ~inside] == 0).all()
    blocks = F.avg_pool2d(fine.values["relevance"][:, None], 2)[:, 0]
    assert torch.allclose(
        blocks.repeat_interleave(2, 1).repeat_interleave(2, 2), fine.values["relevance"], atol=1e-7
    )


def swin() -> nn.Module:
    """torchvision's, with attention in shifted windows and a relative position bias."""
    torch.manual_seed(0)
    network = SwinTransformer(
        [4, 4], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[4, 4], num_classes=4
    )
    return network.eval()


def test_rollout_of_swin_is_a_distribution_over_positions() -> None:
    model = sl.load(swin(), size=64, labels=LABELS)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    values = sl.attention(model, image, kind="rollout").values
    assert values["relevance"].shape == (2, 16, 16)
    assert values["layers"] == 4
    assert torch.allclose(values["relevance"].sum((1, 2)), torch.ones(2), atol=1e-4)


# ── pooled keys and queries ──


class PooledAttention(nn.Module):
    """Two layers on 8×12 tokens, by two heads: all tokens ask means of 2×2 of them, as in PVT; then
    means of 2×2 tokens ask one another, as where MViT goes to a coarser grid. The score reads four
    of these.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = fused
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.second = nn.Linear(8, 24), nn.Linear(8, 24)
        self.head = nn.Linear(8, 4)
        lively(self)

    def attend(self, queries: Tensor, sources: Tensor, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Queries N×T×8 plus what they draw from the sources, and the weights."""
        query, key, value = (
            F.linear(tokens, weight, bias).unflatten(2, (2, 4)).transpose(1, 2)
            for tokens, weight, bias in zip(
                (queries, sources, sources), layer.weight.chunk(3), layer.bias.chunk(3), strict=True
            )
        )
        weights = (query @ key.transpose(2, 3) * 0.5).softmax(-1)
        mixed = F.scaled_dot_product_attention(query, key, value) if self.fused else weights @ value
        return queries + mixed.transpose(1, 2).flatten(2), weights

    def run_layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.embed(x)
        tokens = maps.flatten(2).transpose(1, 2)
        pooled = F.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
        tokens, first = self.attend(tokens, pooled, self.first)
        maps = tokens.transpose(1, 2).unflatten(2, maps.shape[2:])
        coarse = F.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
        coarse, second = self.attend(coarse, coarse, self.second)
        return self.head(coarse[:, [7, 8, 13, 14]].mean(1)), [first, second]

    def forward(self, x: Tensor) -> Tensor:
        return self.run_layers(x)[0]


def expand_pooled(kind: str, image: Tensor, label: int) -> Tensor:
    """What the read tokens draw from all 8×12, by whole matrices in float64."""
    network = PooledAttention(fused=False).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    scores, weights = network.run_layers((image.double() - mean) / std)
    gradients = torch.autograd.grad(scores[:, label].sum(), weights)
    # Row k of `pool`, 24×96, holds the four tokens whose mean is the coarse token k.
    eye = torch.eye(96, dtype=torch.float64).view(96, 1, 8, 12)
    pool = F.avg_pool2d(eye, 2).flatten(1).T
    if kind == "rollout":
        first, second = (one.mean(1) for one in weights)
        fine = (first @ pool + torch.eye(96)) / 2
        coarse = (second + torch.eye(24)) / 2
    else:
        first, second = (
            (one * gradient).relu().mean(1)
            for one, gradient in zip(weights, gradients, strict=True)
        )
        fine = first @ pool + torch.eye(96)
        coarse = second + torch.eye(24)
    relation = coarse @ pool @ fine
    return relation[:, [7, 8, 13, 14]].mean(1).view(-1, 8, 12).detach()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["rollout", "relevance"])
def test_pooled_keys_share_with_what_they_were_pooled_from(kind: str, fused: bool) -> None:
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    model = loaded(PooledAttention(fused=fused).eval())
    values = sl.attention(model, image, kind=kind, label=2).values
    assert values["layers"] == 2
    expected = expand_pooled(kind, image, 2)
    assert expected.std() > 1e-3
    assert torch.allclose(values["relevance"].double(), expected, atol=1e-5)


def test_legrad_of_pooled_keys_is_enlarged() -> None:
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    model = loaded(PooledAttention(fused=True).eval())
    found = sl.attention(model, image, kind="legrad", label=2).values["relevance"]
    network = PooledAttention(fused=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    scores, weights = network.run_layers((image - mean) / std)
    gradients = torch.autograd.grad(scores[:, 2].sum(), weights)
    by_key = torch.stack([one.relu().mean((1, 2)).view(-1, 4, 6) for one in gradients], 1)
    expected = F.interpolate(by_key, (8, 12), mode="bilinear").mean(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "layers", "grid"),
    [
        ("pvt_v2_b0", {}, 8, (24, 24)),
        ("mvitv2_tiny", {"img_size": 96}, 10, (24, 24)),
    ],
)
def test_pyramids_of_timm_are_followed_through_all_layers(
    name: str, options: dict[str, int], layers: int, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=4, **options).eval()
    model = sl.load(network, labels=LABELS, size=96, device="cpu")
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    values = sl.attention(model, image, kind="rollout").values
    assert values["layers"] == layers
    assert values["relevance"].shape == (1, *grid)
    assert torch.allclose(values["relevance"].sum((1, 2)), torch.ones(1), atol=1e-4)


class ChannelAttention(nn.Module):
    """Attention among the 32 channels of 16 tokens, whose weights say nothing about places."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.embed, self.head = nn.Conv2d(3, 32, 8, stride=8), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.embed(x).flatten(2).unflatten(1, (self.heads, -1))
        weights = (channels @ channels.transpose(2, 3)).softmax(-1)
        return self.head((weights @ channels).flatten(1, 2).mean(2))


class TokensBehind(nn.Module):
    """9 further tokens stand behind the 16 of the image, as YOLOS has its detections."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 4)
        self.further = nn.Parameter(torch.randn(1, 1, 9, 8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)[:, None]
        tokens = torch.cat([tokens, self.further.expand(len(x), -1, -1, -1)], 2)
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, -1])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (ChannelAttention, "attention among 32 channels, which are no places of the image"),
        (lambda: ChannelAttention(2), "attention among 16 channels, which are no places"),
        (TokensBehind, "attention among 25 tokens whose places in the image were not found"),
    ],
)
def test_tokens_that_lie_elsewhere_are_refused(make: Callable[[], nn.Module], why: str) -> None:
    with pytest.raises(sl.SightlineError, match=why) as caught:
        sl.attention(loaded(make().eval()), pictures(1))
    assert "\n" not in str(caught.value)


# ── networks of transformers ──

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 4,
}
HUGGING_FACE = {
    "ViT": (transformers.ViTConfig(**SHAPE), (4, 4), 2),
    "DeiT": (transformers.DeiTConfig(**SHAPE), (4, 4), 2),
    "Dinov2": (transformers.Dinov2Config(**SHAPE), (4, 4), 2),
    "Beit": (transformers.BeitConfig(**SHAPE), (4, 4), 2),
    "Swin": (
        transformers.SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2],
            window_size=4, num_labels=4,
        ),
        (16, 16),
        4,
    ),
    "Segformer": (
        transformers.SegformerConfig(
            num_labels=4, hidden_sizes=[8, 16], depths=[1, 2], num_encoder_blocks=2,
            sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2],
            mlp_ratios=[2, 2], decoder_hidden_size=8,
        ),
        (8, 8),
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_transformers_by_either_implementation(family: str) -> None:
    config, grid, layers = HUGGING_FACE[family]
    network_class = getattr(transformers, f"{family}ForImageClassification")
    found: list[Tensor] = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        network = network_class._from_config(config, attn_implementation=implementation)
        values = sl.attention(loaded(lively(network)), pictures(2), label=1).values
        assert values["layers"] == layers
        assert values["relevance"].shape == (2, *grid)
        found.append(values["attribution"])
    assert found[0].std() > 1e-5
    assert torch.allclose(found[0], found[1], atol=1e-4)


# ── attention that networks spell themselves ──


def test_unfused_attention_gives_the_same_as_fused() -> None:
    fused = of_timm()
    unfused = copy.deepcopy(fused)
    for block in unfused.blocks:
        block.attn.fused_attn = False
    for kind in ("relevance", "rollout", "legrad"):
        expected = sl.attention(loaded(fused), pictures(), kind=kind, label=1).values["tokens"]
        actual = sl.attention(loaded(unfused), pictures(), kind=kind, label=1).values["tokens"]
        assert torch.allclose(actual, expected, atol=1e-5)


class EncoderNetwork(nn.Module):
    """torch's own encoder, tokens first, which takes a fast path where it can."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_the_encoder_of_torch_is_followed() -> None:
    values = sl.attention(loaded(EncoderNetwork().eval()), pictures(2), kind="rollout").values
    assert values["layers"] == 2
    assert values["relevance"].shape == (2, 4, 4)
    assert torch.allclose(values["tokens"].sum(1), torch.ones(2), atol=1e-5)


@every
def test_legrad_is_the_mean_of_positive_gradients(make: Callable[[], nn.Module]) -> None:
    network = make()
    image = pictures(width=width_for(make))
    found = sl.attention(loaded(network), image, kind="legrad", label=2).values["tokens"]
    for i in range(len(image)):
        _, gradients = by_hand(network, image[i], 2)
        by_layer = [gradient.clamp(min=0).mean((0, 1)) for gradient in gradients]
        expected = sum(by_layer) / len(by_layer)
        assert torch.allclose(found[i].double(), expected, atol=1e-6, rtol=1e-3)


# ── a text beside the image ──


class ImageAndText(nn.Module):
    """An image's tokens, and the words of three texts, each with attention of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.words = nn.Embedding(10, 16)
        self.text = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.image = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, image: Tensor, words: Tensor | None = None) -> Tensor:
        tokens = self.image(self.patches(image).flatten(2).transpose(1, 2)).mean(1)
        if words is None:
            words = torch.tensor([[1, 2], [3, 4], [5, 6]])
            return tokens @ self.words(words).mean(1).T
        return tokens @ self.text(self.words(words)).mean(1).T


@pytest.mark.parametrize("kind", ["rollout", "relevance", "legrad"])
def test_the_attention_of_a_text_is_left_out(kind: AttentionKind) -> None:
    torch.manual_seed(0)
    network = ImageAndText().eval()
    words = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 4, 2]])
    model = sl.load(network, size=32, inputs={"words": words})
    image = torch.rand(1, 3, 32, 32)
    layers = compute_attention_gradients(model, image, torch.tensor([1]))
    assert [layer.weights.shape[-2:] for layer in layers] == [(16, 16)]
    result = sl.attention(model, image, label=1, kind=kind)
    assert result.values["attribution"].shape == (1, 32, 32)
    assert result.values["attribution"].std() > 0
    if kind == "rollout":
        alone = sl.load(network, size=32)
        expected = sl.attention(alone, image, label=1, kind=kind).values["attribution"]
        torch.testing.assert_close(result.values["attribution"], expected)
