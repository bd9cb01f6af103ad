"""Units that are shown have the names that naming all units of their layer gives."""

import pytest
import torch
from helpers import LABELS, small_network

import sightline as sl
from sightline.methods.diagnosis.unit_names import find_unit_names
from sightline.methods.units.naming.names import name_units
from sightline.models.model import Model


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """Sixty images, a third of them red, a third green and a third blue."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(2)
    for number in range(60):
        picture = 0.3 * torch.rand(3, 32, 32, generator=generator)
        picture[number % 3] += 0.03
        path = root / ("red", "green", "blue")[number % 3] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        sl.write(picture, path)
    model = Model(small_network().eval(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    store = tmp_path_factory.mktemp("store") / "a.scan"
    return sl.scan(model, root, store=store, layers=["conv1", "conv2"])


def test_names_are_those_among_all_units(scan: sl.Scan) -> None:
    unit_counts = {layer: scan.responses(layer).shape[1] for layer in ("conv1", "conv2")}
    places = [(layer, unit) for layer, count in unit_counts.items() for unit in range(count)]
    expected = {}
    for layer in unit_counts:
        for unit, name in enumerate(name_units(scan, layer)):
            if name is not None and name.fits_well:
                expected[layer, unit] = name.text
    assert expected
    assert len(expected) < len(places)
    assert find_unit_names(scan, places) == expected
    (layer, unit), text = next(iter(expected.items()))
    assert find_unit_names(scan, [(layer, unit)]) == {(layer, unit): text}
    assert find_unit_names(scan, []) == {}
