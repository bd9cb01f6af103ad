"""The outcome of an attack: its numbers, its figures and captions, and its accuracy curve."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import LinePlot
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import arrange_in_row
from sightline.methods.adversarial.attacks.goal import (
    AttackGoal,
    AttackRun,
    ScoreGoal,
    round_to_8_bits,
    select_class_scores,
)
from sightline.methods.adversarial.attacks.minimum_norm import round_adversarial_image
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack
from sightline.models.model import Model
from sightline.registry.result import ResultValue

MAX_OUTCOME_ROWS = 6  # images of a batch that get a row in the figure

OUTCOME_TILE_SIDE = 256  # pixels

MAX_CHANGE_ENLARGEMENT = 50.0  # how much a smallest change may be enlarged to survive 8 bits

REPORTED_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")

# The curve of a smallest change needs no further attacks, so it has more points.
POINTS_PER_RADIUS = 8


@dataclass(frozen=True)
class AttackOutcome:
    """An attack and its result, on the model's device.

    The images, N×3×H×W, are the clean ones, the changed ones, and the changed ones in 8 bits; each
    comes with its logits, N×classes.
    """

    attack: Attack
    run: AttackRun
    image: Tensor
    clean_logits: Tensor
    changed_image: Tensor
    changed_logits: Tensor
    rounded_image: Tensor
    rounded_logits: Tensor

    @property
    def model(self) -> Model:
        """The attacked model."""
        return self.run.model

    @property
    def goal(self) -> AttackGoal:
        """The goal of the attack."""
        return self.run.goal

    def collect_values(self) -> dict[str, ResultValue]:
        """The values of the result, one row per image, on the CPU."""
        change = (self.changed_image - self.image).cpu()
        norms = {norm: compute_image_norms(change, norm) for norm in REPORTED_NORMS}
        scores: dict[str, ResultValue] = {}
        if isinstance(self.goal, ScoreGoal):
            scores["clean_score"] = self.clean_logits[:, 0].cpu()
            scores["score"] = self.changed_logits[:, 0].cpu()
        return {
            **scores,
            "image": self.changed_image.cpu(),
            "logits": self.changed_logits.cpu(),
            "clean_logits": self.clean_logits.cpu(),
            "success": self.goal.is_reached(self.changed_logits).cpu(),
            "image_8bit": self.rounded_image.cpu(),
            "success_8bit": self.goal.is_reached(self.rounded_logits).cpu(),
            **norms,
            "gradients": self.run.gradient_counts.cpu(),
            "halted": self.run.first_nan_steps.cpu(),
        }

    def render_comparison(self) -> Tensor:
        """A row for each of the first images: clean image, enlarged change, changed image."""
        image = self.image[:MAX_OUTCOME_ROWS].cpu()
        changed_image = self.changed_image[:MAX_OUTCOME_ROWS].cpu()
        enlarged_change = (changed_image - image) * self.compute_display_factor()
        pictures = (image, (0.5 + enlarged_change).clamp(0, 1), changed_image)
        return arrange_in_row(*map(self.model.to_picture, pictures))

    def list_pictures(self) -> PictureRows:
        """The first image, its enlarged change and the changed image, with the answers."""
        clean_image = self.image[:1].cpu()
        changed_image = self.changed_image[:1].cpu()
        factor = self.compute_display_factor()
        enlarged_change = (0.5 + (changed_image - clean_image) * factor).clamp(0, 1)
        pictures = [
            self.model.to_picture(picture)
            for picture in (clean_image, enlarged_change, changed_image)
        ]
        captions = [
            self.describe_answer(self.clean_logits),
            f"the change, ×{factor:.0f} around gray",
            self.describe_answer(self.changed_logits),
        ]
        return PictureRows([FigureRow("", pictures, captions)], OUTCOME_TILE_SIDE)

    def compute_display_factor(self) -> float:
        """The factor that makes the largest change of the first image half of the range."""
        change = self.changed_image[0] - self.image[0]
        largest_change = float(change.abs().max())
        return 0.5 / max(largest_change, 1e-6)

    def describe_outcome(self) -> str:
        """The caption of the comparison, for the first image."""
        change = self.changed_image[:1] - self.image[:1]
        largest = float(compute_image_norms(change, "linf")[0])
        length = float(compute_image_norms(change, "l2")[0])
        return (
            f"{self.describe_answer(self.clean_logits)} on the left; the change, "
            f"×{self.compute_display_factor():.0f} around gray (largest {largest * 255:.2g}/255, "
            f"length {length:.2g}); {self.describe_answer(self.changed_logits)} "
            f"on the right. {self.describe_success()}{self.describe_halt()}"
        )

    def describe_answer(self, logits: Tensor) -> str:
        """What the network says of the first image: «tench (98 %)», or the score."""
        if isinstance(self.goal, ScoreGoal):
            return f"{self.model.labels[0]}: {float(logits[0, 0]):.3g}"
        if self.goal.has_independent_labels and self.model.output_kind == "multilabel":
            labels = self.goal.target_labels
            label = int((self.goal.source_labels if labels is None else labels)[0])
            probability = float(self.model.to_probabilities(logits)[0, label])
            return f"{self.model.labels[label]} ({probability:.0%})"
        return format_predicted_class(self.model, logits[0])

    def describe_score_change(self) -> str:
        """How far the first image's score has changed, in a sentence."""
        clean_score = float(self.clean_logits[0, 0])
        change = float(self.changed_logits[0, 0]) - clean_score
        if change == 0:
            return "The score did not change: try a larger eps or more steps."
        verb = "rose" if change > 0 else "fell"
        share = f" ({abs(change / clean_score):.0%} of its magnitude)" if clean_score else ""
        sentence = f"The score {verb} by {abs(change):.3g}{share}"
        if not bool(self.goal.is_reached(self.changed_logits)[0]):
            return f"{sentence}, less than the half that counts: try a larger eps or more steps."
        if bool(self.goal.is_reached(self.rounded_logits)[0]):
            return f"{sentence}, and by more than half in 8 bits too."
        return f"{sentence}; rounded to 8 bits it changes by less than half."

    def describe_success(self) -> str:
        """Whether the first image reached its goal, in a sentence."""
        if isinstance(self.goal, ScoreGoal):
            return self.describe_score_change()
        if bool(self.goal.is_reached(self.changed_logits)[0]):
            survives = bool(self.goal.is_reached(self.rounded_logits)[0])
            return (
                f"It {'still' if survives else 'no longer'} fools the network once rounded to "
                "8 bits."
            )
        target_labels = self.goal.target_labels
        if self.model.output_kind == "multilabel":
            side = "above" if target_labels is None else "below"
            return f"The label stays {side} one half: try a larger eps or more steps."
        left_class = bool(self.changed_logits[0].argmax() != self.goal.source_labels[0])
        if target_labels is not None and left_class:
            target_name = self.model.labels[int(target_labels[0])]
            return f"The network is fooled, but the target {target_name} was not reached."
        return "The prediction did not change: try a larger eps, more steps or another attack."

    def describe_halt(self) -> str:
        """Which gradient was not finite, in a sentence; empty if all were."""
        halted_rows = self.run.first_nan_steps.nonzero()[:, 0]
        if not len(halted_rows):
            return ""
        row = int(halted_rows[0])
        step = int(self.run.first_nan_steps[row])
        return (
            f" The gradient of image {row + 1} was not a number at step {step}: it keeps its last "
            "good image."
        )

    def describe_saved_file(self) -> str:
        """The caption of the saved image."""
        changed_image = self.changed_image[:1]
        rounded_image = self.rounded_image[:1]
        enlargement = ""
        if not torch.equal(rounded_image, round_to_8_bits(changed_image)):
            norm = self.attack.norm
            smallest = float(compute_image_norms(changed_image - self.image[:1], norm))
            enlarged = float(compute_image_norms(rounded_image - self.image[:1], norm))
            enlargement = (
                f" Its change is {enlarged / smallest:.1f} times as long as the smallest, which "
                "rounding would undo."
            )
        answer = self.describe_answer(self.rounded_logits)
        verb = "gives" if isinstance(self.goal, ScoreGoal) else "predicts"
        return (
            f"The changed image as this PNG stores it, in 8 bits. Read back, the network {verb} "
            f"{answer}.{enlargement}"
        )


