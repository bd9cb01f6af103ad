"""One change for many images: its size, that it fools more than noise, on new images too."""

from pathlib import Path

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.cat([smooth(seed=seed) for seed in range(12)])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 3.0), ("l1", 100.0)])
def test_it_stays_in_its_ball_and_fools_more_than_noise(
    tiny: sl.Model, photos: Tensor, norm: str, eps: float
) -> None:
    values = sl.universal(tiny, photos, norm=norm, eps=eps, steps=30).values
    size = values["change"].flatten().norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm])
    assert size <= eps * (1 + 1e-5)
    assert values["fooled"] > values["fooled_random"]
    assert torch.allclose(values["image"], (photos + values["change"]).clamp(0, 1), atol=1e-6)
    answers = tiny.logits(values["image"]).argmax(1) != tiny.logits(photos).argmax(1)
    assert torch.equal(values["success"], answers)
    assert values["fooled"] == pytest.approx(float(answers.float().mean()))


def test_it_leads_to_a_target(tiny: sl.Model, photos: Tensor) -> None:
    values = sl.universal(tiny, photos, target="cat", eps=0.3, steps=30).values
    assert torch.equal(values["success"], tiny.logits(values["image"]).argmax(1) == 2)
    assert values["fooled"] > values["fooled_random"]


def test_half_of_a_folder_is_kept_back(tiny: sl.Model, photos: Tensor, tmp_path: Path) -> None:
    for index, one in enumerate(photos[:7]):
        sl.write(one, tmp_path / f"{index}.png")
    result = sl.universal(tiny, photos[:1], folder=str(tmp_path), eps=0.1, steps=5)
    assert 0 <= result.values["fooled_new"] <= 1
    assert "the 4 images it was learned from" in result.captions["universal"]
    (tmp_path / "one").mkdir()
    sl.write(photos[0], tmp_path / "one" / "1.png")
    assert (
        "fooled_new"
        not in sl.universal(tiny, photos[:1], folder=str(tmp_path / "one"), steps=2).values
    ), "a single picture is not new"


def test_an_empty_folder_is_refused(tiny: sl.Model, photos: Tensor, tmp_path: Path) -> None:
    for method in (sl.universal, sl.adversarial_patch):
        with pytest.raises(sl.SightlineError, match="it holds no pictures"):
            method(tiny, photos[:1], folder=str(tmp_path))
        with pytest.raises(sl.SightlineError, match="there is no such folder"):
            method(tiny, photos[:1], folder=str(tmp_path / "none"))
