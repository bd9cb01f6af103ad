"""The catalogue of the matrix: networks by name, each with what `sl.load` is told about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from odd_networks import odd_networks
from torch import nn
from zoo.library_networks import LIBRARY_NETWORKS
from zoo.odd_interfaces import ODD_INTERFACES, OTHER_IMAGE
from zoo.odd_operations import ODD_OPERATIONS
from zoo.odd_views import VIEW_NETWORKS, BagOfPatches

SIDE = 32  # pixels of the images that networks made by hand take
# The second hides patches at random in evaluation too.
DRAWING_NETWORKS = ("operation/random_scores", "transformers/ViTMAEModel")
VIEW_OPTIONS = {"pair_in_one_batch": {"inputs": {"other": OTHER_IMAGE}}}
RECURRENT_SIDE = 12  # the one of `odd_networks` whose weights fix its size


@dataclass(frozen=True)
class ZooNetwork:
    """A network of the matrix.

    Attributes:
        name: "FAMILY/NAME".
        build: makes the module with random weights; the caller seeds.
        options: arguments of `sl.load`.
    """

    name: str
    build: Callable[[], nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def draws_numbers(self) -> bool:
        """Whether its own forward pass draws from the global random generator."""
        return self.name in DRAWING_NETWORKS

    @property
    def family(self) -> str:
        """The first part of the name: where the network comes from."""
        return self.name.split("/", maxsplit=1)[0]


def list_networks() -> dict[str, ZooNetwork]:
    """All networks by name; none is built."""
    networks: list[ZooNetwork] = []
    for name, build in ODD_OPERATIONS.items():
        networks.append(ZooNetwork(f"operation/{name}", build, {"size": SIDE}))
    for name, interface in ODD_INTERFACES.items():
        options = {"size": SIDE, **interface.options}
        networks.append(ZooNetwork(f"interface/{name}", interface.build, options))
    for name, (build, _) in VIEW_NETWORKS.items():
        options = {"size": SIDE, **VIEW_OPTIONS.get(name, {})}
        networks.append(ZooNetwork(f"views/{name}", build, options))
    networks.append(ZooNetwork("views/bag_of_patches", BagOfPatches, {"size": SIDE}))
    for name, build in odd_networks.items():
        side = RECURRENT_SIDE if name == "recurrent" else SIDE
        networks.append(ZooNetwork(f"state/{name}", build, {"size": side}))
    for name, network in LIBRARY_NETWORKS.items():
        networks.append(ZooNetwork(name, network.build, {"size": network.side}))
    return {network.name: network for network in networks}
