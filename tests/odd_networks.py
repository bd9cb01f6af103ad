"""Networks that do more than compute, as people bring them."""

import functools
import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

SIDE = 12  # pixels of the images that these networks take

odd_networks: dict[str, Callable[[], nn.Module]] = {}


def odd_network(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Adds a network to `odd_networks`: seeded, in evaluation mode."""

    @functools.wraps(make)
    def make_seeded() -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    odd_networks[make.__name__] = make_seeded
    return make_seeded


def make_plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


class Plain(nn.Module):
    """A convolution and a linear layer by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.f = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.a(x).mean((2, 3)))


# ── hooks ──


class Skip(nn.Module):
    """Keeps a layer's output in a dict by a hook, and reads it there."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)
        self.f = nn.Linear(4, 5)
        self.kept: dict[str, Tensor] = {}
        self.set_hooks()

    def set_hooks(self) -> None:
        self.a.register_forward_hook(lambda _m, _i, o: self.kept.update(a=o))

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.f(self.kept["a"].mean((2, 3)))


@odd_network
def hook_with_closure() -> nn.Module:
    return Skip()


@odd_network
def hook_with_default() -> nn.Module:
    class WithDefault(Skip):
        def set_hooks(self) -> None:
            def keep(_m: Any, _i: Any, o: Tensor, kept: dict[str, Tensor] = self.kept) -> None:
                kept["a"] = o

            self.a.register_forward_hook(keep)

    return WithDefault()


@odd_network
def hook_with_keyword_default() -> nn.Module:
    class WithDefault(Skip):
        def set_hooks(self) -> None:
            def keep(_m: Any, _i: Any, o: Tensor, *, kept: dict[str, Tensor] = self.kept) -> None:
                kept["a"] = o

            self.a.register_forward_hook(keep)

    return WithDefault()


@odd_network
def hook_of_partial() -> nn.Module:
    def keep(kept: dict[str, Tensor], _m: Any, _i: Any, o: Tensor) -> None:
        kept["a"] = o

    class WithPartial(Skip):
        def set_hooks(self) -> None:
            self.a.register_forward_hook(functools.partial(keep, self.kept))

    return WithPartial()


@odd_network
def hook_of_method() -> nn.Module:
    class WithMethod(Skip):
        def set_hooks(self) -> None:
            self.a.register_forward_hook(self.keep)

        def keep(self, _m: Any, _i: Any, o: Tensor) -> None:
            self.kept["a"] = o

    return WithMethod()


@odd_network
def hook_of_object() -> nn.Module:
    class Keeper:
        def __init__(self, kept: dict[str, Tensor]) -> None:
            self.kept = kept

        def __call__(self, _m: Any, _i: Any, o: Tensor) -> None:
            self.kept["a"] = o

    class WithObject(Skip):
        def set_hooks(self) -> None:
            self.a.register_forward_hook(Keeper(self.kept))

    return WithObject()


@odd_network
def hooks_of_every_kind() -> nn.Module:
    class WithAll(Skip):
        def set_hooks(self) -> None:
            self.register_forward_pre_hook(lambda _m, a: self.kept.update(x=a[0]))
            self.a.register_forward_hook(
                lambda _m, _a, _k, o: self.kept.update(a=o * self.kept["x"].mean()),
                with_kwargs=True,
                always_call=True,
            )
            self.f.register_forward_pre_hook(
                lambda _m, a, k: ((a[0] + self.kept["a"].sum(),), k), with_kwargs=True
            )

    return WithAll()


@odd_network
def hook_removed_and_set_again() -> nn.Module:
    class Renewed(Skip):
        def set_hooks(self) -> None:
            self.handle = self.a.register_forward_hook(lambda _m, _i, o: self.kept.update(a=o))

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            self.handle.remove()
            self.set_hooks()
            return output

    return Renewed()


@odd_network
def hook_that_changes_the_output() -> nn.Module:
    network = make_plain()
    network[0].register_forward_hook(lambda _m, _i, o: o * 2)
    return network


@odd_network
def hook_of_feature_object() -> nn.Module:
    """As fastai's U-Net keeps the features of its encoder."""

    class Hook:
        def __init__(self, module: nn.Module) -> None:
            self.handle = module.register_forward_hook(self.keep)
            self.stored: Any = None

        def keep(self, _m: Any, _i: Any, o: Tensor) -> None:
            self.stored = o

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = make_plain()[:2]
            self.hook = Hook(self.encoder[0])
            self.head = nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.encoder(x)
            return self.head(x + self.hook.stored).mean((2, 3))

    return Decoder()


# ── state ──


