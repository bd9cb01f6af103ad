"""The same questions to two networks: what the one has learned and the other has not.

Gradients of a network that was trained against adversarial examples follow what people see
(Tsipras et al. 2019), and so do images made by ascent (Engstrom et al. 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import (
    arrange_with_titles,
    find_heatmap_limit,
    overlay_heatmap,
    render_around_gray,
)
from sightline.methods.adversarial.adversarial import adversarial
from sightline.methods.adversarial.transfer import number_duplicate_names
from sightline.methods.attribution.saliency import saliency
from sightline.methods.evaluation.randomization import (
    group_weight_layers,
    randomize_layer_groups,
)
from sightline.methods.synthesis.synthesis import synthesis
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.builders import find_embedded_weights
from sightline.models.zoo.load import load_other_network
from sightline.optim.objectives.objective import logit
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# The embedded networks: one architecture, trained in two ways.
COUNTERPARTS = {"sightnet": "sightnet_plain", "sightnet_plain": "sightnet"}

# The attack towards a class may change a pixel value by so much, as a root mean square. It is seen.
VISIBLE_CHANGE = 15 / 255

ATTACK_STEPS = 20

# Pixels of the side in which a page shows a picture.
PICTURE_SIDE = 160


@dataclass(frozen=True)
class Question:
    """What both networks are asked.

    Attributes:
        class_index: The class of the ascent and of the gradient.
        target_index: The class that the attack is to reach.
        ascent_size: Shorter side of the ascent's image; None for the network's own.
        radius: L2 radius of the attack.
        asks_smallest: Whether the smallest change is looked for, too.
    """

    image: Tensor
    class_index: int
    target_index: int
    ascent_size: int | None
    steps: int | None
    radius: float
    asks_smallest: bool
    seed: int


@dataclass(frozen=True)
class SmallestChange:
    """What DeepFool ends with for each image: its L2 length, and whether the prediction changes."""

    length: Tensor
    found: Tensor


@dataclass(frozen=True)
class Answers:
    """What one network answers.

    Attributes:
        ascent: The image of the ascent, 1×C×H×W.
        score: The class's logit for it.
        saliency: Magnitudes of the gradient, N×H×W.
        attacked: The images after the attack, N×C×H×W.
        probability: The target's probability for them, N.
        smallest: The smallest change; None if not asked.
        predicted: The classes predicted for the images as they are, N.
    """

    ascent: Tensor
    score: float
    saliency: Tensor
    attacked: Tensor
    probability: Tensor
    smallest: SmallestChange | None
    predicted: Tensor


@register_method(
    chapter="generative",
    title="Two networks compared",
    question="What has one network learned that another has not?",
    reading="Three questions to both networks, with the same settings: an ascent to the class, the "
    "gradient of its score, and an attack towards another class that may change the image visibly. "
    "Where nothing else is named, the second network is the first with each layer's weights in "
    "random order: what only the first one shows it has learned, what both show comes from the "
    "architecture, the image or the question.",
    caution="Two networks differ in more than one thing, and one pair proves no rule. Gradients "
    "that look right to us need not describe the decision better. A network that was trained "
    "against attacks is robust to small changes of one kind alone, and an attack that fails proves "
    "nothing.",
    tour_runs=({"steps": 24, "smallest": False},),
    quick_parameters={"steps": 10},
    former_names={"size": "ascent_size"},
)
def contrast(
    model: Model,
    image: Tensor,
    *,
    other: str = "auto",
    label: int | str = "top",
    towards: int | str = "least",
    ascent_size: Annotated[int | None, ValueRange(16, 4096)] = None,
    steps: Annotated[int | None, ValueRange(1, 100_000)] = None,
    eps: Annotated[float | None, ValueRange(1e-6, 1_000_000)] = None,
    smallest: bool = True,
    seed: int = 0,
) -> Result:
    """Asks two networks of the same classes the same: ascent, gradient, and attack.

    `values["names"]` are the two networks, this one first. Of each network in this order:
    `values["ascent"]`, 2×C×H×W, is the image of the ascent, and `["score"]`, 2, the class's logit
    for it; `["saliency"]`, 2×N×H×W, is the magnitude of the gradient; `["attacked"]`, 2×N×C×H×W,
    are the images after projected gradient steps towards another class inside an L2 ball, and
    `["probability"]`, 2×N, is the probability of that class for them; `["smallest"]`, 2×N, is the
    L2 length of the smallest change that DeepFool ends with, and `["found"]`, 2×N, whether it
    changes the prediction; `["predicted"]`, 2×N, is the class predicted before.

    Args:
        other: The other network, by the name the command line takes; NAME=FILE sets the weights.
            "shuffled" for the same network with each layer's weights in random order, which has
            learned nothing; "auto" for the embedded network that was trained otherwise, if there is
            one, else "shuffled".
        label: Class of the ascent and of the gradient: index, name, or "top" for the one that this
            network predicts for the first image.
        towards: Class that the attack is to reach: index, name, or "least" for the one that both
            networks find unlikely.
        ascent_size: Shorter side of the ascent's image in pixels; the network's own by default.
        steps: Number of steps of the ascent; the preset's by default.
        eps: Radius of the attack in L2, pixel values in [0, 1]; by default a root mean square of
            15/255, which can be seen.
        smallest: Look for the smallest change of each network, too, which takes about as long as
            the attack; without it `smallest` and `found` are left out.
    """
    other_name, other_model = load_counterpart(model, other, seed)
    models = (model, other_model)
    image = image.to(model.device)
    question = Question(
        image=image,
        class_index=int(model.choose(label, image)[0]),
        target_index=choose_target(models, image, towards),
        ascent_size=ascent_size,
        steps=steps,
        asks_smallest=smallest,
        radius=eps or VISIBLE_CHANGE * float(image[0].numel()) ** 0.5,
        seed=seed,
    )
    answers = [ask_network(network, question) for network in models]
    names = list(number_duplicate_names([model.name, other_name]))
    values = {"names": names, **collect_values(question, answers)}
    rows = {
        "ascent": FigureRow("", [model.to_picture(answer.ascent) for answer in answers], names),
        "saliency": draw_saliency(model, question, names, answers),
        "attack": draw_attacks(model, question, names, answers),
    }
    panels = {
        name: arrange_with_titles(list(row.captions), list(row.pictures))
        for name, row in rows.items()
    }
    figures = {name: PictureRows([row], PICTURE_SIDE) for name, row in rows.items()}
    captions = describe_answers(model, question, names, answers)
    return Result(panels, values, captions, figures=figures)


def load_counterpart(model: Model, other: str, seed: int) -> tuple[str, Model]:
    """The network to contrast with, and what it is called.

    Raises SightlineError for a network of other classes.
    """
    name = other
    if other == "auto":
        name = find_counterpart(model) or "shuffled"
    if name == "shuffled":
        return f"{model.name}, shuffled", shuffle_weights(model, seed)
    counterpart = load_other_network(name, model.device)
    if counterpart.labels != model.labels:
        raise SightlineError(
            f"{counterpart.name} has other classes than {model.name}; two networks are compared "
            "on a class that both have"
        )
    return counterpart.name, counterpart


def find_counterpart(model: Model) -> str | None:
    """The embedded network of the same architecture whose weights are others, or None."""
    name = COUNTERPARTS.get(model.name)
    if name is None or "weights" in model.recipe:
        return None
    if hash_file(find_embedded_weights(name)) == model.recipe.get("sha256"):
        return None
    return name


def shuffle_weights(model: Model, seed: int) -> Model:
    """The same network with each layer's weights in random order: it has learned nothing."""
    layers = [[path for group in group_weight_layers(model) for path in group]]
    shuffled, _ = next(randomize_layer_groups(model, layers, seed))
    return shuffled


