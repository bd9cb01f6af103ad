"""DeepDream: the sizes, the detail carried over them, the energy that rises, and the picture that
is always whole.
"""

import re
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import VisionTransformer

import sightline as sl
from sightline.images.plotting import maps as render
from sightline.optim import tiled as mosaic
from sightline.registry.progress import Step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> sl.Model:
    torch.manual_seed(0)
    return sl.load(Net(), mean=(0.5,) * 3, std=(0.25,) * 3, size=48, device="cpu")


def pictures(count: int = 1, height: int = 64, width: int = 80) -> Tensor:
    coarse = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def energy(model: sl.Model, image: Tensor, layer: str, unit: int | None = None) -> Tensor:
    with torch.no_grad():
        features = model.features(image, layer)[layer]
    return (
        features.square().flatten(1).mean(1) / 2
        if unit is None
        else features[:, unit].flatten(1).mean(1)
    )


@pytest.mark.parametrize(
    ("layer", "unit"), [("conv2", None), ("relu2", None), ("relu2", 3), ("middle", None)]
)
def test_the_energy_rises(model: sl.Model, layer: str, unit: int | None) -> None:
    image = pictures(2)
    values = sl.deepdream(
        model, image, layer=layer, unit=unit, octaves=2, steps=5, step_size=0.02
    ).values
    assert values["image"].shape == image.shape
    assert 0 <= values["image"].min() <= values["image"].max() <= 1
    assert values["scores"].shape == (10, 2)
    before, after = energy(model, image, layer, unit), energy(model, values["image"], layer, unit)
    assert (after > before + 0.3 * before.abs()).all()
    assert (values["scores"][4] > values["scores"][0]).all()
    assert (values["scores"][9] > values["scores"][5]).all()


def test_sizes_shrink_by_the_scale(model: sl.Model) -> None:
    seen: list[Step] = []
    sl.deepdream(model, pictures(), octaves=3, scale=1.4, steps=2, callback=seen.append)
    shapes = [tuple(step.image.shape) for step in seen]
    assert shapes == [(1, 3, 33, 41)] * 2 + [(1, 3, 46, 57)] * 2 + [(1, 3, 64, 80)] * 2
    assert [(step.index, step.total) for step in seen] == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("octaves", [1, 2, 3])
def test_without_steps_of_any_length_it_is_the_image_itself(model: sl.Model, octaves: int) -> None:
    found = sl.deepdream(model, pictures(2), octaves=octaves, steps=2, step_size=0.0).values[
        "image"
    ]
    assert torch.allclose(found, pictures(2), atol=1e-5)


def test_detail_is_carried_over_and_the_base_is_never_blurred(model: sl.Model) -> None:
    """Only the smallest size dreams; the rest adds its enlarged detail to the sharp image."""
    seen: list[Step] = []
    sl.deepdream(
        model, pictures(), octaves=2, steps=1, step_size=0.05, jitter=0, callback=seen.append
    )
    small, large = seen
    base = nn.functional.interpolate(
        pictures(), size=(46, 57), mode="bilinear", antialias=True, align_corners=False
    )
    assert torch.allclose(small.image, base, atol=1e-5)
    stopped = sl.deepdream(
        model,
        pictures(),
        octaves=2,
        steps=1,
        step_size=0.05,
        jitter=0,
        callback=lambda step: step.index == 1,
    )
    assert torch.allclose(stopped.values["image"], large.image, atol=1e-5), (
        "the second size begins where a stop would have ended"
    )
    detail = large.image - pictures()
    assert detail.abs().mean() > 0.01
    coarse = nn.functional.interpolate(
        detail, size=(46, 57), mode="bilinear", antialias=True, align_corners=False
    )
    again = nn.functional.interpolate(coarse, size=(64, 80), mode="bilinear", align_corners=False)
    assert (again - detail).abs().mean() < 0.5 * detail.abs().mean(), (
        "the detail is that of the small size"
    )