@odd_network
def kept_activations() -> nn.Module:
    @dataclass
    class State:
        acts: list[Tensor] = field(default_factory=list)
        last: Tensor | None = None

    class Keeping(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.state = State()
            self.by_name: dict[str, tuple[Tensor, ...]] = {}
            self.last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            features = self.a(x)
            self.state.acts.append(features)
            self.state.last = features
            self.by_name["a"] = (features,)
            self.last = features
            return self.f(features.mean((2, 3)))

    network = Keeping()
    network(torch.rand(1, 3, SIDE, SIDE))
    return network


@odd_network
def counting_buffers() -> nn.Module:
    class Counting(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(3))
            self.register_buffer("last_calls", self.calls[1:])  # type: ignore[index]
            self.total = torch.zeros(2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.total.add_(1)
            return super().forward(x) * self.last_calls.sum() / self.total.sum()

    return Counting()


@odd_network
def observers() -> nn.Module:
    network = make_plain().train()
    network.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is to be replaced
        quantization.prepare_qat(network, inplace=True)
    network(torch.rand(4, 3, SIDE, SIDE))
    return network


@odd_network
def odd_attributes() -> nn.Module:
    network: Any = Plain()
    network.generator = torch.Generator().manual_seed(3)
    network.lock = threading.Lock()
    network.condition = threading.Condition()
    network.numbers = np.arange(4.0)
    network.iterator = (number for number in range(3))
    network.thread_local = threading.local()
    network.read_only = types.MappingProxyType({"layers": [network.a]})
    network.by_module = {network.a: "first"}
    return network


@odd_network
def circles() -> nn.Module:
    network: Any = Plain()
    network.a.__dict__["parent"] = network
    ring: list[Any] = [network]
    ring.append((ring,))
    network.ring = ring
    return network


@odd_network
def tied_weights() -> nn.Module:
    class Tied(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)
            self.again = self.f
            self.same_weight = nn.Linear(4, 4)
            self.same_weight.weight = self.f.weight
            self.same_storage = nn.Linear(4, 4)
            self.same_storage.weight.data = self.f.weight.data

        def forward(self, x: Tensor) -> Tensor:
            return self.same_storage(self.same_weight(self.again(super().forward(x))))

    return Tied()


# ── other kinds of modules ──


@odd_network
def parametrized() -> nn.Module:
    network = make_plain()
    parametrizations.weight_norm(network[0])
    parametrizations.orthogonal(network[5])
    network[0].register_forward_hook(lambda m, _i, o: o * m.weight.sum() + network[5].weight.sum())
    return network


@odd_network
def recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3 * SIDE, 6, 2, batch_first=True, bidirectional=True)
            self.f = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(self.rnn(x.transpose(1, 2).flatten(2))[0].mean(1))

    return Recurrent()


@odd_network
def traced_graph() -> nn.Module:
    graph: Any = torch.fx.symbolic_trace(Plain())
    graph.kept = {}
    graph.a.register_forward_hook(lambda _m, _i, o: graph.kept.update(a=o))
    graph.register_forward_hook(lambda _m, _i, o: o * graph.kept["a"].mean())
    return graph


@odd_network
def copied_its_own_way() -> nn.Module:
    class OwnWay(Skip):
        def __deepcopy__(self, memo: dict[int, Any]) -> "OwnWay":
            copied = type(self)()
            copied.load_state_dict(self.state_dict())
            return copied

    return OwnWay()


@odd_network
def copied_as_itself() -> nn.Module:
    class Single(Skip):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Single":
            return self

    return Single()


@odd_network
def own_state() -> nn.Module:
    class OwnState(Skip):
        def __getstate__(self) -> dict[str, Any]:
            return {name: value for name, value in vars(self).items() if name != "kept"}

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            self.kept = {}

    return OwnState()


@odd_network
def parallel_inside() -> nn.Module:
    network = Plain()
    network.a = nn.DataParallel(network.a)  # type: ignore[assignment]
    return network


@odd_network
def replaced_forward() -> nn.Module:
    network = Plain()

    def forward(self: Plain, x: Tensor) -> Tensor:
        return self.f(self.a(x).mean((2, 3))) * 2

    network.forward = types.MethodType(forward, network)  # type: ignore[method-assign]
    return network


@odd_network
def forward_around_forward() -> nn.Module:
    network = Plain()
    forward = network.forward

    @functools.wraps(forward)
    def scaled(x: Tensor) -> Tensor:
        return forward(x) * network.f.weight.sum()

    network.forward = scaled  # type: ignore[method-assign]
    return network


# ── activation checkpointing, which Sightline runs directly ──


class Checkpointed(Plain):
    """Recomputes its convolution in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        features = checkpoint(self.a, x, use_reentrant=self.use_reentrant)
        return self.f(features.mean((2, 3)))  # type: ignore[union-attr]
