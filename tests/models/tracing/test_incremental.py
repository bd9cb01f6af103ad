"""Incremental occlusion against the literal one: every covered image made, and run whole."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.methods.attribution.masking import make_fill_images
from sightline.models.tracing import incremental
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.patch_rules.intervals import (
    ChangedIntervals,
    ChangedRegions,
    count_pooled_elements,
    group_window_positions,
)
from sightline.models.tracing.windows import OcclusionScores, OcclusionWindows

Module = Callable[[Tensor], Tensor]


class Made(nn.Module):
    """A network from a function of its input, with modules by name."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that keep the signal's strength, and statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                weight = module.weight
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * (2 / weight[0].numel()) ** 0.5
                )
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(
                    torch.randn(module.num_features, generator=generator) * 0.1
                )  # type: ignore[union-attr]
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)  # type: ignore[union-attr]
    return network.eval()


def loaded(network: nn.Module, **options: Any) -> sl.Model:
    return sl.load(
        network, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), device="cpu", **{"size": 32, **options}
    )


def picture(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def grid(height: int, width: int, window: int, stride: int) -> list[tuple[int, int]]:
    return [
        (y, x)
        for y in range(0, height - window + 1, stride)
        for x in range(0, width - window + 1, stride)
    ]


def literal(model: sl.Model, windows: OcclusionWindows) -> Tensor:
    """All scores, one covered image at a time."""
    rows = []
    for top, left in windows.positions:
        covered = windows.image.clone()
        for y in range(top, top + windows.side):
            for x in range(left, left + windows.side):
                covered[:, :, y, x] = windows.fill[:, :, y, x]
        with torch.no_grad():
            rows.append(model.logits(covered)[0])
    return torch.stack(rows)


def choose_all(logits: Tensor) -> Tensor:
    """Every label."""
    return torch.arange(logits.shape[1])


def compared(
    network: nn.Module,
    height: int = 32,
    width: int = 29,
    window: int = 5,
    stride: int = 6,
    **options: Any,
) -> OcclusionScores:
    """Runs both ways and compares them: the difference is below 1e-4 of what covering changes (or
    of the rounding of the scores).
    """
    model = loaded(network)
    windows = OcclusionWindows(
        picture(height, width),
        picture(height, width, 2),
        grid(height, width, window, stride),
        window,
    )
    expected = literal(model, windows)
    found = score_occluded_windows(model, windows, choose_all, **options)
    clean_scores = model.logits(windows.image)[0].detach()
    torch.testing.assert_close(
        found.clean_scores, clean_scores, rtol=0, atol=1e-5 * float(clean_scores.abs().max())
    )
    spread = (expected.amax(0) - expected.amin(0)).max()
    assert (found.scores - expected).abs().max() <= max(
        1e-4 * spread, 3e-6 * expected.abs().max()
    ), found
    assert (
        found.speedup_bound > 0.5
    )  # the clean pass counts too, and may be all there is to pay for
    assert 0 <= found.localized_share <= 1
    return found


# ── small networks of every kind ──


def conv(draw: Any, channels: int, out: int) -> nn.Module:
    groups = (
        draw(st.sampled_from([1, 1, 2, channels]))
        if out % channels == 0 and channels % 2 == 0
        else 1
    )
    kernel = draw(st.sampled_from([1, 2, 3, 5, (3, 1), (1, 4)]))
    return nn.Conv2d(
        channels,
        out,
        kernel,
        stride=draw(st.sampled_from([1, 1, 2, (1, 2), 3])),
        padding=draw(st.sampled_from([0, 1, 2, (0, 3)])),
        dilation=draw(st.sampled_from([1, 1, 2])), groups=groups, bias=draw(st.booleans()),
    )  # fmt: skip


def pool(draw: Any) -> nn.Module:
    kernel = draw(st.sampled_from([2, 3, (3, 2)]))
    common: dict[str, Any] = {
        "stride": draw(st.sampled_from([None, 1, 2, 3])),
        "padding": draw(st.sampled_from([0, 1])),
        "ceil_mode": draw(st.booleans()),
    }
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, dilation=draw(st.sampled_from([1, 1, 2])), **common)
    return nn.AvgPool2d(
        kernel,
        count_include_pad=draw(st.booleans()),
        divisor_override=draw(st.sampled_from([None, None, 3])),
        **common,
    )


