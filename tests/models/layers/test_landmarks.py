"""Landmarks of small networks, each with one property that names don't tell."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.model import Model


class Seeded(nn.Module):
    """A network with the same weights each time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)


class Convolutional(Seeded):
    """Four convolutions and a pooling at the end of a container, which is no last map."""

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        channels = 3
        for _ in range(4):
            steps += [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU()]
            channels = 6
        self.features = nn.Sequential(*steps, nn.MaxPool2d(2))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Functional(Seeded):
    """The last ReLU is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


class UnusedBranch(Seeded):
    """A convolution that runs last and does not enter the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)
        self.side = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.conv(x)
        return {"out": self.fc(maps.mean((2, 3))), "side": self.side(maps)}


class SplitImage(Seeded):
    """Cuts maps into four strips of the batch, and ends in tables that no image enters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.join = nn.Conv2d(8, 8, 1)
        self.mix = nn.Linear(8, 8)
        self.table = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.join(self.conv(x))
        strips = maps.flatten(2).unflatten(2, (-1, 4)).permute(0, 3, 2, 1).flatten(0, 1)
        mixed = self.mix(strips)
        positions = self.table(torch.eye(4))
        pooled = mixed.mean(1).unflatten(0, (len(x), 4)) + positions
        return self.fc(pooled.mean(1))


class TokensFirst(Seeded):
    """Tokens before the batch, T×N×C, with the class read from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 10, 8, 8)
        self.norm = nn.LayerNorm(10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


class ClassToken(Seeded):
    """One block of attention; the answer is read from the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 10, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 10))
        self.before = nn.LayerNorm(10)
        self.keys = nn.Linear(10, 10)
        self.after = nn.LayerNorm(10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        normed = self.before(tokens)
        weights = (normed @ self.keys(normed).transpose(1, 2)).softmax(-1)
        return self.fc(self.after(weights @ normed)[:, 0])


class FullyConvolutional(Seeded):
    """No linear layer, and a pooled answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.scores = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.scores(F.relu(self.conv(x))), 1).flatten(1)


class KeywordHead(Functional):
    """The head is given its input by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=F.relu(self.conv(x)).mean((2, 3)))


class TwoViews(Seeded):
    """The same network sees the image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Convolutional()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.net(x.flip(3))


class Branching(Seeded):
    """Which convolution runs depends on the image's contrast."""

    def __init__(self) -> None:
        super().__init__()
        self.strong = nn.Conv2d(3, 6, 3)
        self.weak = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.strong if x.std() > 0.5 else self.weak
        return self.fc(conv(x).mean((2, 3)))


class Dim(Seeded):
    """Which convolution runs depends on the image's brightness, and one is asked for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.Conv2d(3, 6, 3)
        self.dim = nn.Conv2d(3, 6, 3)
        self.aside = nn.Conv2d(6, 4, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = (self.bright if x.mean() > 0 else self.dim)(x)
        self.aside(features)
        return self.fc(features.mean((2, 3)))


class UntrainedHead(ClassToken):
    """A head of zeros passes no gradient."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.fc.weight)


@pytest.mark.parametrize(
    ("make", "first", "last_conv", "penultimate"),
    [
        (Convolutional, "features.0", "features.7", "fc:in"),
        (Functional, "conv", "/relu", "fc:in"),
        (UnusedBranch, "conv", "conv", "fc:in"),
        (SplitImage, "conv", "join", "fc:in"),
        (TokensFirst, "patches", "norm", "fc:in"),
        (ClassToken, "patches", "before", "fc:in"),
        (UntrainedHead, "patches", "before", "fc:in"),
        (FullyConvolutional, "conv", "scores", "scores:in"),
        (KeywordHead, "conv", "/relu", "fc:in"),
        (TwoViews, "net.features.0", "net.features.7:1", "net.fc:1:in"),
        (Branching, "strong", "strong", "fc:in"),
        (Dim, "dim", "dim", "fc:in"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_landmarks(
    make: Callable[[], nn.Module], first: str, last_conv: str, penultimate: str
) -> None:
    output = "out" if make is UnusedBranch else None
    model = Model(make().eval(), size=32, output=output)
    landmarks = model.landmarks
    assert landmarks["first"] == first
    assert landmarks["last_conv"] == last_conv
    assert landmarks["penultimate"] == penultimate
    assert landmarks["logits"] == "logits"
    inner = [name for landmark, name in landmarks.items() if landmark != "logits"]
    with torch.no_grad():
        assert set(model.run(model.make_probe_images()[-1:], inner)) == set(inner)


@pytest.mark.parametrize(("convolutions", "middle"), [(3, "3"), (4, "5"), (5, "5"), (2, "2")])
def test_the_middle(convolutions: int, middle: str) -> None:
    """The ReLU after the middle convolution; with few of them the middle one of all maps."""
    torch.manual_seed(0)
    steps: list[nn.Module] = []
    for i in range(convolutions):
        steps += [nn.Conv2d(4 if i else 3, 4, 3), nn.ReLU()]
    network = nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert Model(network.eval(), size=32).landmarks["middle"] == middle


def test_the_middle_is_a_layer_that_the_answer_depends_on() -> None:
    """Of two branches the one that is not asked about has more convolutions."""

    class TwoBranches(Seeded):
        def __init__(self) -> None:
            super().__init__()
            self.asked = nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(3)])
            self.other = nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(7)])

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"asked": self.asked(x).mean((2, 3)), "other": self.other(x).mean((2, 3))}

    middles = [Model(TwoBranches(), size=32, output=name).landmarks for name in ("asked", "other")]
    assert [landmarks["middle"] for landmarks in middles] == ["asked.1", "other.3"]


