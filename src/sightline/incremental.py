"""Exact incremental occlusion: of each covered image only what its window can reach is computed anew.

The network's own forward pass runs on a stand-in for the batch of covered images, which meets every operation, whoever
calls it. First once as a survey, which keeps the clean maps and learns how the cones grow; then once for each batch of
windows with patches of one shape. From the first operation without a rule (`localize`), or whose patch fills nearly the
whole map, that operation's branch goes on with whole maps. After Nakandala et al., "Incremental and approximate inference
for faster occlusion-based deep CNN explanations", 2019, section 4; the windows' classes are our own.

Memory: the clean maps twice, the packed weights, and of patches and, behind the last rule, whole maps no more at once than
the largest layer takes for `batch` whole images, and never more than 64 windows.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cones import Cone, Indices, Reach, classes
from .geometry import tensors
from .local import Call, Clean, Local, Memory, functional, multiply_adds, signature, swap
from .localize import localized
from .model import Model
from .outputs import as_logits
from .packed import convolve
from .windows import Covering, Windows, whole

aten: Any = torch.ops.aten
SURVEYED = 2  # a batch of one is viewed in other ways than larger ones
# What one more batch costs beyond its multiply-adds, as multiply-adds: for each operation, and for each weight that is read.
OVERHEAD, READING = 1e7, 50
# Windows run at once: more make no faster.
MOST = 64
# Below this ratio of multiply-adds the ordinary run is as fast.
WORTHWHILE = 1.1


class Refused(RuntimeError):  # noqa: N818 - not an error: the ordinary run takes over
    """The network does something to the stand-in that can't be followed."""


def cover(model: Model, windows: Windows, index: Tensor, *, batch: int = 32, incremental: bool = True) -> Covering:
    """Scores of the labels `index` with each window covered in turn, in the memory that `batch` whole images take.

    Equals running every covered image whole, to rounding; where that can't be had otherwise, or wouldn't pay, it is done.
    """
    with torch.inference_mode(False), torch.no_grad():
        if incremental and len(windows.places) > 1:
            try:
                with model._lock:
                    if found := Incremental(model, windows, batch).run(index):
                        return found
            except (RuntimeError, TypeError):
                pass  # the stand-in is no ordinary tensor; if the network itself is at fault, the ordinary run tells
        return Covering(torch.cat([part[:, index] for part in whole(model, windows, batch)]), 0.0, 1.0)


class Incremental:
    """The passes over one image."""

    def __init__(self, model: Model, windows: Windows, batch: int) -> None:
        self.model, self.windows, self.batch = model, windows, batch
        self.image, self.fill = Clean(model.normalize(windows.image)), model.normalize(windows.fill)

    def run(self, index: Tensor) -> Covering | None:
        """Scores of all windows, or None where it wouldn't pay."""
        survey, places = Pass({}, SURVEYED, survey=True), np.array(self.windows.places)
        self.forward(survey, Local(self.image, self.cone(np.unique(places[:, 0]), np.unique(places[:, 1]))))
        if not survey.layers or survey.gain < WORTHWHILE:
            return None
        scores, spent, kept = torch.empty(len(places), len(index), device=self.image.map.device), survey.full, 0.0
        most = max(1, min(MOST, int(self.batch * survey.largest / survey.widest)))
        for part in classes(self.windows.places, survey.layers, OVERHEAD * len(survey.tape) + READING * survey.weights, most):
            run = Pass(survey.tape, len(part))
            start = Local(self.image, self.cone(*places[part].T), self.windows.patches(part, self.fill))
            scores[part] = self.forward(run, start)[:, index]
            spent, kept = spent + run.spent * len(part), kept + run.localized * len(part)
        return Covering(scores, kept / (survey.full * len(places)), survey.full * len(places) / spent)

    def cone(self, tops: Indices, lefts: Indices) -> Cone:
        """The windows themselves."""
        height, width = self.image.map.shape[-2:]
        size = self.windows.side
        return Cone(Reach(tops, np.full_like(tops, size), height), Reach(lefts, np.full_like(lefts, size), width))

    def forward(self, run: "Pass", start: Local) -> Tensor:
        """Logits for a batch."""
        logits = as_logits(self.model.body(stand_in(run, (), local=start)), self.model.output, self.model.name)
        if not isinstance(logits, Covered):
            raise Refused("the network lost the stand-in on its way")
        return logits.whole()