def activation(draw: Any) -> Module:
    return draw(
        st.sampled_from(
            [
                torch.relu,
                F.relu,
                lambda x: F.relu(x, inplace=True),
                lambda x: x.relu_(),
                F.silu,
                F.hardswish,
                lambda x: x * 0.5 + 1,
                F.gelu,
                lambda x: F.leaky_relu_(x, 0.1),
                lambda x: F.dropout(x, training=False),
                torch.sigmoid,
                lambda x: x.mul_(0.7),
                lambda x: 1 - x,
            ]
        )
    )


class Branches(nn.Module):
    """Two branches that see the same and are joined."""

    def __init__(self, one: nn.Module, other: nn.Module, how: str) -> None:
        super().__init__()
        self.one, self.other, self.how = one, other, how

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x), self.other(x)
        if self.how == "add_":
            one = one.clone()
            one += other
            return one
        return {
            "cat": lambda: torch.cat([one, x, other], 1),
            "add": lambda: one + other,
            "mul": lambda: one * torch.tanh(other),
        }[self.how]()


class Acted(nn.Module):
    """A module and a function after it."""

    def __init__(self, module: nn.Module, function: Module) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.module(x))


@st.composite
def networks(draw: Any) -> nn.Module:
    """A few stages and a head."""
    parts, channels = list[nn.Module](), 3
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "branches", "pool", "norm", "pad"]))
        if kind == "conv":
            out = draw(st.sampled_from([4, 6])) if channels % 2 else channels
            parts.append(Acted(conv(draw, channels, out), activation(draw)))
            channels = out
        elif kind == "branches":
            size, how = (
                draw(st.sampled_from([1, 3])),
                draw(st.sampled_from(["cat", "add", "mul", "add_"])),
            )
            one = Acted(nn.Conv2d(channels, channels, size, padding=size // 2), activation(draw))
            parts.append(Branches(one, nn.Conv2d(channels, channels, 5, padding=2), how))
            channels *= 3 if how == "cat" else 1
        elif kind == "norm":
            parts.append(nn.BatchNorm2d(channels))
        else:
            parts.append(
                pool(draw)
                if kind == "pool"
                else nn.ZeroPad2d(draw(st.sampled_from([(1, 2, 0, 3), (0, 1, 0, 0)])))
            )
    head = draw(st.sampled_from(["mean", "adaptive", "flat", "regular", "max"]))
    parts.append(Made(lambda _, x: {
        "mean": lambda: x.mean((2, 3)),
        "adaptive": lambda: F.adaptive_avg_pool2d(x, 1).flatten(1),
        "flat": lambda: x.flatten(1),
        "regular": lambda: F.adaptive_avg_pool2d(x, (min(2, x.shape[2]), 1)).flatten(1),
        "max": lambda: x.amax((2, 3)),
    }[head]()))  # fmt: skip
    return lively(nn.Sequential(*parts))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    networks(),
    st.tuples(st.integers(14, 33), st.integers(14, 33)),
    st.integers(1, 9),
    st.integers(3, 9),
    st.sampled_from([1, 3, 64]),
)
def test_any_network_any_window(
    network: nn.Module, size: tuple[int, int], window: int, stride: int, batch: int
) -> None:
    height, width = size
    try:
        loaded(network).logits(picture(height, width))
    except sl.SightlineError:
        return  # a map that shrinks to nothing, or a pooling that pads more than half its window
    compared(network, height, width, window, stride, batch=batch)


def simple(**extra: nn.Module) -> dict[str, nn.Module]:
    return {
        "a": nn.Conv2d(3, 4, 3, padding=1),
        "b": nn.Conv2d(4, 4, 3, padding=1),
        "fc": nn.Linear(4, 5),
        **extra,
    }


def test_what_is_local_is_found_to_be() -> None:
    network = Made(lambda n, x: n.fc(F.relu(n.b(F.relu(n.a(x)))).mean((2, 3))), **simple())
    found = compared(lively(network))
    assert found.localized_share > 0.99
    assert found.speedup_bound > 8


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.flip(3),
        lambda x: x.cumsum(2),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
        lambda x: x + torch.linspace(0, 1, x.shape[3]),
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        lambda x: x[:, :, 1:],
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: x.reshape(x.shape[0], -1).reshape(x.shape),
    ],
)
def test_what_can_not_be_localized_is_run_whole(between: Module) -> None:
    network = Made(lambda n, x: n.fc(F.relu(n.b(between(F.relu(n.a(x))))).mean((2, 3))), **simple())
    assert compared(lively(network), height=30, width=28).localized_share < 0.9