def choose_target(models: Sequence[Model], image: Tensor, towards: int | str) -> int:
    """The class that the attack is to reach, for the first image.

    "least" is the class whose larger probability of the two is smallest, so that neither network
    predicts it already.
    """
    if towards != "least":
        return models[0].index(towards)
    with torch.no_grad():
        probabilities = [model.to_probabilities(model.logits(image[:1]))[0] for model in models]
    return int(torch.stack(probabilities).amax(0).argmin())


def ask_network(model: Model, question: Question) -> Answers:
    """Runs ascent, gradient and attacks on one network."""
    image, class_index = question.image, question.class_index
    ascended = synthesis(
        model,
        logit(class_index),
        size=question.ascent_size,
        steps=question.steps,
        seed=question.seed,
    )
    gradient = saliency(model, image, label=class_index)
    attack = adversarial(
        model,
        image,
        target=question.target_index,
        norm="l2",
        eps=question.radius,
        steps=ATTACK_STEPS,
        early=False,
        seed=question.seed,
    )
    smallest = None
    if question.asks_smallest:
        closest = adversarial(model, image, attack="deepfool", seed=question.seed)
        smallest = SmallestChange(closest.tensors["l2"], closest.tensors["success"])
    probabilities = model.to_probabilities(attack.tensors["logits"])
    return Answers(
        ascent=ascended.tensors["image"],
        score=float(ascended.tensors["scores"][-1]),
        saliency=gradient.tensors["saliency"],
        attacked=attack.tensors["image"],
        probability=probabilities[:, question.target_index],
        smallest=smallest,
        predicted=attack.tensors["clean_logits"].argmax(1),
    )