@pytest.mark.parametrize("octaves", [1, 2, 3])
def test_without_jitter_it_is_mordvintsevs_loop(model: sl.Model, octaves: int) -> None:
    """Per size: base plus all the detail so far, a few steps of g/mean|g|, and what differs from
    the base is the new detail.
    """
    detail = torch.zeros(2, 3, 64, 80)
    for height, width in ((33, 41), (46, 57), (64, 80))[-octaves:]:
        base = nn.functional.interpolate(
            pictures(2), size=(height, width), mode="bilinear", antialias=True, align_corners=False
        )
        grown = nn.functional.interpolate(
            detail, size=(height, width), mode="bilinear", align_corners=False
        )
        x = (base + grown).clamp(0, 1).requires_grad_()
        for _ in range(3):
            score = model.features(x, "conv2")["conv2"].square().flatten(1).mean(1).sum() / 2
            (gradient,) = torch.autograd.grad(score, x)
            step = gradient / gradient.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
            x = (x + 0.01 * step).clamp(0, 1).detach().requires_grad_()
        detail = x.detach() - base
    found = sl.deepdream(
        model, pictures(2), layer="conv2", octaves=octaves, steps=3, step_size=0.01, jitter=0
    ).values["image"]
    assert torch.allclose(found, x, atol=1e-4)


def test_jitter_is_reproducible(model: sl.Model) -> None:
    def made(seed: int, jitter: int = 8) -> Tensor:
        return sl.deepdream(
            model, pictures(), octaves=2, steps=3, step_size=0.02, jitter=jitter, seed=seed
        ).values["image"]

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))
    assert torch.equal(made(3, 0), made(4, 0)), "nothing else is random"


