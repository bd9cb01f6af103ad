"""The synthesis of all units: as `sl.synthesis` makes it, in batches, going on where it was."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.app.web.pictures import synthesis as synthesis_file
from sightline.app.web.pictures.cache import PictureCache
from sightline.app.web.pictures.synthesis import UnitSynthesis

COUNTS = {"conv1": 8, "conv3": 5, "logits": 5}


@pytest.fixture
def syntheses(web_model: sl.Model, pictures: PictureCache) -> UnitSynthesis:
    return UnitSynthesis(web_model, pictures, steps=4, side=24)


def go_on(_done: float, _total: float) -> bool:
    return False


def test_the_images_are_those_of_the_method(syntheses: UnitSynthesis) -> None:
    images = syntheses.ascend_units("conv3", [3, 11, 6])
    expected = sl.synthesis(
        syntheses.model, layer="conv3", units="3,11,6", preset="smooth", lr=0.2, steps=4, size=24
    )
    torch.testing.assert_close(images, torch.as_tensor(expected.values["image"]))
    assert images.shape == (3, 3, 24, 24)


def test_a_unit_does_not_depend_on_its_batch(syntheses: UnitSynthesis) -> None:
    together = syntheses.ascend_units("conv2", [1, 7, 4, 9])
    alone = syntheses.ascend_units("conv2", [4])
    torch.testing.assert_close(together[2:3], alone, atol=1e-4, rtol=0)
    assert float((together[0] - together[1]).abs().max()) > 0.01


def test_most_steps_see_a_window(
    web_model: sl.Model, pictures: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the picture in most of the steps, and each unit as if it were alone."""
    monkeypatch.setattr(synthesis_file, "WINDOW_SIDE", 12)
    syntheses = UnitSynthesis(web_model, pictures, steps=24, side=24)
    sides: list[int] = []
    run_network = sl.Model.run_network

    def watch(self: sl.Model, image: torch.Tensor) -> object:
        if len(image) == 4:  # the units, and not what is probed of the network
            sides.append(image.shape[-1])
        return run_network(self, image)

    assert syntheses.window_size == (12, 12)
    monkeypatch.setattr(sl.Model, "run_network", watch)
    together = syntheses.ascend_units("conv2", [1, 7, 4, 9])
    assert sorted(set(sides)) == [12, 24]
    assert sides[-4:] == [24] * 4
    assert sides[0] == 12
    assert together.shape == (4, 3, 24, 24)
    alone = syntheses.ascend_units("conv2", [4])
    torch.testing.assert_close(together[2:3], alone, atol=1e-4, rtol=0)
    gray = torch.full_like(together, 0.5)
    rise = [syntheses.model.features(x, "conv2")["conv2"].mean((2, 3)) for x in (together, gray)]
    for number, unit in enumerate([1, 7, 4, 9]):
        assert float(rise[0][number, unit]) > float(rise[1][number, unit])


def test_windows_only_where_the_picture_is_twice_as_large(
    web_model: sl.Model, pictures: PictureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis_file, "WINDOW_SIDE", 13)
    assert UnitSynthesis(web_model, pictures, side=24).window_size is None
    assert UnitSynthesis(web_model, pictures, side=26).window_size == (13, 13)


class FixedNetwork(torch.nn.Module):
    """It takes images of the sides it was made for, and nothing else."""

    def __init__(self, allowed: tuple[int, ...]) -> None:
        super().__init__()
        self.allowed = allowed
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[-1] not in self.allowed:
            raise ValueError(f"the width must be one of {self.allowed}")
        return self.conv(image).mean((2, 3))


@pytest.mark.parametrize(
    ("allowed", "picture", "window"),
    [((150,), (100, 150), None), ((150, 96), (64, 96), None), ((150, 96, 48), (64, 96), (32, 48))],
)
def test_sizes_are_those_that_the_network_takes(
    pictures: PictureCache,
    monkeypatch: pytest.MonkeyPatch,
    allowed: tuple[int, ...],
    picture: tuple[int, int],
    window: tuple[int, int] | None,
) -> None:
    monkeypatch.setattr(synthesis_file, "WINDOW_SIDE", 32)
    model = sl.load(FixedNetwork(allowed), size=(100, 150))
    syntheses = UnitSynthesis(model, pictures, steps=3, side=64)
    assert syntheses.picture_size == picture
    assert syntheses.window_size == window
    image = syntheses.ascend_units("conv", [2, 0])
    assert image.shape == (2, 3, *picture)
    assert float(image.std()) > 0.001


def test_up_and_down_are_opposite(syntheses: UnitSynthesis) -> None:
    def measure(image: torch.Tensor) -> float:
        return float(syntheses.model.features(image, "conv2")["conv2"][0, 5].mean())

    up = syntheses.ascend_units("conv2", [5], sign=1)
    down = syntheses.ascend_units("conv2", [5], sign=-1)
    assert measure(up) > measure(torch.full_like(up, 0.5)) > measure(down)


def test_variants_of_a_unit_differ_and_drive_it_up(syntheses: UnitSynthesis) -> None:
    def measure(images: torch.Tensor) -> torch.Tensor:
        return syntheses.model.features(images, "conv2")["conv2"][:, 5].mean((1, 2))

    variants = syntheses.ascend_units("conv2", [5] * 4, is_diverse=True)
    gray = torch.full_like(variants, 0.5)
    assert bool((measure(variants) > measure(gray)).all())
    distances = torch.cdist(variants.flatten(1), variants.flatten(1))
    assert float(distances[~torch.eye(4, dtype=torch.bool)].min()) > 0.5

    # One picture of all four, made when it is read, under a name of its own.
    name = syntheses.name_variants("conv2", 5)
    assert name != syntheses.name_picture("conv2", 5)
    assert not syntheses.has_variants("conv2", 5)
    content = syntheses.pictures.read(name)
    assert content is not None
    with Image.open(io.BytesIO(content)) as file:
        assert file.size == (4 * 24, 24)
    assert syntheses.has_variants("conv2", 5)


