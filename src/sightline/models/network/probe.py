"""What a network does, found by running it once on two images, together and apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.heads.evidence.tuple_entries import choose_tuple_entry, count_rival_entries
from sightline.models.heads.output_head import OutputHead
from sightline.models.heads.recognition import (
    HeadHints,
    make_head,
    recognize_output_head,
    refuse_feature_pyramid,
    refuse_list_of_images,
)
from sightline.models.heads.selection import (
    find_sequence,
    is_detection_list,
    join_path,
    list_plain_entries,
    select_output,
)
from sightline.models.layers.capture import Layer, count_writes
from sightline.models.layers.listing import LayerListing
from sightline.models.network.origin import is_made_by_squashing
from sightline.models.network.turns import CallLengths, are_run_in_turn, watch_calls

PROBE_COUNT = 2

# How far two answers to one image may differ, as a share of the largest number in them.
SINGLE_TOLERANCE = 1e-3
HALF_TOLERANCE = 3e-2

ONE_BY_ONE_NOTE = "answers depend on the other images of a batch: images are run one by one"
SINGLE_IMAGE_NOTE = "takes one image at a time"
IN_TURN_NOTE = "runs its layers for each image in turn: images are run one by one"
RANDOM_NOTE = "gives another answer each time"

# What every module has. Buffers are looked at by themselves.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class NetworkFindings:
    """What was found.

    Attributes:
        head: how scores are read from the output; None where that is not possible.
        head_error: why it is not.
        runs_one_by_one: whether images must not share a batch.
        needs_plain_layout: whether the answer is another one in torch's default memory layout, and
            so to be had in that; the rest is then not to be relied on.
        notes: what a user should know, for `repr`.
        layers: those that the pass of a single image went through; empty if it failed.
    """

    head: OutputHead | None = None
    head_error: SightlineError | None = None
    runs_one_by_one: bool = False
    needs_plain_layout: bool = False
    notes: tuple[str, ...] = ()
    layers: Mapping[str, Layer] = field(default_factory=dict[str, Layer])


def make_probe_images(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Two different images of channels × height × width, the same ones each time.

    Their brightness and contrast differ too, which a network may take from the whole batch.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(PROBE_COUNT, *shape, generator=generator, dtype=torch.float32, device="cpu")
    images[-1] = 0.1 + 0.6 * images[-1]
    return images.to(device)


def probe_network(
    run: Callable[[Tensor], Any],
    images: Tensor,
    hints: HeadHints,
    run_plainly: Callable[[Tensor], Any] | None = None,
) -> NetworkFindings:
    """Runs a network on its probe images; never raises for what the network does.

    `run` gives the network's own output for images, and raises SightlineError where it fails;
    `run_plainly` does so with images in torch's default memory layout, if that is another one. What
    made the output is told by autograd, without which some networks have to be run (those that
    leave torch for numpy).
    """
    if images.is_meta:
        return _judge_shapes(run, images, hints)
    probe = Probe(run, run_plainly or run, images, hints, with_gradient=True)
    findings = probe.compare_runs()
    if findings.head is None:
        return replace(probe, with_gradient=False).compare_runs()
    return findings


def _judge_shapes(
    run: Callable[[Tensor], Any], images: Tensor, hints: HeadHints
) -> NetworkFindings:
    """The findings on the device meta, which has shapes and no numbers."""
    with torch.no_grad():
        try:
            selected = select_output(run(images), hints.selector, hints.network_name)
        except SightlineError as error:
            return NetworkFindings(head_error=error)
    if not isinstance(selected, Tensor) or selected.ndim not in (2, 4):
        return NetworkFindings(head_error=SightlineError("the device meta holds no numbers"))
    kind = "logits" if selected.ndim == 2 else "dense"
    return NetworkFindings(make_head(hints, kind, selected.shape[1]))


@dataclass(frozen=True)
class Probe:
    """The comparison of two images run together with the last of them run apart.

    The last, since what comes later in a batch may depend on what comes before it: a limited number
    of places that are given away in turn, a recurrent network that takes the images for steps.

    Attributes:
        run: gives the network's own output for images, and raises SightlineError where it fails.
        run_plainly: does so in torch's default memory layout; `run` itself where that is the same.
        images: the probe images.
        hints: what is known of the output.
        with_gradient: whether autograd follows the pass of the single image.
        both_with_gradient: whether it follows that of both as well. This takes longer, and matters
            only for networks that answer otherwise without.
    """

    run: Callable[[Tensor], Any]
    run_plainly: Callable[[Tensor], Any]
    images: Tensor
    hints: HeadHints
    with_gradient: bool
    both_with_gradient: bool = False

    def compare_runs(self) -> NetworkFindings:
        """What the runs show."""
        network = self.hints.network
        together, calls_together = self.run_together()
        kept = list_kept_values(network)
        findings = NetworkFindings()
        try:
            listing = LayerListing(network)
            with watch_calls(network) as calls_apart:
                apart = listing.run_forward_pass(lambda: self.run_apart(self.run_plainly))
            in_turn = are_run_in_turn(calls_together, calls_apart, PROBE_COUNT)
            findings = NetworkFindings(runs_one_by_one=in_turn, layers=listing.layers)
            hints, notes = _choose_scores(together, apart, self.hints)
            is_squashed = is_made_by_squashing(apart, self.run, self.images[-1:], hints)
            hints = replace(hints, is_squashed=is_squashed)
            if together is None:
                head = recognize_output_head(apart, 1, hints)
                notes = (*notes, SINGLE_IMAGE_NOTE)
                return replace(findings, head=head, runs_one_by_one=True, notes=notes)
            head = recognize_output_head(together, PROBE_COUNT, hints)
            head = replace(head, batch_axis=_find_batch_axis(head, apart, hints))
            if in_turn:
                notes = (*notes, IN_TURN_NOTE)
            complete = replace(findings, head=head, notes=notes)
            return self.compare_answers(complete, together, apart, kept)
        except SightlineError as error:
            return replace(findings, head_error=error)

    def compare_answers(
        self,
        findings: NetworkFindings,
        together: Any,
        apart: Any,
        kept: Sequence[tuple[Any, int]],
    ) -> NetworkFindings:
        """The findings with what the answers to the last image show.

        `kept` is what the network held between the two runs.
        """
        head = cast(OutputHead, findings.head)
        random_findings = replace(findings, notes=(*findings.notes, RANDOM_NOTE))

        def is_same(first: Any, second: Any) -> bool:
            return is_last_answer_same(first, second, head)

        if is_same(together, apart):
            # What keeps something from one run to the next may answer by the images before.
            keeps_more = has_kept_more(kept, list_kept_values(self.hints.network))
            if keeps_more and not is_same(self.run_apart(self.run), apart):
                return random_findings
            return findings
        if self.with_gradient and not self.both_with_gradient:
            return replace(self, both_with_gradient=True).compare_runs()
        if not is_same(self.run_apart(self.run), apart):
            has_one_layout = self.run_plainly is self.run
            if has_one_layout or not is_same(self.run_apart(self.run_plainly), apart):
                return random_findings
            return replace(findings, notes=(), needs_plain_layout=True)
        return replace(findings, runs_one_by_one=True, notes=(*findings.notes, ONE_BY_ONE_NOTE))

    def run_together(self) -> tuple[Any, CallLengths]:
        """The output for all images, or None where the network can't take them together; and the
        calls of its layers.

        A network that needs autograd itself is run once more with it.
        """
        output: Any = None
        calls: CallLengths = {}
        if not self.both_with_gradient:
            with torch.no_grad(), watch_calls(self.hints.network) as calls:
                output = _run_or_none(lambda: self.run(self.images.clone()))
        if output is None and self.with_gradient:
            leaf = self.images.clone().requires_grad_()
            with torch.enable_grad(), watch_calls(self.hints.network) as calls:
                output = _run_or_none(lambda: self.run(leaf))
        return output, calls

    def run_apart(self, run: Callable[[Tensor], Any]) -> Any:
        """The output for the last image alone."""
        if not self.with_gradient:
            with torch.no_grad():
                return run(self.images[-1:].clone())
        with torch.enable_grad():
            leaf = self.images.clone().requires_grad_()
            return run(leaf[-1:])


def _choose_scores(
    together: Any, apart: Any, hints: HeadHints
) -> tuple[HeadHints, tuple[str, ...]]:
    """The hints with the part of the output that holds the scores, and a note if it is not first.

    Raises SightlineError for outputs without scores.
    """
    if hints.selector is not None:
        return hints, ()
    refuse_list_of_images(together, apart, hints.network_name)
    refuse_feature_pyramid(apart, hints)
    path, sequence = find_sequence(apart, hints.network_name)
    entries = list_plain_entries(sequence)
    entry = choose_tuple_entry(entries)
    name = join_path(path, str(entry))
    if not entry:
        count = 1 + count_rival_entries(entries)
        note = f"the scores are value {name} of {count} alike: output= picks another"
        return hints, (note,) if count > 1 else ()
    note = f"the scores are value {name} of what it returns"
    return replace(hints, selector=name if path else entry), (note,)


def list_kept_values(network: nn.Module) -> list[tuple[Any, int]]:
    """What each module holds beside its weights and modules, and how often it was written.

    Lists and dicts count by their items.
    """
    values: list[Any] = []
    for module in network.modules():
        attributes = vars(module)
        values += attributes["_buffers"].values()
        for name, value in attributes.items():
            if name in MODULE_ATTRIBUTES:
                continue
            values.append(value)
            if isinstance(value, (list, tuple)):
                values += cast(Sequence[Any], value)
            elif isinstance(value, dict):
                values += cast(dict[Any, Any], value).values()
    return [(value, count_writes(value) if isinstance(value, Tensor) else 0) for value in values]


def has_kept_more(before: Sequence[tuple[Any, int]], after: Sequence[tuple[Any, int]]) -> bool:
    """Whether a network changed something that it holds."""
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(old is not new or writes != count for (old, writes), (new, count) in pairs)


def _find_batch_axis(head: OutputHead, apart: Any, hints: HeadHints) -> int:
    """The axis of the images, by the output for a single one.

    That for two images may have two of something else in its first axis.
    """
    selected = select_output(apart, hints.selector, hints.network_name)
    if head.kind != "positions" or not isinstance(selected, Tensor) or selected.ndim != head.axes:
        return head.batch_axis
    return 1 if selected.shape[0] != 1 and selected.shape[1] == 1 else 0


def is_last_answer_same(outputs: Any, other_outputs: Any, head: OutputHead) -> bool:
    """Whether two runs give the last image the same answer, to the output's precision."""
    answers: list[Any] = []
    for output in (outputs, other_outputs):
        selected = head.select(output)
        answers.append(selected.movedim(head.batch_axis, 0) if head.batch_axis else selected)
    tolerance = SINGLE_TOLERANCE if _is_precise(answers[1]) else HALF_TOLERANCE
    return is_same_for_one_image(answers[0], answers[1], tolerance)


def _run_or_none(run: Callable[[], Any]) -> Any:
    """The output, or None where the network fails."""
    try:
        return run()
    except SightlineError:
        return None


def _is_precise(selected: Any) -> bool:
    """Whether an output has at least single precision."""
    return not isinstance(selected, Tensor) or selected.dtype in (torch.float32, torch.float64)


def is_same_for_one_image(together: Any, apart: Any, tolerance: float) -> bool:
    """Whether the last image's output in a batch is that of the image alone."""
    last = flatten_last_image(together)
    alone = flatten_last_image(apart)
    if last.shape != alone.shape:
        return False
    last = last.nan_to_num()
    alone = alone.nan_to_num()
    scale = alone.abs().max().clamp_min(1e-6) if alone.numel() else torch.ones(())
    return bool(((last - alone).abs() <= tolerance * scale).all())


def flatten_last_image(selected: Any) -> Tensor:
    """All numbers of the last image in an output's part, in one row."""
    if isinstance(selected, Tensor):
        return selected.detach()[-1:].float().flatten()
    if is_detection_list(selected):
        return selected[-1]["scores"].detach().float()
    return torch.empty(0)
