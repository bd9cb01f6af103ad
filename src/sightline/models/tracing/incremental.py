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

from sightline.models.model import Model
from sightline.models.outputs import select_logits
from sightline.models.overrides.onednn import convolve_packed
from sightline.models.tracing.incremental_rules import apply_patch_rule
from sightline.models.tracing.intervals import (
    ChangedIntervals,
    ChangedRegions,
    IndexArray,
    group_window_positions,
)
from sightline.models.tracing.patches import (
    CleanMap,
    OperationRecord,
    PatchedCall,
    PatchedMaps,
    count_multiply_adds,
    find_functional_overload,
    make_call_key,
    replace_instances,
)
from sightline.models.tracing.receptive_rules import iterate_nested_tensors
from sightline.models.tracing.windows import OcclusionScores, OcclusionWindows, run_occluded_images

aten: Any = torch.ops.aten

SURVEY_BATCH_SIZE = 2  # a batch of one is viewed in other ways than larger ones

# What one more batch costs beyond its multiply-adds, as multiply-adds: for each operation, and for each weight that is read.
OPERATION_OVERHEAD, WEIGHT_READ_OVERHEAD = 1e7, 50

# Windows run at once: more make no faster.
MAX_WINDOWS_AT_ONCE = 64

# Below this ratio of multiply-adds the ordinary run is as fast.
MIN_SPEEDUP = 1.1


class IncrementalUnsupported(RuntimeError):  # noqa: N818 - not an error: the ordinary run takes over
    """The network does something to the stand-in that can't be followed."""


def score_occluded_windows(
    model: Model,
    windows: OcclusionWindows,
    label_indices: Tensor,
    *,
    batch: int = 32,
    incremental: bool = True,
) -> OcclusionScores:
    """Scores of the labels `index` with each window covered in turn, in the memory that `batch` whole images take.

    Equals running every covered image whole, to rounding; where that can't be had otherwise, or wouldn't pay, it is done.
    """
    with torch.inference_mode(False), torch.no_grad():
        if incremental and len(windows.positions) > 1:
            try:
                with model.lock:
                    if found := IncrementalOcclusion(model, windows, batch).score_windows(
                        label_indices
                    ):
                        return found
            except (RuntimeError, TypeError):
                pass  # the stand-in is no ordinary tensor; if the network itself is at fault, the ordinary run tells
        return OcclusionScores(
            torch.cat(
                [part[:, label_indices] for part in run_occluded_images(model, windows, batch)]
            ),
            0.0,
            1.0,
        )


class IncrementalOcclusion:
    """The passes over one image."""

    def __init__(self, model: Model, windows: OcclusionWindows, batch: int) -> None:
        self.model, self.windows, self.batch = model, windows, batch
        self.clean_image, self.fill = (
            CleanMap(model.normalize(windows.image)),
            model.normalize(windows.fill),
        )

    def score_windows(self, label_indices: Tensor) -> OcclusionScores | None:
        """Scores of all windows, or None where it wouldn't pay."""
        survey, places = (
            OcclusionPass({}, SURVEY_BATCH_SIZE, survey=True),
            np.array(self.windows.positions),
        )
        self.compute_logits(
            survey,
            PatchedMaps(
                self.clean_image,
                self.locate_window_regions(np.unique(places[:, 0]), np.unique(places[:, 1])),
            ),
        )
        if not survey.layer_costs or survey.speedup < MIN_SPEEDUP:
            return None
        scores, spent, kept = (
            torch.empty(len(places), len(label_indices), device=self.clean_image.tensor.device),
            survey.full_cost,
            0.0,
        )
        most = max(
            1, min(MAX_WINDOWS_AT_ONCE, int(self.batch * survey.largest_map / survey.largest_kept))
        )
        for part in group_window_positions(
            self.windows.positions,
            survey.layer_costs,
            OPERATION_OVERHEAD * len(survey.records) + WEIGHT_READ_OVERHEAD * survey.weights_read,
            most,
        ):
            run = OcclusionPass(survey.records, len(part))
            start = PatchedMaps(
                self.clean_image,
                self.locate_window_regions(*places[part].T),
                self.windows.crop_windows(part, self.fill),
            )
            scores[part] = self.compute_logits(run, start)[:, label_indices]
            spent, kept = spent + run.spent_cost * len(part), kept + run.localized_cost * len(part)
        return OcclusionScores(
            scores, kept / (survey.full_cost * len(places)), survey.full_cost * len(places) / spent
        )

    def locate_window_regions(self, tops: IndexArray, lefts: IndexArray) -> ChangedRegions:
        """The windows themselves."""
        height, width = self.clean_image.tensor.shape[-2:]
        size = self.windows.side
        return ChangedRegions(
            ChangedIntervals(tops, np.full_like(tops, size), height),
            ChangedIntervals(lefts, np.full_like(lefts, size), width),
        )

    def compute_logits(self, occlusion_pass: "OcclusionPass", start_maps: PatchedMaps) -> Tensor:
        """Logits for a batch."""
        logits = select_logits(
            self.model.network(make_stand_in(occlusion_pass, (), patched_maps=start_maps)),
            self.model.output,
            self.model.name,
        )
        if not isinstance(logits, StandInTensor):
            raise IncrementalUnsupported("the network lost the stand-in on its way")
        return logits.build_full_tensor()