@pytest.mark.parametrize(
    "between",
    [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
        lambda x: torch.stack(x.unbind(1), 1),
        lambda x: torch.cat([x[:, 2].unsqueeze(1), x[:, :2], x[:, -1:]], 1),
        lambda x: x.detach().clone().contiguous(),
        lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda x: torch.minimum(x, torch.full((1, 4, 1, 1), 0.4)),
    ],
)
def test_channels_are_moved_about(between: Module) -> None:
    network = Made(lambda n, x: n.fc(F.relu(n.b(between(F.relu(n.a(x))))).mean((2, 3))), **simple())
    compared(lively(network), height=30, width=28)


def write_through_a_view(n: Any, x: Tensor) -> Tensor:
    x = F.relu(n.a(x))
    x[:, :2].mul_(3)
    return n.fc(F.relu(n.b(x)).mean((2, 3)))


def write_behind_a_view(n: Any, x: Tensor) -> Tensor:
    x = F.relu(n.a(x))
    part = x[:, :2]
    x.mul_(3)
    return n.fc(F.relu(n.b(torch.cat([part, part], 1) + x)).mean((2, 3)))


def write_into_a_buffer(n: Any, x: Tensor) -> Tensor:
    buffer = torch.zeros(len(x), 4, *x.shape[2:])
    buffer[:] = n.a(x)
    return n.fc(F.relu(n.b(buffer)).mean((2, 3)))


def use_constants_of_the_moment(n: Any, x: Tensor) -> Tensor:
    x, y = n.a(x), n.a(x)
    parts = [x * torch.full((1, 4, 1, 1), float(i)) for i in range(3)]
    scale = torch.ones(4, 1, 1)
    parts += [y * scale, y * scale.mul_(3)]
    return n.fc(
        F.relu(n.b(F.relu(parts[0] + parts[1] - parts[2] + parts[3] * parts[4]))).mean((2, 3))
    )


def use_a_module_twice(n: Any, x: Tensor) -> Tensor:
    return n.fc(n.b(F.relu(n.b(F.relu(n.a(x))))).mean((2, 3)))


def leave_torch(n: Any, x: Tensor) -> Tensor:
    return n.fc(torch.from_numpy(np.tanh(n.a(x).numpy())).mean((2, 3)))


@pytest.mark.parametrize(
    "function",
    [
        write_through_a_view,
        write_behind_a_view,
        write_into_a_buffer,
        use_constants_of_the_moment,
        use_a_module_twice,
        leave_torch,
    ],
)
def test_odd_code_is_still_exact(function: Callable[[Any, Tensor], Tensor]) -> None:
    compared(lively(Made(function, **simple())))


def test_weights_that_the_image_makes() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        x = F.relu(n.a(x))
        own = n.b.weight * (1 + x.mean((2, 3)).sum(1).view(-1, 1, 1, 1, 1))
        moved = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]), own.flatten(0, 1), groups=len(x), padding=1
        ).view(len(x), 4, *x.shape[2:])
        return n.fc(moved.mean((2, 3)))

    compared(lively(Made(forward, **simple())))


def test_a_network_at_fault_says_so() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        raise RuntimeError("nothing works")

    with pytest.raises(sl.SightlineError, match="nothing works"):
        score_occluded_windows(
            loaded(Made(forward, **simple())),
            OcclusionWindows(picture(32, 32), picture(32, 32), grid(32, 32, 8, 8), 8),
            choose_all,
        )


# ── real architectures ──

LEAST = {
    "vgg16": 2,
    "resnet18": 1.3,
    "squeezenet1_0": 1.5,
    "googlenet": 1.4,
    "densenet121": 1.3,
    "mobilenet_v2": 1.3,
}


