"""Networks that run in odd ways: by turns, by their own gradient, compiled, of stored weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.backbone import CLASSES, WIDTH, Classifier, make_head
from zoo.odd_answers import OddModel


class ByTheGradient(nn.Module):
    """Adds the length of the gradient of its own scores by its own input, which has two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.beside = nn.Conv2d(3, WIDTH, 1)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        with torch.enable_grad():
            if not image.requires_grad:
                image = image.detach().requires_grad_()
            features = F.softplus(self.deep(F.softplus(self.stem(image))) + self.beside(image))
            scores = self.head(features.mean((2, 3)))
            energy = scores.logsumexp(1).sum()
            (gradient,) = torch.autograd.grad(energy, image, create_graph=True)
        lengths = gradient.square().sum((1, 2, 3))
        return scores + 300 * lengths[:, None] * torch.arange(float(CLASSES))


class ByTurns(Classifier):
    """Runs its layers for one image after another, as far as each image needs."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(6, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return torch.cat([self.score_image(single) for single in image.split(1)])

    def score_image(self, image: Tensor) -> Tensor:
        """1×5."""
        features = self.backbone.relu1(self.backbone.norm1(self.backbone.conv1(image)))
        scores = self.early(features.mean((2, 3)))
        if scores.softmax(1).amax() > 0.9:
            return scores
        return self.head(self.backbone.relu2(self.backbone.conv2(features)).mean((2, 3)))


class CompiledMethod(Classifier):
    """A part of its forward is compiled, by a decorator."""

    @torch.compile(backend="eager")
    def extract(self, image: Tensor) -> Tensor:
        """N×8×h×w."""
        return F.gelu(self.backbone(image) - 0.1)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return self.head(self.extract(image).mean((2, 3)))


def run_as_written(network: Any, images: Tensor) -> Tensor:
    """Without the compiler, whose warnings are not of interest."""
    with torch.compiler.set_stance("force_eager"):
        return network(images)


class StoredWeight(nn.Module):
    """A convolution whose weight is kept in a small type, with a scale for each filter."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        scale = weight.abs().amax((1, 2, 3), keepdim=True) / 100
        self.weight = nn.Parameter((weight / scale).to(dtype), requires_grad=False)
        self.register_buffer("scale", scale)
        self.stride = convolution.stride

    def forward(self, image: Tensor) -> Tensor:
        """N×filters×h×w."""
        weight = self.weight.to(image.dtype) * self.scale  # type: ignore[operator]
        return F.conv2d(image, weight, stride=self.stride, padding=1)


def make_stored(dtype: torch.dtype) -> nn.Module:
    """A classifier whose first weight is of this type."""
    network: Any = Classifier()
    network.backbone.conv1 = StoredWeight(network.backbone.conv1, dtype)
    network.backbone.conv2 = StoredWeight(network.backbone.conv2, dtype)
    return network


class TableFirst(nn.Module):
    """Its first parameter holds whole numbers, and all others are of double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.inside = Classifier().double()

    def forward(self, image: Tensor) -> Any:
        """N×5."""
        return self.inside(image[:, self.order])


class PlainAttention(nn.Module):
    """Attention as it stands in the books, with a dropout of its weights, in a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.drop = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """N×T×C."""
        count, length, width = tokens.shape
        split = self.qkv(self.norm(tokens)).view(count, length, 3, 2, width // 2)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = self.drop((query @ key.transpose(2, 3)).softmax(3))
        return tokens + (weights @ value).transpose(1, 2).flatten(2)


class PlainTransformer(nn.Module):
    """Two blocks of such attention, whose answer is read from a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 17, 12))
        self.blocks = nn.Sequential(PlainAttention(12), PlainAttention(12))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        patches = self.embed(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), patches], 1) + self.places
        return self.head(self.blocks(tokens)[:, 0])


class Queries(Classifier):
    """The classes of queries, masks and features by name, as segmentation by queries has them."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """N×4×5, and others."""
        features = self.backbone(image)
        halves = F.adaptive_avg_pool2d(features, 2).flatten(2).transpose(1, 2)
        return {
            "class_queries_logits": self.head(halves),
            "masks_queries_logits": features[:, :4],
            "last_hidden_state": halves,
        }


class MarkedTensor(Tensor):
    """A tensor of a class of its own, which all that is computed from it has, too."""


def make_marked() -> nn.Module:
    """A classifier whose weights are of that class."""
    network = Classifier()
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            marked = nn.Parameter(weight.detach().as_subclass(MarkedTensor))
            setattr(module, name, marked)
    return network


def run_marked(network: nn.Module, images: Tensor) -> Tensor:
    """The numbers of its scores."""
    return network(images).as_subclass(Tensor)


ODD_WAYS: dict[str, OddModel] = {
    "by_the_gradient": OddModel(ByTheGradient),
    "by_turns": OddModel(ByTurns),
    "compiled_method": OddModel(CompiledMethod, run_as_written),
    "float8_weights": OddModel(lambda: make_stored(torch.float8_e4m3fn)),
    "int8_weights": OddModel(lambda: make_stored(torch.int8)),
    "marked_weights": OddModel(make_marked, run_marked),
    "plain_transformer": OddModel(PlainTransformer),
    "queries": OddModel(
        Queries, lambda net, x: net(x)["class_queries_logits"].amax(1), {}, "positions"
    ),
}