@dataclass
class Pass:
    """One forward pass for `count` images. `tape` has the memory of each operation, filled by the survey.

    `layers` of a survey: multiply-adds of one position, and its cones. `full`, `spent` and `localized` count multiply-adds
    for one image: of running it whole, those done, and those of running whole what was localized. `largest` is the most numbers
    in a map, `widest` the most in what was kept of one.
    """

    tape: dict[Any, Memory]
    count: int
    survey: bool = False
    unknown: int = 0
    full: float = 0.0
    spent: float = 0.0
    localized: float = 0.0
    weights: int = 0
    largest: int = 1
    widest: float = 1
    layers: list[tuple[float, Cone]] = field(default_factory=list[tuple[float, Cone]])

    @property
    def gain(self) -> float:
        """How many times fewer multiply-adds a mean window takes than the whole image."""
        local = sum(price * float(cone.rows.size.mean() * cone.cols.size.mean()) for price, cone in self.layers)
        return self.full / max(self.full - self.localized + local, 1)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation that the network calls."""
        memory, given = self.remembered(func, args, kwargs), stand_ins((args, kwargs))
        written = [i for i, argument in enumerate(func._schema.arguments) if argument.alias_info and argument.alias_info.is_write]
        if not written:
            found = self.wrapped(self.apply(func, args, kwargs, memory), memory.number)
            if any(result.alias_info for result in func._schema.returns) and any(x.local or x.shared for x in given):
                # A view of what is kept in pieces doesn't follow later writes.
                for x in (*given, *stand_ins(found)):
                    x.shared = True
            return found
        target = args[0] if written == [0] and args else None
        if not isinstance(target, Covered) or target.shared:
            raise Refused("an operation writes to a tensor that others may see")
        if target.local:
            target.become(self.apply(functional(func), args, kwargs, memory))
        else:
            func(*swap(args, Covered, Covered.whole), **swap(kwargs, Covered, Covered.whole))
        target.number = (memory.number,)
        return target

    def remembered(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Memory:
        """What is known of this call from the survey, whichever way the network took to it."""
        key = func, signature((args, kwargs), lambda x: x.number if isinstance(x, Covered) else None)
        if self.survey:
            # The constants are kept, so that no other may lie at their address.
            constants = [x for x in tensors((args, kwargs)) if not isinstance(x, Covered)]
            return self.tape.setdefault(key, Memory(len(self.tape), constants=constants))
        self.unknown -= 1
        return self.tape.get(key) or Memory(self.unknown)

    def apply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], memory: Memory) -> Any:
        """The operation on patches if it can be, else on whole maps."""
        if all(x.local for x in stand_ins((args, kwargs))):
            call = Call(
                func, swap(args, Covered, lambda x: x.local), swap(kwargs, Covered, lambda x: x.local), memory, self.count, self.survey
            )
            found = localized(call)
            if found is not None:
                if isinstance(found, Local):
                    self.measure(found.clean.map.numel(), found.cone.share)
                    self.note(found, multiply_adds(func, swap(args, Covered, lambda x: x.local.clean.map), kwargs, found.clean.map))
                return found
        known = not stand_ins((args[1:], kwargs))
        args, kwargs = swap((args, kwargs), Covered, Covered.whole)
        if func is aten.convolution.default and known and args[1].ndim == 4 and not args[6] and not self.survey:
            found = convolve(*args[:6], args[8])
        else:
            # Maps put together from patches may lie in memory in another order than a view would need.
            found = (aten.reshape.default if func in (aten.view.default, aten._unsafe_view.default) else func)(*args, **kwargs)
        amount = multiply_adds(func, args, kwargs, found) / self.count
        self.full, self.spent = self.full + amount, self.spent + amount
        # Seldom more than its multiply-adds for one image: a fully connected layer's are its weights.
        self.weights += int(min(amount, sum(x.numel() for x in tensors(args)))) if amount else 0
        self.measure(max((out.numel() // self.count for out in tensors(found)), default=0))
        return found

    def measure(self, size: int, share: float = 1) -> None:
        """Notes the size of a map of one image, and the share of it that was computed."""
        self.largest, self.widest = max(self.largest, size), max(self.widest, size * share)

    def note(self, found: Local, amount: float) -> None:
        """Counts a localized operation that takes `amount` multiply-adds for the whole image."""
        if amount:
            price = amount / (found.size[0] * found.size[1])
            self.layers.append((price, found.cone))
            self.full, self.localized = self.full + amount, self.localized + amount
            self.spent += price * found.cone.height * found.cone.width

    def wrapped(self, found: Any, *number: int) -> Any:
        """Results as stand-ins."""
        if isinstance(found, (tuple, list)):
            return type(found)(self.wrapped(item, *number, i) for i, item in enumerate(found))
        if isinstance(found, Local):
            return stand_in(self, number, local=found)
        return stand_in(self, number, full=found) if found is None or isinstance(found, Tensor) else found


class Covered(Tensor):
    """Stands in for a tensor of the batch: clean but for patches (`local`), as it is (`full`), or neither: of no use.

    `number` names it in all passes. `shared`: another one may look at the same numbers.
    """

    run: Pass
    number: tuple[int, ...]
    local: Local | None
    full: Tensor | None
    shared: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return stand_ins((args, kwargs))[0].run.call(func, args, kwargs)

    def whole(self) -> Tensor:
        """The ordinary tensor."""
        if self.full is None:
            if self.local is None:
                raise Refused("the indices of a pooling are not known")
            self.full = self.local.whole(self.run.count)
        return self.full

    def become(self, found: Local | Tensor) -> None:
        """Takes over what a write gives."""
        self.local, self.full = (found, None) if isinstance(found, Local) else (None, found)


def stand_in(run: Pass, number: tuple[int, ...], *, local: Local | None = None, full: Tensor | None = None) -> Covered:
    """Makes one, with the shape and strides that the tensor of the whole batch has."""
    like = local.clean.map if local else full if full is not None else torch.empty(0)
    shape, strides = tuple(like.shape), like.stride()
    if local:
        shape, strides = (run.count, *shape[1:]), (like.numel(), *strides[1:])
    made = Tensor._make_wrapper_subclass(Covered, shape, strides=strides, dtype=like.dtype, device=like.device)
    made.run, made.number, made.local, made.full, made.shared = run, number, local, full, False
    return made


def stand_ins(value: Any) -> list[Covered]:
    """Those in nested tuples, lists and dicts."""
    return [x for x in tensors(value) if isinstance(x, Covered)]
