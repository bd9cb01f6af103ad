"""What units fire for: selectivity by hand, and a scan against all responses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABELS, smooth
from torch import Tensor, nn

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
    return sl.scan(tiny, folder, store=tmp_path_factory.mktemp("store") / "labels.scan", k=4)


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
            f"unit {unit} (no name): {preferred}, selectivity {selectivity[unit]:.2f}; "
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
        assert {int(title.split()[1]) for title in shown[-1]} == expected
        assert f"of those named {name}" in result.captions["labels"]


def test_a_class_that_no_unit_has(stored: Scan, tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="no label named 'nosuch'"):
        sl.labels(tiny, store=stored.path, layer="conv2", label="nosuch")


COLORS = {"red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
COLORS |= {"gray": (0.5, 0.5, 0.5)}
# What the units add up of red, green and blue; the last but one fires for red and yellow.
COLOR_WEIGHTS = ((1, -2, -1), (-1, -1, 1), (-1, 1, -1), (1, 0, -1), (0, 0, 0))


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> tuple[sl.Model, Scan]:
    """A network, and its scan of six noisy images of 20×28 pixels of each of five colours."""
    folder = tmp_path_factory.mktemp("colors")
    generator = torch.Generator().manual_seed(0)
    for name, color in COLORS.items():
        (folder / name).mkdir()
        for number in range(6):
            image = torch.tensor(color)[:, None, None] + torch.zeros(3, 20, 28)
            image += 0.1 * torch.randn(image.shape, generator=generator)
            sl.write(image[None].clamp(0, 1), folder / name / f"{number}.png")
    convolution = nn.Conv2d(3, len(COLOR_WEIGHTS), 1, bias=False)
    with torch.no_grad():
        convolution.weight[:, :, 0, 0] = torch.tensor(COLOR_WEIGHTS).float()
    network = nn.Sequential(
        nn.AvgPool2d(4), convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 5)
    )
    model = sl.load(network, mean=(0.0,) * 3, std=(1.0,) * 3, labels=LABELS, size=20)
    store = tmp_path_factory.mktemp("store") / "colors.scan"
    return model, sl.scan(model, folder, store=store, layers=("1",))


def find_names(result: sl.Result) -> list[str | None]:
    """The names of all units."""
    return [row["name"] for row in result.values["units"]]


def label_colors(colors: tuple[sl.Model, Scan], **parameters: Any) -> sl.Result:
    """The labels of the units of the colours' scan."""
    model, scan = colors
    return sl.labels(model, store=scan.path, layer="1", k=1, max_units=5, **parameters)


def test_units_get_names_that_survive_the_tests(colors: tuple[sl.Model, Scan]) -> None:
    result = label_colors(colors)
    names = find_names(result)
    assert names[:3] == ["red", "blue", "green"]
    assert names[4] is None, "a dead unit has no name"
    row = result.numbers["units"][1]
    assert row["auprc"] == 1
    assert row["auprc_chance"] == pytest.approx(0.2)
    assert row["name_images"] == 6
    assert row["passes_missing_label"] is row["passes_extra_label"] is True
    assert "unit_names" not in result.values
    count = sum(name is not None for name in names)
    assert f"{count} of 5 units have a name" in result.captions["labels"]


def test_groups_attributes_and_formulas_give_other_names(
    colors: tuple[sl.Model, Scan], tmp_path: Path
) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("red,warm\nyellow,warm\n")
    assert find_names(label_colors(colors, groups=groups))[:4] == ["red", "blue", "green", "warm"]
    formulas = find_names(label_colors(colors, formulas=True))
    assert formulas[3] in ("red or yellow", "yellow or red")
    assert formulas[:3] == ["red", "blue", "green"]
    attributes = tmp_path / "attributes.csv"
    paths = colors[1].paths
    rows = [f"{path},{int('blue/' not in path and 'green/' not in path)}" for path in paths]
    attributes.write_text("\n".join(["file,reddish", *rows]))
    named = find_names(label_colors(colors, attributes=attributes))
    assert named[:3] == ["red", "blue", "green"]


def test_units_can_be_asked_for_by_their_name(
    colors: tuple[sl.Model, Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    compose = labels_module.compose_figure_rows

    def record(rows: list[FigureRow]) -> Tensor:
        titles.extend(row.title for row in rows)
        return compose(rows)

    monkeypatch.setattr(labels_module, "compose_figure_rows", record)
    groups = tmp_path / "groups.csv"
    groups.write_text("red,warm\nyellow,warm\n")
    label_colors(colors, groups=groups, label="Warm")
    assert [title.split(":")[0] for title in titles] == ["unit 3 «warm» (AUPRC 1.00, chance 0.40)"]
    with pytest.raises(sl.SightlineError, match="no label named 'warm'"):
        label_colors(colors, label="warm")


def test_a_scan_without_responses_gives_no_names(
    colors: tuple[sl.Model, Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scan, "has_responses", False)
    result = label_colors(colors)
    assert "name" not in result.values["units"][0]
    assert "have a name" not in result.captions["labels"]
