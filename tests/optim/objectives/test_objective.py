"""Objectives re-derived by hand: their algebra, their text, and each score in loops."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.optim.objectives import objective as words
from sightline.optim.objectives.objective import (
    Objective,
    channel,
    cross_entropy,
    energy,
    l2,
    logit,
    neuron,
    tv,
)
from sightline.optim.objectives.parser import parse_objective

LABELS = ("goose", "tabby cat", "tiger cat", "crane (bird), heron", "it's a dog")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv2(torch.relu(self.conv1(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


class Tokens(nn.Module):
    """A transformer in small: a class token and 4×4 patch tokens of 5 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 5))
        self.mix, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))
        return self.head(tokens[:, 0] + tokens[:, 1:].mean(1))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(Net(), labels=LABELS, size=16, device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Model:
    torch.manual_seed(1)
    return Model(Tokens(), size=16, device="cpu")


def pictures(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def scores(model: Model, objective: Objective, image: Tensor) -> Tensor:
    return objective.bind(model)(
        image, model.run(image, [model.layer(layer) for layer in objective.layers])
    )


# Algebra


def test_a_sum_is_the_sum_of_its_scores(model: Model) -> None:
    a, b, c = logit("goose"), channel("conv1", 2), tv()
    texts = [str(o) for o in (a, b, c)]
    layers = [o.layers for o in (a, b, c)]
    total = a + 3 * b - 5 * c
    by_hand = (
        scores(model, a, pictures())
        + 3 * scores(model, b, pictures())
        - 5 * scores(model, c, pictures())
    )
    assert torch.allclose(scores(model, total, pictures()), by_hand, atol=1e-6)
    assert scores(model, total, pictures()).shape == (3,)
    assert [str(o) for o in (a, b, c)] == texts
    assert [o.layers for o in (a, b, c)] == layers
    assert set(total.layers) == set(a.layers) | set(b.layers) | set(c.layers)


def test_it_is_frozen() -> None:
    objective = tv()
    with pytest.raises(AttributeError):
        objective.text = "l2()"  # pyright: ignore[reportAttributeAccessIssue]


def test_weights_stand_on_either_side(model: Model) -> None:
    expected = 0.25 * scores(model, l2(), pictures())
    assert torch.allclose(scores(model, 0.25 * l2(), pictures()), expected)
    assert torch.allclose(scores(model, l2() * 0.25, pictures()), expected)
    assert str(0.25 * l2()) == str(l2() * 0.25)


def test_the_text_keeps_the_precedence(model: Model) -> None:
    a, b, c = l2(), tv(), logit(1)
    for objective in (
        (a + b) * 2,
        a - (b - c),
        a - (b + c),
        (a - b) - c,
        2 * (3 * (a - b)),
        (a + b) * -1 + c,
        -2 * a - -3 * b,
    ):
        again = parse_objective(str(objective))
        assert str(again) == str(objective)
        assert torch.allclose(
            scores(model, again, pictures()), scores(model, objective, pictures()), atol=1e-5
        ), str(objective)


WEIGHTS = st.one_of(
    st.integers(-9, 9),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from([1e-7, -1e-7, 1e22, 0.1, 1 / 3]),
)
LEAVES = st.one_of(
    st.sampled_from([0, 1, -1 + 4, *LABELS]).map(logit),
    st.sampled_from([0, "goose", "it's a dog"]).map(cross_entropy),
    st.integers(0, 3).map(lambda unit: channel("conv1", unit)),
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 6)).map(
        lambda t: neuron("conv2", *t)
    ),
    st.integers(0, 5).map(lambda unit: neuron("conv2", unit)),
    st.sampled_from(["conv1", "conv2", "hidden"]).map(energy),
    st.sampled_from([1, 1.5, 2, 3.0]).map(tv),
    st.just(l2()),
)
FORMULAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] - t[1]),
        st.tuples(inner, WEIGHTS).map(lambda t: t[0] * t[1]),
        st.tuples(inner, WEIGHTS).map(lambda t: t[1] * t[0]),
    ),
    max_leaves=6,
)


@given(FORMULAS)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_parse_undoes_str(model: Model, objective: Objective) -> None:
    again = parse_objective(str(objective))
    assert str(again) == str(objective)
    assert again.layers == objective.layers
    assert torch.equal(scores(model, again, pictures(2)), scores(model, objective, pictures(2)))


def test_text_of_numbers_from_other_libraries_parses(model: Model) -> None:
    for weight in (np.float64(0.5), np.float32(0.5), np.int64(2)):
        assert str(parse_objective(str(weight * tv()))) == str(weight * tv())
    assert str(parse_objective(str(channel("conv1", np.int64(2))))) == str(
        channel("conv1", np.int64(2))
    )  # pyright: ignore[reportArgumentType]


