"""Objectives re-derived by hand: their algebra, and each score in loops."""

import math

import numpy as np
import pytest
import torch
from helpers import OBJECTIVE_LABELS, ObjectiveNet
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.optim.objectives.objective import (
    Objective,
    bounded,
    channel,
    cross_entropy,
    energy,
    l1,
    l2,
    logit,
    neuron,
    roughness,
    tv,
)
from sightline.optim.objectives.parser import parse_objective


class Tokens(nn.Module):
    """A small transformer: a class token and a patch token of 5 numbers for every 4×4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, 5))
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([self.cls.expand(len(x), -1, -1), patches], 1))
        return self.head(tokens[:, 0] + tokens[:, 1:].mean(1))


class ChannelsLast(nn.Module):
    """Its layer "mlp" returns N×rows×columns×channels, as Swin's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 4, stride=4)
        self.mlp = nn.Linear(9, 9)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(ObjectiveNet(), labels=OBJECTIVE_LABELS, size=16, device="cpu")


@pytest.fixture(scope="module")
def tokens() -> Model:
    torch.manual_seed(1)
    return Model(Tokens(), size=16, device="cpu")


def random_images(count: int = 3, height: int = 16, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, height, width, generator=generator)


def compute_scores(model: Model, objective: Objective, image: Tensor | None = None) -> Tensor:
    image = random_images() if image is None else image
    layers = [model.layer(layer) for layer in objective.layers]
    return objective.bind(model)(image, model.run(image, layers))


def record_output(model: Model, layer: str, image: Tensor | None = None) -> Tensor:
    """A layer's output by a plain hook."""
    assert not model.findings.runs_one_by_one  # found once, by running the network
    outputs: list[Tensor] = []
    handle = model.module(layer).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output.detach().clone())
    )
    model.logits(random_images() if image is None else image)
    handle.remove()
    return outputs[0]


# ── algebra ──


def test_a_sum_is_the_sum_of_its_scores(model: Model) -> None:
    terms = [logit("goose"), channel("conv1", 2), tv()]
    texts = [str(term) for term in terms]
    layers = [term.layers for term in terms]
    first, second, third = terms
    total = first + 3 * second - 5 * third
    scores = [compute_scores(model, term) for term in terms]
    expected = scores[0] + 3 * scores[1] - 5 * scores[2]
    assert compute_scores(model, total).shape == (3,)
    assert torch.allclose(compute_scores(model, total), expected, atol=1e-6)
    assert torch.allclose(compute_scores(model, -total), -expected, atol=1e-6)
    assert [str(term) for term in terms] == texts
    assert [term.layers for term in terms] == layers
    assert set(total.layers) == {"logits", "conv1"}
    assert total.units == first.units


def test_it_is_frozen() -> None:
    objective = tv()
    with pytest.raises(AttributeError):
        objective.text = "l2()"  # pyright: ignore[reportAttributeAccessIssue]


def test_weights_may_be_on_either_side(model: Model) -> None:
    expected = 0.25 * compute_scores(model, l2())
    assert torch.allclose(compute_scores(model, 0.25 * l2()), expected)
    assert torch.allclose(compute_scores(model, l2() * 0.25), expected)
    assert str(0.25 * l2()) == str(l2() * 0.25)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_are_finite(weight: float) -> None:
    with pytest.raises(SightlineError, match="must be a finite number"):
        _ = weight * tv()


A, B, C = l2(), tv(), logit(1)


@pytest.mark.parametrize(
    "objective",
    [
        (A + B) * 2,
        A - (B - C),
        A - (B + C),
        (A - B) - C,
        2 * (3 * (A - B)),
        (A + B) * -1 + C,
        -2 * A - -3 * B,
    ],
    ids=str,
)
def test_the_text_keeps_the_precedence(model: Model, objective: Objective) -> None:
    parsed = parse_objective(str(objective))
    assert str(parsed) == str(objective)
    expected = compute_scores(model, objective)
    assert torch.allclose(compute_scores(model, parsed), expected, atol=1e-5)


# ── what a model doesn't have ──


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
        (cross_entropy((0, 7, 1)), "7"),
        (channel("conv3", 0), "conv3"),
        (channel("conv1", 4), "4"),
        (channel("conv1", -1), "-1"),
        (channel("hidden", 8), "8"),
        (neuron("conv2", 6), "6"),
        (energy("nothing"), "nothing"),
        (logit(0) - channel("conv1", 4), "4"),
    ],
    ids=str,
)
def test_layers_units_and_labels_out_of_range(
    model: Model, objective: Objective, part: str
) -> None:
    with pytest.raises(SightlineError) as error:
        objective.bind(model)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "column"), [(7, 0), (0, 9), (-1, 0), (0, -1)], ids=["below", "right", "above", "left"]
)
def test_positions_out_of_range(model: Model, row: int, column: int) -> None:
    with pytest.raises(
        SightlineError,
        match=f"conv2 has 7×9 positions; there is none at row {row}, column {column}",
    ):
        compute_scores(model, neuron("conv2", 0, row, column))


