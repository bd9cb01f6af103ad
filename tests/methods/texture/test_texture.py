"""The texture method: every way gives a picture of the size asked for, and says how much of it is copied."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.texture.metrics import (
    measure_copy_rate,
    measure_seam,
    measure_seed_diversity,
)
from sightline.methods.texture.neural import (
    make_torus_enlarger,
    measure_gram_error,
    pick_held_out_layers,
)
from sightline.models.overrides.average_pooling import AveragePoolingMode

METHODS = ("quilting", "efros_leung", "wei_levoy", "patchmatch")


@pytest.fixture(scope="module")
def grain() -> Tensor:
    return torch.rand(1, 3, 30, 34, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS)
def test_gives_pictures_of_the_size_and_number_asked_for(
    method: str, tiny: sl.Model, grain: Tensor
) -> None:
    result = sl.texture(tiny, grain, method=method, side=37, count=2, window=7)  # type: ignore[arg-type]
    assert result.values["image"].shape == (2, 3, 37, 37)  # type: ignore[union-attr]
    assert len(result.values["copy_rate"]) == len(result.values["seam"]) == 2  # type: ignore[arg-type]
    assert 0 < result.values["diversity"][0] < 1.3  # type: ignore[index]
    alone = sl.texture(tiny, grain, method=method, side=37, window=7, seed=1)  # type: ignore[arg-type]
    assert torch.equal(alone.values["image"][0], result.values["image"][1]), (
        "the second is the next seed's"
    )  # type: ignore[index]
    assert "diversity" not in alone.values


def test_each_exemplar_of_a_batch_for_itself(tiny: sl.Model, grain: Tensor) -> None:
    both = sl.texture(tiny, torch.cat([grain, 1 - grain]), side=40, count=2)
    alone = sl.texture(tiny, 1 - grain, side=40, count=2)
    assert torch.equal(both.tensors["image"][2:], alone.tensors["image"])


@pytest.mark.parametrize("method", [*METHODS, "gatys", "sliced"])
def test_tiles_when_asked_to(method: str, tiny: sl.Model) -> None:
    waves = (torch.arange(48) * 2 * torch.pi / 12).sin() / 2 + 0.5
    exemplar = (waves[:, None] * waves).expand(1, 3, 48, 48).contiguous()
    result = sl.texture(tiny, exemplar, method=method, side=48, steps=40, tileable=True)  # type: ignore[arg-type]
    assert result.values["seam"][0] < 1.6  # type: ignore[index]


@pytest.mark.parametrize(("method", "spectrum"), [("gatys", 0.0), ("gatys", 0.3), ("sliced", 0.3)])
def test_neural_textures_have_no_joint(method: str, spectrum: float, tiny: sl.Model) -> None:
    """Single pictures scatter. A joint at the border would show in the mean of several."""
    exemplar = torch.nn.functional.avg_pool2d(
        torch.rand(1, 3, 99, 99, generator=torch.Generator().manual_seed(3)), 4, 1
    )
    made = sl.texture(
        tiny, exemplar, method=method, side=96, steps=6, spectrum=spectrum, count=5, tileable=True
    )  # type: ignore[arg-type]
    assert 0.8 < sum(made.values["seam"]) / 5 < 1.1  # type: ignore[arg-type]
    assert 0.25 < sum(made.values["seam_rank"]) / 5 < 0.75  # type: ignore[arg-type]


def test_what_tiles_grows_as_one_period() -> None:
    picture = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(4))
    grown, turned = (
        make_torus_enlarger(torch.Generator().manual_seed(5))(one, (16, 24))
        for one in (picture, picture.roll((3, 5), (2, 3)))
    )
    torch.testing.assert_close(turned, grown.roll((6, 10), (2, 3)))
    assert measure_seam(grown[0])[0] < 1.3


def test_copies_are_counted(grain: Tensor) -> None:
    exemplar = grain[0]
    assert measure_copy_rate(exemplar, exemplar) == 1
    assert measure_copy_rate(1 - exemplar, exemplar) == 0
    half = torch.cat([exemplar[:, :24, :24], 1 - exemplar[:, :24, :24]], 1)
    assert measure_copy_rate(half, exemplar, side=12) == 0.5


def test_seams_and_diversity_by_hand(grain: Tensor) -> None:
    ramp = torch.linspace(0, 1, 11).expand(3, 11, 11)
    assert measure_seam(ramp) == pytest.approx((10 / 2 + 1 / 2, 3 / 4)), (
        "down the ramp nothing steps, which is a tie"
    )
    assert measure_seam(ramp + ramp.mT) == pytest.approx((10, 1))
    assert measure_seam(torch.full((3, 5, 5), 0.5)) == (1, 0.5)
    assert measure_seed_diversity(grain.repeat(2, 1, 1, 1)) == 0
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert measure_seed_diversity(noise) == pytest.approx(1, abs=0.05)


def test_remakes_a_picture(tiny: sl.Model, grain: Tensor) -> None:
    target = torch.zeros(1, 3, 32, 40)
    target[..., 20:] = 1
    grain = grain * torch.linspace(0, 1, 34)
    result = sl.texture(tiny, grain, guide=target, window=8)
    made = result.tensors["image"]
    assert made.shape == target.shape
    assert made[..., 22:].mean() > made[..., :18].mean() + 0.05
    assert (
        sl.texture(tiny, grain, guide="grass", window=20, callback=lambda step: True)
        .tensors["image"]
        .shape[-2:]
        == sl.sample("grass").shape[-2:]
    )


@pytest.mark.parametrize("method", ["gatys", "sliced"])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_statistics_become_the_exemplar_s(
    method: str, pooling: str, tiny: sl.Model, grain: Tensor
) -> None:
    exemplar = torch.nn.functional.avg_pool2d(grain.repeat(1, 1, 2, 2), 3, 1)
    knobs = {
        "method": method,
        "pooling": pooling,
        "side": 64,
        "layers": ("relu1", "relu3"),
        "spectrum": 0.0,
    }
    start, end = (
        sl.texture(tiny, exemplar, steps=steps, **knobs).tensors["image"] for steps in (1, 60)
    )  # type: ignore[arg-type]
    with AveragePoolingMode() if pooling == "average" else nullcontext():
        before, after = (
            sum(measure_gram_error(tiny, ("relu1", "relu3"), picture, exemplar).values())
            for picture in (start, end)
        )
    assert after < 0.2 * before
    assert pick_held_out_layers(tiny, ("relu1", "relu3")) == ("conv1", "conv2", "conv3")


def test_a_flat_exemplar_stays_flat(tiny: sl.Model) -> None:
    flat = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 32, 32).clone()
    for method in (*METHODS, "gatys"):
        made = sl.texture(tiny, flat, method=method, side=36, steps=10).tensors["image"]  # type: ignore[arg-type]
        torch.testing.assert_close(made, flat[..., :1, :1].expand_as(made), atol=1e-4, rtol=0)


def test_gram_errors_by_hand(tiny: sl.Model, grain: Tensor) -> None:
    other = grain.flip(1)
    conv, mirrored = (
        tiny.module("conv1"),
        [
            torch.nn.functional.pad(picture, (1, 1, 1, 1), mode="reflect")
            for picture in (other, grain)
        ],
    )
    found, wanted = (
        conv(tiny.normalize(picture))[0, :, 1:-1, 1:-1].relu().flatten(1) for picture in mirrored
    )
    literal = (
        (found @ found.T - wanted @ wanted.T).square().sum() / (wanted @ wanted.T).square().sum()
    ).item()
    assert measure_gram_error(tiny, ("relu1",), other, grain)["relu1"] == pytest.approx(
        literal, rel=1e-4
    )
    assert measure_gram_error(tiny, ("relu1",), grain, grain)["relu1"] < 1e-10


def test_stops_in_the_middle_of_several(tiny: sl.Model, grain: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    result = sl.texture(
        tiny,
        grain,
        side=60,
        count=3,
        window=7,
        callback=lambda step: seen.append((step.index, step.total)) or step.index > step.total / 3,
    )
    assert len(result.tensors["image"]) == 2
    assert [index for index, _ in seen] == sorted(index for index, _ in seen)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"window": 2}, "window is 2"),
        ({"window": 25}, "window is 25; it must lie between 6 and 20"),
        ({"window": 25, "method": "patchmatch"}, "window is 25; it must lie between 3 and 20"),
        ({"guide": "nowhere.png"}, "nowhere.png"),
        (
            {"guide": "grass", "method": "patchmatch"},
            "only method='quilting' follows a guide, not 'patchmatch'",
        ),
        ({"guide": torch.rand(1, 3, 1, 1)}, "the guide is 1×1 pixels; it needs 16×16 or more"),
        ({"guide": "grass", "side": 40}, "the guide sets the size"),
        ({"side": 8}, "side is 8"),
        ({"method": "gatys", "window": 9}, "window is for the classical methods"),
        ({"method": "gatys", "layers": ("relu9",)}, "no layer named 'relu9'"),
        (
            {"method": "patchmatch", "side": 4000},
            r"4000×4000 pixels from 30×34 by method='patchmatch' with windows of 7 need about 47.0 GB, more than memory=4; raise memory",
        ),
        (
            {"method": "wei_levoy", "side": 8000, "memory": 0.01},
            "need about .* GB, more than memory=0.01",
        ),
        (
            {"method": "gatys", "side": 2500, "tileable": True},
            "pixels need about .* GB, more than memory=4; .* made in one piece: raise memory",
        ),
        (
            {"method": "gatys", "side": 4000, "memory": 0.01},
            "in tiles of 128 pixels about .* GB; raise memory or lower the size",
        ),
        ({"method": "sliced", "side": 4000}, "the sliced loss sorts the whole picture"),
    ],
)
def test_refuses_in_one_line(
    knobs: dict[str, object], words: str, tiny: sl.Model, grain: Tensor
) -> None:
    with pytest.raises(sl.SightlineError, match=words) as error:
        sl.texture(tiny, grain, **knobs)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["gatys", "sliced"])
def test_refuses_a_piece_smaller_than_the_deepest_layer_s_windows(
    method: str, tiny: sl.Model
) -> None:
    deep = sl.load(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.Conv2d(4, 4, 3, 4, 1)), size=64
    )
    with pytest.raises(
        sl.SightlineError,
        match=r"the exemplar is 24×40 pixels, a single position in the deepest layer, of stride 16; it needs 32×32 or more",
    ):
        sl.texture(deep, torch.rand(1, 3, 24, 40), method=method, layers=("0", "1"))  # type: ignore[arg-type]


def test_what_does_not_fit_is_made_in_tiles(tiny: sl.Model, grain: Tensor) -> None:
    exemplar = torch.nn.functional.avg_pool2d(grain.repeat(1, 1, 2, 2), 3, 1)
    result = sl.texture(tiny, exemplar, method="gatys", side=400, steps=2, memory=0.12)
    assert result.tensors["image"].shape == (1, 3, 400, 400)


def test_refuses_a_piece_too_small(tiny: sl.Model) -> None:
    with pytest.raises(
        sl.SightlineError, match="the exemplar is 8×30 pixels; a texture needs 16×16 or more"
    ):
        sl.texture(tiny, torch.rand(1, 3, 8, 30))