@cache
def architecture(name: str) -> nn.Module:
    options: dict[str, Any] = (
        {"aux_logits": False, "init_weights": False, "transform_input": True}
        if name == "googlenet"
        else {}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(torchvision.models.get_model(name, weights=None, num_classes=7, **options))


@pytest.mark.parametrize("name", LEAST)
def test_architectures(name: str) -> None:
    found = compared(architecture(name), 96, 96, 6, 22)
    assert found.localized_share > 0.4
    assert found.speedup_bound > LEAST[name]


def test_the_embedded_network() -> None:
    model = sl.load(device="cpu")
    windows = OcclusionWindows(picture(96, 80), picture(96, 80, 2), grid(96, 80, 16, 16), 16)
    expected, found = (
        literal(model, windows),
        score_occluded_windows(model, windows, choose_all),
    )
    assert (found.scores - expected).abs().max() <= 1e-4 * (
        expected.amax(0) - expected.amin(0)
    ).max()
    assert found.localized_share > 0.3


def test_a_transformer_is_run_whole() -> None:
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    found = compared(network.eval(), 32, 32, 8, 8)
    assert found.localized_share < 0.5


# ── geometry ──


@given(
    st.integers(5, 40),
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)),
    st.data(),
)
def test_a_slide_reaches_what_it_must(
    length: int, window: tuple[int, int, int, int], data: Any
) -> None:
    size, stride, padding, dilation = window
    count = (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    if count < 1:
        return
    start = data.draw(st.integers(0, length - 1))
    reach = ChangedIntervals(
        np.array([start]), np.array([data.draw(st.integers(1, length - start))]), length
    )
    found = reach.slide_window(count, size, stride, padding, dilation)
    changed = set(range(start, start + int(reach.size[0])))
    seen = [
        o
        for o in range(count)
        if changed & {o * stride - padding + dilation * k for k in range(size)}
    ]
    assert 0 <= found.start[0] <= found.start[0] + found.size[0] <= count
    first, last = found.start[0], found.start[0] + found.size[0] - 1
    assert not seen or first <= seen[0] <= seen[-1] <= last
    assert not seen or dilation > 1 or (first, last) == (seen[0], seen[-1])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30, unique=True),
    st.integers(1, 8),
)
def test_classes_hold_each_window_once(places: list[tuple[int, int]], batch: int) -> None:
    tops, lefts = (np.unique(np.array(side)) for side in zip(*places, strict=True))
    cone = ChangedRegions(
        ChangedIntervals(tops, tops % 3 + 1, 20), ChangedIntervals(lefts, lefts % 2 + 1, 20)
    )
    found = group_window_positions(places, [(1.0, cone)], 1.0, batch).batches
    assert sorted(i for part in found for i in part) == list(range(len(places)))
    assert max(map(len, found)) <= batch


