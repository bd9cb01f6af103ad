"""Two networks over the same images
==================================

The embedded network, and the same network that is given blue for red by mistake, over tiles of the
sample photographs: how alike their layers are, and what the unit that changed most responds to.
"""

import tempfile
from pathlib import Path

import torch

import sightline as sl
from sightline.images.plotting.maps import (
    arrange_with_titles,
    enlarge_pixels,
    make_contact_sheet,
    render_heatmap,
)

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def show_unit(scan: sl.Scan, layer: str, unit: int) -> torch.Tensor:
    """The nine images to which a unit responds most."""
    ids = scan.top(layer).ids[:9, unit].tolist()
    return make_contact_sheet(scan.thumbnails(ids), columns=3)


networks = {"right": sl.load(), "bgr": sl.load(preprocess="bgr")}
with tempfile.TemporaryDirectory() as folder:
    scans = [sl.scan(network, store=f"{folder}/{name}.scan") for name, network in networks.items()]
    comparison = sl.compare(*scans)
    change = comparison.changed_units[0]
    similarity = torch.from_numpy(comparison.cka).float().clamp(0, 1)[None]
    pictures = [
        enlarge_pixels(render_heatmap(similarity, 1.0, "viridis"), 264),
        *[show_unit(scan, change.layer, change.unit) for scan in scans],
    ]

print(f"{comparison.flip_share:.0%} of the answers differ; {comparison.count_fates()}")
titles = [
    "layers: dark is 0, yellow 1",
    f"{change.layer} · {change.unit}",
    "the same unit, blue for red",
]
sl.write(arrange_with_titles(titles, pictures), PICTURES / "compare.png")
