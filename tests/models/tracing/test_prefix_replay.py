"""A replay gives the logits of a whole pass with the same output of the layer."""

import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.model import Model
from sightline.models.tracing.prefix_replay import PrefixReplay, ReplayUnsupported

IMAGES = smooth(3, side=40, seed=5)[..., :32, :]


class Counted(nn.Module):
    """A convolution that counts how often it runs."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, 1)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.conv(x)


class Residual(nn.Module):
    """Blocks in a Sequential and out of it, joined by sums in place and by a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = Counted(3, 6, 2)
        self.early = nn.Sequential(Counted(6, 6), nn.ReLU(), Counted(6, 6))
        self.late = Counted(6, 6)
        self.last = Counted(12, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = F.relu(self.stem(x), inplace=True)
        x = self.early(stem)
        x += stem
        middle = F.relu(x)
        x = self.late(middle)
        x = torch.cat([x.relu_(), middle], 1)
        return self.fc(self.last(x).mean((2, 3)))


def load(network: nn.Module) -> Model:
    return Model(network.eval(), labels=LABELS, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)


LAYERS = ["stem", "early.0", "early.1", "early", "/add", "/relu:1", "late", "/cat", "last", "fc:in"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_replay_is_a_whole_pass(layer: str) -> None:
    model = load(Residual())
    twin = model.ablated({layer: [2]})
    expected = twin.logits(IMAGES)
    clean = model.features(IMAGES, layer)[layer]
    clean_logits = model.logits(IMAGES)
    with PrefixReplay(model, layer) as replay:
        feature, logits = replay.record(IMAGES)
        torch.testing.assert_close(logits, clean_logits)
        torch.testing.assert_close(feature, clean)
        for _ in range(3):  # whatever a replay writes to does not reach the next one
            changed = feature.clone()
            changed[:, 2] = 0
            torch.testing.assert_close(replay.run(changed), expected)
            torch.testing.assert_close(replay.run(feature.clone()), logits)
    assert torch.allclose(model.logits(IMAGES), logits)
    assert not any("forward" in vars(module) for module in model.network.modules())


def test_what_comes_before_does_not_run_again() -> None:
    model = load(Residual())
    network = model.network
    with PrefixReplay(model, "late") as replay:
        feature, _ = replay.record(IMAGES)
        runs = [network.get_submodule(name).runs for name in ("stem", "early.0", "late", "last")]
        replay.run(feature.clone())
        after = [network.get_submodule(name).runs for name in ("stem", "early.0", "late", "last")]
        assert [new - old for new, old in zip(after, runs, strict=True)] == [0, 0, 0, 1]
        kept = replay.kept_bytes
    with PrefixReplay(model, "fc:in") as replay:
        replay.record(IMAGES)
        assert replay.kept_bytes > kept


def test_of_a_chain_only_the_last_is_kept() -> None:
    model = load(small_network())
    expected = model.ablated({"relu3": [3]}).logits(IMAGES)
    with PrefixReplay(model, "relu3") as replay:
        feature, _ = replay.record(IMAGES)
        assert replay.kept_bytes < 1.2 * feature.numel() * 4
        changed = feature.clone()
        changed[:, 3] = 0
        torch.testing.assert_close(replay.run(changed), expected)


def test_units_that_are_off_stay_off() -> None:
    model = load(Residual()).ablated({"stem": [1], "/add": [0], "late": [4]})
    with PrefixReplay(model, "late") as replay:
        feature, logits = replay.record(IMAGES)
        assert not feature[:, 4].any()
        torch.testing.assert_close(logits, model.logits(IMAGES))


class Random(nn.Module):
    """Another output every time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + torch.rand(1)


def test_a_network_of_its_own_mind_is_refused() -> None:
    model = load(Random())
    refusal = pytest.raises(ReplayUnsupported, match="other scores")
    with PrefixReplay(model, "conv") as replay, refusal:
        replay.record(IMAGES)


class Saving(nn.Module):
    """An early layer whose output is also left in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.saved = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.saved = self.conv(x)
        return self.saved


class Consuming(nn.Module):
    """A network that takes what an early layer left, so that it is there once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.early = Saving()
        self.body = nn.Conv2d(6, 6, 3, 1, 1)
        self.late = nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.early(x).relu())
        x = self.late((x + self.early.saved).relu())
        self.early.saved = torch.zeros(())
        return x.mean((2, 3))


@pytest.mark.parametrize("unit", [0, 4])
def test_where_modules_can_not_be_replayed_all_of_it_runs(unit: int) -> None:
    model = load(Consuming())
    expected = model.ablated({"body": [unit]}).logits(IMAGES)
    with PrefixReplay(model, "body") as replay:
        with pytest.raises(ReplayUnsupported, match="other scores"):
            replay.record(IMAGES)
        feature, logits = replay.record_or_run_whole(IMAGES)
        torch.testing.assert_close(logits, model.logits(IMAGES))
        for _ in range(2):
            changed = feature.clone()
            changed[:, unit] = 0
            torch.testing.assert_close(replay.run(changed), expected)
