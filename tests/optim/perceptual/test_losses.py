"""Gram matrices, content and style losses against literal sums, and the laws the papers state."""

import pytest
import torch
from torch import Tensor

from sightline.optim.perceptual.losses import (
    FeatureMoments,
    GramFunction,
    blend_moments,
    compute_content_loss,
    compute_gram,
    compute_gram_loss,
    compute_gram_loss_from_features,
    compute_moments,
    compute_sliced_loss,
    compute_w2_loss,
    draw_random_directions,
    flatten_positions,
)

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random_features(
    count: int = 2, channels: int = 5, height: int = 6, width: int = 7, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator)


def compute_literal_gram(features: Tensor) -> Tensor:
    """The mean of outer products, position by position, of one image C×H×W."""
    channels, height, width = features.shape
    total = torch.zeros(channels, channels)
    for row in range(height):
        for column in range(width):
            vector = features[:, row, column]
            total += vector.outer(vector)
    return total / (height * width)


# ── Gram matrices ──


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gram_is_the_mean_of_outer_products(layout: torch.memory_format) -> None:
    features = random_features().contiguous(memory_format=layout)
    expected = torch.stack([compute_literal_gram(image) for image in features])
    torch.testing.assert_close(compute_gram(features), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_are_a_view_in_both_layouts(layout: torch.memory_format) -> None:
    features = random_features().contiguous(memory_format=layout)
    rows = flatten_positions(features)
    assert rows.data_ptr() == features.data_ptr()
    assert rows.is_contiguous() == (layout == torch.channels_last)
    assert torch.equal(rows[1, 9], features[1, :, 1, 2])


def test_gram_is_symmetric_positive_semidefinite_and_ignores_positions() -> None:
    features = random_features(channels=9, height=2, width=3)  # fewer positions: singular
    gram = compute_gram(features)
    assert torch.allclose(gram, gram.mT, atol=1e-6)
    assert torch.linalg.eigvalsh(gram).min() > -1e-5
    rolled_gram = compute_gram(features.roll((1, 2), (2, 3)))
    torch.testing.assert_close(rolled_gram, gram, rtol=1e-5, atol=1e-6)


def test_gram_of_half_precision_does_not_overflow() -> None:
    gram = compute_gram(torch.full((1, 2, 48, 64), 200.0, dtype=torch.float16))
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram, torch.full((1, 2, 2), 40_000.0))


def test_autocast_does_not_reach_the_products() -> None:
    """In half precision they would lose the small differences."""
    features = random_features().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        gram = compute_gram(features)
    gram.sum().backward()
    assert torch.equal(gram, compute_gram(features))


