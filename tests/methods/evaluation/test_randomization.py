"""Randomized networks are shuffled copies; similarities are scipy's and scikit-image's."""

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import LABELS, small_network, smooth
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import sightline as sl
from sightline.methods.evaluation.randomization import (
    clone_model,
    collect_module_weights,
    compare_heatmaps,
    compute_rank_correlation,
    compute_structural_similarity,
    group_weight_layers,
    merge_layer_groups,
    randomize_layer_groups,
    shuffle_values,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── networks ──


def normed() -> nn.Module:
    """Convolutions with batch norm."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, stride=2),
        bn1=nn.BatchNorm2d(6),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(6, 8, 3),
        bn2=nn.BatchNorm2d(8),
        gap=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(8, 4),
    )
    network = nn.Sequential(layers)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=seeded(value.numel())) + 0.1)
    return network


class Mixer(nn.Module):
    """Uses weights without calling their module: a token, a scale, an attention's projection."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.stem = nn.Sequential(OrderedDict(inner=nn.Conv2d(3, 3, 1)))
        self.stem.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embed(self.stem(x * self.stem.scale))
        tokens = embedded.flatten(2).permute(2, 0, 1) + self.token
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(mixed.mean(0))


def test_layers_come_from_the_top_with_their_norms() -> None:
    model = sl.load(normed(), size=32)
    groups = group_weight_layers(model)
    assert groups == [["fc"], ["conv2", "bn2"], ["conv1", "bn1"]]
    assert merge_layer_groups(groups, 2) == [["fc", "conv2", "bn2"], ["conv1", "bn1"]]
    assert merge_layer_groups(groups, 99) == groups
    assert set(collect_module_weights(model, ["bn1"])) == {
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
    }


def test_weights_used_without_a_call_are_randomized_with_their_parent() -> None:
    assert group_weight_layers(sl.load(Mixer(), size=32)) == [
        ["head"],
        ["attention.out_proj"],
        ["attention"],
        ["embed"],
        ["stem.inner"],
        ["stem"],
        [""],
    ]


def test_a_network_without_weights_is_refused() -> None:
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(sl.SightlineError, match="has no weights to randomize"):
        group_weight_layers(sl.load(bare, labels=LABELS[:3], size=32))


@pytest.mark.parametrize("make", [small_network, normed])
def test_randomized_networks_are_copies(make: Callable[[], nn.Module]) -> None:
    network = make()
    model = sl.load(network, size=32)
    original = {name: value.clone() for name, value in network.state_dict().items()}
    groups = group_weight_layers(model)
    shuffled_so_far: list[str] = []
    logits: list[Tensor] = []
    pairs = randomize_layer_groups(model, groups, 3)
    for paths, (cascade, single) in zip(groups, pairs, strict=True):
        shuffled_so_far += paths
        for clone, shuffled in ((cascade, shuffled_so_far), (single, paths)):
            for name, value in clone.network.state_dict().items():
                expected = original[name]
                assert value.data_ptr() != network.state_dict()[name].data_ptr()
                assert torch.equal(value.flatten().sort().values, expected.flatten().sort().values)
                is_shuffled = name.rpartition(".")[0] in shuffled
                if not is_shuffled:
                    assert torch.equal(value, expected), name
                elif expected.ndim > 1:
                    assert not torch.equal(value, expected), name
        logits.append(cascade.logits(smooth()))
    for state in (network.state_dict(), model.network.state_dict()):
        assert all(torch.equal(value, original[name]) for name, value in state.items())
    assert not torch.equal(logits[-1], model.logits(smooth()))

    repeated = [cascade.logits(smooth()) for cascade, _ in randomize_layer_groups(model, groups, 3)]
    assert all(torch.equal(a, b) for a, b in zip(logits, repeated, strict=True))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo, torch.sparse_csr])
