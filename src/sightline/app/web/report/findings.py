"""The report in a few lines: its title, and four findings, each with a picture and a caveat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.app.web.report.attributions import draw_overlay, name_trust
from sightline.app.web.report.figures import encode_picture, limit_side
from sightline.app.web.report.section import ReportSection
from sightline.errors import escape_for_display, join_words
from sightline.images.io.pictures import samples
from sightline.models.model import Model

MAX_FINDINGS = 4
THUMBNAIL_SIDE = 192  # pixels

# Kinds of output that do not predict one class.
WITHOUT_ONE_CLASS = ("multilabel", "regression", "embedding", "target")

# From this SSIM on an inversion shows the photograph.
CLEAR_SSIM = 0.5


@dataclass(frozen=True)
class Finding:
    """What a section found, in a sentence.

    Attributes:
        folder: The section's anchor.
        heading: The finding in a few words.
        text: The finding in a sentence or two.
        picture: A thumbnail, 1×3×H×W.
        level: How far it can be trusted, as the chip shows it.
        word: The same in words.
    """

    folder: str
    heading: str
    text: str
    picture: Tensor
    level: str
    word: str

    def describe(self) -> dict[str, Any]:
        """What the template needs."""
        return {**vars(self), "picture": encode_picture(limit_side(self.picture, THUMBNAIL_SIDE))}


@dataclass(frozen=True)
class ReportSubject:
    """What the report is about: a network, a photograph 1×3×H×W and the class asked about."""

    model: Model
    photograph: Tensor
    source: str
    label: int

    @property
    def label_name(self) -> str:
        """The class asked about."""
        return shorten_class_name(self.model.labels[self.label])


def list_findings(subject: ReportSubject, sections: Sequence[ReportSection]) -> list[Finding]:
    """At most four findings, in the order of the report."""
    finished = {section.folder: section for section in sections if section.result}
    writers: list[Callable[[ReportSubject, dict[str, ReportSection]], Finding | None]] = [
        find_evidence,
        find_unit_summary,
        find_adversarial,
        find_inversion,
        find_neighbors,
    ]
    findings = [write_finding(subject, finished) for write_finding in writers]
    return [finding for finding in findings if finding][:MAX_FINDINGS]


# ── the title ──


def write_title(subject: ReportSubject, sections: Sequence[ReportSection]) -> tuple[str, str, str]:
    """The title in three parts, of which the second is emphasized: what the network says."""
    thing = name_thing(subject.source)
    network = escape_for_display(subject.model.name)
    for section in sections:
        if section.method.name != "predictions" or section.result is None:
            continue
        probabilities = section.result.values.get("probabilities")
        if not isinstance(probabilities, Tensor):
            break
        name = shorten_class_name(section.result.values["labels"][0][0])
        share = float(probabilities[0, 0])
        beginning = f"{network} calls {thing} {choose_article(name)} "
        return beginning, name, f" ({share:.0%})"
    return f"What {network} sees in {thing}", "", ""


def name_thing(source: str) -> str:
    """What the image is called: «this rocket» for a sample, else its file name."""
    name = Path(source).name
    if source in samples():
        return f"this {name.replace('_', ' ')}"
    return escape_for_display(name)


def choose_article(name: str) -> str:
    """The indefinite article of a class name, by its first letter."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def shorten_class_name(name: str) -> str:
    """The first of several names that a class may have, as «tench, Tinca tinca» has two."""
    return escape_for_display(name.partition(",")[0].strip() or name)


# ── findings ──


def find_evidence(subject: ReportSubject, sections: dict[str, ReportSection]) -> Finding | None:
    """Where the score comes from, by the attribution that passes most tests."""
    mapped = [section for section in sections.values() if section.heatmap is not None]
    tested = [section for section in mapped if section.trust_summary]
    if not mapped:
        return None
    ranks = {"strong": 0, "weak": 1, "failed": 2, "empty": 3}

    def rank(section: ReportSection) -> int:
        return ranks[section.trust_summary.level] if section.trust_summary else 2

    best = min(mapped, key=rank)
    heatmap = best.heatmap
    if heatmap is None:
        return None
    level, word = name_trust(best.trust_summary)
    passed = [section.title for section in tested if rank(section) == 0]
    text = f"{best.title} marks where the score of {subject.label_name} comes from."
    if tested:
        names = join_words(passed) if passed else "none"
        noun = "attribution" if len(tested) == 1 else "attributions"
        text += f" Of {len(tested)} {noun} tested here, {names} passed every test."
    picture = draw_overlay(subject.photograph, heatmap)
    return Finding(best.folder, "Where it looks", text, picture, level, word)