def test_a_unit_for_each_image_needs_as_many(model: Model) -> None:
    with pytest.raises(SightlineError, match="2 units for 3 images"):
        compute_scores(model, channel("conv1", (0, 1)))
    with pytest.raises(SightlineError, match="2 classes for 3 images"):
        compute_scores(model, cross_entropy((4, 0)))


# ── each score ──


@pytest.mark.parametrize("label", range(len(OBJECTIVE_LABELS)))
def test_logit_is_the_score_before_the_softmax(model: Model, label: int) -> None:
    scores = compute_scores(model, logit(label))
    assert torch.allclose(scores, model.logits(random_images())[:, label], atol=1e-6)
    assert torch.equal(scores, compute_scores(model, logit(OBJECTIVE_LABELS[label])))


@pytest.mark.parametrize(("label", "classes"), [(0, (0, 0, 0)), (3, (3, 3, 3)), ((4, 0, 2),) * 2])
def test_cross_entropy_is_minus_log_softmax(model: Model, label, classes) -> None:
    rows = model.logits(random_images()).double().tolist()
    expected = [
        math.log(sum(math.exp(value) for value in row)) - row[index]
        for row, index in zip(rows, classes, strict=True)
    ]
    scores = compute_scores(model, cross_entropy(label))
    assert np.allclose(scores.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("unit", range(5))
def test_channel_is_the_mean_over_positions(model: Model, tokens: Model, unit: int) -> None:
    maps = record_output(model, "conv2")
    vector = record_output(model, "hidden")
    sequence = record_output(tokens, "mix")
    assert maps.shape == (3, 6, 7, 9)
    assert vector.shape == (3, 8)
    assert sequence.shape == (3, 21, 5)
    expected = [sum(image[unit].flatten().tolist()) / 63 for image in maps]
    scores = compute_scores(model, channel("conv2", unit))
    assert np.allclose(scores.numpy(), expected, atol=1e-6)
    scores = compute_scores(model, channel("hidden", unit))
    assert torch.allclose(scores, vector[:, unit], atol=1e-6)
    scores = compute_scores(tokens, channel("mix", unit))
    assert torch.allclose(scores, sequence[:, 1:, unit].mean(1), atol=1e-6), "of the patch tokens"


def test_neuron_is_one_position(model: Model) -> None:
    maps = record_output(model, "conv2")
    for unit, row, column in ((0, 0, 0), (5, 6, 2), (3, 1, 8)):
        scores = compute_scores(model, neuron("conv2", unit, row, column))
        assert torch.allclose(scores, maps[:, unit, row, column], atol=1e-6)
    centre = compute_scores(model, neuron("conv2", 2))
    assert torch.allclose(centre, maps[:, 2, 3, 4], atol=1e-6), "the centre of 7×9"
    vector = record_output(model, "hidden")
    scores = compute_scores(model, neuron("hidden", 4))
    assert torch.allclose(scores, vector[:, 4], atol=1e-6)


def test_neuron_of_tokens_is_a_patch(tokens: Model) -> None:
    """4×5 patches after the class token."""
    sequence = record_output(tokens, "mix")
    scores = compute_scores(tokens, neuron("mix", 4, 1, 2))
    assert torch.allclose(scores, sequence[:, 1 + 1 * 5 + 2, 4], atol=1e-6)
    centre = compute_scores(tokens, neuron("mix", 4))
    assert torch.allclose(centre, sequence[:, 1 + 2 * 5 + 2, 4], atol=1e-6)


def test_channels_may_come_last() -> None:
    torch.manual_seed(2)
    model = Model(ChannelsLast(), size=16, device="cpu")
    maps = record_output(model, "mlp")
    assert maps.shape == (3, 4, 5, 9)
    scores = compute_scores(model, channel("mlp", 8))
    assert torch.allclose(scores, maps[..., 8].mean((1, 2)), atol=1e-6)
    scores = compute_scores(model, neuron("mlp", 7, 1, 4))
    assert torch.allclose(scores, maps[:, 1, 4, 7], atol=1e-6)
    with pytest.raises(SightlineError, match="units 0 to 8"):
        channel("mlp", 9).bind(model)


def test_landmarks_and_aliases_are_layers() -> None:
    torch.manual_seed(0)
    model = Model(
        ObjectiveNet(), labels=OBJECTIVE_LABELS, size=16, device="cpu", aliases={"stem": "conv1"}
    )
    maps = record_output(model, "conv1")
    expected = maps[:, 3].mean((1, 2)) + maps.square().flatten(1).mean(1) / 2
    scores = compute_scores(model, channel("first", 3) + energy("stem"))
    assert torch.allclose(scores, expected, atol=1e-6)
    penultimate = record_output(model, "hidden").relu()
    scores = compute_scores(model, channel("penultimate", 7))
    assert torch.allclose(scores, penultimate[:, 7], atol=1e-6)
    with pytest.raises(SightlineError, match="units 0 to 7"):
        channel("penultimate", 8).bind(model)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "hidden"])
