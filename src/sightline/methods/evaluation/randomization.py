"""Would an untrained network give the same attribution?

The model randomization test (Adebayo 2018, section 3).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import find_heatmap_limit
from sightline.models.model import Model
from sightline.models.network.copy import copy_network
from sightline.models.weights.checkpoint import RUNNING_STATISTICS
from sightline.process.locks import ForkSafeLock

# ── networks with shuffled weights ──


def clone_model(model: Model) -> Model:
    """The same model on its own copy of the weights, which may be changed."""
    clone = copy.copy(model)
    with model.lock:  # not with the hooks of another thread's run
        clone.network = copy_network(model.network, share_parameters=False)
    clone.lock = ForkSafeLock(reentrant=True)
    # Shuffled weights may overflow, which the tests that run them allow for.
    clone.allows_nan = True
    clone.overwritten_calls = set(model.overwritten_calls)
    return clone


def group_weight_layers(model: Model) -> list[list[str]]:
    """Paths of all modules with weights of their own, grouped, from the output to the input.

    A group is a layer with weight matrices and the modules that only scale its output (norms).
    Raises SightlineError for a network without weights.
    """
    first_calls = list_first_calls(model)
    paths = [
        path
        for path, module in model.network.named_modules()
        if list(module.parameters(recurse=False))
    ]
    groups: list[list[str]] = []
    for path in sorted(paths, key=lambda path: find_first_call(path, first_calls)):
        weights = model.network.get_submodule(path).parameters(recurse=False)
        only_scales = all(weight.ndim < 2 for weight in weights)
        if groups and only_scales:
            groups[-1].append(path)
        else:
            groups.append([path])
    if not groups:
        raise SightlineError(f"{model.name} has no weights to randomize")
    return groups[::-1]


def list_first_calls(model: Model) -> dict[str, int]:
    """For each module that gives a tensor the number of its first call in the forward pass."""
    first_calls: dict[str, int] = {}
    for number, layer in enumerate(model.layers.values()):
        # A functional step has no weights.
        if not layer.step:
            path = layer.name.split(":", maxsplit=1)[0]
            first_calls.setdefault(path, number)
    return first_calls


def find_first_call(path: str, first_calls: Mapping[str, int]) -> int:
    """The number of the call at which a module's weights are first used, -1 if none is known."""
    # A module whose weights are used without calling it (an attention's projection) counts as its
    # parent. Weights of a module with submodules (positions that are added to its input) count as
    # the first of these.
    while path and path not in first_calls:
        path = path.rpartition(".")[0]
    inside = [number for name, number in first_calls.items() if f"{name}.".startswith(f"{path}.")]
    return min(inside, default=-1)


def merge_layer_groups(groups: list[list[str]], limit: int) -> list[list[str]]:
    """At most `limit` groups: neighbouring ones are merged as evenly as possible."""
    count = min(limit, len(groups))
    boundaries = [round(k * len(groups) / count) for k in range(count + 1)]
    merged: list[list[str]] = []
    for start, end in pairwise(boundaries):
        merged.append([path for group in groups[start:end] for path in group])
    return merged


def collect_module_weights(model: Model, paths: list[str]) -> dict[str, Tensor]:
    """Weights and running statistics of the modules themselves, without their children, by name."""
    weights: dict[str, Tensor] = {}
    for path in paths:
        module = model.network.get_submodule(path)
        named_tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
        for name, buffer in module.named_buffers(recurse=False):
            if name in RUNNING_STATISTICS:
                named_tensors[name] = buffer
        for name, tensor in named_tensors.items():
            weights[f"{path}.{name}".removeprefix(".")] = tensor
    return weights


def shuffle_values(weights: Tensor, generator: torch.Generator) -> Tensor:
    """The same numbers in random order, the zeros of sparse weights among them."""
    # Adebayo 2018 draws from the initial distribution, which a trained network does not tell; with
    # torch's default initialization the signal vanishes in deep networks without norms. The layer's
    # own numbers keep its scale, and running variances positive.
    order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
    if weights.layout == torch.strided:
        return weights.detach().flatten()[order].view(weights.shape)
    dense = weights.detach().to_dense()
    shuffled: Tensor = dense.flatten()[order].view(weights.shape)
    return shuffled.to_sparse(layout=weights.layout)


def write_module_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Copies weights into a clone's network."""
    with torch.no_grad():
        for name, value in weights.items():
            path, _, attribute = name.rpartition(".")
            target: Any = getattr(model.network.get_submodule(path), attribute)
            target.copy_(value)


def randomize_layer_groups(
    model: Model, groups: list[list[str]], seed: int
) -> Iterator[tuple[Model, Model]]:
    """Yields a pair of models for each group of layers, in order.

    In the first, this group and all previous ones are shuffled; in the second, this group alone.
    Both change when the next pair is taken. The model's own weights are only read.
    """
    generator = torch.Generator().manual_seed(seed)
    cascade = clone_model(model)
    single = clone_model(model)
    for paths in groups:
        trained = collect_module_weights(model, paths)
        shuffled = {name: shuffle_values(value, generator) for name, value in trained.items()}
        write_module_weights(cascade, shuffled)
        write_module_weights(single, shuffled)
        yield cascade, single
        write_module_weights(single, trained)


# ── similarity of two heatmaps ──


def compare_heatmaps(heatmap: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rank correlation and structural similarity of a heatmap with each of K others, K each."""
    ranks = [compute_rank_correlation(heatmap, reference) for reference in references]
    similarities = [compute_structural_similarity(heatmap, reference) for reference in references]
    return torch.stack(ranks), torch.stack(similarities)


def compute_rank_correlation(heatmap: Tensor, reference: Tensor) -> Tensor:
    """Spearman's correlation of the magnitudes of two heatmaps H×W; 0 where one is constant."""
    from scipy.stats import spearmanr

    first = heatmap.abs().nan_to_num(0).flatten()
    second = reference.abs().nan_to_num(0).flatten()
    if first.min() == first.max() or second.min() == second.max():
        return torch.zeros((), dtype=torch.float64)
    correlation: Any = spearmanr(first.numpy(), second.numpy())
    return torch.tensor(float(correlation.statistic), dtype=torch.float64)


def compute_structural_similarity(heatmap: Tensor, reference: Tensor) -> Tensor:
    """SSIM (Wang 2004) of the pictures of two heatmaps H×W of at least 7×7.

    Each picture shows the magnitude, up to its own 99th percentile.
    """
    from skimage.metrics import structural_similarity

    first = normalize_heatmap(heatmap).double().numpy()
    second = normalize_heatmap(reference).double().numpy()
    similarity: Any = structural_similarity(first, second, data_range=1.0)
    return torch.tensor(float(similarity), dtype=torch.float64)


def normalize_heatmap(heatmap: Tensor) -> Tensor:
    """The magnitude of a heatmap H×W in [0, 1], with the brightest hundredth at 1."""
    magnitude = heatmap.abs().nan_to_num(0)
    limit = find_heatmap_limit(magnitude)
    if limit <= 0:
        return magnitude
    return (magnitude / limit).clamp(0, 1)