def evaluate_attack(
    attack: Attack, run: AttackRun, image: Tensor, clean_logits: Tensor, changed_image: Tensor
) -> AttackOutcome:
    """The outcome, with the logits of the changed images and of the images in 8 bits."""
    max_enlargement = MAX_CHANGE_ENLARGEMENT if attack.is_minimal else 1.0
    with torch.no_grad():
        changed_logits = run.compute_logits(changed_image)
        rounded_image = round_adversarial_image(run, image, changed_image, max_enlargement)
        rounded_logits = run.compute_logits(rounded_image)
    return AttackOutcome(
        attack,
        run,
        image,
        clean_logits,
        changed_image,
        changed_logits,
        rounded_image,
        rounded_logits,
    )


# ── the accuracy curve ──


@dataclass(frozen=True)
class AccuracyCurve:
    """Radii from zero, the share of images that withstand each, and the mean probability of the
    clean class (of the target, if there is one); probability is empty for smallest changes, and
    for scores, which have none."""

    radii: Tensor
    accuracy: Tensor
    probability: Tensor


def compute_accuracy_curve(outcome: AttackOutcome, radius_count: int) -> AccuracyCurve:
    """The accuracy curve, on the CPU: known for smallest changes, else by further attacks."""
    if outcome.attack.is_minimal:
        return compute_minimal_curve(outcome, radius_count)
    return compute_repeated_curve(outcome, radius_count)