@dataclass
class OcclusionPass:
    """One forward pass for `count` images. `tape` has the memory of each operation, filled by the survey.

    `layers` of a survey: multiply-adds of one position, and its cones. `full`, `spent` and `localized` count multiply-adds
    for one image: of running it whole, those done, and those of running whole what was localized. `largest` is the most numbers
    in a map, `widest` the most in what was kept of one.
    """

    records: dict[Any, OperationRecord]
    image_count: int
    survey: bool = False
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

    @property
    def speedup(self) -> float:
        """How many times fewer multiply-adds a mean window takes than the whole image."""
        local = sum(
            price * float(cone.rows.size.mean() * cone.cols.size.mean())
            for price, cone in self.layer_costs
        )
        return self.full_cost / max(self.full_cost - self.localized_cost + local, 1)

    def run_operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation that the network calls."""
        memory, given = self.find_record(func, args, kwargs), find_stand_ins((args, kwargs))
        written = [
            i
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info and argument.alias_info.is_write
        ]
        if not written:
            found = self.wrap_results(
                self.apply_operation(func, args, kwargs, memory), memory.number
            )
            if any(result.alias_info for result in func._schema.returns) and any(
                x.patched_maps or x.shared for x in given
            ):
                # A view of what is kept in pieces doesn't follow later writes.
                for x in (*given, *find_stand_ins(found)):
                    x.shared = True
            return found
        target = args[0] if written == [0] and args else None
        if not isinstance(target, StandInTensor) or target.shared:
            raise IncrementalUnsupported("an operation writes to a tensor that others may see")
        if target.patched_maps:
            target.take_over_result(
                self.apply_operation(find_functional_overload(func), args, kwargs, memory)
            )
        else:
            func(
                *replace_instances(args, StandInTensor, StandInTensor.build_full_tensor),
                **replace_instances(kwargs, StandInTensor, StandInTensor.build_full_tensor),
            )
        target.number = (memory.number,)
        return target

    def find_record(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> OperationRecord:
        """What is known of this call from the survey, whichever way the network took to it."""
        key = (
            func,
            make_call_key(
                (args, kwargs), lambda x: x.number if isinstance(x, StandInTensor) else None
            ),
        )
        if self.survey:
            # The constants are kept, so that no other may lie at their address.
            constants = [
                x
                for x in iterate_nested_tensors((args, kwargs))
                if not isinstance(x, StandInTensor)
            ]
            return self.records.setdefault(
                key, OperationRecord(len(self.records), constants=constants)
            )
        self.last_unknown_number -= 1
        return self.records.get(key) or OperationRecord(self.last_unknown_number)

    def apply_operation(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], record: OperationRecord
    ) -> Any:
        """The operation on patches if it can be, else on whole maps."""
        if all(x.patched_maps for x in find_stand_ins((args, kwargs))):
            call = PatchedCall(
                func,
                replace_instances(args, StandInTensor, lambda x: x.patched_maps),
                replace_instances(kwargs, StandInTensor, lambda x: x.patched_maps),
                record,
                self.image_count,
                self.survey,
            )
            found = apply_patch_rule(call)
            if found is not None:
                if isinstance(found, PatchedMaps):
                    self.note_map_size(found.clean_map.tensor.numel(), found.regions.map_share)
                    self.count_localized_operation(
                        found,
                        count_multiply_adds(
                            func,
                            replace_instances(
                                args, StandInTensor, lambda x: x.patched_maps.clean_map.tensor
                            ),
                            kwargs,
                            found.clean_map.tensor,
                        ),
                    )
                return found
        known = not find_stand_ins((args[1:], kwargs))
        args, kwargs = replace_instances(
            (args, kwargs), StandInTensor, StandInTensor.build_full_tensor
        )
        if (
            func is aten.convolution.default
            and known
            and args[1].ndim == 4
            and not args[6]
            and not self.survey
        ):
            found = convolve_packed(*args[:6], args[8])
        else:
            # Maps put together from patches may lie in memory in another order than a view would need.
            found = (
                aten.reshape.default
                if func in (aten.view.default, aten._unsafe_view.default)
                else func
            )(*args, **kwargs)
        amount = count_multiply_adds(func, args, kwargs, found) / self.image_count
        self.full_cost, self.spent_cost = self.full_cost + amount, self.spent_cost + amount
        # Seldom more than its multiply-adds for one image: a fully connected layer's are its weights.
        self.weights_read += (
            int(min(amount, sum(x.numel() for x in iterate_nested_tensors(args)))) if amount else 0
        )
        self.note_map_size(
            max(
                (out.numel() // self.image_count for out in iterate_nested_tensors(found)),
                default=0,
            )
        )
        return found

    def note_map_size(self, size: int, computed_share: float = 1) -> None:
        """Notes the size of a map of one image, and the share of it that was computed."""
        self.largest_map, self.largest_kept = (
            max(self.largest_map, size),
            max(self.largest_kept, size * computed_share),
        )

    def count_localized_operation(self, result: PatchedMaps, multiply_adds: float) -> None:
        """Counts a localized operation that takes `amount` multiply-adds for the whole image."""
        if multiply_adds:
            price = multiply_adds / (result.map_size[0] * result.map_size[1])
            self.layer_costs.append((price, result.regions))
            self.full_cost, self.localized_cost = (
                self.full_cost + multiply_adds,
                self.localized_cost + multiply_adds,
            )
            self.spent_cost += price * result.regions.height * result.regions.width

    def wrap_results(self, results: Any, *number: int) -> Any:
        """Results as stand-ins."""
        if isinstance(results, (tuple, list)):
            return type(results)(
                self.wrap_results(item, *number, i) for i, item in enumerate(results)
            )
        if isinstance(results, PatchedMaps):
            return make_stand_in(self, number, patched_maps=results)
        return (
            make_stand_in(self, number, full_tensor=results)
            if results is None or isinstance(results, Tensor)
            else results
        )


class StandInTensor(Tensor):
    """Stands in for a tensor of the batch: clean but for patches (`local`), as it is (`full`), or neither: of no use.

    `number` names it in all passes. `shared`: another one may look at the same numbers.
    """

    occlusion_pass: OcclusionPass
    number: tuple[int, ...]
    patched_maps: PatchedMaps | None
    full_tensor: Tensor | None
    shared: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return find_stand_ins((args, kwargs))[0].occlusion_pass.run_operation(func, args, kwargs)

    def build_full_tensor(self) -> Tensor:
        """The ordinary tensor."""
        if self.full_tensor is None:
            if self.patched_maps is None:
                raise IncrementalUnsupported("the indices of a pooling are not known")
            self.full_tensor = self.patched_maps.build_full_maps(self.occlusion_pass.image_count)
        return self.full_tensor

    def take_over_result(self, result: PatchedMaps | Tensor) -> None:
        """Takes over what a write gives."""
        self.patched_maps, self.full_tensor = (
            (result, None) if isinstance(result, PatchedMaps) else (None, result)
        )


def make_stand_in(
    occlusion_pass: OcclusionPass,
    number: tuple[int, ...],
    *,
    patched_maps: PatchedMaps | None = None,
    full_tensor: Tensor | None = None,
) -> StandInTensor:
    """Makes one, with the shape and strides that the tensor of the whole batch has."""
    like = (
        patched_maps.clean_map.tensor
        if patched_maps
        else full_tensor
        if full_tensor is not None
        else torch.empty(0)
    )
    shape, strides = tuple(like.shape), like.stride()
    if patched_maps:
        shape, strides = (occlusion_pass.image_count, *shape[1:]), (like.numel(), *strides[1:])
    made = Tensor._make_wrapper_subclass(
        StandInTensor, shape, strides=strides, dtype=like.dtype, device=like.device
    )
    made.occlusion_pass, made.number, made.patched_maps, made.full_tensor, made.shared = (
        occlusion_pass,
        number,
        patched_maps,
        full_tensor,
        False,
    )
    return made


def find_stand_ins(value: Any) -> list[StandInTensor]:
    """Those in nested tuples, lists and dicts."""
    return [x for x in iterate_nested_tensors(value) if isinstance(x, StandInTensor)]
