"""The ascent on quadratics, whose steps are known in closed form, and its stopping rules."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.transforms import make_random_affine
from sightline.models.model import Model
from sightline.optim.ascent import (
    AscentResult,
    PlateauDetector,
    maximize_objective,
    score_images,
)
from sightline.optim.objectives.objective import Objective, channel, l2, logit, tv
from sightline.optim.optimizers import SteepestDescent
from sightline.optim.parameterizations.fourier import FourierSpectrum, Pixels
from sightline.registry.progress import Step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(Net(), size=12, device="cpu")


def random_images(count: int = 3, height: int = 12, width: int = 16, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator)


TARGET = 0.3 + 0.4 * random_images(1, 4, 6, seed=9)


def near_start(count: int = 2) -> Tensor:
    """Images of the target's size, far enough from 0 and 1 that a few steps stay inside."""
    return 0.4 + 0.2 * random_images(count, 4, 6)


def quadratic(curvature: float = 1.0) -> Objective:
    """−½·curvature·‖x − TARGET‖²: its gradient is curvature·(TARGET − x)."""

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return -0.5 * curvature * (image - TARGET).square().flatten(1).sum(1)

    return Objective("quadratic", (), lambda _: score)


def sgd(lr: float = 0.1):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def steepest(lr: float, norm: str):
    return lambda parameters: SteepestDescent(parameters, lr, norm)


# ── iterates ──


def test_gradient_ascent_converges_geometrically(model: Model) -> None:
    start = near_start()
    image, scores = maximize_objective(model, quadratic(), Pixels(start), sgd(), 7)
    assert torch.allclose(image, TARGET + 0.9**7 * (start - TARGET), atol=1e-6)
    squared_distances = (start - TARGET).square().flatten(1).sum(1).tolist()
    expected = [
        [-0.5 * 0.9 ** (2 * step) * distance for distance in squared_distances] for step in range(7)
    ]
    assert scores.shape == (7, 2)
    assert np.allclose(scores.numpy(), expected, atol=1e-5)


def test_pixels_stay_in_range(model: Model) -> None:
    """Each step would end far outside [0, 1]; the clamped image is where the next one starts."""
    start = random_images(1, 4, 6)
    x = start.double()
    image, _ = maximize_objective(model, quadratic(-1), Pixels(start), sgd(0.5), 5)
    for _ in range(5):
        x = (x - 0.5 * (TARGET - x)).clamp(0, 1)
    assert torch.allclose(image.double(), x, atol=1e-5)
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "mean"])
def test_steepest_ascent_iterates(model: Model, norm: str) -> None:
    start = near_start()
    image, _ = maximize_objective(model, quadratic(3), Pixels(start), steepest(0.01, norm), 6)
    target = TARGET[0].double().numpy()
    for index in range(2):
        x = start[index].double().numpy()
        for _ in range(6):
            gradient = 3 * (target - x)
            if norm == "linf":
                step = np.sign(gradient)
            elif norm == "l2":
                step = gradient / math.sqrt((gradient**2).sum())
            else:
                step = gradient / np.abs(gradient).mean()
            x = np.clip(x + 0.01 * step, 0, 1)
        assert np.allclose(image[index].numpy(), x, atol=1e-5)