def collect_values(question: Question, answers: Sequence[Answers]) -> dict[str, Any]:
    """The answers of both networks side by side, by name."""
    values = {
        "label": question.class_index,
        "target": question.target_index,
        "ascent": torch.cat([answer.ascent for answer in answers]),
        "score": torch.tensor([answer.score for answer in answers]),
        "saliency": torch.stack([answer.saliency for answer in answers]),
        "attacked": torch.stack([answer.attacked for answer in answers]),
        "probability": torch.stack([answer.probability for answer in answers]),
        "predicted": torch.stack([answer.predicted for answer in answers]),
    }
    changes = [answer.smallest for answer in answers if answer.smallest]
    if changes:
        values["smallest"] = torch.stack([change.length for change in changes])
        values["found"] = torch.stack([change.found for change in changes])
    return values


# ── the figures ──


def draw_saliency(
    model: Model, question: Question, names: Sequence[str], answers: Sequence[Answers]
) -> FigureRow:
    """The first image, and over it each network's gradient up to its 99th percentile."""
    picture = model.to_picture(question.image[:1].cpu())
    maps = [answer.saliency[:1] for answer in answers]
    overlays = [overlay_heatmap(picture, values, find_heatmap_limit(values)) for values in maps]
    return FigureRow("", [picture, *overlays], ["photograph", *names])


def draw_attacks(
    model: Model, question: Question, names: Sequence[str], answers: Sequence[Answers]
) -> FigureRow:
    """For each network, the first image after the attack and the change, on one scale for both."""
    image = question.image[:1].cpu()
    changes = [model.to_picture(answer.attacked[:1] - image) for answer in answers]
    limit = max(float(change.abs().max()) for change in changes)
    titles: list[str] = []
    pictures: list[Tensor] = []
    for name, answer, change in zip(names, answers, changes, strict=True):
        titles += [f"attack on {name}", "the change"]
        pictures += [model.to_picture(answer.attacked[:1]), render_around_gray(change, limit)]
    return FigureRow("", pictures, titles)


def describe_answers(
    model: Model, question: Question, names: Sequence[str], answers: Sequence[Answers]
) -> dict[str, str]:
    """The captions of the three figures, with the numbers of the first image."""
    label = model.labels[question.class_index]
    target = model.labels[question.target_index]
    scores = " and ".join(f"{answer.score:.1f}" for answer in answers)
    probabilities = " and ".join(f"{float(answer.probability[0]):.0%}" for answer in answers)
    return {
        "ascent": f"The same ascent to {label} on both, from the same start; at the end its score "
        f"is {scores}.",
        "saliency": f"|gradient| of {label} in the photograph, each up to its 99th percentile.",
        "attack": f"{ATTACK_STEPS} steps towards {target} inside an L2 ball of "
        f"{question.radius:.1f}; its probability is then {probabilities}. The changes are shown "
        f"around gray, on one scale.{describe_smallest_changes(names, answers)}",
    }


def describe_smallest_changes(names: Sequence[str], answers: Sequence[Answers]) -> str:
    """A sentence on the smallest changes of the first image; empty where they were not asked."""
    lengths = [
        f"{name}: {describe_length(answer.smallest)}"
        for name, answer in zip(names, answers, strict=True)
        if answer.smallest
    ]
    if not lengths:
        return ""
    return (
        " L2 length of the smallest change that DeepFool finds against the prediction, "
        f"{'; '.join(lengths)}."
    )


def describe_length(change: SmallestChange) -> str:
    """The length of the first image's smallest change, if one was found."""
    return f"{float(change.length[0]):.2f}" if change.found[0] else "none found"
