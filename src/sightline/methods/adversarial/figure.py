"""What came of an attack: numbers, the picture, the file that still fools, and how accuracy falls with the radius."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sightline.images.plotting.maps import LinePlot, arrange_in_row, draw_line_plots
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackRun, select_class_scores
from sightline.methods.adversarial.attacks.minimum_norm import round_adversarial_image
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack
from sightline.models.model import Model
from sightline.registry.result import ResultValue

MAX_OUTCOME_ROWS = 6  # images of a batch that get a row of the picture

MAX_CHANGE_ENLARGEMENT = 50.0  # how much a smallest change may be enlarged to outlive 8 bits

REPORTED_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True)
class AttackOutcome:
    """An attack and what it found, on the model's device: images, their logits before and after, the images in 8 bits and
    whether they fool."""

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
        """The network."""
        return self.run.model

    @property
    def goal(self) -> AttackGoal:
        """What the attack was after."""
        return self.run.goal

    def collect_values(self) -> dict[str, ResultValue]:
        """Everything by image."""
        change = (self.changed_image - self.image).cpu()
        return {
            "image": self.changed_image.cpu(), "logits": self.changed_logits.cpu(), "clean_logits": self.clean_logits.cpu(), "success": self.goal.is_reached(self.changed_logits).cpu(),
            "image_8bit": self.rounded_image.cpu(), "success_8bit": self.goal.is_reached(self.rounded_logits).cpu(),
            **{norm: compute_image_norms(change, norm) for norm in REPORTED_NORMS}, "gradients": self.run.gradient_counts.cpu(), "halted": self.run.first_nan_steps.cpu(),
        }  # fmt: skip

    def render_comparison(self) -> Tensor:
        """A row for each of the first images: image, change, result."""
        change = (self.changed_image - self.image)[:MAX_OUTCOME_ROWS].cpu()
        return arrange_in_row(
            self.image[:MAX_OUTCOME_ROWS].cpu(),
            (0.5 + change * self.compute_display_factor()).clamp(0, 1),
            self.changed_image[:MAX_OUTCOME_ROWS].cpu(),
        )

    def compute_display_factor(self) -> float:
        """How much the change is enlarged in the picture: the first image's largest becomes half the range."""
        return 0.5 / max(float((self.changed_image[0] - self.image[0]).abs().max()), 1e-6)

    def describe_outcome(self) -> str:
        """The picture in words, of the first image."""
        change = self.changed_image[:1] - self.image[:1]
        largest, euclidean = (
            float(compute_image_norms(change, norm)[0]) for norm in ("linf", "l2")
        )
        return (
            f"{format_predicted_class(self.model, self.clean_logits[0])} on the left; the change, ×{self.compute_display_factor():.0f} around gray (largest {largest * 255:.2g}/255, "
            f"length {euclidean:.2g}); {format_predicted_class(self.model, self.changed_logits[0])} on the right. {self.describe_success()}{self.describe_halt()}"
        )

    def describe_success(self) -> str:
        """What came of the first image, in words."""
        fooled, printed = (
            bool(self.goal.is_reached(logits)[0])
            for logits in (self.changed_logits, self.rounded_logits)
        )
        if (
            not fooled
            and self.goal.target_labels is not None
            and self.changed_logits[0].argmax() != self.goal.source_labels[0]
        ):
            return f"The network is fooled, but the target {self.model.labels[int(self.goal.target_labels[0])]} was not reached."
        if not fooled:
            return "The answer did not change: try a larger eps, more steps or another attack."
        return f"It {'still' if printed else 'no longer'} fools the network once rounded to 8 bits."

    def describe_halt(self) -> str:
        """Which gradients were not numbers, if any."""
        halted = self.run.first_nan_steps.nonzero()[:, 0]
        if not len(halted):
            return ""
        first = int(halted[0])
        return f" The gradient of image {first + 1} was not a number at step {int(self.run.first_nan_steps[first])}: its last good picture stays."

    def describe_saved_file(self) -> str:
        """The file in words."""
        change, least = (
            float(compute_image_norms(image[:1] - self.image[:1], self.attack.norm))
            for image in (self.rounded_image, self.changed_image)
        )
        size = (
            f" Its change is {change / least:.1f} times as long as the smallest, which rounding would undo."
            if change > 1.05 * least > 0
            else ""
        )
        return f"The changed image as this PNG holds it, in 8 bits. Read back, the network takes it for {format_predicted_class(self.model, self.rounded_logits[0])}.{size}"

    def compute_accuracy_curve(self, radius_count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Radii from zero, the share of images that withstand each, and the mean probability of the clean answer (the target, if there is one)."""
        asked = (
            self.goal.source_labels if self.goal.target_labels is None else self.goal.target_labels
        )
        if self.attack.is_minimal:
            reached = self.goal.is_reached(self.changed_logits)
            need = torch.where(
                reached,
                compute_image_norms(self.changed_image - self.image, self.attack.norm),
                torch.inf,
            )
            need[self.goal.is_reached(self.clean_logits)] = 0
            top = float(need[reached].max()) * 1.2 if reached.any() else 1.0
            radii = torch.linspace(0, top, max(radius_count, 2) * 8)
            return radii, (need.cpu() > radii[:, None]).float().mean(1), torch.empty(0)
        logits, radii = [self.clean_logits], [0.0]
        for factor in (
            4 ** torch.linspace(-1, 1, radius_count) if radius_count > 1 else torch.ones(1)
        ):
            radii.append(self.attack.eps * float(factor))
            attack = replace(
                self.attack,
                eps=radii[-1],
                step_size=None
                if self.attack.step_size is None
                else self.attack.step_size * float(factor),
            )
            found, _ = attack(self.model, self.image, self.goal)
            logits.append(self.run.compute_logits(found.detach()).detach())
        accuracy = torch.stack([1 - self.goal.is_reached(one).float().mean() for one in logits])
        return (
            torch.tensor(radii),
            accuracy.cpu(),
            torch.stack(
                [select_class_scores(one.softmax(1), asked).mean() for one in logits]
            ).cpu(),
        )

    def render_accuracy_curve(
        self, radii: Tensor, accuracy: Tensor, probability: Tensor
    ) -> tuple[Tensor, str]:
        """The curve as a picture, and its caption."""
        scale, unit, axis = (
            (255, "/255", "255ths") if self.attack.norm == "linf" else (1, "", "units of [0, 1]")
        )
        places = (radii * scale).tolist()
        goal = "the clean answer" if self.goal.target_labels is None else "the target"
        lines = {"images that withstand": (places, accuracy.tolist())}
        if len(probability):
            lines[f"probability of {goal}"] = (places, probability.tolist())
        title = f"{self.attack.peer or self.attack.name}, {len(self.image)} image{'s' if len(self.image) > 1 else ''}"
        picture = draw_line_plots(
            [LinePlot(title, f"radius ({self.attack.norm}, in {axis})", lines)]
        )
        lost = next(
            (
                f"{place:.2g}{unit}"
                for place, share in zip(places, accuracy.tolist(), strict=True)
                if share == 0
            ),
            "",
        )
        end = (
            f"at {lost} none is left"
            if lost
            else f"{float(accuracy[-1]):.0%} are left at {places[-1]:.2g}{unit}, the largest tried"
        )
        return picture, f"Share of images that withstand the attack over its radius: {end}."


def evaluate_attack(
    attack: Attack, run: AttackRun, image: Tensor, clean_logits: Tensor, changed_image: Tensor
) -> AttackOutcome:
    """The outcome, with the network's answers to the result and to its file."""
    with torch.no_grad():
        after = run.compute_logits(changed_image)
        file = round_adversarial_image(
            run, image, changed_image, MAX_CHANGE_ENLARGEMENT if attack.is_minimal else 1.0
        )
        return AttackOutcome(
            attack, run, image, clean_logits, changed_image, after, file, run.compute_logits(file)
        )


def format_predicted_class(model: Model, logits: Tensor) -> str:
    """The answer in words: «tench (98 %)»."""
    probability, index = logits.softmax(0).max(0)
    return f"{model.labels[int(index)]} ({float(probability):.0%})"