def test_torchs_adam_fits(model: Model) -> None:
    start = near_start(1)
    image, _ = maximize_objective(
        model, quadratic(), Pixels(start), lambda p: torch.optim.Adam(p, lr=0.01), 4
    )
    x, m, v = start.double().numpy(), 0.0, 0.0
    for step in range(1, 5):
        gradient = x - TARGET.double().numpy()
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        x = x - 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert np.allclose(image.numpy(), x, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["linf", "l2", "mean", "adam"])
def test_images_of_a_batch_are_independent(model: Model, optimizer: str) -> None:
    def make(parameters: list[Tensor]) -> torch.optim.Optimizer | SteepestDescent:
        if optimizer == "adam":
            return torch.optim.Adam(parameters, lr=0.02)
        return SteepestDescent(parameters, 0.01, optimizer)

    objective = 5 * channel("conv", 2) + logit(1) - 0.1 * tv()
    images = random_images() * torch.tensor([1.0, 0.1, 0.5]).view(3, 1, 1, 1)
    image, scores = maximize_objective(model, objective, Pixels(images), make, 6)
    for index in range(3):
        single, single_scores = maximize_objective(
            model, objective, Pixels(images[index : index + 1]), make, 6
        )
        assert torch.allclose(image[index : index + 1], single, atol=1e-4)
        assert torch.allclose(scores[:, index : index + 1], single_scores, atol=1e-4)


def test_scores_rise_and_nothing_of_the_callers_changes(model: Model) -> None:
    image = random_images()
    original = image.clone()
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    final, scores = maximize_objective(model, logit(2), Pixels(image), steepest(0.02, "mean"), 10)
    assert (scores[-1] > scores[0]).all()
    assert torch.allclose(scores[0], model.logits(image)[:, 2], atol=1e-5), (
        "scores are of the image before the step"
    )
    assert torch.equal(image, original)
    for name, value in model.network.state_dict().items():
        assert torch.equal(weights[name], value)
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert not final.requires_grad
    assert not scores.requires_grad


def test_it_works_where_gradients_are_off(model: Model) -> None:
    start = random_images()
    with torch.no_grad():
        image, _ = maximize_objective(model, logit(2), Pixels(start), steepest(0.02, "mean"), 2)
        assert not torch.is_grad_enabled()
    assert not torch.equal(image, start)


def test_ascent_on_a_linear_unit_converges_to_its_weight() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(3, 2, (6, 8))
    model = Model(nn.Sequential(conv), mean=(0.5,) * 3, std=(1.0,) * 3, size=8, device="cpu")
    gray = torch.full((1, 3, 6, 8), 0.5)
    image, _ = maximize_objective(model, channel("0", 1), Pixels(gray), sgd(), 5)
    cosine = torch.cosine_similarity((image - 0.5).flatten(), conv.weight[1].flatten(), 0)
    assert cosine > 0.9999


# ── callback, transform, regularize ──


def test_a_callback_stops_the_run_and_the_image_is_kept(model: Model) -> None:
    steps: list[Step] = []

    def stop_at_3(step: Step) -> bool:
        steps.append(step)
        return step.index == 3

    start = near_start()
    image, scores = maximize_objective(
        model, quadratic(), Pixels(start), sgd(), 7, callback=stop_at_3
    )
    assert scores.shape == (3, 2)
    assert torch.allclose(image, TARGET + 0.9**3 * (start - TARGET), atol=1e-6), "three steps"
    assert [(step.index, step.total) for step in steps] == [(1, 7), (2, 7), (3, 7)]
    for index, step in enumerate(steps):
        expected = TARGET + 0.9**index * (start - TARGET)
        assert torch.equal(step.scores, scores[index])
        assert torch.allclose(step.image, expected, atol=1e-6), "each event keeps its own image"
        assert not step.image.requires_grad


@pytest.mark.parametrize("answer", [None, False, 0])
def test_a_callback_that_returns_nothing_true_does_not_stop_it(model: Model, answer) -> None:
    _, scores = maximize_objective(
        model, l2(), Pixels(random_images()), sgd(), 3, callback=lambda _: answer
    )
    assert len(scores) == 3


def test_a_callback_may_overwrite_its_image(model: Model) -> None:
    def overwrite(step: Step) -> None:
        step.image.zero_()

    start = near_start()
    plain, _ = maximize_objective(model, quadratic(), Pixels(start), sgd(), 3)
    overwritten, _ = maximize_objective(
        model, quadratic(), Pixels(start), sgd(), 3, callback=overwrite
    )
    assert torch.equal(plain, overwritten)