def test_classes_are_units_too(syntheses: UnitSynthesis) -> None:
    image = syntheses.ascend_units("logits", [2, 4])
    gray = torch.full_like(image, 0.5)
    scores = syntheses.model.logits(image) - syntheses.model.logits(gray)
    assert float(scores[0, 2]) > 0
    assert float(scores[1, 4]) > 0


def test_all_units_are_kept_once(syntheses: UnitSynthesis, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []

    def watch(done: float, total: float) -> bool:
        seen.append((done, total))
        return False

    assert syntheses.keep_all(COUNTS, watch)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    assert all(
        syntheses.has_picture(layer, unit)
        for layer, count in COUNTS.items()
        for unit in range(count)
    )
    monkeypatch.setattr(UnitSynthesis, "ascend_units", lambda *_: pytest.fail("made again"))
    assert syntheses.keep_all(COUNTS, go_on)


def test_a_stopped_run_goes_on(syntheses: UnitSynthesis) -> None:
    syntheses = replace(syntheses, batch_size=3)
    calls: list[int] = []

    def stop_after_two(_done: float, _total: float) -> bool:
        calls.append(1)
        return len(calls) > 2

    assert not syntheses.keep_all(COUNTS, stop_after_two)
    missing = [units for _, units in syntheses.list_missing_batches(COUNTS)]
    assert missing == [[6, 7], [0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]
    assert syntheses.keep_all(COUNTS, go_on)


def test_the_batch_is_what_a_timing_finds(
    syntheses: UnitSynthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def choose(_model: sl.Model, image: torch.Tensor, *, image_count: int) -> int:
        assert image.shape == (1, 3, 24, 24)
        asked.append(image_count)
        return 99

    monkeypatch.setattr(synthesis_file, "choose_batch_size", choose)
    assert syntheses.choose_batch_size(7) == synthesis_file.MAX_BATCH_SIZE
    assert asked == [28]
    assert replace(syntheses, batch_size=5).choose_batch_size(7) == 5


def test_a_picture_is_made_when_it_is_asked_for(syntheses: UnitSynthesis) -> None:
    name = syntheses.name_picture("conv1", 6, -1)
    assert not syntheses.has_picture("conv1", 6, -1)
    assert syntheses.pictures.read(name)
    assert syntheses.has_picture("conv1", 6, -1)
    assert not syntheses.has_picture("conv1", 6)


def test_what_the_key_holds(web_model: sl.Model, tmp_path: Path) -> None:
    pictures = PictureCache(tmp_path)
    names = {
        UnitSynthesis(web_model, pictures, steps=steps, side=side).name_picture(layer, unit, sign)
        for steps in (4, 5)
        for side in (16, 24)
        for layer in ("conv1", "conv2")
        for unit in (0, 1)
        for sign in (1, -1)
    }
    assert len(names) == 2**5


@pytest.mark.parametrize("constant", ["LEARNING_RATE", "WINDOW_SHARE", "WINDOW_SIDE"])
def test_another_recipe_has_another_key(
    web_model: sl.Model, pictures: PictureCache, monkeypatch: pytest.MonkeyPatch, constant: str
) -> None:
    monkeypatch.setattr(synthesis_file, "WINDOW_SIDE", 12)
    earlier = UnitSynthesis(web_model, pictures, side=24).make_key("conv1", 0)
    monkeypatch.setattr(synthesis_file, constant, getattr(synthesis_file, constant) / 2)
    assert UnitSynthesis(web_model, pictures, side=24).make_key("conv1", 0) != earlier


def test_every_picture_is_kept_under_its_own_unit(
    syntheses: UnitSynthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = syntheses.ascend_units("conv2", [1, 7, 4, 9])
    kept: dict[int, torch.Tensor] = {}

    def keep(_self: PictureCache, key: dict[str, int], image: torch.Tensor, _quality: int) -> None:
        kept[key["unit"]] = image

    monkeypatch.setattr(PictureCache, "keep", keep)
    syntheses.keep_units("conv2", [1, 7, 4, 9])
    for number, unit in enumerate([1, 7, 4, 9]):
        torch.testing.assert_close(kept[unit], expected[number : number + 1])


def test_a_unit_without_gradient_is_gray(
    syntheses: UnitSynthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: UnitSynthesis, layer: str, units: list[int], sign: int = 1) -> torch.Tensor:
        if 2 in units:
            raise sl.SightlineError("no finite number")
        return torch.ones(len(units), 3, 24, 24)

    monkeypatch.setattr(UnitSynthesis, "ascend_units", fail)
    kept: dict[int, torch.Tensor] = {}

    def keep(_self: PictureCache, key: dict[str, int], image: torch.Tensor, _quality: int) -> None:
        kept[key["unit"]] = image

    monkeypatch.setattr(PictureCache, "keep", keep)
    syntheses.keep_units("conv1", [1, 2, 3])
    assert {unit: float(image.mean()) for unit, image in kept.items()} == {1: 1.0, 2: 0.5, 3: 1.0}
