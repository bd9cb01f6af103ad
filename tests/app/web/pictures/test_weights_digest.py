"""What a layer's features depend on: other weights behind it leave its digest alone."""

import torch
from helpers import LABELS, small_network
from torch import Tensor, nn

import sightline as sl
from sightline.app.web.pictures.weights_digest import (
    WHOLE_NETWORK,
    compute_layer_digests,
    find_module_starts,
)

SETTINGS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "size": 32}


def find_changed_layers(first: nn.Module, second: nn.Module) -> set[str]:
    digests = [
        compute_layer_digests(sl.load(network, labels=LABELS, **SETTINGS))
        for network in (first, second)
    ]
    assert digests[0].keys() == digests[1].keys()
    return {layer for layer in digests[0] if digests[0][layer] != digests[1][layer]}


def change_weight(network: nn.Module, path: str) -> nn.Module:
    with torch.no_grad():
        weight = network.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        weight[0] += 0.25
    return network


def test_the_same_weights_have_the_same_digests() -> None:
    assert find_changed_layers(small_network(), small_network()) == set()


def test_weights_change_their_layer_and_those_behind_it() -> None:
    changed = find_changed_layers(small_network(), change_weight(small_network(), "conv2"))
    assert "conv1" not in changed
    assert "pool1" not in changed
    assert {"conv2", "relu2", "conv3", "fc", WHOLE_NETWORK} <= changed


def test_the_last_layer_changes_itself_only() -> None:
    changed = find_changed_layers(small_network(), change_weight(small_network(), "fc"))
    assert changed == {"fc", WHOLE_NETWORK}


def test_preprocessing_changes_all() -> None:
    models = [
        sl.load(small_network(), labels=LABELS, **{**SETTINGS, "mean": (mean, 0.5, 0.5)})
        for mean in (0.5, 0.4)
    ]
    first, second = map(compute_layer_digests, models)
    assert all(first[layer] != second[layer] for layer in first)


class Gated(nn.Module):
    """A block whose own parameter is used before the modules in it run."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(1))
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 6, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image * self.gate)).mean((2, 3))


def test_a_containers_own_weights_count_from_its_start() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Gated(), nn.Linear(6, 5))
    starts = find_module_starts(sl.load(network, labels=LABELS, **SETTINGS))
    assert starts[""] == -1
    assert starts["1"] == starts["1.first"] < starts["1.second"]
    changed_network = nn.Sequential(nn.Conv2d(3, 3, 1), Gated(), nn.Linear(6, 5))
    changed_network.load_state_dict(network.state_dict())
    with torch.no_grad():
        changed_network.get_submodule("1").gate += 1  # type: ignore[operator]
    changed = find_changed_layers(network, changed_network)
    assert "0" not in changed
    assert {"1.first", "1.second", "1", "2"} <= changed