def compute_minimal_curve(outcome: AttackOutcome, radius_count: int) -> AccuracyCurve:
    """The curve of smallest changes: an image withstands every radius below its distance."""
    is_reached = outcome.goal.is_reached(outcome.changed_logits)
    change = outcome.changed_image - outcome.image
    distances = compute_image_norms(change, outcome.attack.norm)
    distances = torch.where(is_reached, distances, torch.inf)
    distances[outcome.goal.is_reached(outcome.clean_logits)] = 0

    largest_radius = 1.0
    if is_reached.any():
        largest_radius = float(distances[is_reached].max()) * 1.2
    radii = torch.linspace(0, largest_radius, max(radius_count, 2) * POINTS_PER_RADIUS)
    accuracy = (distances.cpu() > radii[:, None]).float().mean(1)
    return AccuracyCurve(radii, accuracy, torch.empty(0))


def compute_repeated_curve(outcome: AttackOutcome, radius_count: int) -> AccuracyCurve:
    """The curve of a bounded attack, repeated at radii from a quarter of its own to four times."""
    goal = outcome.goal
    attack = outcome.attack
    factors = torch.ones(1)
    if radius_count > 1:
        factors = 4 ** torch.linspace(-1, 1, radius_count)

    radii = [0.0]
    logits_per_radius = [outcome.clean_logits]
    for factor in factors.tolist():
        eps = attack.eps * factor
        step_size = None if attack.step_size is None else attack.step_size * factor
        scaled_attack = replace(attack, eps=eps, step_size=step_size)
        changed_image, _ = scaled_attack(outcome.model, outcome.image, goal)
        radii.append(eps)
        logits_per_radius.append(outcome.run.compute_logits(changed_image.detach()).detach())

    labels = goal.source_labels if goal.target_labels is None else goal.target_labels
    accuracy: list[Tensor] = []
    probability: list[Tensor] = []
    for logits in logits_per_radius:
        accuracy.append(1 - goal.is_reached(logits).float().mean())
        if not isinstance(goal, ScoreGoal):
            probabilities = outcome.model.to_probabilities(logits)
            probability.append(select_class_scores(probabilities, labels).mean())
    return AccuracyCurve(
        torch.tensor(radii),
        torch.stack(accuracy).cpu(),
        torch.stack(probability).cpu() if probability else torch.empty(0),
    )


def describe_accuracy_curve(outcome: AttackOutcome, curve: AccuracyCurve) -> tuple[LinePlot, str]:
    """The curve as a plot, and its caption."""
    attack = outcome.attack
    is_linf = attack.norm == "linf"
    scale = 255 if is_linf else 1
    unit = "/255" if is_linf else ""
    radii = (curve.radii * scale).tolist()
    accuracy = curve.accuracy.tolist()

    lines = {"images that withstand": (radii, accuracy)}
    if len(curve.probability):
        label = "the clean class" if outcome.goal.target_labels is None else "the target"
        lines[f"probability of {label}"] = (radii, curve.probability.tolist())
    image_count = len(outcome.image)
    title = f"{attack.peer or attack.name}, {image_count} image{'s' if image_count > 1 else ''}"
    x_label = f"radius ({attack.norm}, in {'255ths' if is_linf else 'units of [0, 1]'})"
    plot = LinePlot(title, x_label, lines)

    fatal_radii = [radius for radius, share in zip(radii, accuracy, strict=True) if share == 0]
    if fatal_radii:
        ending = f"at {fatal_radii[0]:.2g}{unit} none is left"
    else:
        ending = f"{accuracy[-1]:.0%} are left at {radii[-1]:.2g}{unit}, the largest radius tried"
    return plot, f"Share of images that withstand the attack over its radius: {ending}."


def format_predicted_class(model: Model, logits: Tensor) -> str:
    """The predicted class and its probability: "tench (98 %)"."""
    probability, index = model.to_probabilities(logits[None])[0].max(0)
    label = model.labels[int(index)]
    return f"{label} ({float(probability):.0%})"
