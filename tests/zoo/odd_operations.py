"""Networks whose operations, precision or wrapping are unusual."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint
from zoo.backbone import CLASSES, WIDTH, Backbone, Classifier, make_head

SIDE = 32  # pixels of the images that these networks take


def make_classifier() -> nn.Module:
    """The plain network that the others depart from."""
    return Classifier()


# ── weights ──


def make_old_weight_norm() -> nn.Module:
    """`nn.utils.weight_norm`, which computes the weights in a hook before each call."""
    network = Classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many checkpoints
        weight_norm(network.backbone.conv1)
    return network


def make_spectral_norm() -> nn.Module:
    """A parametrization whose buffers a training pass changes."""
    network = Classifier()
    parametrizations.spectral_norm(network.backbone.conv2)
    return network


def make_lazy() -> nn.Module:
    """Weights whose shape the first call decides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are called a feature under development
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(CLASSES))


# ── precision ──


def make_half() -> nn.Module:
    """All of it in float16."""
    return Classifier().half()


def make_bfloat16() -> nn.Module:
    """All of it in bfloat16."""
    return Classifier().bfloat16()


def make_float64() -> nn.Module:
    """All of it in float64."""
    return Classifier().double()


class MixedPrecision(Classifier):
    """A backbone in bfloat16 and a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.bfloat16()

    def pool_features(self, image: Tensor) -> Tensor:
        """The features, back in float32."""
        return super().pool_features(image.bfloat16()).float()


class Autocast(Classifier):
    """Float32 weights that compute in bfloat16 by autocast of its own."""

    def forward(self, image: Tensor) -> object:
        """The logits in float32."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.head(self.pool_features(image))
        return logits.float()


def make_dynamically_quantized() -> nn.Module:
    """A linear layer in int8 whose inputs are quantized as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to be replaced
        return quantization.quantize_dynamic(Classifier(), {nn.Linear}, dtype=torch.qint8)


class QuantizedEnds(nn.Module):
    """Turns its input to int8 and its output back."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = quantization.QuantStub()
        self.convolution = nn.Conv2d(3, WIDTH, 3)
        self.relu = nn.ReLU()
        self.head = make_head(CLASSES)
        self.dequantize = quantization.DeQuantStub()

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        features = self.relu(self.convolution(self.quantize(image)))
        return self.dequantize(self.head(features.mean((2, 3))))


def make_statically_quantized() -> nn.Module:
    """All of it in int8, without gradients."""
    network = QuantizedEnds().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to be replaced
        network.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
        quantization.prepare(network, inplace=True)
        network(torch.rand(4, 3, SIDE, SIDE))
        return quantization.convert(network)


# ── operations ──


class KeywordCalls(Classifier):
    """Calls its modules with keywords."""

    def forward(self, image: Tensor) -> object:
        """The logits."""
        features = self.backbone(image=image)
        return self.head(input=features.mean(dim=(2, 3)))


class HeadCalledTwice(Classifier):
    """The same linear layer reads the mean and the maximum of the features."""

    def forward(self, image: Tensor) -> object:
        """The sum of both."""
        features = self.backbone(image)
        return self.head(features.mean((2, 3))) + self.head(features.amax((2, 3)))


class NoLinear(nn.Module):
    """Its classes are the channels of its last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classify = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        return self.classify(self.backbone(image)).mean((2, 3))


class FunctionalSteps(nn.Module):
    """ReLUs and pooling as functions, and weights that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(WIDTH, 3, 3, 3) / 3)
        self.scores = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        features = functional.relu(functional.conv2d(image, self.filters, padding=1))
        pooled = functional.max_pool2d(features, 2).clamp(min=0)
        return functional.linear(pooled.mean((2, 3)), self.scores)


class FourierLayer(nn.Module):
    """Complex weights for the lowest frequencies of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 6, 5, 5, dtype=torch.cfloat) / 4)
        self.convolution = nn.Conv2d(6, WIDTH, 3)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        spectrum = torch.fft.rfft2(image)
        filtered = torch.zeros(len(image), 6, *spectrum.shape[2:], dtype=torch.cfloat)
        lowest = spectrum[:, :, :5, :5]
        filtered[:, :, :5, :5] = torch.einsum("nihw,iohw->nohw", lowest, self.weights)
        features = torch.fft.irfft2(filtered, s=image.shape[2:]).tanh()
        return self.head(self.convolution(features).relu().mean((2, 3)))


class HyperNetwork(nn.Module):
    """Computes the weights of a convolution from the image, one group for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.make_weights = nn.Linear(WIDTH, 4 * WIDTH * 9)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        features = self.backbone(image)
        count, channels, height, width = features.shape
        weights = self.make_weights(features.mean((2, 3))).view(count * 4, WIDTH, 3, 3)
        grouped = features.reshape(1, count * channels, height, width)
        maps = functional.conv2d(grouped, weights, groups=count, padding=1)
        return self.head(maps.view(count, 4, height, width).relu().mean((2, 3)))


