"""Dataset objects: pairs, images alone, mappings, image folders, and what has no images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.data.datasets.files import Files
from sightline.data.datasets.open import open_dataset
from sightline.data.datasets.torch import Dataset, pick_fingerprint_positions, wrap_dataset


class ListDataset:
    """A list with attributes."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        return self.items[position]


def make_images(count: int = 20) -> list[torch.Tensor]:
    return list(torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(0)))


def test_labels_of_pairs_and_mappings() -> None:
    images = make_images(3)
    pairs = ListDataset([*zip(images, (2, 0, 1), strict=True)], classes=("a", "b", "c"))
    features = {"label": SimpleNamespace(names=["a", "b", "c"])}
    rows = [
        {"image": image, "label": label} for image, label in zip(images, (2, 0, 1), strict=True)
    ]
    for source in (pairs, ListDataset(rows, features=features)):
        dataset = wrap_dataset(source)
        assert dataset.class_names == ("a", "b", "c")
        for position, label in enumerate((2, 0, 1)):
            assert torch.equal(dataset.read_image(position), images[position])
            assert dataset.get_label(position) == label
        assert dataset.get_path(1) == "ListDataset[1]"


def test_images_alone_have_no_label() -> None:
    dataset = wrap_dataset(ListDataset([Image.new("RGB", (3, 2)), b"bytes"]))
    assert dataset.source is None
    assert dataset.class_names == ()
    assert dataset.read_image(1) == b"bytes"
    assert dataset.get_label(1) == -1


def test_the_digest_depends_on_length_and_on_the_first_and_last_image() -> None:
    images = make_images()
    changed_first = [images[1], *images[1:]]
    changed_last = [*images[:-1], images[0]]
    digests = [
        Dataset(ListDataset(items)).digest for items in (images, changed_first, changed_last)
    ]
    digests.append(Dataset(ListDataset(images[:-1])).digest)
    digests.append(Dataset(ListDataset(images, _fingerprint="7")).digest)
    assert len(set(digests)) == len(digests)
    assert Dataset(ListDataset(list(images))).digest == digests[0]


def test_fingerprint_positions_are_spread_from_end_to_end() -> None:
    assert pick_fingerprint_positions(0) == []
    assert pick_fingerprint_positions(5) == [0, 1, 2, 3, 4]
    assert pick_fingerprint_positions(151) == list(range(0, 151, 10))


def test_of_an_image_folder_without_a_transform_the_files_are_read(tmp_path: Path) -> None:
    samples = [(str(tmp_path / "x.png"), 1), (str(tmp_path / "y.png"), 0)]
    attributes: dict[str, Any] = {"samples": samples, "classes": ["ant", "bee"], "root": tmp_path}
    dataset = wrap_dataset(ListDataset(samples, transform=None, **attributes))
    assert isinstance(dataset, Files)
    assert dataset.source == str(tmp_path)
    assert dataset.paths == [path for path, _ in samples]
    assert [dataset.class_names[label] for label in dataset.labels] == ["bee", "ant"]
    transformed = ListDataset(make_images(2), transform=print, **attributes)
    assert isinstance(wrap_dataset(transformed), Dataset)


def test_refusals() -> None:
    with pytest.raises(sl.SightlineError, match=r"an object with len\(\) and \[i\]; this is 3"):
        open_dataset(3)
    with pytest.raises(
        sl.SightlineError, match="item 0 of the dataset is of type int; it must be an image"
    ):
        wrap_dataset(ListDataset([7]))
    with pytest.raises(sl.SightlineError, match="there are no images in the ListDataset"):
        open_dataset(ListDataset([]))
