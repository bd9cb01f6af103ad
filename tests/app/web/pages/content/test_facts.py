"""Numbers and names of the pages, against the scan."""

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from web_scan import IMAGE_COUNT, MARKUP_CLASS, MARKUP_FILE

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import (
    Distribution,
    ImageGroups,
    count_things,
    format_number,
    make_histogram,
    name_image,
    rank_class_means,
    read_distribution,
    read_image_groups,
    read_unit_table,
    round_share,
    show_name,
)
from sightline.data.store.reader import Scan
from sightline.methods.units.naming.names import fits_well


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (0.12345, "0.123"), (-2.5, "−2.5"), (123456.0, "1.23e+05")],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


def test_shares_and_counts() -> None:
    assert round_share(0.123) == "12 %"
    assert round_share(0.0123) == "1.2 %"
    assert round_share(0.0) == "0 %"
    assert count_things(1, "image") == "1 image"
    assert count_things(1200, "class") == "1,200 classes"


@dataclass
class NamedFiles:
    """What the groups of a scan of ImageNet's files are read from."""

    paths: list[str]
    class_names: list[str] = field(default_factory=list[str])
    classes: Tensor | None = None
    model_labels: tuple[str, ...] = tuple(f"name {number}" for number in range(1000))
    top5: tuple[Tensor, Tensor] = (torch.full((2, 5), 3), torch.full((2, 5), 0.2))
    images: int = 2

    @property
    def shown_class_names(self) -> list[str]:
        return self.class_names

    __hash__ = object.__hash__


def test_groups_are_the_wordnet_ids_of_files() -> None:
    files = NamedFiles(["n01440764_tench.jpg", "n03888257_parachute.jpg"])
    groups = read_image_groups(cast("Scan", files))
    assert groups.noun == "class"
    assert groups.indices.tolist() == [0, 701]
    assert groups.labels[701] == 701
    unknown = NamedFiles(["n01440764_tench.jpg", "my_parachute.jpg"])
    groups = read_image_groups(cast("Scan", unknown))
    assert groups.noun == "predicted class"
    assert groups.indices.tolist() == [3, 3]


def test_groups_are_folders_that_wordnet_ids_name() -> None:
    folders = ["n03888257", "elsewhere", "n01440764"]
    files = NamedFiles(["a.jpg", "b.jpg"], folders, torch.tensor([2, 0]))
    groups = read_image_groups(cast("Scan", files))
    assert groups.labels == (701, -1, 0)
    assert groups.indices.tolist() == [2, 0]
    strangers = NamedFiles(["a.jpg", "b.jpg"], ["x", "y"], torch.tensor([1, 0]))
    assert read_image_groups(cast("Scan", strangers)).labels == (-1, -1)


def test_groups_are_the_folders(web_scan: Scan) -> None:
    groups = read_image_groups(web_scan)
    assert groups.noun == "class"
    assert set(groups.names) == {MARKUP_CLASS, "bee"}
    assert groups.labels[groups.names.index("bee")] == 1
    assert groups.labels[groups.names.index(MARKUP_CLASS)] == -1
    for id in range(web_scan.images):
        folder = web_scan.paths[id].split("/")[-2]
        assert groups.names[groups.indices[id]] == folder


def test_a_distribution_has_all_images(web_scan: Scan) -> None:
    distribution = read_distribution(web_scan, "conv2", 3)
    responses = web_scan.responses("conv2")[:, 3].astype(float)
    assert distribution.is_complete
    assert distribution.values.tolist() == sorted(responses.tolist())
    assert responses[distribution.ids].tolist() == distribution.values.tolist()


def test_without_responses_it_is_the_sample(
    web_scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(web_scan), "has_responses", False)
    distribution = read_distribution(web_scan, "conv2", 3)
    values = distribution.values.tolist()
    assert values == sorted(values)
    assert len(values) == IMAGE_COUNT
    top = web_scan.top("conv2")
    assert values[-1] == pytest.approx(float(top.values[0, 3]))
    assert distribution.ids[-1] == top.ids[0, 3]


def test_a_histogram_counts_every_image() -> None:
    counts, edges = make_histogram(np.array([0.0, 1.0, 1.0, 4.0], np.float32))
    assert counts.sum() == 4
    assert counts[0] == 1
    assert counts[-1] == 1
    assert (edges[0], edges[-1]) == (0, 4)
    assert make_histogram(np.zeros(0))[0].tolist() == [0]


def test_class_means_are_ranked() -> None:
    groups = ImageGroups(("a", "b", "c"), np.array([0, 0, 2, -1, 1]), "class", (0, 1, 2))
    distribution = Distribution(
        np.array([-1.0, 0.0, 2.0, 3.0, 9.0]), np.array([4, 0, 1, 2, 3]), is_complete=True
    )
    means = rank_class_means(distribution, groups, 5)
    assert [(item.name, item.mean, item.count) for item in means] == [
        ("c", 3.0, 1),
        ("a", 1.0, 2),
        ("b", -1.0, 1),
    ]
    assert [item.name for item in rank_class_means(distribution, groups, 1)] == ["c"]


def test_names_of_files_are_not_paths(web_scan: Scan) -> None:
    names = {name_image(web_scan, id) for id in range(web_scan.images)}
    assert MARKUP_FILE in names
    assert all("/" not in name for name in names)


def test_a_table_has_what_the_scan_has(explorer: Explorer) -> None:
    table = read_unit_table(explorer, "conv2")
    assert table.unit_count == 12
    assert table.peaks.tolist() == explorer.scan.top("conv2").values[0].tolist()
    assert table.facts is not None
    assert table.dead_count == int(table.facts.is_dead.sum())
    assert len(table.names) == 12


def test_without_responses_a_table_says_less(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(explorer.scan), "has_responses", False)
    table = read_unit_table(explorer, "conv3")
    assert table.facts is None
    assert table.dead_count is None
    assert table.duplicate_count is None
    assert not any(table.names)


@pytest.mark.parametrize(
    ("auprc", "chance", "fits"), [(0.31, 0.1, False), (0.33, 0.1, True), (0.6, 0.5, False)]
)
def test_a_name_has_to_do_better_than_chance_by_far(
    auprc: float, chance: float, fits: bool
) -> None:
    row = {"name": "a\nb", "auprc": auprc, "auprc_chance": chance}
    assert show_name(row) == ("a\\nb" if fits else "")
    assert fits_well(auprc, chance) == fits
