"""Networks that compute in odd ways, each with what its scores are by plain torch."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode
from zoo.backbone import CLASSES, WIDTH, Backbone, Classifier, make_head
from zoo.odd_answers import OddModel


class Between(Classifier):
    """Something of its own between the features, N×8×h×w, and their mean."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.between = between
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return self.head(self.between(self, self.backbone(image)).mean((2, 3)))


def between(function: Callable[[Any, Tensor], Tensor], **modules: Any) -> OddModel:
    """A network with a function of itself and its features, and modules that `modules` make."""

    def build() -> nn.Module:
        return Between(function, **{name: make() for name, make in modules.items()})

    return OddModel(build)


class ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        return -0.5 * grad


class Hidden(nn.Module):
    """Weights in plain lists and dicts, which no module knows of, and as plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        # Nothing puts these into evaluation mode with the network.
        self.parts: list[Any] = [Backbone().eval(), {"head": make_head(CLASSES)}]
        self.scale = torch.linspace(1, 2, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return self.parts[1]["head"](self.parts[0](image).mean((2, 3))) * self.scale


class OwnCall(Classifier):
    """Scales its answer outside of forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * 2


class Weightless(nn.Module):
    """Filters in buffers, and no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.randn(CLASSES, 3, 3, 3))

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        return F.conv2d(image, self.filters).relu().mean((2, 3))  # type: ignore[arg-type]


class Cached(Classifier):
    """Keeps tables by the size of the image, in a cache of the function."""

    @functools.cache  # noqa: B019 - as people write it
    def make_table(self, height: int, width: int) -> Tensor:
        """1×1×height×width."""
        rows = torch.linspace(0, 1, height)[:, None]
        return (rows + torch.linspace(1, 2, width))[None, None]

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        features = self.backbone(image)
        return self.head((features * self.make_table(*features.shape[2:])).mean((2, 3)))


class EarlyExit(Classifier):
    """Each image leaves at the first head that is sure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(6, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        early = self.early(self.backbone.relu1(self.backbone.conv1(image)).mean((2, 3)))
        late = self.head(self.pool_features(image))
        is_sure = early.softmax(1).amax(1, keepdim=True) > 0.22
        return torch.where(is_sure, early, late)


class Experts(Classifier):
    """Each image goes to one of three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList([make_head(CLASSES) for _ in range(3)])

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        features = self.pool_features(image)
        weights, chosen = self.gate(features).softmax(1).max(1)
        scores = features.new_zeros(len(features), CLASSES)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                scores = scores.index_add(0, rows, expert(features[rows]) * weights[rows, None])
        return scores


class Energy(Classifier):
    """The scores are a gradient that the network takes itself."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        with torch.enable_grad():
            features = self.pool_features(image)
            code = torch.ones(len(image), CLASSES, requires_grad=True)
            energy = (self.head(features) * code.square()).sum() / 2
            return torch.autograd.grad(energy, code, create_graph=True)[0]


class Stacked(nn.Module):
    """Three networks as one, by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([Classifier().eval() for _ in range(3)])

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        parameters, buffers = torch.func.stack_module_state(list(self.members))  # type: ignore[arg-type]

        def run(parameters: Any, buffers: Any, image: Tensor) -> Tensor:
            return torch.func.functional_call(self.members[0], (parameters, buffers), (image,))

        return torch.vmap(run, (0, 0, None))(parameters, buffers, image).mean(0)


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        """The same shape."""
        return (weight + weight.flip(3)) / 2


def make_symmetric() -> nn.Module:
    """A convolution that is blind to mirroring."""
    network = Classifier()
    parametrize.register_parametrization(network.backbone.conv1, "weight", Symmetric())
    parametrizations.spectral_norm(network.head)
    return network


class OddNames(nn.Module):
    """Modules with the names of landmarks, steps and calls."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("a/relu", nn.Conv2d(3, 4, 3, padding=1))
        self.add_module("x:1", nn.Conv2d(4, 4, 3, padding=1))
        self.add_module("logits", nn.Linear(4, CLASSES))
        self.add_module("last conv*", nn.Identity())

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        modules = self._modules
        features = image
        for name in ("a/relu", "x:1"):
            features = modules[name](features).relu()  # type: ignore[misc]
        return modules["logits"](modules["last conv*"](features).mean((2, 3)))  # type: ignore[misc]


class Unrolled(Classifier):
    """One convolution a dozen times."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        features = self.backbone(image)
        for _ in range(12):
            features = features + 0.1 * self.again(features).tanh()
        return self.head(features.mean((2, 3)))


class SquareOfFeatures(Classifier):
    """Bilinear pooling of the features with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH * WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        features = self.backbone(image).flatten(2)
        products = features @ features.transpose(1, 2) / features.shape[2]
        signed = products.flatten(1)
        return self.head(signed.sign() * signed.abs().add(1e-6).sqrt())


class Recurrent(Classifier):
    """Rows as steps of an LSTM, whose last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH * 16, WIDTH, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        rows = self.backbone(image).permute(0, 2, 1, 3).flatten(2)
        _, (state, _) = self.lstm(rows)
        return self.head(state[-1])


class FrozenStem(Classifier):
    """The image is normalized in place, in double precision with constants of numpy."""

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        shift = torch.from_numpy(np.array([0.1, 0.2, 0.3])).view(1, 3, 1, 1)
        shifted = image.double().clone()
        shifted -= shift
        return super().forward(shifted.float())  # type: ignore[return-value]


class YieldsBlocks(nn.Module):
    """Blocks from a generator, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"stem": Backbone(), "scores": nn.Conv2d(WIDTH, CLASSES, 1)})

    def iterate(self) -> Iterator[nn.Module]:
        """The blocks."""
        yield from self.blocks.values()

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        for block in self.iterate():
            image = block(image)
        return image.amax((2, 3))


