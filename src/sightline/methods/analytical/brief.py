"""The short form of trust that the report shows beside every map: curves of a few points, three randomized networks, one repetition."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...memory import worthwhile
from ...model import Model
from . import faithful, randomize, verdict
from .explained import Explained, explained
from .faithful import Asked

STEPS, CHANCES = 8, 3
# Of so many stages of the randomization all but the last are tried: their middle is where half of the layers are random.
STAGES = 4
# The same everywhere or chosen for a run; what the map is of stays the same.
LEFT_OUT = ("label", "unit", "callback", "seed", "k")


@dataclass(frozen=True)
class Brief:
    """What is shown beside a map: rows of (test, what is good, the map's number, chance's number), a sentence, the numbers."""

    rows: list[tuple[str, str, float, float | None]]
    sentence: str
    numbers: dict[str, float | str]


def of_run(name: str, knobs: Mapping[str, Any]) -> Explained:
    """The map of a method's run with these knobs. Raises SightlineError for a method without a map."""
    found = explained(name)
    kind = knobs.get(found.source.kind, found.kind)
    return Explained(name, kind, {key: value for key, value in knobs.items() if key not in (*LEFT_OUT, found.source.kind)})


def brief(model: Model, image: Tensor, of: Explained, index: int, seed: int = 0) -> Brief:
    """The tests of the map of one image 1×3×H×W for one class; their meaning is that of `trust`. The map is made 5 times."""
    image, generator = image.cpu(), torch.Generator().manual_seed(seed)
    clean, asked = of.map(model, image, index, seed), Asked(model, index, min(32, worthwhile(model, image, gradients=False)))
    others = [clean.elsewhere(generator) for _ in range(CHANCES)]
    found: dict[str, Any] = {"map": clean.shown}
    found |= faithful.curves(asked, image[0], clean, others, steps=STEPS, generator=generator)
    groups = randomize.gathered(randomize.layers_with_weights(model), STAGES)
    some = groups[: STAGES - 1]
    cascade = [of.map(network, image, index, seed).shown for network, _ in randomize.randomized(model, some, seed)]
    again, found["stability_of"] = of.again(model, image, index, clean.shown, seed, generator)
    found["cascade_rank"] = torch.stack([randomize.rank_correlation(clean.shown, other) for other in cascade])
    found["rank_chance"] = torch.stack([randomize.rank_correlation(clean.shown, other.shown) for other in others]).mean()
    found["stability_rank"] = randomize.rank_correlation(clean.shown, again)
    numbers: dict[str, float | str] = {name: float(found[name]) for name in found if name.endswith(("_auc", "_auc_chance"))}
    numbers |= {"randomized_rank": float(found["cascade_rank"].quantile(0.5)), "rank_chance": float(found["rank_chance"])}
    numbers |= {"stability_rank": float(found["stability_rank"]), "stability_of": str(found["stability_of"])}
    return Brief(rows_of(numbers), verdict.short(of.spoken, found), numbers)


def rows_of(numbers: Mapping[str, Any]) -> list[tuple[str, str, float, float | None]]:
    """The table's rows."""
    repeated = "With another seed" if numbers["stability_of"] == "seed" else "With a trace of noise on the image"
    return [
        ("Brightest pixels removed: probability left", "less is better", numbers["deletion_auc"], numbers["deletion_auc_chance"]),
        ("Brightest pixels made sharp: probability reached", "more is better", numbers["insertion_auc"], numbers["insertion_auc_chance"]),
        ("Network randomized: likeness of the map", "near chance is better", numbers["randomized_rank"], numbers["rank_chance"]),
        (f"{repeated}: likeness of the map", "1 is the same", numbers["stability_rank"], None),
    ]