# Text


def test_a_label_is_shorthand_for_its_logit(model: Model) -> None:
    for text, label in (
        ("goose", 0),
        ("tabby cat", 1),
        ("crane (bird), heron", 3),
        ("it's a dog", 4),
        (" goose ", 0),
    ):
        expected = model.logits(pictures())[:, label]
        assert torch.allclose(
            scores(model, parse_objective(text), pictures()), expected, atol=1e-6
        ), text
    assert str(parse_objective("goose")) == str(logit("goose"))
    assert torch.allclose(
        scores(model, parse_objective("2"), pictures()), model.logits(pictures())[:, 2], atol=1e-6
    )


def test_a_formula_reads_as_it_is_written(model: Model) -> None:
    found = scores(
        model,
        parse_objective(" logit('goose')-0.1*tv( ) + channel( layer=\"conv1\", unit=2 ) * 3 "),
        pictures(),
    )
    a, b, c = (scores(model, o, pictures()) for o in (logit(0), tv(), channel("conv1", 2)))
    assert torch.allclose(found, a - 0.1 * b + 3 * c, atol=1e-5)
    assert torch.allclose(
        scores(model, parse_objective("-1 * tv()"), pictures()), -scores(model, tv(), pictures())
    )
    assert torch.allclose(
        scores(model, parse_objective("tv(beta=1.5)"), pictures()),
        scores(model, tv(1.5), pictures()),
    )


EVIL = [
    "__import__('os').system('touch {}')",
    "__import__('os')",
    "open('{}', 'w')",
    "exec(\"open('{}', 'w')\")",
    "tv(open('{}', 'w'))",
    "tv() * open('{}', 'w')",
    "tv() + (lambda: open('{}', 'w'))()",
    "[tv() for _ in [open('{}', 'w')]]",
    "f\"{{open('{}', 'w')}}\"",
    "logit(f\"{{open('{}', 'w')}}\")",
    "tv().__class__",
    "tv().bind",
    "tv.__globals__",
    "Objective('x', (), None)",
    "parse('tv()')",
    "evaluated(1)",
    "Any",
    "tv(*[1])",
    "tv(**{{'beta': 1}})",
    "9 ** 9 ** 9 * tv()",
    "'a' * 999999999999",
    "logit('a' * 999999999999)",
    "tv() @ tv()",
    "tv() * tv()",
    "tv() + 1",
    "1 - tv()",
    "tv() / 2",
    "tv() if tv() else l2()",
    "tv(); l2()",
    "tv()\nl2()",
    "x := tv()",
    "(x := tv())",
    "tv() = 1",
    "tv(",
    "tv)",
    "tv",
    "tv(1, 2, 3)",
    "tv(bete=1)",
    "tv('a')",
    "tv(None)",
    "channel('conv1')",
    "channel(1, 1)",
    "channel('conv1', 'a')",
    "channel('conv1', 1.5)",
    "neuron('conv2', 0, 1, 'a')",
    "neuron('conv2', 0, 1, 2, 3)",
    "cross_entropy((1, 'a'))",
    "cross_entropy((1, 99))",
    "cross_entropy((1, -1))",
    "chanel('conv1', 1)",
    "logit()",
    "logit([1])",
    "logit(None)",
    "logit(tv())",
    "energy(tv())",
    "",
    "   ",
    "()",
    "(1, 2)",
    "...",
    "None",
    "True",
    "tv() * 'a'",
    "tv() * 1j",
    "tv() * None",
    "\0",
    "tv()\0",
    "tv() * " + "9" * 5000,
    "tv() * 1e999 * 0",
    "(" * 3000 + "tv()" + ")" * 3000,
    "tv()" + " + tv()" * 5000,
    "-" * 5000 + "1 * tv()",
]