def test_the_gradient_of_energy_is_the_activation(model: Model, layer: str) -> None:
    activation = record_output(model, layer).requires_grad_()
    features = dict.fromkeys([layer, *energy(layer).layers], activation)
    scores = energy(layer).bind(model)(random_images(), features)
    expected = [0.5 * float((values.detach().double() ** 2).mean()) for values in activation]
    assert np.allclose(scores.detach().numpy(), expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(scores.sum(), activation)
    assert torch.allclose(gradient * activation[0].numel(), activation.detach(), atol=1e-6)


# ── scores of the image itself ──


def score_pixels(model: Model, objective: Objective, image: Tensor) -> Tensor:
    """The score of an objective that reads no layer."""
    assert objective.layers == ()
    return objective.bind(model)(image, {})


def compute_literal_tv(image: Tensor, beta: float) -> float:
    """Mahendran & Vedaldi 2015, eq. 4, over the pixel count; no change beyond the last row."""
    x = image.double().numpy()
    channels, height, width = x.shape
    total = 0.0
    for c, i, j in np.ndindex(channels, height, width):
        dx = x[c, i, j + 1] - x[c, i, j] if j + 1 < width else 0.0
        dy = x[c, i + 1, j] - x[c, i, j] if i + 1 < height else 0.0
        total += (dx**2 + dy**2) ** (beta / 2)
    return total / (height * width)


@pytest.mark.parametrize("beta", [1, 1.5, 2])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (6, 6), (1, 4), (4, 1)])
def test_tv_in_loops(model: Model, beta: float, height: int, width: int) -> None:
    images = random_images(2, height, width)
    scores = score_pixels(model, tv(beta), images)
    expected = [compute_literal_tv(image, beta) for image in images]
    assert np.allclose(scores.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("beta", [1, 1.5, 2])
def test_tv_of_a_constant_is_zero_and_so_is_its_gradient(model: Model, beta: float) -> None:
    image = torch.full((2, 3, 6, 5), 0.3).requires_grad_()
    scores = score_pixels(model, tv(beta), image)
    assert scores.abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(scores.sum(), image)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("objective", "measure"),
    [
        (l1(), abs),
        (l2(), lambda offset: offset**2),
        (bounded(), lambda offset: offset**6),
        (bounded(3.0), lambda offset: abs(offset) ** 3),
    ],
    ids=["l1", "l2", "bounded", "bounded-3"],
)
def test_distances_to_gray_in_loops(model: Model, objective: Objective, measure) -> None:
    images = random_images(2, 5, 7)
    expected = [
        sum(measure(value - 0.5) for value in image.flatten().tolist()) / image.numel()
        for image in images
    ]
    assert np.allclose(score_pixels(model, objective, images).numpy(), expected, rtol=1e-5)
    gray = torch.full((1, 3, 4, 6), 0.5)
    assert score_pixels(model, objective, gray).item() == 0


@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_roughness_is_half_the_squared_distance_to_the_blurred_image(
    model: Model, sigma: float
) -> None:
    """Its gradient is the distance itself: the blurred image counts as constant."""
    image = random_images(2, 12, 17).requires_grad_()
    blurred = gaussian_filter(
        image.detach().numpy(), sigma, mode="mirror", axes=(2, 3), radius=math.ceil(3 * sigma)
    )
    distance = image.detach().numpy() - blurred
    scores = score_pixels(model, roughness(sigma), image)
    expected = (distance**2).mean((1, 2, 3)) / 2
    assert np.allclose(scores.detach().numpy(), expected, rtol=1e-4)
    (gradient,) = torch.autograd.grad(scores.sum(), image)
    pixel_count = image[0].numel()
    assert np.allclose(gradient.numpy() * pixel_count, distance, atol=1e-5)