def make_exported() -> nn.Module:
    """A program of torch.export, of any number of images."""
    images = torch.zeros(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(Classifier().eval(), (images,), dynamic_shapes=({0: batch},))
    return program.module()


class Permuted(nn.Module):
    """Computes with its channels last throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """N×5."""
        pixels = self.stem(image).permute(0, 2, 3, 1)
        pixels = pixels + F.gelu(self.mix(self.norm(pixels)))
        return self.head(pixels.mean((1, 2)))


class BothThresholds(nn.Module):
    """Binary activations with a straight-through gradient."""

    def forward(self, features: Tensor) -> Tensor:
        """The same shape."""
        binary = (features > 0.3).to(features)
        return binary.detach() + features - features.detach()


def sample_grid(network: Any, features: Tensor) -> Tensor:
    """A spatial transformer."""
    theta = network.localize(features.mean((2, 3))).view(-1, 2, 3) * 0.1
    theta = theta + torch.eye(2, 3)
    grid = F.affine_grid(theta, list(features.shape), align_corners=False)
    return F.grid_sample(features, grid, align_corners=False)


def deform(network: Any, features: Tensor) -> Tensor:
    """A deformable convolution."""
    return network.deformed(features, network.offsets(features)).relu()


def pool_regions(_: Any, features: Tensor) -> Tensor:
    """The regions of four quarters."""
    boxes = [torch.tensor([[0.0, 0, 7, 7], [8, 0, 15, 7], [0, 8, 7, 15]])] * len(features)
    regions = torchvision.ops.roi_align(features, boxes, 4)
    return regions.unflatten(0, (len(features), 3)).amax(1)


def keep_strongest(_: Any, features: Tensor) -> Tensor:
    """The strongest positions of each channel."""
    strongest = features.flatten(2).topk(16, dim=2)
    kept = torch.zeros_like(features).flatten(2).scatter(2, strongest.indices, strongest.values)
    return kept.view_as(features)


def connect_locally(network: Any, features: Tensor) -> Tensor:
    """Weights of its own at each position."""
    patches = F.unfold(features, 3, padding=1, stride=4)
    mixed = torch.einsum("nkp,kp->np", patches, network.local.weight[:, : patches.shape[2]])
    return mixed.view(len(features), 1, 4, 4).expand(-1, WIDTH, -1, -1)


def watch_operations(network: Any, features: Tensor) -> Tensor:
    """A factor that a mode of the network's own counts: the operations for each image."""
    with FlopCounterMode(display=False) as counter:
        mixed = network.mix(features).relu()
    return mixed * (counter.get_total_flops() / len(features) / 50_000)


def run_in_threads(network: Any, features: Tensor) -> Tensor:
    """Two branches at once, and a sum."""
    has_gradient = torch.is_grad_enabled()

    def run_branch(branch: nn.Module) -> Tensor:
        with torch.set_grad_enabled(has_gradient):
            return branch(features)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run_branch, (network.first, network.second))
    return F.relu(first + second)


