"""One change for many images: its norm, and that it fools more images than noise does."""

from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.universal import compute_universal_radius


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Twelve images 32×26."""
    return torch.cat([smooth(seed=seed) for seed in range(12)])[..., :26]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 3.0), ("l1", 100.0)])
def test_it_stays_in_its_ball_and_fools_more_than_noise(
    tiny: sl.Model, photos: Tensor, norm: str, eps: float
) -> None:
    values = sl.universal(tiny, photos, norm=norm, eps=eps, steps=30).values
    size = values["change"].flatten().norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm])
    assert size <= eps * (1 + 1e-5)
    assert values["fooled"] > values["fooled_random"]
    assert torch.allclose(values["image"], (photos + values["change"]).clamp(0, 1), atol=1e-6)
    is_fooled = tiny.logits(values["image"]).argmax(1) != tiny.logits(photos).argmax(1)
    assert torch.equal(values["success"], is_fooled)
    assert values["fooled"] == pytest.approx(float(is_fooled.float().mean()))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_noise_is_as_large_as_the_change(
    tiny: sl.Model, photos: Tensor, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What success is measured of: the change, then noise of the same norm."""
    perturbations: list[Tensor] = []

    def record(model: sl.Model, image: Tensor, change: Tensor, target: int | str | None) -> float:
        perturbations.append(change)
        return 0.0

    monkeypatch.setattr(
        "sightline.methods.adversarial.universal.measure_perturbation_success", record
    )
    sl.universal(tiny, photos, norm=norm, steps=3)
    change, noise = perturbations
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    size = float(change.norm(p=order))
    assert float(noise.norm(p=order)) == pytest.approx(size, rel=1e-4)
    assert not torch.equal(noise, change)


def test_it_leads_to_a_target(tiny: sl.Model, photos: Tensor) -> None:
    values = sl.universal(tiny, photos, target="cat", eps=0.3, steps=30).values
    assert torch.equal(values["success"], tiny.logits(values["image"]).argmax(1) == 2)
    assert values["fooled"] > values["fooled_random"]


def test_half_of_a_folder_is_kept_back(tiny: sl.Model, photos: Tensor, tmp_path: Path) -> None:
    for index, photo in enumerate(photos[:7]):
        sl.write(photo, tmp_path / f"{index}.png")
    result = sl.universal(tiny, photos[:1], folder=str(tmp_path), eps=0.1, steps=5)
    assert 0 <= result.values["fooled_new"] <= 1
    assert "the 4 images it was learned from" in result.captions["universal"]
    (tmp_path / "single").mkdir()
    sl.write(photos[0], tmp_path / "single" / "1.png")
    single = sl.universal(tiny, photos[:1], folder=str(tmp_path / "single"), steps=2)
    assert "fooled_new" not in single.values, "a single picture leaves none to test on"


def test_the_default_radius_is_the_published_one_or_2_5_times_the_usual(
    tiny: sl.Model, photos: Tensor
) -> None:
    count = 3 * 32 * 26
    assert compute_universal_radius("linf", photos) == 10 / 255
    assert compute_universal_radius("l2", photos) == pytest.approx(5 / 255 * count**0.5)
    assert compute_universal_radius("l1", photos) == pytest.approx(2.5 / 255 * count)
    values = sl.universal(tiny, photos, steps=10).values
    assert 0.3 * 10 / 255 < float(values["change"].abs().max()) <= 10 / 255 + 1e-6


def test_an_empty_folder_is_refused(tiny: sl.Model, photos: Tensor, tmp_path: Path) -> None:
    for method in (sl.universal, sl.adversarial_patch):
        with pytest.raises(sl.SightlineError, match="it holds no pictures"):
            method(tiny, photos[:1], folder=str(tmp_path))
        with pytest.raises(sl.SightlineError, match="there is no such folder"):
            method(tiny, photos[:1], folder=str(tmp_path / "none"))