@given(st.integers(3, 20), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans())
def test_divisors_are_those_of_average_pooling(
    length: int, size: int, stride: int, ceil: bool, padded: bool
) -> None:
    if size > length:
        return
    ones = torch.ones(1, 1, length, 1)
    options: dict[str, Any] = {"stride": (stride, 1), "padding": (size // 2, 0), "ceil_mode": ceil}
    total = F.avg_pool2d(ones, (size, 1), divisor_override=1, **options)
    mean = F.avg_pool2d(ones, (size, 1), count_include_pad=padded, **options)
    found = count_pooled_elements(
        (size, stride, size // 2, 1), length, total.shape[2], count_padding=padded
    )
    assert torch.allclose(total.flatten() / torch.from_numpy(found), mean.flatten())


# ── the method ──


def test_the_method_says_how_much_was_saved(tiny: sl.Model, photo: Tensor) -> None:
    images = torch.cat([photo, photo.flip(3)])
    one = sl.occlusion(tiny, images, window=4, stride=4).values
    other = sl.occlusion(tiny, images, window=4, stride=4, incremental=False).values
    assert torch.allclose(one["drop"], other["drop"], atol=1e-5)
    assert other["incremental"] == 0
    assert other["speedup_bound"] == 1
    assert one["incremental"] > 0.5
    assert one["speedup_bound"] > 1.5


@pytest.mark.parametrize("incremental", [True, False])
def test_every_fill_covers(tiny: sl.Model, photo: Tensor, incremental: bool) -> None:
    def drop(fill: Any) -> Tensor:
        return sl.occlusion(
            tiny, photo, window=8, stride=8, fill=fill, incremental=incremental
        ).tensors["drop"]

    # How many run at once is timed meanwhile, and moves scores by rounding.
    torch.testing.assert_close(drop("gray"), drop(0.5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drop("zero"), drop(0), rtol=1e-5, atol=1e-5)
    mean, blur = (
        photo.mean((2, 3), keepdim=True).expand_as(photo),
        make_fill_images(photo, "blur", 8),
    )
    assert blur.std() < photo.std()
    clean = tiny.logits(photo)
    for fill, covered in (("mean", mean), ("blur", blur)):
        expected = (clean - literal(tiny, OcclusionWindows(photo, covered, grid(32, 32, 8, 8), 8)))[
            :, clean.argmax()
        ]
        assert torch.allclose(drop(fill).flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("fill", ["grey", True, None, "0.5"])
def test_other_fills_are_refused(tiny: sl.Model, photo: Tensor, fill: Any) -> None:
    with pytest.raises(sl.SightlineError, match="fill is"):
        sl.occlusion(tiny, photo, fill=fill)


def test_a_fallback_names_its_operation(caplog: pytest.LogCaptureFixture) -> None:
    """Group norm mixes all positions: the network goes on with whole maps from there."""
    layers = [nn.GroupNorm(1, 3), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = sl.load(network.eval(), size=48)
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with caplog.at_level("DEBUG", logger="sightline"):
        values = sl.occlusion(model, image, window=16, stride=8).values
    assert values["incremental"] == 0
    assert "group_norm" in values["fallback"]
    assert any("group_norm" in record.message for record in caplog.records)
    whole = sl.occlusion(model, image, window=16, stride=8, incremental=False).values
    assert whole["fallback"] == "incremental=False"
    torch.testing.assert_close(values["drop"], whole["drop"])


PREPROCESSING: dict[str, Callable[[Tensor], Tensor]] = {
    "its own contrast": lambda x: (
        (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    ),
    "its largest value": lambda x: x / x.amax((2, 3), keepdim=True),
    "a blur": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "a flip": lambda x: x.flip(3),
}


def load_with(preprocess: Callable[[Tensor], Tensor]) -> sl.Model:
    layers = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 8, 5, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return sl.load(lively(nn.Sequential(*layers, *head)), preprocess=preprocess, size=(40, 56))


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_of_the_whole_image_is_run_whole(name: str) -> None:
    model = load_with(PREPROCESSING[name])
    image = 0.8 * picture(40, 56)
    windows = OcclusionWindows(image, torch.full_like(image, 0.9), grid(40, 56, 8, 8), 8)
    for _ in range(2):
        scores = score_occluded_windows(model, windows, lambda _: torch.tensor([1, 3]))
        assert scores.fallback == "preprocess changes more than the covered window"
        torch.testing.assert_close(scores.scores, literal(model, windows)[:, [1, 3]])


def test_preprocessing_of_each_pixel_is_followed() -> None:
    ramp = torch.linspace(0.5, 2, 56)
    model = load_with(lambda x: x.sqrt() * ramp)
    image = picture(40, 56)
    windows = OcclusionWindows(image, torch.full_like(image, 0.9), grid(40, 56, 8, 8), 8)
    scores = score_occluded_windows(model, windows, lambda _: torch.tensor([1, 3]))
    assert not scores.fallback
    torch.testing.assert_close(scores.scores, literal(model, windows)[:, [1, 3]])


# ── the survey ends early where the rest is whole ──


class TokensOfPatches(nn.Module):
    """Patches, and layers of attention among them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 8, stride=8)
        self.widen = nn.Linear(4, 24)
        layer = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True)
        self.layers = nn.ModuleList([layer] + [nn.Linear(24, 24) for _ in range(layers)])
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.widen(self.patches(x).flatten(2).transpose(1, 2))
        for layer in self.layers:
            tokens = tokens + layer(tokens).tanh()
        return self.head(tokens.mean(1))


def test_the_survey_of_a_transformer_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.models.tracing import occlusion_pass

    model = sl.load(lively(TokensOfPatches(20)), size=64)
    image = torch.rand(1, 3, 64, 64)
    operations: list[str] = []
    run_operation = occlusion_pass.OcclusionPass.run_operation

    def note(self: Any, func: Any, *args: Any) -> Any:
        operations.append(str(func))
        return run_operation(self, func, *args)

    monkeypatch.setattr(occlusion_pass.OcclusionPass, "run_operation", note)
    result = sl.occlusion(model, image, label=1)
    assert result.values["fallback"].startswith("it would save too little: whole maps from aten.")
    early = len(operations)
    monkeypatch.setattr(occlusion_pass, "HOPELESS_SHARE", 2)
    other = sl.load(lively(TokensOfPatches(20)), size=64)
    assert "times fewer" in sl.occlusion(other, image, label=1).values["fallback"]
    assert early < (len(operations) - early) / 2


def test_few_windows_are_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incremental, "MIN_GAIN", 1.0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    model = sl.load(lively(network), size=(56, 64))
    image = torch.rand(1, 3, 56, 64, generator=torch.Generator().manual_seed(0))
    survey = incremental.IncrementalOcclusion.run_survey
    surveys: list[int] = []

    def note_survey(self: Any, positions: Any) -> Any:
        surveys.append(len(positions))
        return survey(self, positions)

    monkeypatch.setattr(incremental.IncrementalOcclusion, "run_survey", note_survey)
    for window, stride, count, is_followed in ((8, 8, 56, True), (40, 16, 6, False)):
        surveys.clear()
        result = sl.occlusion(model, image, label=1, window=window, stride=stride)
        expected = sl.occlusion(
            model, image, label=1, window=window, stride=stride, incremental=False
        )
        # The difference of two scores, each of which is right to rounding.
        drops = result.tensors["drop"], expected.tensors["drop"]
        torch.testing.assert_close(*drops, rtol=0, atol=1e-5)
        assert surveys == [count]
        reason = "" if is_followed else f"it would save too little: {count} windows take as long"
        assert result.values["fallback"].startswith(reason)
        assert (result.values["incremental"] > 0) == is_followed
        # What would not pay is not surveyed again.
        sl.occlusion(model, image, label=1, window=window, stride=stride)
        assert surveys == [count] * (2 if is_followed else 1)

    # Each operation on patches takes time as well, which the multiply-adds of more layers do not.
    many = [nn.Identity(), *(nn.Conv2d(64, 64, 1, groups=64) for _ in range(200))]
    slow = sl.load(lively(nn.Sequential(*layers, *many, *network[3:])), size=(56, 64))
    result = sl.occlusion(slow, image, label=1, window=16, stride=14)
    assert result.values["fallback"].startswith("it would save too little: 20 windows take as long")
    quick = sl.occlusion(model, image, label=1, window=16, stride=14)
    assert quick.values["fallback"] == ""


def test_what_does_not_pay_in_small_batches_is_tried_in_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incremental, "MIN_GAIN", 1.0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    model = sl.load(lively(network), size=(56, 64))
    image = torch.rand(1, 3, 56, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(incremental, "OPERATION_OVERHEAD", 2.5e8)
    options = {"label": 1, "window": 16, "stride": 8}
    fallbacks = [
        sl.occlusion(model, image, **options, **setting).values["fallback"]
        for setting in ({"batch": 1}, {}, {"batch": 1})
    ]
    assert fallbacks[0].startswith("it would save too little: 42 windows")
    assert fallbacks == [fallbacks[0], "", fallbacks[0]]


def test_a_network_without_multiply_adds_says_so() -> None:
    model = sl.load(nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    values = sl.occlusion(model, torch.rand(1, 3, 16, 16), window=4, stride=4).values
    assert values["fallback"] == "the network has no multiply-adds to save"


class GatedLate(nn.Module):
    """A convolution that windows change in part, and one as costly that they change everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.local = nn.Conv2d(64, 64, 3, padding=1)
        self.everywhere = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.local(self.stem(x)).relu()
        gated = features * features.mean((2, 3), keepdim=True).sigmoid()
        return self.head(self.everywhere(gated).mean((2, 3)))


def test_what_is_run_whole_counts_for_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incremental, "MIN_GAIN", 1.0)
    model = sl.load(lively(GatedLate()), size=(56, 64))
    image = torch.rand(1, 3, 56, 64, generator=torch.Generator().manual_seed(0))
    # 49 % of a map in one convolution and all of it in the other, for six windows, and three images
    # beside them: more than seven images.
    values = sl.occlusion(model, image, label=1, window=40, stride=16).values
    assert values["fallback"].startswith("it would save too little: 6 windows take as long")
    values = sl.occlusion(model, image, label=1, window=8, stride=16).values
    assert values["fallback"] == ""


def test_a_whole_branch_beside_a_localized_one_does_not_end_the_survey() -> None:
    class Gated(nn.Module):
        """A small part of the work is a gate of the whole image, as squeeze-and-excitation."""

        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.ModuleList(
                [nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(4)]
            )
            self.gate = nn.Linear(3, 16)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate(x.flip(2).mean((2, 3))).sigmoid()
            for convolution in self.convolutions:
                x = convolution(x).relu()
            return self.head((x * gate[:, :, None, None]).mean((2, 3)))

    model = sl.load(lively(Gated()), size=64)
    image = torch.rand(1, 3, 64, 64)
    result = sl.occlusion(model, image, label=1, window=8, stride=8)
    assert result.values["incremental"] > 0.9
    whole = sl.occlusion(model, image, label=1, window=8, stride=8, incremental=False)
    torch.testing.assert_close(result.values["drop"], whole.values["drop"], rtol=1e-3, atol=1e-5)


# ── what goes on behind the stand-in's back ──


def scale_through_view(n: Any, x: Tensor) -> Tensor:
    maps = F.group_norm(n.conv(x), 2)
    flat = maps.view(len(maps), -1)
    flat -= flat.min(1, keepdim=True)[0]
    flat /= flat.max(1, keepdim=True)[0]
    return n.fc(maps.mean((2, 3)))


def read_by_strides(n: Any, x: Tensor) -> Tensor:
    maps = n.conv(x).relu().contiguous()
    batch, channels, height, width = maps.shape
    strides = (channels * height * width, height * width, width, 1)
    return n.fc(maps.as_strided((batch, channels, height - 3, width), strides).mean((2, 3)))


def exchange_data(n: Any, x: Tensor) -> Tensor:
    maps = n.conv(x).relu()
    maps.data = maps * 2 + 1
    return n.fc(maps.square().mean((2, 3)))


def multiply_by_zeros(n: Any, x: Tensor) -> Tensor:
    maps = n.conv(x).relu()
    positive = (maps * 0.0 + 1e-30).sign() * torch.copysign(torch.ones(()), torch.tensor(0.0))
    return n.fc(
        (torch.where(torch.signbit(maps * -0.0 - 0.0), -maps, maps) * positive).mean((2, 3))
    )


def require_plain_tensor(n: Any, x: Tensor) -> Tensor:
    if type(x) is not Tensor:
        raise ValueError("only plain tensors")
    return n.fc(n.conv(x).relu().mean((2, 3)))


def hand_over_memory(n: Any, x: Tensor) -> Tensor:
    maps = n.conv(x).relu().detach()
    return n.fc(torch.from_dlpack(maps).square().mean((2, 3)))


def hand_over_capsule(n: Any, x: Tensor) -> Tensor:
    maps = n.conv(x).relu().detach()
    shared = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(maps))  # type: ignore[attr-defined]
    return n.fc(shared.square().mean((2, 3)))


@pytest.mark.parametrize(
    "forward",
    [
        *(scale_through_view, read_by_strides, exchange_data, multiply_by_zeros),
        *(require_plain_tensor, hand_over_memory, hand_over_capsule),
    ],
    ids=lambda forward: forward.__name__,
)
def test_what_a_stand_in_can_not_follow_is_run_whole(forward: Any) -> None:
    compared(Made(forward, conv=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 5)))


@pytest.mark.parametrize("pool", ["mean", "avg_pool2d"])
def test_sums_beyond_half_precision(pool: str) -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        maps = 3000 * n.conv(x).relu()
        pooled = maps.mean((2, 3)) if pool == "mean" else F.avg_pool2d(maps, 8).mean((2, 3))
        return n.fc(pooled / 3000)

    network = lively(Made(forward, conv=nn.Conv2d(3, 6, 3, padding=1), fc=nn.Linear(6, 5)))
    image, fill = picture(64, 64), picture(64, 64, 2)
    windows = OcclusionWindows(image, fill, grid(64, 64, 16, 16), 16)
    model = sl.load(network.half(), size=64)
    found = score_occluded_windows(model, windows, choose_all)
    assert found.localized_share > 0.3
    expected = literal(model, windows).float()
    assert (found.scores.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_infinite_numbers_leave_the_next_image_as_it_was() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        maps = n.conv(x.clamp(min=0))
        scores = n.fc(maps.mean((2, 3))) + 0.0
        bright = (1 / (2 - x).relu()).mean((2, 3))
        return torch.cat([scores, bright[:, :1]], 1)

    model = loaded(Made(forward, conv=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 5)))
    calm = 0.2 + 0.5 * picture(32, 32)
    glaring = calm.clone()
    glaring[:, :, 12, 12] = 1.0
    fill = torch.full_like(calm, 0.5)
    for image in (glaring, calm):
        windows = OcclusionWindows(image, fill, grid(32, 32, 8, 8), 8)
        found = score_occluded_windows(model, windows, choose_all)
        torch.testing.assert_close(found.scores, literal(model, windows), rtol=1e-4, atol=1e-4)
        assert bool(found.fallback) == (image is glaring)