class Tripled(Tensor):
    """Its convolutions have three times their values."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = super().__torch_function__(func, types, args, kwargs or {})
        return output * 3 if func is F.conv2d else output


def triple(network: Any, features: Tensor) -> Tensor:
    """Two convolutions of a tensor class."""
    mixed = network.second(network.first(features.as_subclass(Tripled)).relu())
    return mixed.as_subclass(Tensor).relu()


def make_mixer() -> nn.Module:
    """A convolution that keeps the shape of the features."""
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


ODD_INSIDES: dict[str, OddModel] = {
    "reversed_gradient": between(lambda _, f: ReversedGradient.apply(f)),  # type: ignore[no-untyped-call]
    "hidden": OddModel(Hidden),
    "own_call": OddModel(OwnCall),
    "weightless": OddModel(Weightless),
    "cached": OddModel(Cached),
    "early_exit": OddModel(EarlyExit),
    "experts": OddModel(Experts),
    "energy": OddModel(Energy),
    "stacked": OddModel(Stacked),
    "symmetric": OddModel(make_symmetric),
    "odd_names": OddModel(OddNames),
    "unrolled": OddModel(Unrolled),
    "square_of_features": OddModel(SquareOfFeatures),
    "recurrent": OddModel(Recurrent),
    "frozen_stem": OddModel(FrozenStem),
    "yields_blocks": OddModel(YieldsBlocks),
    "exported": OddModel(make_exported),
    "permuted": OddModel(Permuted),
    "straight_through": between(lambda n, f: n.binary(f), binary=BothThresholds),
    "spatial_transformer": between(sample_grid, localize=lambda: nn.Linear(WIDTH, 6)),
    "deformable": between(
        deform,
        offsets=lambda: nn.Conv2d(WIDTH, 18, 3, padding=1),
        deformed=lambda: torchvision.ops.DeformConv2d(WIDTH, WIDTH, 3, padding=1),
    ),
    "regions": between(pool_regions),
    "strongest": between(keep_strongest),
    "local": between(connect_locally, local=lambda: nn.Linear(64, WIDTH * 9)),
    "pixel_shuffle": between(
        lambda _, f: F.pixel_unshuffle(F.pixel_shuffle(f, 2).relu(), 2).relu()
    ),
    "fourier": between(lambda _, f: torch.fft.rfft2(f).abs().log1p()),
    "complex": between(
        lambda n, f: torch.view_as_real(torch.complex(f, n.other(f))).norm(dim=-1),
        other=lambda: nn.Conv2d(WIDTH, WIDTH, 1),
    ),
    "cumulative": between(lambda _, f: f.cumsum(3).logsumexp(1, keepdim=True).expand_as(f)),
    "attention_map": between(lambda n, f: f * n.mask(f).sigmoid(), mask=lambda: nn.Conv2d(8, 1, 1)),
    "maxout": between(lambda _, f: f.unflatten(1, (4, 2)).amax(2).repeat(1, 2, 1, 1)),
    "shifted_channels": between(
        lambda _, f: torch.cat([f[:, :4].roll(1, 3), f[:, 4:].roll(-1, 2)], 1).relu()
    ),
    "instance_norm": between(lambda n, f: n.norm(f).relu(), norm=lambda: nn.InstanceNorm2d(WIDTH)),
    "group_norm": between(lambda n, f: n.norm(f).relu(), norm=lambda: nn.GroupNorm(4, WIDTH)),
    "watched_operations": between(watch_operations, mix=make_mixer),
    "threads": between(run_in_threads, first=make_mixer, second=make_mixer),
    "tensor_class": between(triple, first=make_mixer, second=make_mixer),
    "dropout_in_evaluation": between(lambda n, f: n.drop(f), drop=lambda: nn.Dropout2d(0.5)),
}