def find_unit_summary(subject: ReportSubject, sections: dict[str, ReportSection]) -> Finding | None:
    """The shown unit whose name is surest; without names the most selective one."""
    section = sections.get("labels")
    if section is None or section.result is None:
        return None
    values = section.result.values
    units: list[dict[str, Any]] = values["units"]
    rows = getattr(section.result.figures.get("labels"), "rows", ())
    if not rows or not units:
        return None
    reliabilities = [units[unit].get("auprc", 0.0) for unit in values["shown_units"]]
    place = max(range(len(rows)), key=reliabilities.__getitem__)
    unit_name = rows[place].title.partition(":")[0]
    quality = (
        f"has the surest name of the {len(rows)} most selective"
        if reliabilities[place]
        else "is the most selective"
    )
    text = (
        f"{unit_name[:1].upper()}{unit_name[1:]} {quality} of {len(units)}. Over the "
        "collection, patches like this one drive it most."
    )
    picture = rows[place].pictures[0]
    return Finding(section.folder, "What one unit likes", text, picture, "", "a small collection")


def find_adversarial(subject: ReportSubject, sections: dict[str, ReportSection]) -> Finding | None:
    """What a change too small to be seen makes of the prediction."""
    section = sections.get("adversarial")
    if section is None or section.result is None:
        return None
    values = section.result.values
    logits: Tensor = values["logits"][:1]
    if subject.model.output_kind in WITHOUT_ONE_CLASS:
        return None
    probability, index = subject.model.to_probabilities(logits)[0].max(0)
    name = shorten_class_name(subject.model.labels[int(index)])
    largest = 255 * float(values["linf"][0])
    if not bool(values["success"][0]):
        text = f"No change of {largest:.2g}/255 a pixel was found that reaches the class aimed at."
        return Finding(
            section.folder, "It withstood", text, subject.photograph, "weak", "one attack tried"
        )
    text = (
        f"Change no pixel by more than {largest:.2g}/255, and the network says {name} "
        f"({float(probability):.0%}). We see the same picture."
    )
    survives = bool(values["success_8bit"][0])
    level, word = ("strong", "survives 8 bits") if survives else ("weak", "lost in 8 bits")
    picture = subject.model.to_picture(values["image"][:1])
    return Finding(section.folder, "How easily it is fooled", text, picture, level, word)


def find_inversion(subject: ReportSubject, sections: dict[str, ReportSection]) -> Finding | None:
    """How deep into the network the photograph can be made out."""
    section = sections.get("inversion")
    if section is None or section.result is None:
        return None
    values = section.result.values
    similarities: list[float] = values["ssim"][:, 0].tolist()
    layers: list[str] = values["layers"]
    clear = [number for number, ssim in enumerate(similarities) if ssim >= CLEAR_SSIM]
    last = len(layers) - 1
    if not clear:
        text = f"Already {layers[0]} does not keep the photograph (SSIM {similarities[0]:z.2f})."
    elif clear[-1] == last:
        text = f"Even {layers[last]} keeps the photograph (SSIM {similarities[last]:z.2f})."
    else:
        text = (
            f"Up to {layers[clear[-1]]} the photograph can be made out; {layers[last]} keeps what "
            f"kind of thing it is, not its picture (SSIM {similarities[last]:z.2f})."
        )
    layer_row = clear[-1] if clear else last
    picture = subject.model.to_picture(values["image"][layer_row : layer_row + 1])
    return Finding(section.folder, "What it remembers", text, picture, "weak", "a prior fills in")


def find_neighbors(subject: ReportSubject, sections: dict[str, ReportSection]) -> Finding | None:
    """The image of the collection that is nearest."""
    section = sections.get("neighbors")
    if section is None or section.result is None:
        return None
    rows = getattr(section.result.figures.get("neighbors"), "rows", ())
    if not rows:
        return None
    distance = float(section.result.values["distance"][0, 0])
    name = rows[0].captions[1].split("\n")[0]
    text = f"To the network, the nearest picture of the collection is of {name} ({distance:z.2f})."
    return Finding(
        section.folder, "What is alike", text, rows[0].pictures[1], "", "a small collection"
    )
