"""Gram matrices, content and style losses against literal sums, and the laws that the papers state."""

from collections import OrderedDict

import pytest
import torch
from helpers import smooth
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

import sightline as sl
from sightline.models.model import Model
from sightline.models.weights import layer_names as nicknames
from sightline.optim.perceptual import losses as perceptual
from sightline.optim.perceptual.layers import choose_perceptual_layers, refuse_wrong_input_scale
from sightline.optim.perceptual.losses import (
    FeatureMoments,
    compute_content_loss,
    compute_gram,
    compute_gram_loss,
    compute_gram_loss_from_features,
    compute_moments,
    compute_sliced_loss,
    compute_w2_loss,
)


def features(
    count: int = 2, channels: int = 5, height: int = 6, width: int = 7, seed: int = 0
) -> Tensor:
    return torch.randn(
        count, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )


def literal_gram(one: Tensor) -> Tensor:
    channels, height, width = one.shape
    found = torch.zeros(channels, channels)
    for y in range(height):
        for x in range(width):
            found += one[:, y, x].outer(one[:, y, x])
    return found / (height * width)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gram_is_the_mean_of_outer_products(layout: torch.memory_format) -> None:
    given = features().contiguous(memory_format=layout)
    for found, one in zip(compute_gram(given), given, strict=True):
        torch.testing.assert_close(found, literal_gram(one), rtol=1e-5, atol=1e-6)


def test_gram_in_channels_last_makes_no_copy() -> None:
    given = features().contiguous(memory_format=torch.channels_last)
    assert perceptual.flatten_positions(given).data_ptr() == given.data_ptr()
    assert perceptual.flatten_positions(given.contiguous()).is_contiguous() is False


def test_gram_is_symmetric_positive_semidefinite_and_knows_no_places() -> None:
    given = features(channels=9, height=2, width=3)  # more channels than places: singular
    found = compute_gram(given)
    assert torch.allclose(found, found.mT, atol=1e-6)
    assert torch.linalg.eigvalsh(found).min() > -1e-5
    torch.testing.assert_close(
        compute_gram(given.roll((1, 2), (2, 3))), found, rtol=1e-5, atol=1e-6
    )


def test_gram_of_half_precision_does_not_overflow() -> None:
    found = compute_gram(torch.full((1, 2, 64, 64), 200.0, dtype=torch.float16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 2, 2), 40_000.0))
    given = features().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = compute_gram(given)
    mixed.sum().backward()
    assert torch.equal(mixed, compute_gram(given)), (
        "products in half precision lose the small differences"
    )


