"""The ascent on quadratics, whose steps are known in closed form, and the regularizers written out in loops."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.transforms import make_random_affine
from sightline.models.model import Model
from sightline.optim.ascent import maximize_objective
from sightline.optim.objectives.objective import Objective, channel, l2, logit, tv
from sightline.optim.optimizers import SteepestDescent, normalize_gradient
from sightline.optim.parameterizations.fourier import FourierSpectrum, Pixels
from sightline.optim.regularization import Regularizer
from sightline.registry.progress import Step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(Net(), size=12, device="cpu")


def pictures(count: int = 3, side: int = 12, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


TARGET = 0.3 + 0.4 * pictures(1, 4, seed=9)


def quadratic(curvature: float = 1.0) -> Objective:
    """−½·curvature·‖x − TARGET‖²: its gradient is curvature·(TARGET − x)."""

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return -0.5 * curvature * (image - TARGET).square().flatten(1).sum(1)

    return Objective("quadratic", (), lambda _: score)


# Iterates


def test_gradient_ascent_closes_in_geometrically(model: Model) -> None:
    start = 0.4 + 0.2 * pictures(2, 4)
    image, scores = maximize_objective(
        model, quadratic(), Pixels(start), lambda p: torch.optim.SGD(p, lr=0.1), 7
    )
    assert torch.allclose(image, TARGET + 0.9**7 * (start - TARGET), atol=1e-6)
    expected = [
        [-0.5 * 0.9 ** (2 * t) * float((x - TARGET[0]).square().sum()) for x in start]
        for t in range(7)
    ]
    assert scores.shape == (7, 2)
    assert np.allclose(scores.numpy(), expected, atol=1e-5)


def test_pixels_stay_pictures(model: Model) -> None:
    """Far beyond, each step would end outside [0, 1]: what is kept is the clamped point."""
    start, x = pictures(1, 4), pictures(1, 4).double()
    image, _ = maximize_objective(
        model, quadratic(-1), Pixels(start), lambda p: torch.optim.SGD(p, lr=0.5), 5
    )
    for _ in range(5):
        x = (x - 0.5 * (TARGET - x)).clamp(0, 1)
    assert torch.allclose(image.double(), x, atol=1e-5)
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "mean"])
def test_steepest_iterates(model: Model, norm: str) -> None:
    start = 0.4 + 0.2 * pictures(2, 4)
    image, _ = maximize_objective(
        model, quadratic(3), Pixels(start), lambda p: SteepestDescent(p, 0.01, norm), 6
    )
    for i in range(2):
        x = start[i].double().numpy()
        for _ in range(6):
            g = 3 * (TARGET[0].double().numpy() - x)
            size = {"linf": None, "l2": math.sqrt((g**2).sum()), "mean": np.abs(g).mean()}[norm]
            x = np.clip(x + 0.01 * (np.sign(g) if size is None else g / size), 0, 1)
        assert np.allclose(image[i].numpy(), x, atol=1e-5)


def test_adam_is_adam(model: Model) -> None:
    start = 0.4 + 0.2 * pictures(1, 4)
    image, _ = maximize_objective(
        model, quadratic(), Pixels(start), lambda p: torch.optim.Adam(p, lr=0.01), 4
    )
    x, m, v = start.double().numpy(), 0.0, 0.0
    for t in range(1, 5):
        g = x - TARGET.double().numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert np.allclose(image.numpy(), x, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["linf", "l2", "mean", "adam"])
def test_a_batch_is_its_images(model: Model, optimizer: str) -> None:
    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return (
            torch.optim.Adam(parameters, lr=0.02)
            if optimizer == "adam"
            else SteepestDescent(parameters, 0.01, optimizer)
        )

    objective = 5 * channel("conv", 2) + logit(1) - 0.1 * tv()
    scale = torch.tensor([1.0, 0.1, 0.5]).view(3, 1, 1, 1)
    together, scores = maximize_objective(model, objective, Pixels(pictures() * scale), make, 6)
    for i in range(3):
        alone, own = maximize_objective(
            model, objective, Pixels((pictures() * scale)[i : i + 1]), make, 6
        )
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)
        assert torch.allclose(scores[:, i : i + 1], own, atol=1e-4)


def test_it_climbs_and_nothing_of_the_callers_changes(model: Model) -> None:
    image = pictures()
    before = image.clone()
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    final, scores = maximize_objective(
        model, logit(2), Pixels(image), lambda p: SteepestDescent(p, 0.02, "mean"), 10
    )
    assert (scores[-1] > scores[0]).all()
    assert torch.allclose(scores[0], model.logits(image)[:, 2], atol=1e-5), (
        "scores are of the picture before the step"
    )
    assert torch.equal(image, before)
    assert all(
        torch.equal(weights[name], value) for name, value in model.network.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert not final.requires_grad
    assert not scores.requires_grad


def test_it_works_where_gradients_are_off(model: Model) -> None:
    with torch.no_grad():
        image, _ = maximize_objective(
            model, logit(2), Pixels(pictures()), lambda p: SteepestDescent(p, 0.02, "mean"), 2
        )
        assert not torch.is_grad_enabled()
    assert not torch.equal(image, pictures())


# Callback, transform, regularize


def test_a_callback_stops_it_and_the_picture_is_kept(model: Model) -> None:
    steps: list[Step] = []

    def stop_at_3(step: Step) -> bool:
        steps.append(step)
        return step.index == 3

    start = 0.4 + 0.2 * pictures(2, 4)
    image, scores = maximize_objective(
        model,
        quadratic(),
        Pixels(start),
        lambda p: torch.optim.SGD(p, lr=0.1),
        7,
        callback=stop_at_3,
    )
    assert scores.shape == (3, 2)
    assert torch.allclose(image, TARGET + 0.9**3 * (start - TARGET), atol=1e-6), (
        "three steps were done"
    )
    assert [(s.index, s.total) for s in steps] == [(1, 7), (2, 7), (3, 7)]
    for t, step in enumerate(steps):
        assert torch.equal(step.scores, scores[t])
        assert torch.allclose(step.image, TARGET + 0.9**t * (start - TARGET), atol=1e-6), (
            "each event keeps its own picture"
        )
        assert not step.image.requires_grad


def test_a_callback_that_says_nothing_does_not_stop_it(model: Model) -> None:
    for answer in (None, False, 0):
        _, scores = maximize_objective(
            model,
            l2(),
            Pixels(pictures()),
            lambda p: torch.optim.SGD(p, 0.1),
            3,
            callback=lambda _, a=answer: a,
        )
        assert len(scores) == 3


def test_a_callback_may_scribble_on_its_picture(model: Model) -> None:
    def scribble(step: Step) -> None:
        step.image.zero_()

    plain, _ = maximize_objective(
        model, quadratic(), Pixels(pictures(1, 4)), lambda p: torch.optim.SGD(p, 0.1), 3
    )
    scribbled, _ = maximize_objective(
        model,
        quadratic(),
        Pixels(pictures(1, 4)),
        lambda p: torch.optim.SGD(p, 0.1),
        3,
        callback=scribble,
    )
    assert torch.equal(plain, scribbled)


def test_a_transform_stands_before_the_network_only(model: Model) -> None:
    def mirror(image: Tensor) -> Tensor:
        return image.flip(3)

    image, scores = maximize_objective(
        model,
        logit(0),
        Pixels(pictures(1)),
        lambda p: SteepestDescent(p, 0.02, "l2"),
        3,
        transform=mirror,
    )
    flipped, own = maximize_objective(
        model, logit(0), Pixels(pictures(1).flip(3)), lambda p: SteepestDescent(p, 0.02, "l2"), 3
    )
    assert torch.allclose(image, flipped.flip(3), atol=1e-5)
    assert torch.allclose(scores, own, atol=1e-5)
    a, b = (
        maximize_objective(model, logit(0), Pixels(pictures(1)), lambda p: SteepestDescent(p, 0.02, "l2"), 3,
               transform=make_random_affine(5, 0, 0, torch.Generator().manual_seed(3)))[0]
        for _ in range(2)
    )  # fmt: skip
    assert torch.equal(a, b)


def test_regularize_comes_after_the_step_and_before_the_projection(model: Model) -> None:
    start = Pixels(torch.full((1, 3, 4, 4), 0.5))
    seen: list[int] = []

    def push(index: int) -> None:
        seen.append(index)
        with torch.no_grad():
            start.pixels.add_(10.0)

    image, _ = maximize_objective(
        model, quadratic(), start, lambda p: torch.optim.SGD(p, lr=0.1), 3, regularize=push
    )
    assert seen == [0, 1, 2]
    assert torch.equal(image, torch.ones(1, 3, 4, 4))


def test_other_starts_keep_their_laws(model: Model) -> None:
    wave, scores = maximize_objective(
        model,
        logit(1),
        FourierSpectrum(2, 12, 12, seed=0),
        lambda p: torch.optim.Adam(p, lr=0.05),
        20,
    )
    assert wave.shape == (2, 3, 12, 12)
    assert 0 <= wave.min() <= wave.max() <= 1
    assert (scores[-1] > scores[0]).all()


# Steepest


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_steps_have_one_length(shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(
        -12, 3, shape[0]
    ).view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(normalize_gradient(g, "linf"), g.sign())
    assert torch.allclose(
        normalize_gradient(g, "l2").flatten(1).norm(dim=1), torch.ones(shape[0]), atol=1e-5
    )
    assert torch.allclose(
        normalize_gradient(g, "mean").flatten(1).abs().mean(1), torch.ones(shape[0]), atol=1e-5
    )
    for norm in ("l2", "mean"):
        cosine = torch.cosine_similarity(
            normalize_gradient(g, norm).flatten(1).double(), g.flatten(1).double(), eps=1e-30
        )
        assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "mean"])
def test_without_gradient_nothing_moves(norm: str) -> None:
    assert torch.equal(normalize_gradient(torch.zeros(2, 3, 4, 4), norm), torch.zeros(2, 3, 4, 4))
    x = pictures().requires_grad_()
    x.grad = torch.zeros_like(x)
    x.grad[1] = 1
    before = x.detach().clone()
    SteepestDescent([x], 0.1, norm).step()
    assert torch.equal(x[[0, 2]], before[[0, 2]])
    assert not torch.equal(x[1], before[1])


# Regularizer


def regularized(
    regularizer: Regularizer, image: Tensor, index: int, gradient: Tensor | None = None
) -> Tensor:
    pixels = Pixels(image)
    pixels.pixels.grad = gradient
    regularizer.regularize_pixels_(pixels, index)
    assert pixels.pixels.requires_grad
    return pixels().detach()


def test_nothing_asked_nothing_done() -> None:
    image = pictures()
    assert torch.allclose(
        regularized(Regularizer(), image, 3, torch.ones_like(image)), image, atol=1e-7
    )


def test_decay_shrinks_the_distance_to_gray() -> None:
    image = pictures()
    pixels = Pixels(image)
    for index in range(4):
        Regularizer(decay=0.1).regularize_pixels_(pixels, index)
    assert torch.allclose(pixels(), 0.5 + 0.9**4 * (image - 0.5), atol=1e-6)
    assert torch.equal(regularized(Regularizer(decay=1.0), image, 0), torch.full_like(image, 0.5))


def test_blur_comes_every_few_steps() -> None:
    image = pictures()
    expected = gaussian_filter(image.numpy(), 0.8, mode="mirror", axes=(2, 3), radius=3)
    for index in range(12):
        found = regularized(Regularizer(blur_sigma=0.8, blur_interval=4), image, index)
        if index in (3, 7, 11):
            assert np.allclose(found.numpy(), expected, atol=1e-5)
        else:
            assert torch.allclose(found, image, atol=1e-6)


def least(importance: np.ndarray, share: float) -> set[tuple[int, int]]:
    """The pixels below the share's quantile: sorted, then counted off. The last one is never below it."""
    order = sorted(np.ndindex(importance.shape), key=lambda place: importance[place])
    return set(order[: math.ceil(share * (len(order) - 1) - 1e-9)])


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_small_pixels_become_gray(share: float) -> None:
    image = pictures()
    found = regularized(Regularizer(small_norm_share=share), image, 0)
    for i in range(3):
        x = image[i].double().numpy() - 0.5
        importance = np.array(
            [[math.sqrt((x[:, r, c] ** 2).sum()) for c in range(12)] for r in range(12)]
        )
        gray = least(importance, share)
        assert abs(len(gray) - share * 144) <= 1
        for r, c in np.ndindex(12, 12):
            expected = torch.full((3,), 0.5) if (r, c) in gray else image[i, :, r, c]
            assert torch.allclose(found[i, :, r, c], expected, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_idle_pixels_become_gray(share: float) -> None:
    image = pictures()
    gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    found = regularized(Regularizer(small_contribution_share=share), image, 0, gradient)
    for i in range(3):
        x, g = image[i].double().numpy() - 0.5, gradient[i].double().numpy()
        importance = np.array(
            [
                [abs(sum(x[k, r, c] * g[k, r, c] for k in range(3))) for c in range(12)]
                for r in range(12)
            ]
        )
        gray = least(importance, share)
        for r, c in np.ndindex(12, 12):
            expected = torch.full((3,), 0.5) if (r, c) in gray else image[i, :, r, c]
            assert torch.allclose(found[i, :, r, c], expected, atol=1e-7)


def test_small_and_idle_pixels_are_both_clipped() -> None:
    """Were the second measured after the first, the gray pixels would be the idle ones, and it would clip nothing."""
    image = pictures()
    gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    both = regularized(
        Regularizer(small_norm_share=0.2, small_contribution_share=0.2), image, 0, gradient
    )
    small = regularized(Regularizer(small_norm_share=0.2), image, 0)
    idle = regularized(Regularizer(small_contribution_share=0.2), image, 0, gradient)
    gray = [(found == 0.5).all(1) for found in (both, small, idle)]
    assert torch.equal(gray[0], gray[1] | gray[2])
    assert gray[0].sum() > gray[1].sum() + 10
    assert gray[0].sum() > gray[2].sum() + 10


def test_idle_without_a_gradient_does_nothing() -> None:
    assert torch.allclose(
        regularized(Regularizer(small_contribution_share=0.5), pictures(), 0), pictures(), atol=1e-7
    )


# What goes wrong


def spoilt_at(step: int) -> Objective:
    """A quadratic whose score is NaN from that step on."""
    calls: list[int] = []

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        calls.append(1)
        return (
            -0.5
            * (image - TARGET).square().flatten(1).sum(1)
            * (float("nan") if len(calls) >= step else 1.0)
        )

    return Objective("spoilt", (), lambda _: score)


def test_nan_ends_the_run_and_the_last_good_picture_is_kept(model: Model) -> None:
    start = 0.4 + 0.2 * pictures(2, 4)
    with pytest.warns(
        UserWarning,
        match="at step 4 of 9 the score or its gradient was not a finite number; the picture of step 3",
    ):
        found = maximize_objective(
            model, spoilt_at(4), Pixels(start), lambda p: torch.optim.SGD(p, lr=0.1), 9
        )
    assert torch.allclose(found[0], TARGET + 0.9**3 * (start - TARGET), atol=1e-6)
    assert found[1].shape == (3, 2)
    assert "step 4" in found.stop_reason
    with pytest.raises(SightlineError, match="not a finite number on the start"):
        maximize_objective(
            model, spoilt_at(1), Pixels(start), lambda p: torch.optim.SGD(p, lr=0.1), 9
        )


def test_a_dead_start_is_redirected_and_a_dead_unit_is_noticed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.copy_(torch.tensor([-2.0, 0.0]))  # type: ignore[operator]
        network[0].weight[1] = 0
    model = Model(network, mean=(0.0,) * 3, std=(1.0,) * 3, size=8, device="cpu")
    start = torch.full((2, 3, 8, 8), 0.5)
    found = maximize_objective(
        model, channel("1", (0, 1)), Pixels(start), lambda p: SteepestDescent(p, 0.05, "mean"), 12
    )
    assert found[1][0].tolist() == [0, 0], "no ReLU lets anything back at the start"
    assert float(found[1][-1, 0]) > 0.5
    assert found.received_gradient.tolist() == [True, False], "the second unit sees nothing at all"
    assert torch.equal(found[0][1], start[1])


def test_a_plateau_is_noticed_image_by_image(model: Model) -> None:
    start = torch.stack([TARGET[0] + 0.1, TARGET[0] + 0.001])

    def run(images: Tensor, patience: int) -> Any:
        return maximize_objective(
            model,
            quadratic(),
            Pixels(images),
            lambda p: torch.optim.SGD(p, lr=0.3),
            60,
            patience=patience,
        )

    both = run(start, 5)
    assert len(both[1]) < 60
    assert "no image gained any more" in both.stop_reason
    for number in range(2):
        alone = run(start[number : number + 1], 5)
        assert torch.allclose(both[0][number], alone[0][0], atol=1e-7)
        assert both.step_counts[number] == alone.step_counts[0] == len(alone[1])
    assert len(run(start, 0)[1]) == 60


def test_scores_of_several_views_are_averaged(model: Model) -> None:
    def views(image: Tensor) -> Tensor:
        return torch.stack([image, image.flip(3)], 1).flatten(0, 1)

    image = pictures(2)
    _, scores = maximize_objective(
        model, logit(1), Pixels(image), lambda p: SteepestDescent(p, 0.02, "l2"), 1, transform=views
    )
    assert torch.allclose(
        scores[0], (model.logits(image) + model.logits(image.flip(3)))[:, 1] / 2, atol=1e-6
    )


def test_ascent_on_a_linear_unit_finds_its_weight() -> None:
    torch.manual_seed(3)
    network = nn.Conv2d(3, 2, 8)
    model = Model(nn.Sequential(network), mean=(0.5,) * 3, std=(1.0,) * 3, size=8, device="cpu")
    image, _ = maximize_objective(
        model,
        channel("0", 1),
        Pixels(torch.full((1, 3, 8, 8), 0.5)),
        lambda p: torch.optim.SGD(p, lr=0.1),
        5,
    )
    assert torch.cosine_similarity((image - 0.5).flatten(), network.weight[1].flatten(), 0) > 0.9999