def test_a_batch_is_its_images(model: sl.Model) -> None:
    together = sl.deepdream(model, pictures(3), octaves=2, steps=3, step_size=0.01).values["image"]
    alone = [
        sl.deepdream(model, image[None], octaves=2, steps=3, step_size=0.01).values["image"]
        for image in pictures(3)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_a_stop_at_any_size_gives_a_whole_picture(model: sl.Model, stop: int) -> None:
    image = pictures(2)
    seen: list[int] = []

    def halt(step: Step) -> bool:
        seen.append(step.index)
        return step.index == stop

    values = sl.deepdream(model, image, octaves=3, steps=2, step_size=0.02, callback=halt).values
    assert seen == list(range(1, stop + 1))
    assert values["image"].shape == image.shape
    assert values["scores"].shape == (stop, 2)
    assert 0 <= values["image"].min() <= values["image"].max() <= 1
    assert 1e-4 < (values["image"] - image).abs().mean() < 0.2


@given(st.integers(32, 120), st.integers(32, 120), st.sampled_from([1.01, 1.1, 1.3, 1.4, 2.0, 3.7]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_too_many_octaves_are_refused_with_the_right_number(
    model: sl.Model, height: int, width: int, scale: float
) -> None:
    def tried(octaves: int) -> str:
        try:
            sl.deepdream(
                model,
                pictures(1, height, width),
                octaves=octaves,
                scale=scale,
                steps=1,
                callback=lambda _: True,
            )
        except sl.SightlineError as error:
            return str(error)
        return ""

    refusal = tried(12)
    if not refusal:
        return
    most = int(re.search(r"allows (\d+)", refusal)[1])
    assert f"octaves is 12; an image of {height}×{width} pixels" in refusal
    assert tried(most) == ""
    assert f"allows {most}" in tried(most + 1)


def test_layers_units_and_knobs_out_of_range(model: sl.Model) -> None:
    for knobs, part in (
        ({"octaves": 1, "layer": "conv9"}, "conv9"),
        ({"octaves": 1, "layer": "conv1", "unit": 8}, "units 0 to 7"),
        ({"octaves": 13}, "octaves is 13; it must lie between 1 and 12"),
        ({"scale": 1.0}, "scale is 1.0"),
        ({"steps": 0}, "steps is 0"),
    ):
        with pytest.raises(sl.SightlineError, match=part):
            sl.deepdream(model, pictures(), **knobs)


# ── several layers, a guide ──


def test_several_layers_count_alike(model: sl.Model) -> None:
    """A step along Σ energy/energy on the image: scaling a layer's activations changes nothing."""
    image = pictures(2)
    found = sl.deepdream(
        model,
        image,
        layer="conv1",
        layers=("relu2", "conv1"),
        octaves=1,
        steps=1,
        step_size=0.01,
        jitter=0,
    ).values
    x = image.clone().requires_grad_()
    energies = [
        model.features(x, name)[name].square().flatten(1).mean(1) / 2 for name in ("conv1", "relu2")
    ]
    total = sum(value / value.detach() for value in energies)
    (gradient,) = torch.autograd.grad(total.sum(), x)
    step = gradient / gradient.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        found["image"], (image + 0.01 * step).clamp(0, 1), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(found["scores"], torch.full((1, 2), 2.0))


def test_a_guide_gives_each_place_its_best_match(model: sl.Model) -> None:
    """The published guided dream: the gradient at the layer is the guide's feature with the largest
    dot product.
    """
    image, guide = pictures(), smooth(seed=9, side=40)
    x = image.clone().requires_grad_()
    seen = model.features(x, "relu2")["relu2"]
    with torch.no_grad():
        known = model.features(guide, "relu2")["relu2"].flatten(2)[0]
        best = torch.stack([known[:, (known.T @ one).argmax()] for one in seen.flatten(2)[0].T], 1)
    (gradient,) = torch.autograd.grad(seen, x, best.view_as(seen))
    step = gradient / gradient.abs().mean()
    found = sl.deepdream(
        model, image, layer="relu2", guide=guide, octaves=1, steps=1, step_size=0.01, jitter=0
    ).values["image"]
    torch.testing.assert_close(found, (image + 0.01 * step).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_a_guide_draws_the_dream_towards_itself(model: sl.Model, tmp_path: Path) -> None:
    sl.write(smooth(seed=9, side=48), tmp_path / "guide.png")
    tensor = sl.deepdream(
        model,
        pictures(),
        layer="relu2",
        guide=sl.read(tmp_path / "guide.png"),
        octaves=1,
        steps=5,
        step_size=0.02,
    ).values
    file = sl.deepdream(
        model,
        pictures(),
        layer="relu2",
        guide=tmp_path / "guide.png",
        octaves=1,
        steps=5,
        step_size=0.02,
    ).values
    assert torch.equal(tensor["image"], file["image"])
    assert (tensor["scores"][-1] > 1.2 * tensor["scores"][0]).all()


# ── tiles ──


@pytest.mark.parametrize(
    ("length", "tile"), [(64, 64), (65, 64), (300, 64), (1000, 256), (130, 128)]
)
def test_tiles_cover_everything_once(length: int, tile: int) -> None:
    begins, parts = (
        mosaic.compute_tile_starts(length, tile),
        mosaic.compute_tile_weights(length, tile),
    )
    assert begins[0] == 0
    assert begins[-1] + min(tile, length) == length
    assert all(later - earlier <= tile - tile // 4 for earlier, later in pairwise(begins))
    total = torch.zeros(length)
    for begin, part in zip(begins, parts, strict=True):
        assert part.min() >= 0
        total[begin : begin + len(part)] += part
    torch.testing.assert_close(total, torch.ones(length))


def test_a_gradient_in_tiles_is_the_gradient_where_tiles_see_enough(model: sl.Model) -> None:
    """Away from the tiles' edges by more than a receptive field, up to the mean's count of
    positions.
    """
    image = pictures(1, 128, 320)
    whole, _ = mosaic.compute_tiled_gradient(model, sl.energy("relu2"), image, 4096)
    found, _ = mosaic.compute_tiled_gradient(model, sl.energy("relu2"), image, 160)
    side = mosaic.balance_tile_side(320, 160)
    count = 320 * 128 / (side * 128)
    error = (found / count - whole).abs().mean((0, 1, 2)) / whole.abs().mean()
    begins = mosaic.compute_tile_starts(320, side)
    borders = begins[1:] + [begin + side for begin in begins[:-1]]
    far = torch.tensor(
        [all(abs(column - border) > 12 for border in borders) for column in range(320)]
    )
    assert error[far].max() < 1e-3
    assert error.max() < 0.2, "even at an edge its weight is small"


def test_tiles_leave_no_seams(model: sl.Model) -> None:
    """The dream's own gradient energy across the tiles' borders is no larger than elsewhere."""
    image = torch.full((1, 3, 160, 160), 0.5) + 0.05 * pictures(1, 160, 160)
    knobs = {"layer": "relu2", "octaves": 1, "steps": 8, "step_size": 0.02, "jitter": 0}
    change = sl.deepdream(model, image, tile=64, **knobs).values["image"] - image
    across = (change[..., 1:] - change[..., :-1]).square().mean((0, 1, 2))
    borders = sorted(
        {
            place
            for begin in mosaic.compute_tile_starts(160, 64)
            for place in (begin, begin + 64)
            if 0 < place < 160
        }
    )
    near = torch.stack([across[place - 2 : place + 2].mean() for place in borders])
    assert near.mean() < 1.3 * across[4:-4].mean()
    assert near.max() < 2 * across[4:-4].mean()


def test_the_network_never_sees_more_than_a_tile(
    model: sl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[tuple[int, ...]] = set()
    run = sl.Model.run
    monkeypatch.setattr(
        sl.Model,
        "run",
        lambda self, image, layers: (sizes.add(tuple(image.shape[-2:])), run(self, image, layers))[
            1
        ],
    )
    found = sl.deepdream(model, pictures(1, 150, 200), octaves=1, steps=1, tile=64).values["image"]
    assert found.shape == (1, 3, 150, 200)
    assert max(max(size) for size in sizes if size != (48, 48)) == 64


# ── a film, fixed sizes, broken gradients ──


def test_a_film_zooms_in(model: sl.Model, tmp_path: Path) -> None:
    """Each frame is the middle of the one before, enlarged and dreamed on."""
    knobs = {"octaves": 1, "steps": 2, "step_size": 0.0, "jitter": 0}
    seen: list[Step] = []
    result = sl.deepdream(model, pictures(2), frames=3, callback=seen.append, **knobs)
    film = result.movies["zoom"]
    assert film.shape == (3, 3, 64, 80)
    assert torch.equal(film[0], result.values["image"][0])
    middle = film[:1, :, 1:62, 2:78]
    grown = nn.functional.interpolate(
        middle, size=(64, 80), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(film[1:2], grown, rtol=1e-4, atol=1e-4)
    assert [(step.index, step.total) for step in seen] == [(number, 6) for number in range(1, 7)]
    assert "zoom.mp4" in [path.name for path in result.save(tmp_path)]
    stopped = sl.deepdream(
        model, pictures(), frames=3, callback=lambda step: step.index == 3, **knobs
    )
    assert stopped.movies["zoom"].shape[0] == 2


def test_a_network_of_a_fixed_size_dreams_at_that_size() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=64,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=8,
        num_classes=3,
    )
    model = sl.load(network, size=64)
    values = sl.deepdream(model, pictures(1, 64, 64), steps=2).values
    assert values["scores"].shape == (2, 1)
    with pytest.raises(
        sl.SightlineError, match=r"octaves is 2; VisionTransformer takes 1 of .* made for 64×64"
    ):
        sl.deepdream(model, pictures(1, 64, 64), octaves=2, steps=2)


def test_a_gradient_that_is_no_number_ends_the_dream(model: sl.Model) -> None:
    class Broken(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Broken.calls += x.requires_grad
            return super().forward(x * (torch.nan if Broken.calls > 3 else 1.0))

    torch.manual_seed(0)
    broken = sl.load(Broken(), mean=(0.5,) * 3, std=(0.25,) * 3, size=48)
    assert "relu2" in broken.layers
    Broken.calls = 0  # from now on
    result = sl.deepdream(broken, pictures(), layer="relu2", octaves=1, steps=9, jitter=0)
    whole = sl.deepdream(model, pictures(), layer="relu2", octaves=1, steps=3, jitter=0)
    assert torch.equal(result.values["image"], whole.values["image"])
    assert "not finite at step 4" in result.captions["deepdream"]


def test_an_odd_guide_is_told(model: sl.Model, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("no picture")
    for knobs, part in (
        ({"guide": tmp_path / "words.txt"}, "words.txt"),
        ({"guide": torch.full((1, 3, 8, 8), 7.0)}, "an image is"),
        ({"guide": 3}, "guide is 3; it must be an image tensor or text or a path"),
        ({"guide": pictures(), "unit": 2}, "leave out unit=2"),
    ):
        with pytest.raises(sl.SightlineError, match=part) as error:
            sl.deepdream(model, pictures(), **knobs)
        assert "\n" not in str(error.value)
    with pytest.raises(sl.SightlineError, match="too small"):
        sl.deepdream(model, pictures(1, 20, 64))


@pytest.mark.parametrize(
    ("length", "tile"), [(1024, 512), (2048, 512), (513, 512), (700, 64), (512, 512), (130, 64)]
)
def test_tiles_are_as_few_and_as_small_as_their_overlap_allows(length: int, tile: int) -> None:
    side = mosaic.balance_tile_side(length, tile)
    begins = mosaic.compute_tile_starts(length, side)
    assert side <= tile
    assert len(begins) == len(mosaic.compute_tile_starts(length, tile))
    assert all(first + side - second >= side // 4 for first, second in pairwise(begins))
    assert begins[-1] + side == length
    if side + 8 <= tile:  # smaller ones would not do
        assert len(mosaic.compute_tile_starts(length, side - 8)) > len(begins)
    weights = mosaic.compute_tile_weights(length, side)
    padded_weights = [
        torch.nn.functional.pad(share, (begin, length - begin - side))
        for begin, share in zip(begins, weights, strict=True)
    ]
    torch.testing.assert_close(sum(padded_weights), torch.ones(length))


def test_the_score_alone_is_the_gradients_score(model: sl.Model) -> None:
    image = pictures(2, 96, 150)
    torch.testing.assert_close(
        mosaic.compute_tiled_score(model, sl.energy("relu2"), image, 64),
        mosaic.compute_tiled_gradient(model, sl.energy("relu2"), image, 64)[1],
    )


def test_the_image_is_not_written_to(model: sl.Model) -> None:
    image = pictures(1, 64, 64)
    kept = image.clone()
    for octaves in (1, 2):
        sl.deepdream(model, image, layer="conv1", octaves=octaves, steps=2)
        assert torch.equal(image, kept)


@pytest.mark.parametrize("tile", [64, 512])
@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-40, 0), (0, 7), (23, 31)])
def test_the_gradient_after_a_shift_is_that_of_the_image_rolled(
    model: sl.Model, shift: tuple[int, int], tile: int
) -> None:
    image = pictures(2, 96, 150)
    found, scores = mosaic.compute_tiled_gradient(model, sl.energy("relu2"), image, tile, shift)
    rolled, same = mosaic.compute_tiled_gradient(
        model, sl.energy("relu2"), image.roll(shift, (2, 3)), tile
    )
    assert torch.equal(found.roll(shift, (2, 3)), rolled)
    assert torch.equal(scores, same)


class Pictures(TorchDispatchMode):
    """Counts the bytes of all large tensors that operations give, each from then until nobody holds
    it.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.most, self.held = least, 0, dict[int, int]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = function(*args, **(kwargs or {}))
        for storage in (
            tensor.untyped_storage() for tensor in tree_leaves(given) if isinstance(tensor, Tensor)
        ):
            if storage.nbytes() >= self.least and storage.data_ptr() not in self.held:
                self.held[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, storage.data_ptr())
        self.most = max(self.most, sum(self.held.values()))
        return given


@pytest.mark.parametrize("octaves", [1, 3])
def test_what_grows_with_the_image_is_no_more_than_the_result(
    model: sl.Model, octaves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it dreams: the given image, the dream and its gradient. In the end the given one, and
    the result's dream and panel.
    """
    image, beside = pictures(1, 256, 320), render.arrange_in_row
    dreaming: list[int] = []
    monkeypatch.setattr(
        "sightline.methods.synthesis.deepdream.arrange_in_row",
        lambda *shown: (dreaming.append(seen.most), beside(*shown))[1],
    )
    with Pictures(image.nbytes // 4) as seen:
        result = sl.deepdream(model, image, octaves=octaves, steps=2, tile=64)
    assert dreaming[0] <= 3 * image.nbytes
    assert (
        seen.most
        <= image.nbytes + result.values["image"].nbytes + result.panels["deepdream"].nbytes
    )
