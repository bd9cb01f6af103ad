"""What came of an attack: numbers, the picture, the file that still fools, and how accuracy falls with the radius."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import render
from ...attacks.aim import Aim, Run, of
from ...attacks.ball import Norm, length
from ...attacks.choose import Attack
from ...attacks.minimal import printable
from ...model import Model
from ...result import Value

SHOWN = 6  # images of a batch that get a row of the picture
FARTHEST = 50.0  # how much a smallest change may be enlarged to outlive 8 bits
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True)
class Outcome:
    """An attack and what it found, on the model's device: images, their logits before and after, the images in 8 bits and
    whether they fool."""

    attack: Attack
    run: Run
    image: Tensor
    before: Tensor
    found: Tensor
    after: Tensor
    file: Tensor
    file_logits: Tensor

    @property
    def model(self) -> Model:
        """The network."""
        return self.run.model

    @property
    def aim(self) -> Aim:
        """What the attack was after."""
        return self.run.aim

    def values(self) -> dict[str, Value]:
        """Everything by image."""
        change = (self.found - self.image).cpu()
        return {
            "image": self.found.cpu(), "logits": self.after.cpu(), "clean_logits": self.before.cpu(), "success": self.aim.reached(self.after).cpu(),
            "image_8bit": self.file.cpu(), "success_8bit": self.aim.reached(self.file_logits).cpu(),
            **{norm: length(change, norm) for norm in NORMS}, "gradients": self.run.gradients.cpu(), "halted": self.run.halted.cpu(),
        }  # fmt: skip

    def picture(self) -> Tensor:
        """A row for each of the first images: image, change, result."""
        change = (self.found - self.image)[:SHOWN].cpu()
        return render.beside(self.image[:SHOWN].cpu(), (0.5 + change * self.factor()).clamp(0, 1), self.found[:SHOWN].cpu())

    def factor(self) -> float:
        """How much the change is enlarged in the picture: the first image's largest becomes half the range."""
        return 0.5 / max(float((self.found[0] - self.image[0]).abs().max()), 1e-6)

    def caption(self) -> str:
        """The picture in words, of the first image."""
        change = self.found[:1] - self.image[:1]
        largest, euclidean = (float(length(change, norm)[0]) for norm in ("linf", "l2"))
        return (
            f"{spoken(self.model, self.before[0])} on the left; the change, ×{self.factor():.0f} around gray (largest {largest * 255:.2g}/255, "
            f"length {euclidean:.2g}); {spoken(self.model, self.after[0])} on the right. {self.verdict()}{self.interruption()}"
        )

    def verdict(self) -> str:
        """What came of the first image, in words."""
        fooled, printed = (bool(self.aim.reached(logits)[0]) for logits in (self.after, self.file_logits))
        if not fooled and self.aim.wanted is not None and self.after[0].argmax() != self.aim.away[0]:
            return f"The network is fooled, but the target {self.model.labels[int(self.aim.wanted[0])]} was not reached."
        if not fooled:
            return "The answer did not change: try a larger eps, more steps or another attack."
        return f"It {'still' if printed else 'no longer'} fools the network once rounded to 8 bits."

    def interruption(self) -> str:
        """Which gradients were not numbers, if any."""
        halted = self.run.halted.nonzero()[:, 0]
        if not len(halted):
            return ""
        first = int(halted[0])
        return f" The gradient of image {first + 1} was not a number at step {int(self.run.halted[first])}: its last good picture stays."

    def saved(self) -> str:
        """The file in words."""
        change, least = (float(length(image[:1] - self.image[:1], self.attack.norm)) for image in (self.file, self.found))
        size = (
            f" Its change is {change / least:.1f} times as long as the smallest, which rounding would undo."
            if change > 1.05 * least > 0
            else ""
        )
        return f"The changed image as this PNG holds it, in 8 bits. Read back, the network takes it for {spoken(self.model, self.file_logits[0])}.{size}"

    def curve(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Radii from zero, the share of images that withstand each, and the mean probability of the clean answer (the target, if there is one)."""
        asked = self.aim.away if self.aim.wanted is None else self.aim.wanted
        if self.attack.minimal:
            reached = self.aim.reached(self.after)
            need = torch.where(reached, length(self.found - self.image, self.attack.norm), torch.inf)
            need[self.aim.reached(self.before)] = 0
            top = float(need[reached].max()) * 1.2 if reached.any() else 1.0
            radii = torch.linspace(0, top, max(count, 2) * 8)
            return radii, (need.cpu() > radii[:, None]).float().mean(1), torch.empty(0)
        logits, radii = [self.before], [0.0]
        for factor in 4 ** torch.linspace(-1, 1, count) if count > 1 else torch.ones(1):
            radii.append(self.attack.eps * float(factor))
            attack = replace(
                self.attack, eps=radii[-1], step_size=None if self.attack.step_size is None else self.attack.step_size * float(factor)
            )
            found, _ = attack(self.model, self.image, self.aim)
            logits.append(self.run.answers(found.detach()).detach())
        accuracy = torch.stack([1 - self.aim.reached(one).float().mean() for one in logits])
        return torch.tensor(radii), accuracy.cpu(), torch.stack([of(one.softmax(1), asked).mean() for one in logits]).cpu()

    def plot(self, radii: Tensor, accuracy: Tensor, probability: Tensor) -> tuple[Tensor, str]:
        """The curve as a picture, and its caption."""
        scale, unit, axis = (255, "/255", "255ths") if self.attack.norm == "linf" else (1, "", "units of [0, 1]")
        places = (radii * scale).tolist()
        goal = "the clean answer" if self.aim.wanted is None else "the target"
        lines = {"images that withstand": (places, accuracy.tolist())}
        if len(probability):
            lines[f"probability of {goal}"] = (places, probability.tolist())
        title = f"{self.attack.peer or self.attack.name}, {len(self.image)} image{'s' if len(self.image) > 1 else ''}"
        picture = render.lines([render.Plot(title, f"radius ({self.attack.norm}, in {axis})", lines)])
        lost = next((f"{place:.2g}{unit}" for place, share in zip(places, accuracy.tolist(), strict=True) if share == 0), "")
        end = f"at {lost} none is left" if lost else f"{float(accuracy[-1]):.0%} are left at {places[-1]:.2g}{unit}, the largest tried"
        return picture, f"Share of images that withstand the attack over its radius: {end}."


def outcome_of(attack: Attack, run: Run, image: Tensor, before: Tensor, found: Tensor) -> Outcome:
    """The outcome, with the network's answers to the result and to its file."""
    with torch.no_grad():
        after = run.answers(found)
        file = printable(run, image, found, FARTHEST if attack.minimal else 1.0)
        return Outcome(attack, run, image, before, found, after, file, run.answers(file))


def spoken(model: Model, logits: Tensor) -> str:
    """The answer in words: «tench (98 %)»."""
    probability, index = logits.softmax(0).max(0)
    return f"{model.labels[int(index)]} ({float(probability):.0%})"