class Asked(Seeded):
    """Queries ask the positions of a map, as those of a detector do; there are as many as fit."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.queries = nn.Parameter(torch.randn(queries, 8))
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        asked = self.queries.expand(len(x), -1, -1)
        return self.fc(self.norm(F.scaled_dot_product_attention(asked, tokens, tokens)))


@pytest.mark.parametrize("queries", [8, 9, 36, 100])
def test_queries_are_no_positions(queries: int) -> None:
    assert Model(Asked(queries).eval(), size=32).landmarks["last_conv"] == "conv"


def test_tokens_of_an_image_that_the_network_resizes_are_positions() -> None:
    class Resized(Seeded):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 6, stride=6)
            self.norm = nn.LayerNorm(8)
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(F.interpolate(x, (36, 36))).flatten(2).transpose(1, 2)
            return self.fc(self.norm(tokens).tanh().mean(1))

    assert Model(Resized().eval(), size=32).landmarks["last_conv"] == "norm"


def test_given_landmarks_are_kept() -> None:
    model = Model(Convolutional().eval(), size=32, landmarks={"last_conv": "features.1"})
    assert model.landmarks["last_conv"] == "features.1"
    assert model.landmarks["penultimate"] == "fc:in"


class NamedLikeLandmarks(Seeded):
    """Its modules have names of landmarks, which none of them is."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Conv2d(3, 5, 3)
        self.first = nn.Conv2d(5, 6, 3)
        self.last_conv = nn.Conv2d(6, 4, 3)
        self.penultimate = nn.Linear(4, 7)
        self.answer = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.last_conv(F.relu(self.first(F.relu(self.middle(x))))))
        return self.answer(F.relu(self.penultimate(x.mean((2, 3)))))


def test_a_layer_goes_before_the_landmark_of_its_name(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(NamedLikeLandmarks().eval(), size=(20, 24))
    assert model.landmarks["first"] == "middle"
    assert all(model.layer(name) == name for name in model.layers)
    images = torch.rand(2, 3, 20, 24)
    outputs = model.run(images, ["middle", "first"])
    assert outputs["middle"].shape == (2, 5, 18, 22)
    assert outputs["first"].shape == (2, 6, 16, 20)
    ablated = model.ablated({"first": [1]}).run(images, ["middle", "first"])
    assert torch.equal(ablated["middle"], outputs["middle"])
    assert not ablated["first"][:, 1].any()
    messages = {record.message for record in caplog.records if "landmark" in record.message}
    names = ("first", "middle", "last_conv", "penultimate")
    assert len(messages) == sum(model.landmarks.get(name) != name for name in names) >= 3
    assert any("'first'" in message and "which is middle" in message for message in messages)


def test_a_network_that_runs_its_images_in_turn_has_its_maps() -> None:
    class InTurn(Seeded):
        def __init__(self) -> None:
            super().__init__()
            self.net = Convolutional()

        def forward(self, x: list[Tensor]) -> Tensor:
            return torch.cat([self.net(image[None]) for image in x])

    model = Model(InTurn().eval(), size=32, preprocess=list)
    assert model.landmarks["first"] == "net.features.0"
    assert model.landmarks["last_conv"] == "net.features.7"


def test_the_anchors_of_a_detector_are_no_map_of_the_image() -> None:
    class Anchors(Seeded):
        """Scores at several sizes in a row; all together fill a grid of one size of image."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.scores = nn.Conv2d(6, 5, 1)
            self.join = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            features = F.adaptive_avg_pool2d(self.conv(x), 7)
            levels = [F.adaptive_avg_pool2d(features, side) for side in (7, 6, 1, 1)]
            scores = [self.scores(level).flatten(2).transpose(1, 2) for level in levels]
            return self.join(torch.cat(scores, 1)).sum(1)

    model = Model(Anchors().eval(), size=(40, 56))
    assert model.layers["join"].shape == (87, 5)
    layer = model.landmarks["last_conv"]
    assert layer != "join"
    assert sl.gradcam(model, torch.rand(1, 3, 40, 56)).values["attribution"].shape == (1, 40, 56)


# ── landmarks that a network does not have ──


class Perceptron(Seeded):
    """Linear layers on the pixels: no map, no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3 * 20 * 24, 7)
        self.b = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x.flatten(1))))


