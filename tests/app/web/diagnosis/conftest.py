"""Two scans of the same images, by two small networks."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.methods.diagnosis.compare import Comparison, compare
from sightline.models.model import Model


@pytest.fixture(scope="session")
def two_scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[sl.Scan, sl.Scan]:
    """Of 60 images in two classes; the second network has another last layer."""
    root = tmp_path_factory.mktemp("diagnosis")
    pictures = smooth(60, side=36, seed=21)
    for number in range(60):
        path = root / "images" / ("bee", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sl.write(pictures[number], path)
    scans = []
    for name in ("old", "new"):
        network = small_network()
        if name == "new":
            torch.manual_seed(3)
            with torch.no_grad():
                network.get_submodule("fc").weight += 0.5 * torch.randn(5, 16)  # type: ignore[operator]
        model = Model(
            network.eval(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3, name=name
        )
        store = root / f"{name}.scan"
        scans.append(sl.scan(model, root / "images", store=store, layers=["conv2", "conv3"]))
    return scans[0], scans[1]


@pytest.fixture(scope="session")
def comparison(two_scans: tuple[sl.Scan, sl.Scan]) -> Comparison:
    return compare(*two_scans)


@pytest.fixture
def page_folder(tmp_path: Path) -> Path:
    return tmp_path / "page"
