"""What units fire for: selectivity by hand, on classes with and without images, and on a scan against all responses."""

from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth

import sightline as sl
from sightline.data.scan.run import scan
from sightline.data.store.reader import Scan
from sightline.methods.units.labels import compute_class_selectivity, find_commonest_class


def test_selectivity_by_hand() -> None:
    means = torch.tensor([[4.0, 1, 0, -3], [1, 1, 0, -1], [3, 1, 0, 2], [torch.nan] * 4])
    found, preferred = compute_class_selectivity(means)
    assert found.tolist() == pytest.approx([(4 - 2) / (4 + 2), 0, 0, 1])
    assert preferred[[0, 3]].tolist() == [0, 2]
    with pytest.raises(sl.SightlineError, match="the images have only one"):
        compute_class_selectivity(torch.tensor([[1.0], [torch.nan]]))


def test_the_commonest_class() -> None:
    which, share = find_commonest_class(
        torch.tensor([[2, 0, -1], [2, 1, -1], [1, 1, -1], [2, 1, 0]]), 3
    )
    assert which.tolist() == [2, 1, 0]
    assert share.tolist() == [0.75, 0.75, 0.25]


@pytest.fixture(scope="module")
def kept(tiny: sl.Model, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """A pass over nine images of three classes, of 2, 3 and 4 images."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(9):
        label = LABELS[(0, 0, 1, 1, 1, 2, 2, 2, 2)[number]]
        (folder / label).mkdir(exist_ok=True)
        sl.write(smooth(seed=number), folder / label / f"{number}.png")
    return scan(tiny, folder, store=folder.parent / "labels.scan", k=4)


def test_labels_are_those_of_all_responses(kept: Scan, tiny: sl.Model) -> None:
    values = sl.labels(tiny, store=kept.path, layer="conv3", k=2, units=3).values
    pictures = torch.cat([kept.image(id) for id in range(9)])
    with torch.no_grad():
        peaks = tiny.features(pictures, "conv3")["conv3"].flatten(2).amax(2)
    assert kept.classes is not None
    classes = kept.classes.tolist()
    for unit in range(16):
        means = [
            max(0.0, float(peaks[[c == label for c in classes], unit].mean())) for label in range(3)
        ]
        best = means.index(max(means))
        rest = sum(mean for label, mean in enumerate(means) if label != best) / 2
        assert int(values["preferred"][unit]) == best
        assert float(values["selectivity"][unit]) == pytest.approx(
            (means[best] - rest) / (means[best] + rest), abs=1e-5
        )
        strongest = [classes[id] for id in peaks[:, unit].argsort(descending=True)[:4].tolist()]
        assert int(values["top_class"][unit]) == max(
            range(3), key=lambda label: (strongest.count(label), -label)
        )
        assert float(values["share"][unit]) == strongest.count(int(values["top_class"][unit])) / 4
        assert float(values["chance"][unit]) == pytest.approx(
            classes.count(int(values["top_class"][unit])) / 9
        )


def test_predictions_stand_in_for_classes(tiny: sl.Model, tmp_path: Path) -> None:
    for number in range(5):
        sl.write(smooth(seed=number), tmp_path / f"{number}.png")
    result = sl.labels(tiny, folder=tmp_path, store=tmp_path / "plain.scan", units=2, k=2)
    assert result.values["names"] == list(LABELS)
    assert "selectivity" not in result.values
    predicted = tiny.logits(
        torch.cat([sl.read(tmp_path / f"{number}.png") for number in range(5)])
    ).argmax(1)
    assert result.values["chance"].tolist() == pytest.approx(
        [float((predicted == c).float().mean()) for c in result.values["top_class"].tolist()]
    )
