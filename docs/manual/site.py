"""Makes the small site docs/site/explorer: `python docs/manual/site.py`.

It is what `sightline export` writes of the embedded network and the tiles of some sample
photographs, with three units of each of three layers, so that it stays small.
"""

import copy
import shutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import sightline as sl
from sightline.app.web.delivery.answers import read_site_file
from sightline.app.web.delivery.export import SiteExport
from sightline.app.web.delivery.opening import count_synthesis_units, prepare_layers
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.site.routes import list_addresses
from sightline.models.model import Model
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.builders import find_embedded_weights
from sightline.models.zoo.sightnet import (
    SIGHTNET_LABELS,
    SIGHTNET_MEAN,
    SIGHTNET_SIZE,
    SIGHTNET_STD,
    make_sightnet,
)

SITE = Path(__file__).parent.parent / "site" / "explorer"

# The units that have pages, by the layer of sightnet.
SHOWN_UNITS = {"conv1": (0, 9, 40), "conv3_2": (0, 22, 33), "conv5_2": (90, 120, 180)}

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket", "gravel", "golf_ball")
TILE_SIDE = 200  # pixels of the squares that are cut out of each photograph
TILE_STEP = 140  # pixels from one square to the next

PAGED_IMAGE = "golf_ball/whole.png"  # the one that has a page of its own

MAX_BYTES = 1_500_000


class SplitConvolution(nn.Module):
    """A convolution in two: `shown` makes the chosen channels, which come first, `rest` the others.

    `order` is the order of the channels.
    """

    def __init__(self, convolution: nn.Conv2d, units: Sequence[int]) -> None:
        super().__init__()
        remaining = [unit for unit in range(convolution.out_channels) if unit not in units]
        self.order = [*units, *remaining]
        self.shown = select_channels(convolution, units)
        self.rest = select_channels(convolution, remaining)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.shown(features), self.rest(features)], 1)


def select_channels(convolution: nn.Conv2d, units: Sequence[int]) -> nn.Conv2d:
    """A convolution that makes some channels of another."""
    selected = copy.deepcopy(convolution)
    selected.out_channels = len(units)
    selected.weight = nn.Parameter(convolution.weight.detach()[list(units)])
    assert convolution.bias is not None
    selected.bias = nn.Parameter(convolution.bias.detach()[list(units)])
    return selected


def split_layers(network: nn.Sequential) -> nn.Sequential:
    """The network with its shown units as layers of their own; it computes the same."""
    order: list[int] | None = None
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in network.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear) and order is not None:
            layer.weight = nn.Parameter(layer.weight.detach()[:, order])
            order = None
        if isinstance(layer, nn.Conv2d) and name in SHOWN_UNITS:
            split = SplitConvolution(layer, SHOWN_UNITS[name])
            layers[name] = split
            order = split.order
        else:
            layers[name] = layer
    return nn.Sequential(layers)


def cut_tiles(folder: Path) -> None:
    """Writes the photographs and squares of them, each photograph's into a folder of its name."""
    for name in PHOTOGRAPHS:
        picture = sl.sample(name)
        sl.write(picture, folder / name / "whole.png")
        height, width = picture.shape[-2:]
        for top in range(0, height - TILE_SIDE + 1, TILE_STEP):
            for left in range(0, width - TILE_SIDE + 1, TILE_STEP):
                tile = picture[..., top : top + TILE_SIDE, left : left + TILE_SIDE]
                sl.write(tile, folder / name / f"{top:03}_{left:03}.png")


def load_excerpt() -> Model:
    """The embedded network, whose shown units are layers."""
    network = make_sightnet()
    weights = find_embedded_weights("sightnet")
    fill_network_weights(network, read_weights(weights), weights, "sightnet")
    return Model(
        split_layers(network).eval(),
        name="sightnet",
        labels=SIGHTNET_LABELS,
        mean=SIGHTNET_MEAN,
        std=SIGHTNET_STD,
        size=SIGHTNET_SIZE,
    )


def measure_pages(explorer: Explorer) -> None:
    """Measures what a server measures when somebody looks at a page, and makes the syntheses."""
    assert explorer.unit_synthesis is not None
    explorer.unit_synthesis.keep_all(count_synthesis_units(explorer), lambda *_: False)
    for address in list_addresses(explorer):
        with explorer.record_resources() as resources:
            read_site_file(explorer, address)
        for resource in resources:
            read_site_file(explorer, resource)


def main() -> None:
    """Makes the site anew."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut_tiles(folder / "photographs")
        model = load_excerpt()
        layers = [f"{layer}.shown" for layer in SHOWN_UNITS]
        scan = sl.scan(model, folder / "photographs", store=folder / "sightnet.scan", layers=layers)
        # As a site of many images, this one has pages of some only.
        image_ids = [id for id, path in enumerate(scan.paths) if path.endswith(PAGED_IMAGE)]
        for is_served in (True, False):
            explorer = Explorer(scan, model, has_synthesis=True, is_served=is_served)
            explorer.command = "python docs/manual/site.py"
            explorer.serve_command = "sightline explore"
            explorer.image_ids = image_ids
            if is_served:
                prepare_layers(explorer, lambda *_: False)
                measure_pages(explorer)
        shutil.rmtree(SITE, ignore_errors=True)
        site = SiteExport(explorer, SITE)
        site.run(lambda *_: False)
    if site.total_bytes > MAX_BYTES:
        sys.exit(f"the site has {site.total_bytes:,} bytes; {MAX_BYTES:,} are wanted")


if __name__ == "__main__":
    main()
