"""Networks as people wrap and write them, each with what its scores are by plain torch."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from zoo.backbone import CLASSES, WIDTH, Classifier, make_head
from zoo.odd_answers import OddModel, run_plainly

HALF = 16  # pixels of the features along each side


class FlattenedByView(Classifier):
    """A linear layer of all features, which `view` flattens."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH * HALF * HALF, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return self.head(self.backbone(image).view(-1, WIDTH * HALF * HALF))


class PatchesByView(nn.Module):
    """Cuts the image into patches by `view`, and asks for contiguous images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, WIDTH)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        assert image.is_contiguous(), "contiguous images, please"
        count, channels, height, width = image.shape
        patches = image.view(count, channels, height // 4, 4, width // 4, 4)
        tokens = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.head(F.gelu(self.embed(tokens)).mean(1))


class ReadsMemory(nn.Module):
    """Cuts windows out of the image by strides of its own, which are those of plain images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(36, WIDTH)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        count, _, height, width = image.shape
        area = height * width
        shape = (count, height - 5, width - 5, 6, 6)
        windows = torch.as_strided(image, shape, (3 * area, width, 1, width, 1), area)
        return self.head(self.embed(windows.flatten(3)).relu().mean((1, 2)))


class TakesTurns(Classifier):
    """Each position of the features goes to an expert, which takes a limited number of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        features = self.backbone(image)
        tokens = features.permute(0, 2, 3, 1).flatten(0, 2)
        weights, chosen = (8 * self.gate(tokens)).softmax(1).max(1)
        mixed = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            places = (chosen == number).nonzero()[:60, 0]
            mixed = mixed.index_add(0, places, expert(tokens[places]) * weights[places, None])
        return self.head(mixed.view(len(image), -1, WIDTH).mean(1))


class ImagesAsSteps(Classifier):
    """An LSTM over rows that takes the images for its steps, as without `batch_first`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH * HALF, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        rows, _ = self.lstm(self.backbone(image).transpose(1, 2).flatten(2))
        return self.head(rows[:, -1])


class BatchContrast(Classifier):
    """Divides by the contrast of the whole batch."""

    def forward(self, image: Tensor) -> object:
        """N×5."""
        return super().forward((image - image.mean()) / image.std())


class KeepsStatistics(Classifier):
    """Its batch norm stays in training mode."""

    def train(self, mode: bool = True) -> "KeepsStatistics":
        super().train(mode)
        self.backbone.norm1.train()
        return self


class ComplexFilters(nn.Module):
    """Filters of frequencies, whose complex weights come first."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(3, WIDTH, 5, 5, dtype=torch.complex64))
        self.side_path = nn.Conv2d(3, WIDTH, 1)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        spectrum = torch.fft.rfft2(image)
        low = torch.einsum("nixy,ioxy->noxy", spectrum[..., :5, :5], self.filters)
        padded = F.pad(low, (0, spectrum.shape[3] - 5, 0, spectrum.shape[2] - 5))
        maps = torch.fft.irfft2(padded, s=image.shape[2:])
        return self.head(F.gelu(maps + self.side_path(image)).mean((2, 3)))


class SurrogateStep(torch.autograd.Function):
    """A step, whose gradient is that of a soft one."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:
        ctx.save_for_backward(potential)
        return (potential > 0).to(potential)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (potential,) = ctx.saved_tensors
        return grad / (1 + potential.abs()).square()


class Spiking(Classifier):
    """Spikes over four steps, with a potential that is kept between them."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        current = self.backbone(image)
        potential = torch.zeros_like(current)
        scores: list[Tensor] = []
        for _ in range(4):
            potential = 0.9 * potential + current
            spikes: Tensor = SurrogateStep.apply(potential - 0.4)  # type: ignore[no-untyped-call]
            potential = potential - 0.4 * spikes
            scores.append(self.head(spikes.mean((2, 3))))
        return torch.stack(scores).mean(0)


class ZeroShot(Classifier):
    """The cosine to texts, which are a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__(classes=12)
        texts = F.normalize(torch.randn(CLASSES, 12), dim=1)
        self.register_buffer("texts", texts, persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        embedded = F.normalize(self.head(self.pool_features(image)), dim=1)
        return self.log_scale.exp() * embedded @ self.texts.T  # type: ignore[operator]


class Margin(Classifier):
    """A cosine with a margin at a label, which has to be given."""

    def forward(self, image: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """N×5."""
        cosine = F.normalize(self.pool_features(image)) @ F.normalize(self.head.weight).T
        angle = cosine.clamp(-0.999, 0.999).acos()
        return 8 * torch.cos(angle + 0.3 * F.one_hot(label, CLASSES))


class Distribution(Classifier):
    """Returns a distribution."""

    def forward(self, image: Tensor) -> torch.distributions.Categorical:
        """Of 5 classes."""
        return torch.distributions.Categorical(logits=self.head(self.pool_features(image)))


class Delegating(nn.Module):
    """Has every attribute of the network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Classifier()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inside, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """N×5."""
        return self.inside(*args, **kwargs)


def make_average() -> nn.Module:
    """An average of two networks' weights."""
    average = AveragedModel(Classifier())
    for _ in range(2):
        average.update_parameters(Classifier())
    return average


def make_pruned() -> nn.Module:
    """Weights that are masked before each run."""
    network = Classifier()
    prune.l1_unstructured(network.backbone.conv1, "weight", 0.4)
    prune.ln_structured(network.backbone.conv2, "weight", 0.25, n=2, dim=0)
    return network


def make_expanded() -> nn.Module:
    """One filter in the place of several, without memory of their own."""
    network = Classifier()
    kernel = torch.randn(6, 1, 3, 3).expand(6, 3, 3, 3)
    network.backbone.conv1.weight = nn.Parameter(kernel)
    network.head.weight = nn.Parameter(torch.randn(WIDTH, CLASSES).t())
    return network


def run_one_by_one(network: Any, images: Tensor) -> Tensor:
    """Each image alone, by a copy that starts anew."""
    return torch.cat([copy.deepcopy(network)(image) for image in images.split(1)])


ODD_WRAPPINGS: dict[str, OddModel] = {
    "flattened_by_view": OddModel(FlattenedByView, lambda net, x: net(x.contiguous())),
    "patches_by_view": OddModel(PatchesByView, lambda net, x: net(x.contiguous())),
    "reads_memory": OddModel(ReadsMemory, lambda net, x: net(x.contiguous())),
    "takes_turns": OddModel(TakesTurns, run_one_by_one),
    "images_as_steps": OddModel(ImagesAsSteps, run_one_by_one),
    "batch_contrast": OddModel(BatchContrast, run_one_by_one),
    "keeps_statistics": OddModel(KeepsStatistics, run_one_by_one),
    "complex_filters": OddModel(ComplexFilters),
    "spiking": OddModel(Spiking),
    "zero_shot": OddModel(ZeroShot),
    "margin": OddModel(
        Margin, lambda net, x: net(x, torch.full((len(x),), 2)), {"inputs": {"label": 2}}
    ),
    "distribution": OddModel(Distribution, lambda net, x: net(x).logits),
    "delegating": OddModel(Delegating, run_plainly),
    "average": OddModel(make_average),
    "pruned": OddModel(make_pruned),
    "expanded": OddModel(make_expanded),
}