def test_grams_own_backward_pass_is_autograds() -> None:
    given = features(1, 4, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(perceptual.GramFunction.apply, (given,))
    weights = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = torch.autograd.grad((perceptual.GramFunction.apply(given) * weights).sum(), given)[0]
    plain = torch.autograd.grad(((given.flatten(2) @ given.flatten(2).mT) * weights).sum(), given)[
        0
    ]
    torch.testing.assert_close(own, plain)


def test_gram_loss_is_gatys() -> None:
    """E = Σ(G − A)²/(4N²M²) with G = FFᵀ summed over the positions."""
    one, two = features(1)[0], features(1, seed=1)[0]
    channels, positions = one.shape[0], one[0].numel()
    difference = literal_gram(one) * positions - literal_gram(two) * positions
    expected = difference.square().sum() / (4 * channels**2 * positions**2)
    assert torch.allclose(
        compute_gram_loss(compute_gram(one[None]), compute_gram(two[None])), expected.view(1)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("targets", [1, 2])
def test_the_distance_found_at_once_is_that_of_the_gram_matrices(
    layout: torch.memory_format, targets: int
) -> None:
    """Its value, and its gradient as autograd has it from literal sums."""
    given = features().contiguous(memory_format=layout).requires_grad_()
    target, weights = compute_gram(features(targets, seed=1)), torch.tensor([0.3, 2.0])
    products = torch.einsum("nchw,ndhw->ncd", given, given) / 42
    literal = ((products - target) ** 2).sum((1, 2)) / (4 * 5**2)
    found = compute_gram_loss_from_features(given, target)
    torch.testing.assert_close(found, literal)
    slopes = [torch.autograd.grad((weights * one).sum(), given)[0] for one in (found, literal)]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_w2_is_the_distance_of_gaussians() -> None:
    """Against the textbook formula with a square root by eigenvectors of the product itself."""
    one, two = (
        compute_moments(features(1, height=20)),
        compute_moments(features(1, height=20, seed=1) * 2 + 1),
    )
    product = (one.covariance @ two.covariance)[0].double()
    root = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sum()
    expected = (
        (one.mean - two.mean).square().sum()
        + one.covariance[0].trace()
        + two.covariance[0].trace()
        - 2 * root
    )
    assert torch.allclose(compute_w2_loss(one, two).double(), expected / 5, rtol=1e-4)
    assert compute_w2_loss(one, one).abs().max() < 1e-5
    shift = FeatureMoments(one.mean + 2, compute_moments(features(1, height=20) + 2).gram)
    assert torch.allclose(compute_w2_loss(shift, one), torch.tensor([4.0]), atol=1e-3), (
        "a shift by 2 in each channel"
    )


def test_w2_has_a_gradient_where_the_covariance_is_singular() -> None:
    given = torch.zeros(1, 4, 3, 3, requires_grad=True)
    compute_w2_loss(compute_moments(given), compute_moments(features(1, 4, 3, 3))).sum().backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()


def test_sliced_loss_knows_no_order_and_takes_two_sizes() -> None:
    directions = perceptual.draw_random_directions(5, torch.Generator().manual_seed(0))
    assert torch.allclose(directions.norm(dim=1), torch.ones(5))
    given = features()
    mixed = given.flatten(2)[
        ..., torch.randperm(42, generator=torch.Generator().manual_seed(0))
    ].view_as(given)
    assert compute_sliced_loss(given, mixed, directions).max() < 1e-10
    shift = torch.tensor([1.0, 0, 0, 0, 0]).view(1, 5, 1, 1)
    assert torch.allclose(
        compute_sliced_loss(given + shift, given, directions),
        directions[:, 0].square().mean().expand(2),
        atol=1e-5,
    )
    assert compute_sliced_loss(given, given.repeat(1, 1, 2, 2)[:1], directions).shape == (2,)


def test_blends_are_linear_in_both_moments() -> None:
    one, two = compute_moments(features(1)), compute_moments(features(1, seed=1))
    half = perceptual.blend_moments([one, two], [3, 1])
    torch.testing.assert_close(half.gram, 0.75 * one.gram + 0.25 * two.gram)
    torch.testing.assert_close(half.mean, 0.75 * one.mean + 0.25 * two.mean)


def test_features_are_content_only_where_they_are_equal() -> None:
    given = features()
    assert compute_content_loss(given, given).tolist() == [0, 0]
    assert torch.allclose(compute_content_loss(given, given + 3), torch.tensor([9.0, 9.0]))


def test_layers_by_family(tiny: sl.Model) -> None:
    assert choose_perceptual_layers(sl.load("sightnet", weights="random")).style[0] == "relu1"
    vgg = nn.Sequential(
        OrderedDict(features=make_layers([4, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 8]))
    )
    assert (
        "relu5_1"
        in choose_perceptual_layers(
            Model(vgg, size=32, aliases=nicknames.make_vgg_aliases(vgg))
        ).style
    )
    assert "fire4" in choose_perceptual_layers(sl.load("squeezenet1_1", weights="random")).content
    other = choose_perceptual_layers(tiny)
    assert set(other.content) < set(other.style) <= set(tiny.layers)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(sl.SightlineError, match="no layer with places"):
        choose_perceptual_layers(sl.load(dense, size=4))


def normed(scale: float = 1.0, *, trained: bool = True) -> nn.Sequential:
    """A convolution and the batch norm behind it, trained on `scale` times what mean 0.5 and std 0.25 make of smooth pictures."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    if trained:
        with torch.no_grad():
            body.train()
            for _ in range(200):
                body((smooth(16) - 0.5) / 0.25 * scale)
    return body.eval()


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "size": 32}


@pytest.mark.parametrize("scale", [57, 1 / 57])
def test_a_scale_that_batch_norm_does_not_know_is_refused(photo: Tensor, scale: float) -> None:
    model = sl.load(normed(scale), **HALF)
    with pytest.raises(
        sl.SightlineError, match=r"answers this one ([\d.]+) times as strongly"
    ) as caught:
        refuse_wrong_input_scale(model, photo)
    told = float(str(caught.value).split("this one ")[1].split()[0])
    assert told == pytest.approx(1 / scale, rel=0.4)  # the picture is not those of the training
    with pytest.raises(sl.SightlineError, match="trained on pictures of another scale"):
        sl.style(model, photo, styles=(photo,), steps=1)


@pytest.mark.parametrize("body", [normed(), normed(3), normed(1 / 3), normed(57, trained=False)])
def test_scales_that_it_may_have_seen_are_taken(photo: Tensor, body: nn.Module) -> None:
    refuse_wrong_input_scale(sl.load(body, **HALF), photo)


def test_a_plain_picture_says_nothing_of_the_scale() -> None:
    refuse_wrong_input_scale(sl.load(normed(), **HALF), torch.full((1, 3, 32, 32), 0.4))


def test_networks_without_batch_norm_are_not_asked(tiny: sl.Model, photo: Tensor) -> None:
    refuse_wrong_input_scale(tiny, photo * 1e3)
    refuse_wrong_input_scale(sl.load(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), size=4), photo)