@pytest.mark.parametrize("text", EVIL, ids=lambda text: text[:30].encode("unicode_escape").decode())
def test_anything_else_is_refused_and_not_evaluated(
    model: Model, text: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    text = text.format(trace) if "{" in text else text
    with pytest.raises(SightlineError) as caught:
        parse_objective(text).bind(model)
    assert not trace.exists()
    assert list(tmp_path.iterdir()) == []
    assert os.getcwd() == str(Path.cwd())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_every_word_is_an_objective() -> None:
    assert {"logit", "cross_entropy", "channel", "neuron", "energy", "tv", "l2"} <= set(vars(words))


# What a model doesn't have


@pytest.mark.parametrize(
    ("objective", "part"),
    [
        (logit("gose"), "goose"),
        (logit("cat"), "cat"),
        (logit(5), "5"),
        (logit(-1), "-1"),
        (logit("-1"), "-1"),
        (logit("--5"), "--5"),
        (logit("²"), "²"),
        (cross_entropy("zebra"), "zebra"),
        (cross_entropy(99), "99"),
        (channel("conv3", 0), "conv3"),
        (channel("conv1", 4), "4"),
        (channel("conv1", -1), "-1"),
        (channel("hidden", 8), "8"),
        (neuron("conv2", 6), "6"),
        (neuron("conv2", 0, 7, 0), "7"),
        (neuron("conv2", 0, 0, 7), "7"),
        (neuron("conv2", 0, -1, 0), "-1"),
        (energy("nothing"), "nothing"),
        (logit(0) - channel("conv1", 4), "4"),
        (cross_entropy((0, 7, 1)), "7"),
    ],
)
def test_layers_units_and_labels_out_of_range(
    model: Model, objective: Objective, part: str
) -> None:
    image = pictures(1)
    with pytest.raises(SightlineError) as caught:
        scores(model, objective, image) if "neuron" in str(objective) else objective.bind(model)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# Each score


def test_logit_is_the_score_before_the_softmax(model: Model) -> None:
    for label in range(len(LABELS)):
        assert torch.allclose(
            scores(model, logit(label), pictures()), model.logits(pictures())[:, label], atol=1e-6
        )
        assert torch.equal(
            scores(model, logit(label), pictures()), scores(model, logit(LABELS[label]), pictures())
        )


def test_cross_entropy_is_minus_log_softmax(model: Model) -> None:
    logits = model.logits(pictures()).double().numpy()
    for label in (0, 3):
        expected = [math.log(sum(math.exp(z) for z in row)) - row[label] for row in logits]
        assert np.allclose(
            scores(model, cross_entropy(label), pictures()).numpy(), expected, atol=1e-5
        )
    expected = [
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(logits, (4, 0, 2), strict=True)
    ]
    assert np.allclose(
        scores(model, cross_entropy((4, 0, 2)), pictures()).numpy(), expected, atol=1e-5
    )

    with pytest.raises(SightlineError, match="2 classes for 3 images"):
        scores(model, cross_entropy((4, 0)), pictures())


def hooked(model: Model, layer: str, image: Tensor) -> Tensor:
    """A layer's output by a plain hook."""
    caught: list[Tensor] = []
    handle = model.module(layer).register_forward_hook(
        lambda _m, _i, out: caught.append(out.detach().clone())
    )
    model.logits(image)
    handle.remove()
    return caught[0]


def test_channel_is_the_mean_over_places(model: Model, tokens: Model) -> None:
    conv = hooked(model, "conv2", pictures())
    vector = hooked(model, "hidden", pictures())
    sequence = hooked(tokens, "mix", pictures())
    assert conv.shape == (3, 6, 7, 7)
    assert vector.shape == (3, 8)
    assert sequence.shape == (3, 17, 5)
    for unit in range(5):
        expected = [sum(float(v) for v in image[unit].flatten()) / 49 for image in conv]
        assert np.allclose(
            scores(model, channel("conv2", unit), pictures()).numpy(), expected, atol=1e-6
        )
        assert torch.allclose(
            scores(model, channel("hidden", unit), pictures()), vector[:, unit], atol=1e-6
        )
        found = scores(tokens, channel("mix", unit), pictures())
        assert torch.allclose(found, sequence[:, 1:, unit].mean(1), atol=1e-6), (
            "the mean over the patch tokens"
        )


class Turned(nn.Module):
    """A layer that gives N×rows×columns×channels, as Swin's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp, self.head = (
            nn.Conv2d(3, 9, 4, stride=4),
            nn.Linear(9, 9),
            nn.Linear(9, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_channels_may_come_last() -> None:
    torch.manual_seed(2)
    model = Model(Turned(), size=16, device="cpu")
    found = hooked(model, "mlp", pictures())
    assert found.shape == (3, 4, 4, 9)
    assert torch.allclose(
        scores(model, channel("mlp", 8), pictures()), found[..., 8].mean((1, 2)), atol=1e-6
    )
    assert torch.allclose(
        scores(model, neuron("mlp", 7, 1, 3), pictures()), found[:, 1, 3, 7], atol=1e-6
    )
    with pytest.raises(SightlineError, match="units 0 to 8"):
        channel("mlp", 9).bind(model)


def test_landmarks_and_aliases_are_layers() -> None:
    torch.manual_seed(0)
    model = Model(Net(), labels=LABELS, size=16, device="cpu", aliases={"stem": "conv1"})
    expected = hooked(model, "conv1", pictures())
    assert torch.allclose(scores(model, channel("first", 3) + energy("stem"), pictures()),
                          expected[:, 3].mean((1, 2)) + expected.square().flatten(1).mean(1) / 2, atol=1e-6)  # fmt: skip
    penultimate = hooked(model, "hidden", pictures()).relu()
    assert torch.allclose(
        scores(model, channel("penultimate", 7), pictures()), penultimate[:, 7], atol=1e-6
    )
    with pytest.raises(SightlineError, match="units 0 to 7"):
        channel("penultimate", 8).bind(model)


def test_neuron_is_one_place(model: Model, tokens: Model) -> None:
    conv = hooked(model, "conv2", pictures())
    sequence = hooked(tokens, "mix", pictures())
    for unit, row, column in ((0, 0, 0), (5, 6, 2), (3, 1, 6)):
        assert torch.allclose(
            scores(model, neuron("conv2", unit, row, column), pictures()),
            conv[:, unit, row, column],
            atol=1e-6,
        )
    assert torch.allclose(
        scores(model, neuron("conv2", 2), pictures()), conv[:, 2, 3, 3], atol=1e-6
    ), "the centre of 7×7 is (3, 3)"
    assert torch.allclose(
        scores(tokens, neuron("mix", 4, 1, 2), pictures()), sequence[:, 1 + 1 * 4 + 2, 4], atol=1e-6
    )
    assert torch.allclose(
        scores(tokens, neuron("mix", 4), pictures()), sequence[:, 1 + 2 * 4 + 2, 4], atol=1e-6
    )
    assert torch.allclose(
        scores(model, neuron("hidden", 4), pictures()),
        hooked(model, "hidden", pictures())[:, 4],
        atol=1e-6,
    )


@pytest.mark.parametrize("layer", ["conv1", "conv2", "hidden"])
def test_energy_pulls_along_the_activation(model: Model, layer: str) -> None:
    activation = hooked(model, layer, pictures()).requires_grad_()
    energies = energy(layer).bind(model)(
        pictures(), dict.fromkeys([layer, *energy(layer).layers], activation)
    )
    expected = [0.5 * float((a.detach().double() ** 2).mean()) for a in activation]
    assert np.allclose(energies.detach().numpy(), expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(energies.sum(), activation)
    assert torch.allclose(gradient * activation[0].numel(), activation.detach(), atol=1e-6)


def literal_tv(image: Tensor, beta: float) -> float:
    """Mahendran & Vedaldi 2015, eq. 4, divided by the number of pixels; past the last row and column nothing changes."""
    x = image.double().numpy()
    total = 0.0
    for c in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                dx = x[c, i, j + 1] - x[c, i, j] if j + 1 < x.shape[2] else 0.0
                dy = x[c, i + 1, j] - x[c, i, j] if i + 1 < x.shape[1] else 0.0
                total += (dx**2 + dy**2) ** (beta / 2)
    return total / (x.shape[1] * x.shape[2])


def pure(model: Model, objective: Objective, image: Tensor) -> Tensor:
    """The score of an objective that reads no layer."""
    assert objective.layers == ()
    return objective.bind(model)(image, {})


@pytest.mark.parametrize("beta", [1, 1.5, 2])
@pytest.mark.parametrize("shape", [(5, 7), (6, 6), (1, 4), (4, 1)])
def test_tv_in_loops(model: Model, beta: float, shape: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(7))
    found = pure(model, tv(beta), image)
    assert np.allclose(found.numpy(), [literal_tv(x, beta) for x in image], rtol=1e-4)


@pytest.mark.parametrize("beta", [1, 1.5, 2])
def test_tv_of_a_constant_is_zero_and_so_is_its_pull(model: Model, beta: float) -> None:
    image = torch.full((2, 3, 6, 5), 0.3).requires_grad_()
    found = pure(model, tv(beta), image)
    assert found.abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(found.sum(), image)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e-6


def test_l2_is_the_mean_squared_distance_to_gray(model: Model) -> None:
    image = pictures(2, 5)
    expected = [sum((float(v) - 0.5) ** 2 for v in x.flatten()) / x.numel() for x in image]
    assert np.allclose(pure(model, l2(), image).numpy(), expected, rtol=1e-5)
    assert pure(model, l2(), torch.full((1, 3, 4, 4), 0.5)).item() == 0
