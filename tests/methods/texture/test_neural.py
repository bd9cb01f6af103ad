"""Neural textures: statistics that become the exemplar's, no seam, and measures by hand."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.images.transforms import resize_bicubic
from sightline.methods.texture.metrics import measure_seam
from sightline.methods.texture.neural import (
    align_stages_to_stride,
    make_exemplar_noise,
    make_torus_enlarger,
    measure_gram_error,
    measure_held_out_errors,
    pick_held_out_layers,
)
from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.optim.multiscale import Stage


@pytest.fixture(scope="module")
def grain() -> Tensor:
    return torch.rand(1, 3, 30, 34, generator=torch.Generator().manual_seed(0))


# ── synthesis ──


@pytest.mark.parametrize("method", ["gatys", "sliced"])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_statistics_become_the_exemplars(
    method: str, pooling: str, tiny: sl.Model, grain: Tensor
) -> None:
    exemplar = F.avg_pool2d(grain.repeat(1, 1, 2, 2), 3, 1)
    layers = ("relu1", "relu3")
    errors: list[float] = []
    for steps in (1, 60):
        result = sl.texture(
            tiny,
            exemplar,
            method=method,  # type: ignore[arg-type]
            pooling=pooling,  # type: ignore[arg-type]
            side=64,
            layers=layers,
            spectrum=0.0,
            steps=steps,
        )
        with AveragePoolingMode() if pooling == "average" else nullcontext():
            error = measure_gram_error(tiny, layers, result.tensors["image"], exemplar)
        errors.append(sum(error.values()))
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize(("method", "spectrum"), [("gatys", 0.0), ("gatys", 0.3), ("sliced", 0.3)])
def test_neural_textures_have_no_seam(method: str, spectrum: float, tiny: sl.Model) -> None:
    """Single pictures scatter. A seam at the border would show in the mean of several."""
    noise = torch.rand(1, 3, 99, 91, generator=torch.Generator().manual_seed(3))
    exemplar = F.avg_pool2d(noise, 4, 1)
    result = sl.texture(
        tiny,
        exemplar,
        method=method,  # type: ignore[arg-type]
        side=96,
        steps=6,
        spectrum=spectrum,
        count=5,
        tileable=True,
    )
    assert 0.8 < sum(result.values["seam"]) / 5 < 1.1  # type: ignore[arg-type]
    assert 0.25 < sum(result.values["seam_rank"]) / 5 < 0.75  # type: ignore[arg-type]


def test_what_tiles_is_enlarged_as_one_period() -> None:
    """Turned on the torus before or after, the result is the same."""
    picture = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(4))
    enlarged = make_torus_enlarger(torch.Generator().manual_seed(5))(picture, (16, 24))
    turned = picture.roll((3, 5), (2, 3))
    enlarged_turned = make_torus_enlarger(torch.Generator().manual_seed(5))(turned, (16, 24))
    torch.testing.assert_close(enlarged_turned, enlarged.roll((6, 10), (2, 3)))
    assert measure_seam(enlarged[0])[0] < 1.3


def test_a_picture_of_the_size_stays_and_each_enlargement_is_shifted_anew() -> None:
    picture = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(4))
    enlarge = make_torus_enlarger(torch.Generator().manual_seed(5))
    assert enlarge(picture, (8, 12)) is picture
    assert not torch.equal(enlarge(picture, (16, 24)), enlarge(picture, (16, 24)))


def test_the_shift_is_drawn_for_rows_then_columns() -> None:
    """Shifted back, the enlarged picture is the middle of nine copies."""
    picture = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(6)
    down = int(torch.randint(16, (1,), generator=generator))
    right = int(torch.randint(24, (1,), generator=generator))
    assert down != right
    enlarged = make_torus_enlarger(torch.Generator().manual_seed(6))(picture, (16, 24))
    copies = resize_bicubic(picture.repeat(1, 1, 3, 3), (48, 72))
    middle = copies[..., 16:32, 24:48]
    torch.testing.assert_close(enlarged.roll((-down, -right), (2, 3)), middle)


def test_stages_before_the_last_are_multiples_of_the_stride() -> None:
    plan = [Stage((13, 50), 4), Stage((19, 70), 3), Stage((27, 99), 2)]
    aligned = align_stages_to_stride(plan, 8)
    assert aligned == [Stage((16, 48), 4), Stage((16, 72), 3), Stage((27, 99), 2)]


def test_noise_has_the_exemplars_color_statistics(grain: Tensor) -> None:
    exemplar = 0.5 + (grain - 0.5) * torch.tensor([0.1, 0.3, 0.5]).view(1, 3, 1, 1)
    exemplar = exemplar + torch.tensor([-0.1, 0.0, 0.1]).view(1, 3, 1, 1)
    noise = make_exemplar_noise(exemplar, (150, 200), torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.mean((2, 3)), exemplar.mean((2, 3)), atol=5e-3, rtol=0)
    torch.testing.assert_close(noise.std((2, 3)), exemplar.std((2, 3)), atol=5e-3, rtol=0)


@pytest.mark.parametrize("method", ["gatys", "sliced"])
def test_an_exemplar_of_a_single_position_is_refused(method: str) -> None:
    first, second = torch.nn.Conv2d(3, 4, 3, 4), torch.nn.Conv2d(4, 4, 3, 4, 1)
    deep = sl.load(torch.nn.Sequential(first, second), size=64)
    message = (
        r"the exemplar is 24×40 pixels, a single position in the deepest layer, of stride 16; "
        r"it needs 32×32 or more"
    )
    with pytest.raises(sl.SightlineError, match=message):
        sl.texture(deep, torch.rand(1, 3, 24, 40), method=method, layers=("0", "1"))  # type: ignore[arg-type]


def test_what_does_not_fit_is_made_in_tiles(tiny: sl.Model, grain: Tensor) -> None:
    exemplar = F.avg_pool2d(grain.repeat(1, 1, 2, 2), 3, 1)
    result = sl.texture(tiny, exemplar, method="gatys", side=400, steps=2, memory=0.12)
    assert result.tensors["image"].shape == (1, 3, 400, 400)


# ── measures ──


def test_gram_errors_by_hand(tiny: sl.Model, grain: Tensor) -> None:
    """|G − A|²/|A|² of the first layer, on images continued in their mirror image."""
    picture = grain.flip(1)
    conv = tiny.module("conv1")
    grams: list[Tensor] = []
    for image in (picture, grain):
        mirrored = F.pad(tiny.normalize(image), (1, 1, 1, 1), mode="reflect")
        features = conv(mirrored)[0, :, 1:-1, 1:-1].relu().flatten(1)
        grams.append(features @ features.T)
    literal = (grams[0] - grams[1]).square().sum() / grams[1].square().sum()
    errors = measure_gram_error(tiny, ("relu1",), picture, grain)
    assert errors["relu1"] == pytest.approx(literal.item(), rel=1e-4)
    assert measure_gram_error(tiny, ("relu1",), grain, grain)["relu1"] < 1e-10


def test_held_out_layers_are_convolutions_above_the_deepest_used(tiny: sl.Model) -> None:
    assert pick_held_out_layers(tiny, ("relu1", "relu3")) == ("conv1", "conv2", "conv3")
    assert pick_held_out_layers(tiny, ("relu1", "relu3"), 2) == ("conv1", "conv3")
    assert pick_held_out_layers(tiny, ("relu2",)) == ("conv1", "conv2")
    assert pick_held_out_layers(tiny, ("conv1", "relu2")) == ("conv2",)
    assert pick_held_out_layers(tiny, ("conv1",)) == ()


def test_each_picture_is_judged_by_its_own_exemplar(tiny: sl.Model, grain: Tensor) -> None:
    """Two pictures per exemplar: those of the first, then those of the second."""
    exemplars = torch.cat([grain, 1 - grain.flip(3)])
    pictures = torch.cat([grain, grain.flip(2), 1 - grain.flip(3), grain])
    errors = measure_held_out_errors(tiny, ("relu1", "relu3"), pictures, exemplars, 2)
    for key in ("held_out", "other_network"):
        assert len(errors[key]) == 4
        assert errors[key][0] < 1e-10
        assert errors[key][2] < 1e-10
        assert min(errors[key][1], errors[key][3]) > 1e-6
    conv_errors = measure_gram_error(tiny, ("conv1", "conv2", "conv3"), pictures[3:], exemplars[1:])
    assert errors["held_out"][3] == pytest.approx(sum(conv_errors.values()) / 3, rel=1e-5)
    assert measure_held_out_errors(tiny, (), pictures, exemplars, 2) == {}


def test_a_layer_of_tiny_responses_has_an_error_and_a_silent_one_has_none() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        network[0].weight.mul_(1e-13)
        network[0].bias.zero_()
        network[1].weight.zero_()
        network[1].bias.zero_()
    model = sl.Model(network.eval(), size=16)
    errors = measure_gram_error(
        model, ("0", "1"), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    )
    assert 0 < errors["0"] < 2
    assert errors["1"] == 0