def test_shuffled_weights_keep_their_numbers_and_their_layout(layout: torch.layout) -> None:
    weights = smooth(side=12, seed=5)[0, 0, :7].clamp_min(0.5) - 0.5
    stored = weights if layout == torch.strided else weights.to_sparse(layout=layout)
    shuffled = shuffle_values(stored, seeded())
    assert shuffled.layout == layout
    dense = shuffled.to_dense()
    assert dense.shape == (7, 12)
    assert torch.equal(dense.flatten().sort().values, weights.flatten().sort().values)
    assert not torch.equal(dense, weights)


# ── similarity ──


@pytest.mark.parametrize("digits", [1, 6])
def test_rank_correlation_is_that_of_ranks_written_out(digits: int) -> None:
    first = torch.randn(15, 12, generator=seeded(1)).round(decimals=digits)
    second = first + torch.randn(15, 12, generator=seeded(2)).round(decimals=digits)

    def rank(values: list[float]) -> list[float]:
        """The mean rank of equal values."""
        smaller = [sum(v < value for v in values) for value in values]
        equal = [sum(v == value for v in values) for value in values]
        return [s + (e + 1) / 2 for s, e in zip(smaller, equal, strict=True)]

    first_ranks = rank(first.abs().flatten().tolist())
    second_ranks = rank(second.abs().flatten().tolist())
    expected = np.corrcoef(first_ranks, second_ranks)[0, 1]
    correlation = float(compute_rank_correlation(first, second))
    assert correlation == pytest.approx(expected)
    scipys = spearmanr(first.abs().flatten(), second.abs().flatten()).statistic
    assert correlation == pytest.approx(scipys)
    assert float(compute_rank_correlation(first, -first)) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, float("nan")])
def test_rank_correlation_with_a_constant_is_zero(value: float) -> None:
    heatmap = torch.randn(9, 12, generator=seeded(1))
    assert compute_rank_correlation(heatmap, torch.full((9, 12), value)) == 0
    assert compute_rank_correlation(torch.full((9, 12), value), heatmap) == 0


def test_structural_similarity_is_that_of_the_pictures() -> None:
    first = torch.randn(20, 24, generator=seeded(1))
    second = torch.randn(20, 24, generator=seeded(2)) ** 3
    pictures = []
    for magnitude in (first.abs().numpy(), second.abs().numpy()):
        limit = np.sort(magnitude.ravel())[round(0.99 * magnitude.size) - 1]
        pictures.append(np.clip(magnitude / limit, 0, 1))
    expected = structural_similarity(*pictures, data_range=1.0)
    similarity = float(compute_structural_similarity(first, second))
    assert similarity == pytest.approx(expected, abs=1e-5)
    assert float(compute_structural_similarity(first, -3 * first)) == pytest.approx(1)
    assert float(compute_structural_similarity(first, torch.full((20, 24), torch.nan))) < 1


def test_comparison_keeps_the_order_of_the_references() -> None:
    heatmap, reference = (torch.randn(9, 12, generator=seeded(seed)) for seed in (1, 2))
    ranks, similarities = compare_heatmaps(heatmap, [reference, heatmap])
    assert ranks[1] == pytest.approx(1)
    assert similarities[1] == pytest.approx(1)
    assert ranks[0] == compute_rank_correlation(heatmap, reference)
    assert similarities[0] == compute_structural_similarity(heatmap, reference)


@pytest.mark.parametrize("make_copy", [clone_model, copy.deepcopy])
def test_a_copy_has_no_hooks_of_another_threads_run(
    make_copy: Callable[[sl.Model], sl.Model],
) -> None:
    model = sl.load(normed(), mean=(0.5,) * 3, std=(0.25,) * 3, size=16)
    is_hooked = threading.Event()

    def run_with_hook() -> None:
        with model.lock:
            hook = model.network.register_forward_hook(lambda *_: None)
            is_hooked.set()
            time.sleep(0.2)
            hook.remove()

    thread = threading.Thread(target=run_with_hook)
    thread.start()
    is_hooked.wait()
    assert not make_copy(model).network._forward_hooks
    thread.join()
