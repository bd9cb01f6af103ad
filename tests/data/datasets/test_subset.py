"""An evenly spaced subset of a dataset, as a text list of its files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sightline as sl
from sightline.data.datasets.files import Files
from sightline.data.datasets.open import open_dataset
from sightline.data.datasets.subset import draw_subset, format_list_line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven files, seven of one class and four of another."""
    for number in range(11):
        path = tmp_path / "photos" / ("ant" if number < 7 else "bee") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("count", "numbers"), [(1, [0]), (2, [0, 10]), (3, [0, 5, 10]), (6, [0, 2, 4, 6, 8, 10])]
)
def test_files_are_evenly_spaced_from_the_first_to_the_last(
    folder: Path, count: int, numbers: list[int]
) -> None:
    subset = draw_subset(str(folder), count)
    assert (subset.count, subset.total, subset.name) == (count, 11, "photos")
    assert subset.description == f"{count} of the 11 images of photos, evenly drawn"
    dataset = open_dataset(subset.source)
    paths = [Path(dataset.get_path(position)) for position in range(len(dataset))]
    assert [int(path.stem) for path in paths] == numbers
    if count > 1:
        labels = [dataset.get_label(position) for position in range(count)]
        assert [dataset.class_names[label] for label in labels] == [p.parent.name for p in paths]


def test_a_small_dataset_is_used_whole(folder: Path) -> None:
    subset = draw_subset(str(folder), 11)
    assert subset.source == str(folder)
    assert subset.description == "the 11 images of photos"


def test_the_same_subset_is_the_same_list(folder: Path) -> None:
    assert draw_subset(str(folder), 4).source == draw_subset(str(folder), 4).source
    assert draw_subset(str(folder), 4).source != draw_subset(str(folder), 5).source


def test_paths_that_a_list_cannot_hold_are_left_out() -> None:
    paths = ["/a.png", "/tab\t.png", "/line\n.png", "/space .png ", "/caf\udce9.png", "/b.png"]
    dataset = Files("source", paths, ["x", "x", "x", "x", "x", "y"])
    lines = [format_list_line(dataset, position) for position in range(len(paths))]
    assert lines == ["/a.png\tx\n", "", "", "", "/caf\udce9.png\tx\n", "/b.png\ty\n"]


def test_an_archive_is_not_cut(tmp_path: Path) -> None:
    images = {"image": [b"1", b"2", b"3"]}
    pq.write_table(pa.table(images), tmp_path / "a.parquet")
    assert draw_subset(str(tmp_path / "a.parquet"), 3).count == 3
    with pytest.raises(sl.SightlineError, match="holds 3 images in archives; give at most 2"):
        draw_subset(str(tmp_path / "a.parquet"), 2)