def test_a_transform_is_applied_before_the_network_only(model: Model) -> None:
    def mirror(image: Tensor) -> Tensor:
        return image.flip(3)

    start = random_images(1)
    optimizer = steepest(0.02, "l2")
    image, scores = maximize_objective(
        model, logit(0), Pixels(start), optimizer, 3, transform=mirror
    )
    mirrored, mirrored_scores = maximize_objective(
        model, logit(0), Pixels(mirror(start)), optimizer, 3
    )
    assert torch.allclose(image, mirror(mirrored), atol=1e-5)
    assert torch.allclose(scores, mirrored_scores, atol=1e-5)


def test_random_transforms_are_reproducible(model: Model) -> None:
    def run() -> Tensor:
        jitter = make_random_affine(5, 0, 0, torch.Generator().manual_seed(3))
        return maximize_objective(
            model,
            logit(0),
            Pixels(random_images(1)),
            steepest(0.02, "l2"),
            3,
            transform=jitter,
        )[0]

    assert torch.equal(run(), run())


def test_scores_of_several_views_are_averaged(model: Model) -> None:
    def make_views(image: Tensor) -> Tensor:
        return torch.stack([image, image.flip(3)], 1).flatten(0, 1)

    image = random_images(2)
    _, scores = maximize_objective(
        model, logit(1), Pixels(image), steepest(0.02, "l2"), 1, transform=make_views
    )
    expected = (model.logits(image) + model.logits(image.flip(3)))[:, 1] / 2
    assert torch.allclose(scores[0], expected, atol=1e-6)


def test_regularize_runs_after_the_step_and_before_the_projection(model: Model) -> None:
    pixels = Pixels(torch.full((1, 3, 4, 6), 0.5))
    indices: list[int] = []

    def push(index: int) -> None:
        indices.append(index)
        with torch.no_grad():
            pixels.pixels.add_(10.0)

    image, _ = maximize_objective(model, quadratic(), pixels, sgd(), 3, regularize=push)
    assert indices == [0, 1, 2]
    assert torch.equal(image, torch.ones(1, 3, 4, 6))


def test_other_parameterizations_stay_in_range(model: Model) -> None:
    image, scores = maximize_objective(
        model,
        logit(1),
        FourierSpectrum(2, 12, 16, seed=0),
        lambda p: torch.optim.Adam(p, lr=0.05),
        20,
    )
    assert image.shape == (2, 3, 12, 16)
    assert 0 <= image.min() <= image.max() <= 1
    assert (scores[-1] > scores[0]).all()


def test_images_are_scored_as_they_are(model: Model) -> None:
    image = random_images()
    expected = model.logits(image)[:, 3] - 2 * (image - 0.5).square().mean((1, 2, 3))
    assert torch.allclose(score_images(model, logit(3) - 2 * l2(), image), expected, atol=1e-6)


# ── scores and gradients that are not finite or zero ──


def nan_from_step(first_nan_step: int) -> Objective:
    """A quadratic whose score is NaN from a step on."""
    call_count = 0

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        nonlocal call_count
        call_count += 1
        factor = math.nan if call_count >= first_nan_step else 1.0
        return -0.5 * (image - TARGET).square().flatten(1).sum(1) * factor

    return Objective("nan", (), lambda _: score)


def test_nan_ends_the_run_and_the_last_good_image_is_kept(model: Model) -> None:
    start = near_start()
    with pytest.warns(
        UserWarning,
        match="at step 4 of 9 the score or its gradient was not a finite number; "
        "the image of step 3 is returned",
    ):
        result = maximize_objective(model, nan_from_step(4), Pixels(start), sgd(), 9)
    image, scores = result
    assert torch.allclose(image, TARGET + 0.9**3 * (start - TARGET), atol=1e-6)
    assert scores.shape == (3, 2)
    assert "step 4" in result.stop_reason


