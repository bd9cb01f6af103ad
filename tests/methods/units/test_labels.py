"""What units fire for: selectivity by hand, and a scan against all responses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor

import sightline as sl
from sightline.data.store.reader import Scan
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.methods.units import labels as labels_module
from sightline.methods.units.labels import compute_class_selectivity, find_commonest_class

CLASSES = (0, 0, 1, 1, 1, 2, 2, 2, 2)  # of the nine images


def test_selectivity_by_hand() -> None:
    nan = torch.nan
    means = torch.tensor([[4.0, 1, 0, -3], [1, 1, 0, -1], [3, 1, 0, 2], [nan, nan, nan, nan]])
    selectivity, preferred = compute_class_selectivity(means)
    assert selectivity.tolist() == pytest.approx([(4 - 2) / (4 + 2), 0, 0, 1])
    assert preferred[[0, 3]].tolist() == [0, 2]
    with pytest.raises(sl.SightlineError, match="the images have only one"):
        compute_class_selectivity(torch.tensor([[1.0], [nan]]))


def test_the_commonest_class() -> None:
    classes = torch.tensor([[2, 0, -1], [2, 1, -1], [1, 1, -1], [2, 1, 0]])
    commonest, share = find_commonest_class(classes, 3)
    assert commonest.tolist() == [2, 1, 0]
    assert share.tolist() == [0.75, 0.75, 0.25]


@pytest.fixture(scope="module")
def stored(tiny: sl.Model, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """A scan of nine images of 36×40 pixels, of three classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, class_index in enumerate(CLASSES):
        path = folder / LABELS[class_index] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        sl.write(smooth(seed=number, side=40)[:, :, :36], path)
    return sl.scan(tiny, folder, store=folder.parent / "labels.scan", k=4)


def compute_peaks(model: sl.Model, scan: Scan, layer: str) -> Tensor:
    """All responses, images×units."""
    images = torch.cat([scan.image(image_id) for image_id in range(scan.images)])
    with torch.no_grad():
        return model.features(images, layer)[layer].flatten(2).amax(2)


def test_labels_are_those_of_all_responses(stored: Scan, tiny: sl.Model) -> None:
    values = sl.labels(tiny, store=stored.path, layer="conv3", k=2, max_units=3).values
    peaks = compute_peaks(tiny, stored, "conv3")
    for unit in range(16):
        means: list[float] = []
        for label in range(3):
            responses = peaks[[class_index == label for class_index in CLASSES], unit]
            means.append(max(0.0, float(responses.mean())))
        best = means.index(max(means))
        rest = sum(mean for label, mean in enumerate(means) if label != best) / 2
        selectivity = (means[best] - rest) / (means[best] + rest)
        assert int(values["preferred"][unit]) == best
        assert float(values["selectivity"][unit]) == pytest.approx(selectivity, abs=1e-5)

        order = peaks[:, unit].argsort(descending=True)[:4].tolist()
        votes = [CLASSES[image_id] for image_id in order]
        top_class = int(values["top_class"][unit])
        assert top_class == max(range(3), key=lambda label: (votes.count(label), -label))
        assert float(values["share"][unit]) == votes.count(top_class) / 4
        chance = CLASSES.count(top_class) / len(CLASSES)
        assert float(values["chance"][unit]) == pytest.approx(chance)


def test_the_most_selective_units_are_shown_with_their_strongest_patches(
    stored: Scan, tiny: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    compose = labels_module.compose_figure_rows

    def record_rows(rows: list[FigureRow]) -> Tensor:
        drawn["rows"] = rows
        return compose(rows)

    monkeypatch.setattr(labels_module, "compose_figure_rows", record_rows)
    values = sl.labels(tiny, store=stored.path, layer="conv3", k=2, max_units=3).values
    selectivity = values["selectivity"].tolist()
    units = sorted(range(16), key=lambda unit: -selectivity[unit])[:3]
    peaks = compute_peaks(tiny, stored, "conv3")
    names = values["names"]
    for unit, row in zip(units, drawn["rows"], strict=True):
        preferred = names[int(values["preferred"][unit])]
        top_class = names[int(values["top_class"][unit])]
        assert row.title == (
            f"unit {unit}: {preferred}, selectivity {selectivity[unit]:.2f}; "
            f"{float(values['share'][unit]):.0%} of its strongest images are {top_class} "
            f"({float(values['chance'][unit]):.0%} by chance); the network calls "
            f"{float(values['predicted_share'][unit]):.0%} of them "
            f"{LABELS[int(values['predicted_class'][unit])]}"
        )
        order = peaks[:, unit].argsort(descending=True)[:2].tolist()
        assert row.captions == [
            f"{float(peaks[image_id, unit]):.3g}\n{LABELS[CLASSES[image_id]]}" for image_id in order
        ]


def test_predictions_stand_in_for_classes(tiny: sl.Model, tmp_path: Path) -> None:
    for number in range(5):
        sl.write(smooth(seed=number), tmp_path / f"{number}.png")
    result = sl.labels(tiny, folder=tmp_path, store=tmp_path / "plain.scan", max_units=2, k=2)
    assert result.values["names"] == list(LABELS)
    assert "selectivity" not in result.values
    images = torch.cat([sl.read(tmp_path / f"{number}.png") for number in range(5)])
    predictions = tiny.logits(images).argmax(1)
    chances = [
        float((predictions == label).float().mean())
        for label in result.values["top_class"].tolist()
    ]
    assert result.values["chance"].tolist() == pytest.approx(chances)
    assert "share of the commonest prediction" in result.captions["labels"]


def test_units_are_named_after_the_networks_classes_too(stored: Scan, tiny: sl.Model) -> None:
    found = sl.labels(tiny, store=stored.path, layer="conv2").values
    top_images = stored.top(stored.layer("conv2"))
    predictions = stored.top5[0][:, 0]
    for unit, row in enumerate(found["units"]):
        ids = top_images.ids[:, unit]
        votes = torch.bincount(predictions[ids[ids >= 0]], minlength=len(tiny.labels))
        assert row["unit"] == unit
        assert votes[tiny.labels.index(row["predicted_class"])] == votes.max()
        assert row["predicted_share"] == pytest.approx(int(votes.max()) / len(ids))
        assert row["top_class"] == found["names"][int(found["top_class"][unit])]
        assert row["selectivity"] == pytest.approx(float(found["selectivity"][unit]))
    assert len(found["units"]) == len(found["share"])
    result = sl.labels(tiny, store=stored.path, layer="conv2")
    assert result.numbers["units"] == found["units"], "every unit is in what --json prints"


def test_units_of_one_class(stored: Scan, tiny: sl.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []
    compose = labels_module.compose_figure_rows

    def record(rows: list[FigureRow]) -> Tensor:
        shown.append([row.title for row in rows])
        return compose(rows)

    monkeypatch.setattr(labels_module, "compose_figure_rows", record)
    found = sl.labels(tiny, store=stored.path, layer="conv2").values
    row = found["units"][3]
    for name in {row["preferred"], row["predicted_class"]}:
        expected = {
            each["unit"]
            for each in found["units"]
            if name in (each["top_class"], each["preferred"], each["predicted_class"])
        }
        result = sl.labels(tiny, store=stored.path, layer="conv2", label=name, max_units=100)
        assert {int(title.split()[1].rstrip(":")) for title in shown[-1]} == expected
        assert f"of those named {name}" in result.captions["labels"]


def test_a_class_that_no_unit_has(stored: Scan, tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="no label named 'nosuch'"):
        sl.labels(tiny, store=stored.path, layer="conv2", label="nosuch")