class Members(nn.Module):
    """An ensemble that runs at once, by `torch.vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.member = Classifier()
        self.gains = nn.Parameter(torch.tensor([0.5, 1.0, 1.5]))

    def forward(self, image: Tensor) -> Tensor:
        """The mean of the logits."""
        return torch.vmap(lambda gain: self.member(image * gain))(self.gains).mean(0)


class OwnGradient(Classifier):
    """Its answer is a gradient that it computes itself, as that of energy models."""

    def forward(self, image: Tensor) -> object:
        """The gradient of an energy with respect to some of the features."""
        with torch.enable_grad():
            features = self.pool_features(image)
            if not features.requires_grad:
                features = features.detach().requires_grad_()
            energy = self.head(features).square().sum()
            return torch.autograd.grad(energy, features, create_graph=True)[0][:, :CLASSES]


class Equilibrium(nn.Module):
    """Repeats a layer until nothing changes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.repeated = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.head = make_head(CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        entered = self.enter(image)
        state = torch.zeros_like(entered)
        for _ in range(20):
            following = torch.tanh(0.3 * self.repeated(state) + entered)
            is_settled = bool((following - state).abs().max() < 1e-4)
            state = following
            if is_settled:
                break
        return self.head(state.mean((2, 3)))


class WritesItsInput(Classifier):
    """Normalizes its input in place."""

    def forward(self, image: Tensor) -> object:
        """The logits."""
        image[:, 0].sub_(0.3)
        return super().forward(image.mul_(2))


class OverwritesActivations(Classifier):
    """Overwrites what the gradient of its last ReLU needs: torch itself can't differentiate it."""

    def pool_features(self, image: Tensor) -> Tensor:
        """The features, doubled."""
        features = self.backbone(image)
        features *= 2
        return features.mean((2, 3))


def make_batch_statistics() -> nn.Module:
    """Batch normalization that keeps no statistics, so that images of a batch see each other."""
    network = Classifier()
    network.backbone.norm1 = nn.BatchNorm2d(6, track_running_stats=False)
    return network


class BatchDependent(Classifier):
    """Subtracts the mean of the batch."""

    def forward(self, image: Tensor) -> object:
        """The logits."""
        pooled = self.pool_features(image)
        return self.head(pooled - pooled.mean(0) / 2)


class Checkpointed(Classifier):
    """Recomputes its backbone in the backward pass."""

    def pool_features(self, image: Tensor) -> Tensor:
        """The features."""
        features = checkpoint(self.backbone, image, use_reentrant=False)
        assert isinstance(features, Tensor)
        return features.mean((2, 3))


class WithoutGradient(Classifier):
    """Runs under its own `no_grad`, as feature extractors of libraries do."""

    @torch.no_grad()
    def forward(self, image: Tensor) -> object:
        """The logits, without history."""
        return super().forward(image)


class RandomScores(Classifier):
    """Drops features at random in evaluation too."""

    def pool_features(self, image: Tensor) -> Tensor:
        """Some of the features."""
        return functional.dropout(super().pool_features(image), 0.3, training=True)


class NotANumber(Classifier):
    """Divides by zero."""

    def pool_features(self, image: Tensor) -> Tensor:
        """NaN."""
        features = super().pool_features(image)
        return (features - features) / 0


# ── wrapping ──


def make_data_parallel() -> nn.Module:
    """`nn.DataParallel` round all of it."""
    return nn.DataParallel(Classifier())


def make_compiled() -> nn.Module:
    """The wrapper of `torch.compile`, with the backend that needs no compiler."""
    compiled: Any = torch.compile(Classifier(), backend="eager")
    return compiled


def make_scripted() -> nn.Module:
    """TorchScript, whose operations nothing can look into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted: Any = torch.jit.script(Backbone())
    return scripted


def make_traced() -> nn.Module:
    """An FX graph."""
    return torch.fx.symbolic_trace(Classifier())


ODD_OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "classifier": make_classifier,
    "weight_norm": make_old_weight_norm,
    "spectral_norm": make_spectral_norm,
    "lazy": make_lazy,
    "float16": make_half,
    "bfloat16": make_bfloat16,
    "float64": make_float64,
    "mixed_precision": MixedPrecision,
    "autocast": Autocast,
    "dynamic_int8": make_dynamically_quantized,
    "static_int8": make_statically_quantized,
    "keyword_calls": KeywordCalls,
    "head_called_twice": HeadCalledTwice,
    "no_linear": NoLinear,
    "functional_steps": FunctionalSteps,
    "fourier_layer": FourierLayer,
    "hyper_network": HyperNetwork,
    "members": Members,
    "own_gradient": OwnGradient,
    "equilibrium": Equilibrium,
    "writes_its_input": WritesItsInput,
    "overwrites_activations": OverwritesActivations,
    "batch_statistics": make_batch_statistics,
    "batch_dependent": BatchDependent,
    "checkpointed": Checkpointed,
    "without_gradient": WithoutGradient,
    "random_scores": RandomScores,
    "not_a_number": NotANumber,
    "data_parallel": make_data_parallel,
    "compiled": make_compiled,
    "scripted": make_scripted,
    "fx_graph": make_traced,
}