class PoolsAtOnce(Seeded):
    """One number a channel before the first layer with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.f = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.pool(x).flatten(1))


class Weightless(nn.Module):
    """The scores are the channels' means."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).mean((2, 3))


class Volumes(Seeded):
    """Convolutions of equal slices."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv3d(3, 4, 3)
        self.f = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.c(x[:, :, None].expand(-1, -1, 4, -1, -1)).mean((2, 3, 4)))


@pytest.mark.parametrize(
    ("make", "landmark", "message"),
    [
        (Perceptron, "last_conv", r"^Perceptron has no last_conv: when it is run, no layer gives"),
        (Perceptron, "middle", "has no middle: .*; none of its layers has rows and columns"),
        (PoolsAtOnce, "last_conv", "PoolsAtOnce has no last_conv"),
        (Weightless, "penultimate", "Weightless has no penultimate: .* no layer with weights"),
        (Weightless, "first", "Weightless has no first: "),
        (Volumes, "last_conv", "has no last_conv: .*; none of its layers has rows and columns"),
    ],
)
def test_a_missing_landmark_says_why(
    make: Callable[[], nn.Module], landmark: str, message: str
) -> None:
    model = Model(make(), size=(20, 24))
    with pytest.raises(SightlineError, match=message) as caught:
        model.layer(landmark)
    assert "\n" not in str(caught.value)
    assert "no layer named" not in str(caught.value)


def test_the_layers_that_are_proposed_can_be_asked_for() -> None:
    class OnePlace(Seeded):
        """The answer reads a single place of the map."""

        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3)
            self.f = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(self.c(x)[:, :, 4, 5])

    model = Model(OnePlace(), size=(20, 24))
    with pytest.raises(SightlineError, match=r"name one yourself with layer=, such as c$"):
        model.layer("last_conv")
    assert model.layer("c") == "c"


def test_middle_is_a_layer_of_whole_images() -> None:
    """Pooling convolutions whose images are the heads of an attention are no middle."""

    class HeadsAsImages(Seeded):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, stride=4)
            self.pools = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(5))
            self.norm = nn.LayerNorm(8)
            self.f = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.patch(x)
            for pool in self.pools:
                heads = pool(maps.reshape(-1, 4, *maps.shape[2:]))
                maps = maps + heads.reshape(maps.shape)
            return self.f(self.norm(maps.flatten(2).transpose(1, 2)).mean(1))

    model = Model(HeadsAsImages(), size=(20, 24))
    assert not model.landmarks["middle"].startswith("pools")
    images = torch.rand(2, 3, 20, 24)
    assert len(model.features(images, "middle")["middle"]) == 2


class Pair(Seeded):
    """Compares an image with another one, which runs through the same layers last."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)])
        self.relu = nn.ReLU()
        self.project = nn.Linear(3, 4)

    def embed(self, x: Tensor) -> Tensor:
        return self.project(self.relu(self.features(x)).mean((2, 3)))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.embed(x) - self.embed(other)


def test_layers_that_see_another_image_only_are_no_landmarks() -> None:
    other = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    model = Model(Pair().eval(), size=(24, 32), inputs={"other": other})
    expected = Model(Pair().eval(), size=(24, 32), inputs={"other": other}).layers
    assert {"relu:1", "project:1"} <= set(expected)
    landmarks = model.landmarks
    assert landmarks["last_conv"] == "relu"
    assert landmarks["penultimate"] == "project:in"
    assert landmarks["middle"] == "relu"
    assert landmarks["first"] == "features.0"


class FrozenBackbone(Convolutional):
    """Its features are computed without a gradient, as of a linear probe."""

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(image)


def test_no_last_map_of_a_network_that_is_cut_off_is_told_by_its_cause() -> None:
    model = sl.load(FrozenBackbone(), size=32)
    with pytest.raises(SightlineError, match="no gradient with respect to its layers, as after no"):
        model.layer("last_conv")
    assert model.layer("first") == model.landmarks["first"]


class Vectorized(Convolutional):
    """Runs on the image and on a darker one at once, by `torch.vmap`."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.vmap(super().forward)(torch.stack([image, 0.5 * image])).mean(0)


def test_layers_inside_a_transform_are_told() -> None:
    model = sl.load(Vectorized(), size=32)
    for run in (sl.gradcam, sl.activations, sl.guided, sl.deepdream):
        with pytest.raises(SightlineError, match=r"inside a transform of torch\.func") as caught:
            run(model, model.blank())
        assert "\n" not in str(caught.value)
    plain = sl.load(Perceptron(), size=(20, 24))
    with pytest.raises(SightlineError, match="none of its layers has rows and columns"):
        plain.layer("last_conv")
