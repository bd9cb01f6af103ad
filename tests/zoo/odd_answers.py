"""Networks with answers of many forms, each with what its scores are by plain torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.backbone import CLASSES, WIDTH, Backbone, Classifier

Oracle = Callable[[Any, Tensor], Tensor]


def run_plainly(network: nn.Module, images: Tensor) -> Tensor:
    """What the network itself gives."""
    return network(images)


@dataclass(frozen=True)
class OddModel:
    """A network, what `sl.load` is told, and what its scores for normalized images are.

    `kind` is what the output means, if it is other than logits.
    """

    build: Callable[[], nn.Module]
    oracle: Oracle = run_plainly
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kind: str = "logits"


class Part(Classifier):
    """What is made of the logits is told by a function of features and logits."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any], outputs: int = CLASSES) -> None:
        super().__init__(classes=outputs)
        self.answer = answer

    def compute_logits(self, image: Tensor) -> Tensor:
        """The scores themselves, N×K."""
        return self.head(self.pool_features(image))

    def forward(self, image: Tensor) -> Any:
        """What `answer` makes of them."""
        features = self.pool_features(image)
        return self.answer(features, self.head(features))


def part(
    answer: Callable[[Tensor, Tensor], Any],
    kind: str = "logits",
    oracle: Oracle | None = None,
    **options: Any,
) -> OddModel:
    """A classifier whose scores are its logits, in whatever form it returns them."""
    return OddModel(
        lambda: Part(answer), oracle or (lambda net, x: net.compute_logits(x)), options, kind
    )


class Distances(Classifier):
    """The negative distance to a prototype of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return -torch.cdist(self.pool_features(image), self.prototypes)


class CosineHead(Classifier):
    """A scaled cosine to each class's weight; a label adds a margin, as in training."""

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """N×5."""
        features = F.normalize(self.pool_features(image))
        cosine = features @ F.normalize(self.head.weight).T
        if label is not None:
            cosine = cosine - 0.3 * F.one_hot(label, CLASSES)
        return 16 * cosine