def test_nan_at_the_start_is_refused(model: Model) -> None:
    with pytest.raises(SightlineError, match="nan or its gradient is not a finite number at the"):
        maximize_objective(model, nan_from_step(1), Pixels(near_start()), sgd(), 9)


def test_a_dead_relu_is_redirected_and_a_unit_without_gradient_is_reported() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.copy_(torch.tensor([-2.0, 0.0]))  # type: ignore[operator]
        network[0].weight[1] = 0
    model = Model(network, mean=(0.0,) * 3, std=(1.0,) * 3, size=8, device="cpu")
    start = torch.full((2, 3, 6, 8), 0.5)
    result = maximize_objective(
        model, channel("1", (0, 1)), Pixels(start), steepest(0.05, "mean"), 12
    )
    image, scores = result
    assert scores[0].tolist() == [0, 0], "no ReLU passes a gradient at the start"
    assert float(scores[-1, 0]) > 0.5
    assert result.received_gradient.tolist() == [True, False], "the second unit ignores its input"
    assert torch.equal(image[1], start[1])


# ── plateaus ──


def test_a_plateau_ends_the_run_of_each_image(model: Model) -> None:
    start = torch.stack([TARGET[0] + 0.1, TARGET[0] + 0.001])

    def run(images: Tensor, patience: int) -> AscentResult:
        return maximize_objective(
            model, quadratic(), Pixels(images), sgd(0.3), 60, patience=patience
        )

    result = run(start, patience=5)
    image, scores = result
    assert len(scores) < 60
    assert "no image gained any more" in result.stop_reason
    for index in range(2):
        single = run(start[index : index + 1], patience=5)
        assert torch.allclose(image[index], single[0][0], atol=1e-7)
        assert result.step_counts[index] == single.step_counts[0] == len(single[1])
    assert len(run(start, patience=0)[1]) == 60


@pytest.mark.parametrize(("last_gain", "is_plateau"), [(0.0099, True), (0.0101, False)])
def test_a_plateau_is_a_gain_below_a_hundredth_of_the_rise(
    last_gain: float, is_plateau: bool
) -> None:
    """Windows of two steps with means 0, 1 − gain and 1: the whole rise is 1."""
    window_means = [0.0, 1 - last_gain, 1.0]
    # Within a window the scores differ, but not their mean.
    scores = [mean + offset for mean in window_means for offset in (0.2, -0.2)]
    history = [torch.tensor([score]) for score in scores]
    detector = PlateauDetector(patience=2)
    image = random_images(1, 4, 6)
    assert detector.detect_plateau(history, Pixels(image)) == is_plateau
    assert detector.stop_steps == ({0: 6} if is_plateau else {})


def test_plateaus_are_only_checked_after_whole_windows() -> None:
    flat = [torch.zeros(1)] * 9
    pixels = Pixels(random_images(1, 4, 6))
    checked = [
        count
        for count in range(1, 10)
        if PlateauDetector(patience=3).detect_plateau(flat[:count], pixels)
    ]
    assert checked == [6, 9]


def test_a_stopped_image_keeps_the_pixels_of_its_step() -> None:
    """The first image is flat at once, the second later; each is kept as it was then."""
    pixels = Pixels(random_images(2, 4, 6))
    at_step_2 = pixels().detach().clone()
    detector = PlateauDetector(patience=1)
    history = [torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert not detector.detect_plateau(history, pixels)

    with torch.no_grad():
        pixels.pixels.mul_(0.5)
    history.append(torch.tensor([5.0, 1.0]))
    assert detector.detect_plateau(history, pixels)
    restored = detector.restore_stopped_images(torch.zeros(2, 3, 4, 6))
    assert torch.equal(restored[0], at_step_2[0])
    assert torch.equal(restored[1], 0.5 * at_step_2[1])
    assert detector.count_steps(history).tolist() == [2, 3]
