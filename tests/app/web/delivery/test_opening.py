"""Stores that can be explored, and one line for those that can't."""

import json
from pathlib import Path

import pytest
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.app.web.delivery import opening
from sightline.app.web.delivery.opening import (
    check_explorable,
    count_synthesis_units,
    open_explorer,
    open_stored_scan,
    prepare_layers,
)
from sightline.app.web.explorer.explorer import Explorer
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError


def test_no_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match=r"there is no store '.*none\.scan'; name the folder"):
        open_stored_scan(tmp_path / "none.scan")


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no scan", encoding="utf-8")
    with pytest.raises(SightlineError):
        open_stored_scan(tmp_path)


def test_a_store_of_a_newer_version(tmp_path: Path, tiny: sl.Model) -> None:
    sl.write(smooth(side=40), tmp_path / "photos" / "0.png")
    scan = sl.scan(tiny, tmp_path / "photos", store=tmp_path / "a.scan")
    assert open_stored_scan(tmp_path / "a.scan").images == scan.images == 1
    file = tmp_path / "a.scan" / "scan.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "version": 99}), encoding="utf-8")
    with pytest.raises(SightlineError, match="newer"):
        open_stored_scan(tmp_path / "a.scan")


def test_the_store_of_another_network(web_scan: Scan) -> None:
    network = small_network()
    network.get_submodule("fc").weight.data += 1  # type: ignore[operator]
    other = sl.load(network, labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(SightlineError, match="other weights"):
        open_explorer(web_scan, other)


def test_a_network_that_is_not_to_be_had(web_scan: Scan) -> None:
    explorer = open_explorer(web_scan)
    assert explorer.model is None
    assert "Sequential" in explorer.model_note


def test_a_scan_without_images_or_units(web_scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    check_explorable(web_scan)
    monkeypatch.setattr(web_scan, "layers", [])
    with pytest.raises(SightlineError, match="the units of no layer"):
        check_explorable(web_scan)
    monkeypatch.setattr(web_scan, "images", 0)
    with pytest.raises(SightlineError, match="no images yet"):
        check_explorable(web_scan)


def test_which_units_are_synthesized(explorer: Explorer, web_scan: Scan) -> None:
    counts = count_synthesis_units(explorer)
    followed = {name: layer.units for name, layer in web_scan.description.layers.items()}
    assert counts == {**followed, "logits": 5}
    assert counts["conv2"] == 12
    assert "logits" not in count_synthesis_units(Explorer(web_scan))


def test_layers_are_prepared_one_by_one(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(opening, "read_unit_table", lambda _, layer: read.append(layer))
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int) -> bool:
        seen.append((done, total))
        return done == 2

    assert not prepare_layers(explorer, stop_after_two)
    layers = explorer.scan.layers
    assert read == layers[:2]
    assert prepare_layers(explorer, lambda *_: False)
    assert read == [*layers[:2], *layers]
    assert seen == [(number, len(layers)) for number in range(3)]