class Captions(Classifier):
    """A recurrent network writes words: N×steps×words."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(CLASSES, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """N×3×5."""
        state = self.pool_features(image)
        word = state.new_zeros(len(state), CLASSES)
        words: list[Tensor] = []
        for _ in range(3):
            state = self.cell(word, state)
            word = self.head(state)
            words.append(word)
        return torch.stack(words, 1)


class Autoencoder(nn.Module):
    """An image of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.up = nn.ConvTranspose2d(WIDTH, 3, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """N×3×H×W."""
        return self.up(self.backbone(image)).sigmoid()


class Flow(Classifier):
    """A code and the logarithm of a determinant."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """N×5 and N."""
        scores = self.head(self.pool_features(image))
        return scores, scores.abs().sum(1)


class Capsules(Classifier):
    """A vector for each class, whose length is its score."""

    def __init__(self) -> None:
        super().__init__(classes=CLASSES * 4)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return self.head(self.pool_features(image)).unflatten(1, (CLASSES, 4)).norm(dim=2)


class MemberMean(nn.Module):
    """The mean of the probabilities of three networks."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([Classifier() for _ in range(3)])

    def forward(self, image: Tensor) -> Tensor:
        """N×5, rows that sum to 1."""
        return torch.stack([member(image).softmax(1) for member in self.members]).mean(0)


class Ordinal(Classifier):
    """Probabilities that the grade is above each threshold."""

    def __init__(self) -> None:
        super().__init__(classes=1)
        self.thresholds = nn.Parameter(torch.tensor([-2.0, -1.0, 0.0, 1.0]))

    def forward(self, image: Tensor) -> Tensor:
        """N×4."""
        return torch.sigmoid(self.head(self.pool_features(image)) - self.thresholds)


class ByKeywordOnly(Classifier):
    """The image is a keyword, and a flag changes the output's form."""

    def forward(self, *, pixel_values: Tensor, return_dict: bool = True) -> Any:
        """A dict or a tuple."""
        scores = self.head(self.pool_features(pixel_values))
        return {"logits": scores, "labels": None} if return_dict else (scores,)


class AnyArguments(Classifier):
    """Takes whatever it is given."""

    def forward(self, *inputs: Tensor, **_: Any) -> Tensor:
        """N×5."""
        return self.head(self.pool_features(inputs[0]))


class Diffusion(Classifier):
    """The noise in an image at a time step."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, WIDTH)
        self.up = nn.ConvTranspose2d(WIDTH, 3, 2, stride=2)

    def forward(self, image: Tensor, step: Tensor) -> Tensor:
        """N×3×H×W."""
        embedded = self.time(step.float().view(-1, 1) / 1000)
        return self.up(self.backbone(image) * embedded[:, :, None, None])


class SeveralHeads(Classifier):
    """Deep supervision: the scores of two depths in a list, the last one first."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(6, CLASSES)

    def forward(self, image: Tensor) -> list[Tensor]:
        """N×5 twice."""
        early = self.backbone.conv1(image).relu().mean((2, 3))
        return [self.head(self.pool_features(image)), self.early(early)]


def get_logits(network: Any, images: Tensor) -> Tensor:
    """The logits of networks that return them under that name or first."""
    output = network(images)
    return output["logits"] if isinstance(output, dict) else output[0]


def get_log_odds(network: Any, images: Tensor) -> Tensor:
    """Of probabilities the logarithms of the odds."""
    return torch.logit(network(images))


ODD_ANSWERS: dict[str, OddModel] = {
    "y_hat": part(lambda _, y: {"y_hat": y, "hidden": y[:, :2]}, output="y_hat"),
    "only_value": part(lambda _, y: {"anything": y}),
    "features_then_logits": part(lambda f, y: (f, y), output=1),
    "logits_then_features": part(lambda f, y: (y, f)),
    "loss_none": part(lambda _, y: (None, y), output=1),
    "loss_none_in_dict": part(lambda f, y: {"loss": None, "logits": y, "hidden_states": (f, f)}),
    "axis_of_one": part(lambda _, y: y[:, None], "positions"),
    "map_of_one": part(lambda _, y: y[:, :, None, None]),
    "log_softmax": part(lambda _, y: y.log_softmax(1), oracle=run_plainly),
    "softmax": part(lambda _, y: y.softmax(1), "probabilities", lambda net, x: net(x).log()),
    "multilabel": part(lambda _, y: y.sigmoid(), "multilabel", get_log_odds),
    "clamped": part(lambda _, y: y.clamp(-3, 3), oracle=run_plainly),
    "temperature": part(lambda _, y: y / 1.7, oracle=run_plainly),
    "negative": part(lambda _, y: -y.exp(), oracle=run_plainly),
    "unit_length": part(lambda f, _: F.normalize(f), "embedding", run_plainly),
    "path": part(lambda f, y: {"a": {"b": [f, y]}, "c": f}, output="a.b.1"),
    "distances": OddModel(Distances),
    "cosine": OddModel(CosineHead),
    "flow": OddModel(Flow, get_logits),
    "scores_and_entropy": part(lambda _, y: (y, -(y.softmax(1) * y.log_softmax(1)).sum(1))),
    "scores_and_norm": part(lambda _, y: [y, y.norm(dim=1, keepdim=True)]),
    "scores_and_penalty": part(lambda _, y: (y, y.square().mean())),
    "capsules": OddModel(Capsules),
    "member_mean": OddModel(MemberMean, lambda net, x: net(x).log(), {}, "probabilities"),
    "ordinal": OddModel(Ordinal, get_log_odds, {}, "multilabel"),
    "keyword_only": OddModel(ByKeywordOnly, lambda net, x: net(pixel_values=x)["logits"], {}),
    "any_arguments": OddModel(AnyArguments),
    "several_heads": OddModel(SeveralHeads, get_logits),
    "captions": OddModel(Captions, lambda net, x: net(x).amax(1), {}, "positions"),
    "autoencoder": OddModel(Autoencoder, lambda net, x: net(x).mean((2, 3)), {}, "dense"),
    "diffusion": OddModel(
        Diffusion,
        lambda net, x: net(x, torch.full((len(x),), 500.0)).mean((2, 3)),
        {"inputs": {"step": 500.0}},
        "dense",
    ),
}
