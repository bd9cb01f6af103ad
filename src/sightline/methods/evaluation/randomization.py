"""Would a network that has learned nothing give the same map? The model-randomization test (Adebayo 2018, section 3)."""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import find_heatmap_limit
from sightline.methods.evaluation.faithfulness import compute_pearson_correlation
from sightline.models.model import Model
from sightline.models.weights.checkpoint import RUNNING_STATISTICS

# ── networks without what was learned ──


def clone_model(model: Model) -> Model:
    """The same network on its own copy of the weights, which may be changed."""
    other = copy.copy(model)
    other.network, other.lock, other.overwritten_calls = (
        copy.deepcopy(model.network),
        threading.RLock(),
        set(model.overwritten_calls),
    )
    return other


def group_weight_layers(model: Model) -> list[list[str]]:
    """Module paths with weights of their own from the top of the network (its answer) to the bottom, in groups that belong together:
    a layer with weight matrices, and what only scales its output (norms).

    Raises SightlineError for a network without weights.
    """
    calls: dict[str, int] = {}
    for number, name in enumerate(model.layers):
        calls.setdefault(name.split(":", maxsplit=1)[0], number)

    def place(path: str) -> int:
        # A module whose weights are used without calling it (an attention's projection) stands where its parent does, and weights
        # of a module with parts (positions that are added to its input) where the first of them is called.
        while path and path not in calls:
            path = path.rpartition(".")[0]
        return min(
            (number for name, number in calls.items() if f"{name}.".startswith(f"{path}.")),
            default=-1,
        )

    paths = [
        path
        for path, module in model.network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    groups: list[list[str]] = []
    for path in sorted(paths, key=place):
        own = model.network.get_submodule(path).parameters(recurse=False)
        if groups and all(value.ndim < 2 for value in own):
            groups[-1].append(path)
        else:
            groups.append([path])
    if not groups:
        raise SightlineError(f"{model.name} has no weights to randomize")
    return groups[::-1]


def merge_layer_groups(groups: list[list[str]], limit: int) -> list[list[str]]:
    """At most `most` groups, neighbours put together as evenly as they go."""
    count = min(limit, len(groups))
    ends = [round(k * len(groups) / count) for k in range(count + 1)]
    return [
        [path for group in groups[start:end] for path in group] for start, end in pairwise(ends)
    ]


def collect_module_weights(model: Model, paths: list[str]) -> dict[str, Tensor]:
    """Weights and running statistics of the modules themselves, without their children, by name."""
    found: dict[str, Tensor] = {}
    for path in paths:
        module = model.network.get_submodule(path)
        own = [
            *module.named_parameters(recurse=False),
            *(
                item
                for item in module.named_buffers(recurse=False)
                if item[0] in RUNNING_STATISTICS
            ),
        ]
        found |= {f"{path}.{name}".removeprefix("."): value for name, value in own}
    return found


def shuffle_values(weights: Tensor, generator: torch.Generator) -> Tensor:
    """The same numbers in random order."""
    # Adebayo 2018 draws anew from the initial distribution, which a trained network doesn't tell, and torch's own lets the signal
    # die out in deep networks without norms. The layer's own numbers keep its scale, and running variances positive.
    order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
    return weights.detach().flatten()[order].view(weights.shape)


def write_module_weights(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Writes weights into a twin."""
    with torch.no_grad():
        for name, value in weights.items():
            path, _, last = name.rpartition(".")
            target: Any = getattr(model.network.get_submodule(path), last)
            target.copy_(value)


def randomize_layer_groups(
    model: Model, groups: list[list[str]], seed: int
) -> Iterator[tuple[Model, Model]]:
    """For each group of layers in order: a network with it and all earlier ones shuffled, and one with it alone.

    The networks change with the next pair. The model's own weights are only read.
    """
    generator = torch.Generator().manual_seed(seed)
    cascade, alone = clone_model(model), clone_model(model)
    for paths in groups:
        learned = collect_module_weights(model, paths)
        drawn = {name: shuffle_values(value, generator) for name, value in learned.items()}
        write_module_weights(cascade, drawn)
        write_module_weights(alone, drawn)
        yield cascade, alone
        write_module_weights(alone, learned)


# ── how alike two maps are ──


def compare_heatmaps(heatmap: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rank correlation and structural similarity of one map with each of K others, K numbers each."""
    rank = [compute_rank_correlation(heatmap, other) for other in others]
    ssim = [compute_structural_similarity(heatmap, other) for other in others]
    return torch.stack(rank), torch.stack(ssim)


def compute_ranks(values: Tensor) -> Tensor:
    """Rank of each number of a list, equal ones sharing their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[inverse]


def compute_rank_correlation(heatmap: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of the sizes of two maps H×W; 0 where one is constant."""
    return compute_pearson_correlation(
        *(compute_ranks(map_.abs().nan_to_num(0).flatten()) for map_ in (heatmap, other))
    )


def compute_structural_similarity(heatmap: Tensor, other: Tensor) -> Tensor:
    """SSIM (Wang 2004) of the pictures of the sizes of two maps H×W of at least 7×7, each up to its own 99th percentile."""
    from skimage.metrics import structural_similarity as ssim

    first, second = (normalize_heatmap(map_).double().numpy() for map_ in (heatmap, other))
    found: Any = ssim(first, second, data_range=1.0)
    return torch.tensor(float(found), dtype=torch.float64)


def normalize_heatmap(heatmap: Tensor) -> Tensor:
    """The size of a map H×W from 0 to 1, the brightest hundredth at 1."""
    size = heatmap.abs().nan_to_num(0)
    top = find_heatmap_limit(size)
    return (size / top).clamp(0, 1) if top > 0 else size
