"""One forward pass for a batch of covered images, and the tensor that stands in for the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sightline.models.overrides.mode import DispatchContext
from sightline.models.overrides.onednn import convolve_packed
from sightline.models.tracing.patch_rules.intervals import ChangedRegions
from sightline.models.tracing.patch_rules.patches import (
    OperationRecord,
    PatchedCall,
    PatchedMaps,
    count_multiply_adds,
    find_functional_overload,
    find_instances,
    make_call_key,
    replace_instances,
)
from sightline.models.tracing.patch_rules.table import apply_patch_rule

aten: Any = torch.ops.aten

# Below this ratio of multiply-adds the ordinary run is as fast, or faster: cutting patches out and
# writing them back takes time as well.
MIN_SPEEDUP = 1.2

# Where so large a share of the network ran on whole maps without a break, as behind attention, the
# rest will as well.
HOPELESS_SHARE = 0.1


class IncrementalUnsupported(RuntimeError):  # noqa: N818 - not an error: the ordinary run takes over
    """The network can't be followed incrementally; the text names the operation.

    Attributes:
        is_lasting: whether it can't for other images of this size either.
    """

    def __init__(self, reason: str, *, is_lasting: bool = True) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting


@dataclass
class OcclusionPass:
    """One forward pass for `image_count` images.

    Attributes:
        records: what each operation of the survey left, by the key of its call.
        image_count: images of the batch.
        survey: whether only the geometry and the clean maps are computed.
        network_cost: about the multiply-adds of running one image whole, for the survey; 0 if they
            are not known.
        last_unknown_number: number of the last operation that the survey did not meet; negative.
        full_cost: multiply-adds of running one image whole.
        spent_cost: multiply-adds spent, for one image.
        localized_cost: multiply-adds of running whole what was localized, for one image.
        weights_read: weights that whole operations read.
        largest_map: most numbers in a map.
        largest_kept: most numbers in the computed share of a map.
        layer_costs: of each localized layer the multiply-adds of one position, and its regions.
        first_whole_operation: the first operation that ran on whole maps.
        last_operation: the operation that was met last.
        whole_streak: multiply-adds since an operation was localized.
    """

    records: dict[Any, OperationRecord]
    image_count: int
    survey: bool = False
    network_cost: float = 0.0
    last_unknown_number: int = 0
    full_cost: float = 0.0
    spent_cost: float = 0.0
    localized_cost: float = 0.0
    weights_read: int = 0
    largest_map: int = 1
    largest_kept: float = 1
    layer_costs: list[tuple[float, ChangedRegions]] = field(
        default_factory=list[tuple[float, ChangedRegions]]
    )
    first_whole_operation: Any = None
    last_operation: Any = None
    whole_streak: float = 0.0

    @property
    def speedup(self) -> float:
        """How many times fewer multiply-adds a mean window takes than the whole image."""
        window_cost = 0.0
        for position_cost, regions in self.layer_costs:
            window_cost += position_cost * float(
                regions.rows.size.mean() * regions.cols.size.mean()
            )
        whole_part = self.full_cost - self.localized_cost
        return self.full_cost / max(whole_part + window_cost, 1)

    # ── operations ──

    def run_operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation that the network calls on stand-ins."""
        self.last_operation = func
        record = self.find_record(func, args, kwargs)
        effects = find_operation_effects(func)
        if effects.written_arguments:
            return self.run_in_place_operation(func, args, kwargs, record)

        stand_ins = find_instances((args, kwargs), StandInTensor)
        results = self.apply_operation(func, args, kwargs, record, stand_ins)
        wrapped = self.wrap_results(results, record.number)
        is_shared = any(tensor.patched_maps or tensor.shared for tensor in stand_ins)
        if effects.returns_view and is_shared:
            # A view of what is kept in pieces does not follow later writes.
            for tensor in (*stand_ins, *find_instances((wrapped,), StandInTensor)):
                tensor.shared = True
        return wrapped

    def run_in_place_operation(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], record: OperationRecord
    ) -> "StandInTensor":
        """An operation that writes to its first argument.

        Raises IncrementalUnsupported where another tensor may see what is written.
        """
        writes_first = find_operation_effects(func).written_arguments == (0,)
        target = args[0] if writes_first and args else None
        if not isinstance(target, StandInTensor) or target.shared:
            raise IncrementalUnsupported(f"{func} writes to a tensor that others may see")
        if target.patched_maps:
            functional = find_functional_overload(func)
            stand_ins = find_instances((args, kwargs), StandInTensor)
            target.take_over_result(
                self.apply_operation(functional, args, kwargs, record, stand_ins)
            )
        else:
            full_args = replace_instances(args, StandInTensor, StandInTensor.build_full_tensor)
            full_kwargs = replace_instances(kwargs, StandInTensor, StandInTensor.build_full_tensor)
            func(*full_args, **full_kwargs)
        target.number = (record.number,)
        return target

    def find_record(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OperationRecord:
        """What the survey left of this call, whichever way the network took to it."""
        key = func, make_call_key((args, kwargs), get_stand_in_number)
        if not self.survey:
            self.last_unknown_number -= 1
            return self.records.get(key) or OperationRecord(self.last_unknown_number)
        constants = [
            tensor
            for tensor in find_instances((args, kwargs), Tensor)
            if not isinstance(tensor, StandInTensor)
        ]
        record = OperationRecord(len(self.records), constants=constants)
        return self.records.setdefault(key, record)

    def apply_operation(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        record: OperationRecord,
        stand_ins: Sequence["StandInTensor"],
    ) -> Any:
        """The operation on patches if it has a rule, else on whole maps.

        `stand_ins` are those among the arguments.
        """
        if all(tensor.patched_maps for tensor in stand_ins):
            results = self.apply_to_patches(func, args, kwargs, record)
            if results is not None:
                return results
        return self.apply_to_whole_maps(func, args, kwargs)

    def apply_to_patches(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], record: OperationRecord
    ) -> Any:
        """The operation on patches; None where it has no rule for this call."""
        call = PatchedCall(
            func,
            replace_instances(args, StandInTensor, get_patched_maps),
            replace_instances(kwargs, StandInTensor, get_patched_maps),
            record,
            self.image_count,
            self.survey,
        )
        results = apply_patch_rule(call)
        if isinstance(results, PatchedMaps):
            clean_result = results.clean_tensor
            if record.multiply_adds is None:
                clean_args = replace_instances(args, StandInTensor, get_clean_tensor)
                record.multiply_adds = count_multiply_adds(func, clean_args, kwargs, clean_result)
            self.note_map_size(clean_result.numel(), results.regions.map_share)
            self.count_localized_operation(results, record.multiply_adds)
        return results

    def apply_to_whole_maps(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation on whole maps."""
        self.first_whole_operation = self.first_whole_operation or func
        weights_are_constant = not find_instances((args[1:], kwargs), StandInTensor)
        args, kwargs = replace_instances(
            (args, kwargs), StandInTensor, StandInTensor.build_full_tensor
        )
        can_be_packed = (
            func is aten.convolution.default
            and weights_are_constant
            and args[1].ndim == 4  # two spatial axes
            and not args[6]  # not transposed
            and not self.survey
        )
        if can_be_packed:
            results = convolve_packed(*args[:6], args[8])
        elif func in (aten.view.default, aten._unsafe_view.default):
            # Maps put together from patches may have another memory order than a view needs.
            results = aten.reshape.default(*args, **kwargs)
        else:
            results = func(*args, **kwargs)
        self.count_whole_operation(func, args, kwargs, results)
        return results

    # ── costs ──

    def count_whole_operation(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Any
    ) -> None:
        """Counts an operation on whole maps."""
        multiply_adds = count_multiply_adds(func, args, kwargs, results) / self.image_count
        self.full_cost += multiply_adds
        self.spent_cost += multiply_adds
        if multiply_adds:
            # Weights are seldom more than the multiply-adds for one image; those of a fully
            # connected layer are as many.
            numbers_read = sum(tensor.numel() for tensor in find_instances(args, Tensor))
            self.weights_read += int(min(multiply_adds, numbers_read))
        sizes = [
            tensor.numel() // self.image_count for tensor in find_instances((results,), Tensor)
        ]
        self.note_map_size(max(sizes, default=0))
        self.whole_streak += multiply_adds
        if self.is_hopeless():
            raise IncrementalUnsupported(
                f"it would save too little: whole maps from {self.first_whole_operation}"
            )

    def is_hopeless(self) -> bool:
        """Whether the survey has met so much on whole maps that the rest will be as well.

        What was localized before could then not pay.
        """
        network_cost = max(self.network_cost, self.full_cost)
        return (
            self.survey
            and self.network_cost > 0
            and self.whole_streak >= HOPELESS_SHARE * network_cost
            and self.localized_cost <= (1 - 1 / MIN_SPEEDUP) * network_cost
        )

    def count_localized_operation(self, result: PatchedMaps, multiply_adds: float) -> None:
        """Counts an operation on patches that takes so many multiply-adds for the whole image."""
        if not multiply_adds:
            return
        self.whole_streak = 0.0
        height, width = result.map_size
        position_cost = multiply_adds / (height * width)
        self.layer_costs.append((position_cost, result.regions))
        self.full_cost += multiply_adds
        self.localized_cost += multiply_adds
        self.spent_cost += position_cost * result.regions.height * result.regions.width

    def note_map_size(self, size: int, computed_share: float = 1) -> None:
        """Notes the size of a map of one image, and the share of it that was computed."""
        self.largest_map = max(self.largest_map, size)
        self.largest_kept = max(self.largest_kept, size * computed_share)

    def wrap_results(self, results: Any, *number: int) -> Any:
        """Results as stand-ins, numbered by their position."""
        if isinstance(results, (tuple, list)):
            return type(results)(
                self.wrap_results(item, *number, index) for index, item in enumerate(results)
            )
        if isinstance(results, PatchedMaps):
            return make_stand_in(self, number, patched_maps=results)
        if results is None or isinstance(results, Tensor):
            return make_stand_in(self, number, full_tensor=results)
        return results


class StandInTensor(Tensor):
    """Stands in for a tensor of the batch.

    Attributes:
        occlusion_pass: the pass that it belongs to.
        number: names it in all passes.
        patched_maps: what it is, where it is clean but for patches.
        full_tensor: what it is otherwise. With neither, it must not be used.
        shared: whether another stand-in may look at the same numbers.
    """

    occlusion_pass: OcclusionPass
    number: tuple[int, ...]
    patched_maps: PatchedMaps | None
    full_tensor: Tensor | None
    shared: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType, reportPrivateUsage]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first_stand_in = find_instances((args, kwargs), StandInTensor)[0]
        return first_stand_in.occlusion_pass.run_operation(func, args, kwargs)

    def build_full_tensor(self) -> Tensor:
        """The ordinary tensor of the whole batch."""
        if self.full_tensor is None:
            if self.patched_maps is None:
                raise IncrementalUnsupported("the indices of a pooling are not known")
            self.full_tensor = self.patched_maps.build_full_tensor(self.occlusion_pass.image_count)
        return self.full_tensor

    def take_over_result(self, result: PatchedMaps | Tensor) -> None:
        """Becomes the result of an operation that writes to it."""
        self.patched_maps = result if isinstance(result, PatchedMaps) else None
        self.full_tensor = None if isinstance(result, PatchedMaps) else result


def make_stand_in(
    occlusion_pass: OcclusionPass,
    number: tuple[int, ...],
    *,
    patched_maps: PatchedMaps | None = None,
    full_tensor: Tensor | None = None,
) -> StandInTensor:
    """A stand-in with the shape and strides that the tensor of the whole batch has."""
    if patched_maps is not None:
        like = patched_maps.clean_tensor
        shape = (occlusion_pass.image_count, *like.shape[1:])
        strides = (like.numel(), *like.stride()[1:])
    else:
        like = torch.empty(0) if full_tensor is None else full_tensor
        shape = tuple(like.shape)
        strides = like.stride()
    stand_in = Tensor._make_wrapper_subclass(
        StandInTensor, shape, strides=strides, dtype=like.dtype, device=like.device
    )
    # It has no memory; code that asks for it past torch's dispatcher would end the process.
    torch._C._set_throw_on_mutable_data_ptr(stand_in)  # pyright: ignore[reportPrivateUsage]
    stand_in.occlusion_pass = occlusion_pass
    stand_in.number = number
    stand_in.patched_maps = patched_maps
    stand_in.full_tensor = full_tensor
    stand_in.shared = False
    return stand_in


def get_stand_in_number(tensor: Tensor) -> Any:
    """What names a stand-in in all passes; None for any other tensor."""
    return tensor.number if isinstance(tensor, StandInTensor) else None


def get_patched_maps(stand_in: StandInTensor) -> PatchedMaps | None:
    """What a stand-in is, where it is clean but for patches."""
    return stand_in.patched_maps


def get_clean_tensor(stand_in: StandInTensor) -> Tensor:
    """The clean map of a stand-in that has patches."""
    return cast(PatchedMaps, stand_in.patched_maps).clean_tensor


@dataclass(frozen=True)
class OperationEffects:
    """What an operation does beside returning new tensors.

    Attributes:
        written_arguments: the numbers of the arguments that it writes to.
        returns_view: whether a result may share memory with an argument.
    """

    written_arguments: tuple[int, ...]
    returns_view: bool


@cache
def find_operation_effects(func: Any) -> OperationEffects:
    """What the declaration of an operation says."""
    written = [
        index
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    returns_view = any(result.alias_info for result in func._schema.returns)
    return OperationEffects(tuple(written), returns_view)


class StandInDispatch(DispatchContext):
    """Context in which every operation on a stand-in goes to its pass.

    It would by the class of the tensor as well. But the first operation that torch dispatches by a
    tensor's class imports distributed tensors and the compiler, which takes most of a second.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        stand_ins = find_instances((args, kwargs), StandInTensor)
        if not stand_ins:
            return func(*args, **kwargs)
        return stand_ins[0].occlusion_pass.run_operation(func, args, kwargs)


class WholeLinearLayers(TorchFunctionMode):
    """Context in which a linear layer of patched maps is one operation.

    torch would split it into views that join batch and positions, and a matrix product.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear or kwargs:
            return func(*args, **kwargs)
        stand_in = args[0]
        if not isinstance(stand_in, StandInTensor) or not stand_in.patched_maps:
            return func(*args)
        return stand_in.occlusion_pass.run_operation(aten.linear.default, args, {})


def build_full_outputs(output: Any) -> Any:
    """An output with plain tensors in place of stand-ins, also inside dicts, lists and tuples.

    Raises IncrementalUnsupported for a tensor that is no stand-in: it may be computed from one, in
    a way that was not followed.
    """
    if isinstance(output, StandInTensor):
        return output.build_full_tensor()
    if isinstance(output, Tensor):
        raise IncrementalUnsupported("the network lost the stand-in on its way")
    if isinstance(output, Mapping):
        items = cast(Mapping[Any, Any], output).items()
        return {key: build_full_outputs(value) for key, value in items}
    if isinstance(output, (list, tuple)):
        return [build_full_outputs(value) for value in cast(Sequence[Any], output)]
    return output
