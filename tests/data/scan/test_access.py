"""What the methods over a dataset share: which scan they read, and how they compare its images."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import LABELS, smooth
from PIL import Image
from torch import Tensor

import sightline as sl
from sightline.data.scan import access
from sightline.data.store.reader import compute_feature_vectors
from sightline.images.decode.center_crop import fit_center_crop, stack_crops
from sightline.images.transforms import crop_center, resize_image


@pytest.fixture(scope="module")
def stored(wide: sl.Model, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Scan:
    """A scan of the photographs."""
    path = tmp_path_factory.mktemp("stores") / "a.scan"
    return sl.scan(wide, photos, store=path, batch=8, vectors=("penultimate", "conv2"))


def test_a_scan_is_read_as_it_is(stored: sl.Scan) -> None:
    assert access.resolve_scan(stored, None, None) is stored
    with pytest.raises(sl.SightlineError, match="leave out folder and store"):
        access.resolve_scan(stored, "photos", None)
    with pytest.raises(sl.SightlineError, match="leave out folder and store"):
        access.resolve_scan(stored, None, stored.path)


def test_a_store_alone_has_to_be_the_models(
    wide: sl.Model, tiny: sl.Model, stored: sl.Scan
) -> None:
    scan = access.resolve_scan(wide, None, stored.path, vector_layer="not looked at")
    assert torch.equal(scan.vectors("conv2"), stored.vectors("conv2"))
    with pytest.raises(sl.SightlineError, match="was made with other weights"):
        access.resolve_scan(tiny, None, stored.path)


def test_a_folder_is_scanned_into_the_store(
    wide: sl.Model, write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos", 6)
    scan = access.resolve_scan(
        wide, folder, tmp_path / "a.scan", vector_layer="conv1", layer="conv2"
    )
    assert scan.layers == ["conv1", "conv2"]
    assert scan.vector_layers == [scan.layer("penultimate"), "conv1"]
    other = access.resolve_scan(wide, folder, tmp_path / "b.scan", layer="logits")
    assert other.layers == ["logits"]
    assert access.is_followed_by_default(wide, "conv1")
    assert not access.is_followed_by_default(wide, "relu1")
    assert not access.is_followed_by_default(wide, "logits")


def test_patches_read_a_store_of_another_batch_size(
    wide: sl.Model, photos: Path, tmp_path: Path
) -> None:
    """A store that was made with `batch=4` is not refused by what cannot say 4."""
    store = tmp_path / "a.scan"
    scan = sl.scan(wide, photos, store=store, batch=4)
    result = sl.patches(wide, folder=photos, store=store, layer="conv2", unit=3, k=2)
    assert result.values["ids"].tolist() == scan.top("conv2").ids[:2, 3].tolist()
    assert sl.Scan.open(store).description.batch_size == 4


def test_vectors_of_images_are_the_stored_ones(wide: sl.Model, stored: sl.Scan) -> None:
    images = torch.cat([stored.image(id) for id in range(5)])
    for layer in ("conv2", "penultimate"):
        vectors = compute_feature_vectors(wide, images, layer)
        torch.testing.assert_close(vectors, stored.vectors(layer)[:5])


def test_pixel_vectors_are_the_middle_squares(
    stored: sl.Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute_literally(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        side = min(height, width)
        return resize_image(crop_center(image, side, side), 32, 32).flatten(1)

    image = smooth(2, side=56)[:, :, :40]
    assert torch.equal(access.compute_pixel_vectors(image), compute_literally(image))
    assert torch.equal(
        access.compute_pixel_vectors(image.mT), compute_literally(image.mT.contiguous())
    )

    monkeypatch.setattr(access, "THUMBNAIL_BATCH_SIZE", 10)
    vectors = access.load_pixel_vectors(stored)
    assert vectors.shape == (43, 3072)
    thumbnails = stack_crops(
        [fit_center_crop(data, 32, 32) for data in stored.thumbnail_bytes(range(43))]
    )
    assert torch.equal(vectors, thumbnails.flatten(1))
    assert access.load_pixel_vectors(stored) is vectors
    monkeypatch.setattr(access, "PIXEL_VECTOR_SIDE", 16)
    assert access.load_pixel_vectors(stored) is vectors  # decoded once
    assert access.load_pixel_vectors(sl.Scan.open(stored.path)).shape == (43, 768)


def test_classes_are_named_or_guessed(wide: sl.Model, stored: sl.Scan, tmp_path: Path) -> None:
    assert access.name_image_classes(stored, [0, 30, 5]) == ["even", "odd", "even"]
    buffer = io.BytesIO()
    for number, photo in enumerate(smooth(3, side=48, seed=5)):
        pixels = (photo.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(buffer, "PNG")
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue())
        buffer.seek(0)
        buffer.truncate()
    unlabelled = sl.scan(wide, tmp_path, store=tmp_path / "a.scan")
    with torch.no_grad():
        logits = wide.logits(torch.cat([unlabelled.image(id) for id in range(3)]))
    expected = [f"{LABELS[label]}?" for label in logits.argmax(1).tolist()]
    assert access.name_image_classes(unlabelled, range(3)) == expected


class WeightProduct(torch.nn.Module):
    """A linear layer that is no `nn.Linear`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        weight = torch.linspace(-1, 1, inputs * outputs).view(inputs, outputs)
        self.weight = torch.nn.Parameter(weight)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight


class KeywordHead(torch.nn.Module):
    """A head whose input can't be recorded: it is given by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 6)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(input=self.conv(image).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "units", "vectors"),
    [
        (
            torch.nn.Sequential(
                torch.nn.Flatten(), WeightProduct(3072, 7), torch.nn.ReLU(), WeightProduct(7, 4)
            ),
            ["2"],
            ["2"],
        ),
        (torch.nn.Sequential(torch.nn.Flatten(), WeightProduct(3072, 4)), ["logits"], ["logits"]),
        (KeywordHead(), ["conv"], ["fc:in"]),
        (torch.nn.Conv2d(3, 4, (5, 3)), ["logits"], ["logits"]),
    ],
)
def test_something_stands_in_for_a_missing_penultimate_layer(
    network: torch.nn.Module,
    units: list[str],
    vectors: list[str],
    write_photos: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = sl.load(network.eval(), size=32)
    folder = write_photos(tmp_path / "photos", 5)
    scan = access.resolve_scan(model, folder, tmp_path / "a.scan")
    assert scan.layers == units
    assert scan.vector_layers == vectors
    images = torch.cat([scan.image(id) for id in range(scan.images)])
    expected = compute_feature_vectors(model, images, vectors[0])
    torch.testing.assert_close(scan.vectors(), expected)
    shown_name = "penultimate" if vectors[0].endswith(":in") else vectors[0]
    assert access.name_feature_layer(scan, "penultimate") == shown_name