def test_the_backward_pass_of_gram_is_autograds() -> None:
    features = random_features(1, 4, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(GramFunction.apply, (features,))
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(1, 4, 4, generator=generator, dtype=torch.float64)
    weighted = (GramFunction.apply(features) * weights).sum()
    rows = features.flatten(2)
    plain = ((rows @ rows.mT) * weights).sum()
    (gradient,) = torch.autograd.grad(weighted, features)
    (expected,) = torch.autograd.grad(plain, features)
    torch.testing.assert_close(gradient, expected)


def test_gram_loss_is_gatys() -> None:
    """E = Σ(G − A)²/(4N²M²) with G = FFᵀ summed over the positions."""
    features = random_features(1)[0]
    target = random_features(1, seed=1)[0]
    channels, positions = features.shape[0], features[0].numel()
    difference = positions * (compute_literal_gram(features) - compute_literal_gram(target))
    expected = difference.square().sum() / (4 * channels**2 * positions**2)
    loss = compute_gram_loss(compute_gram(features[None]), compute_gram(target[None]))
    assert torch.allclose(loss, expected.view(1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target_count", [1, 2])
def test_the_loss_from_features_is_that_of_their_gram_matrices(
    layout: torch.memory_format, target_count: int
) -> None:
    """Its value, and its gradient as autograd has it from literal sums."""
    features = random_features().contiguous(memory_format=layout).requires_grad_()
    target = compute_gram(random_features(target_count, seed=1))
    weights = torch.tensor([0.3, 2.0])
    gram = torch.einsum("nchw,ndhw->ncd", features, features) / (6 * 7)
    expected = ((gram - target) ** 2).sum((1, 2)) / (4 * 5**2)
    loss = compute_gram_loss_from_features(features, target)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad((weights * loss).sum(), features)
    (expected_gradient,) = torch.autograd.grad((weights * expected).sum(), features)
    torch.testing.assert_close(gradient, expected_gradient)


# ── moments ──


@pytest.mark.parametrize("normalized", [False, True])
def test_weighted_moments_in_loops(normalized: bool) -> None:
    features = random_features()
    weights = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(3))
    if normalized:
        weights = weights / weights.sum((1, 2), keepdim=True)
    moments = compute_moments(features, weights, normalized=normalized)
    for index in range(2):
        mean = torch.zeros(5)
        gram = torch.zeros(5, 5)
        for row in range(6):
            for column in range(7):
                vector = features[index, :, row, column]
                share = weights[index, row, column] / weights[index].sum()
                mean += share * vector
                gram += share * vector.outer(vector)
        torch.testing.assert_close(moments.mean[index], mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moments.gram[index], gram, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [None, torch.full((2, 6, 7), 1 / 42)], ids=["plain", "even"])
def test_without_the_mean_only_the_gram_matrix_is_computed(weights: Tensor | None) -> None:
    features = random_features()
    moments = compute_moments(features, weights, with_mean=False)
    assert torch.equal(moments.mean, torch.zeros(2, 5))
    torch.testing.assert_close(moments.gram, compute_gram(features), rtol=1e-5, atol=1e-6)


def test_blends_are_linear_in_both_moments() -> None:
    first = compute_moments(random_features(1))
    second = compute_moments(random_features(1, seed=1))
    blend = blend_moments([first, second], [3, 1])
    torch.testing.assert_close(blend.gram, 0.75 * first.gram + 0.25 * second.gram)
    torch.testing.assert_close(blend.mean, 0.75 * first.mean + 0.25 * second.mean)


# ── distances ──


def test_content_loss_is_zero_only_for_equal_features() -> None:
    features = random_features()
    assert compute_content_loss(features, features).tolist() == [0, 0]
    offset = torch.tensor([3.0, 1.0]).view(2, 1, 1, 1)
    loss = compute_content_loss(features, features + offset)
    assert torch.allclose(loss, torch.tensor([9.0, 1.0]))


def test_w2_is_the_distance_of_gaussians() -> None:
    """Against the textbook formula with a square root by eigenvalues of the product itself."""
    first = compute_moments(random_features(1, height=20))
    second = compute_moments(random_features(1, height=20, seed=1) * 2 + 1)
    product = (first.covariance @ second.covariance)[0].double()
    root_trace = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sum()
    traces = first.covariance[0].trace() + second.covariance[0].trace()
    mean_distance = (first.mean - second.mean).square().sum()
    expected = (mean_distance + traces - 2 * root_trace) / 5
    assert torch.allclose(compute_w2_loss(first, second).double(), expected, rtol=1e-4)
    assert compute_w2_loss(first, first).abs().max() < 1e-5


def test_w2_of_a_shift_is_its_square() -> None:
    features = random_features(1, height=20)
    loss = compute_w2_loss(compute_moments(features + 2), compute_moments(features))
    assert torch.allclose(loss, torch.tensor([4.0]), atol=1e-3)


def test_w2_has_a_gradient_where_the_covariance_is_singular() -> None:
    features = torch.zeros(1, 4, 3, 2, requires_grad=True)
    target = compute_moments(random_features(1, 4, 3, 2))
    compute_w2_loss(compute_moments(features), target).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_the_covariance_has_a_ridge() -> None:
    features = random_features(1, height=20)
    moments = compute_moments(features)
    expected = torch.cov(features[0].flatten(1), correction=0) + 1e-4 * torch.eye(5)
    torch.testing.assert_close(moments.covariance[0], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(moments, FeatureMoments)


def test_sliced_loss_in_loops() -> None:
    """Along each direction, the mean squared difference of sorted projections."""
    features = random_features()
    target = random_features(seed=1)
    directions = draw_random_directions(5, torch.Generator().manual_seed(0), count=3)
    assert directions.shape == (3, 5)
    assert torch.allclose(directions.norm(dim=1), torch.ones(3))
    for index, loss in enumerate(compute_sliced_loss(features, target, directions)):
        squares: list[float] = []
        for direction in directions:
            projections = sorted((direction @ features[index].flatten(1)).tolist())
            targets = sorted((direction @ target[index].flatten(1)).tolist())
            squares += [(x - y) ** 2 for x, y in zip(projections, targets, strict=True)]
        assert float(loss) == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_sliced_loss_ignores_the_order_of_positions() -> None:
    features = random_features()
    directions = draw_random_directions(5, torch.Generator().manual_seed(0))
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    shuffled = features.flatten(2)[..., order].view_as(features)
    assert compute_sliced_loss(features, shuffled, directions).max() < 1e-10


def test_sliced_loss_of_a_shift() -> None:
    features = random_features()
    directions = draw_random_directions(5, torch.Generator().manual_seed(0))
    shift = torch.tensor([1.0, 0, 0, 0, 0]).view(1, 5, 1, 1)
    loss = compute_sliced_loss(features + shift, features, directions)
    expected = directions[:, 0].square().mean().expand(2)
    assert torch.allclose(loss, expected, atol=1e-5)


def test_sliced_loss_interpolates_a_target_of_another_size() -> None:
    """Every position twice is the same distribution, up to interpolation between neighbours."""
    features = random_features(height=24)
    directions = draw_random_directions(5, torch.Generator().manual_seed(0))
    doubled = features.repeat_interleave(2, 2)
    loss = compute_sliced_loss(features, doubled, directions)
    different = compute_sliced_loss(features, 2 * doubled, directions)
    assert loss.shape == (2,)
    assert compute_sliced_loss(features, doubled[:1], directions).shape == (2,)
    assert (loss < 0.01 * different).all()
