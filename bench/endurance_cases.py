"""The cases of `endurance.py`: damaged input that is read, and runs that are killed.

Each part makes what it needs once in its worker, and then runs cases by number. A case draws all
its chances from the generator that it gets, so that its number makes it again. It returns how it
ended; any exception but SightlineError is a traceback that a user would have seen.
"""

import copy
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import sightline as sl
from sightline.data.store.maintenance import compact_store, verify_store
from sightline.models.model import Model
from sightline.optim.objectives.parser import parse_objective

LABELS = ("ant", "bee", "cat", "dog", "elk")

PHOTO_COUNT = 24


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    `kind` is "right", "refused" or "wrong" (a changed answer that nothing told of). `lost_bytes`
    counts bytes of a result that differ from those of a run that nothing happened to.
    """

    kind: str
    detail: str = ""
    lost_bytes: int = 0


def make_model() -> Model:
    """A network of three layers with five classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, len(LABELS)),
    )
    return sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, size=32)


def make_image(seed: int, height: int = 40, width: int = 32) -> Tensor:
    """Random colours that change slowly, 1×3×height×width."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    size = (height, width)
    return nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def make_photos(folder: Path, count: int = PHOTO_COUNT) -> Path:
    """A folder of pictures."""
    for seed in range(count):
        sl.write(make_image(seed), folder / f"{seed:03}.png")
    return folder


def refuse_odd_message(message: str) -> Outcome:
    """Refused in one line; RuntimeError, which counts as a traceback, for more than one."""
    if "\n" in message or not message.isprintable():
        raise RuntimeError(f"a refusal is not one printable line: {message!r:.300}")
    return Outcome("refused", message[:200])


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, zeroed, repeated or replaced."""
    changed = bytearray(data)
    start = chance.randrange(len(changed))
    length = chance.choice((1, 4, 64))
    match chance.choice(("flip", "flips", "cut", "zero", "repeat", "noise", "number")):
        case "flip":
            changed[start] ^= 1 << chance.randrange(8)
        case "flips":
            for _ in range(chance.randrange(1, 20)):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case "cut":
            del changed[start:]
        case "zero":
            changed[start : start + length] = bytes(length)
        case "repeat":
            changed[start:start] = changed[start : start + length]
        case "noise":
            changed[start : start + length] = chance.randbytes(length)
        case _:
            # A length, a size or an offset that means too much.
            start = chance.randrange(min(64, len(changed)))
            changed[start : start + 4] = chance.choice((b"\xff" * 4, b"\x7f" + b"\xff" * 3))
    return bytes(changed)


# ── what is read ──


class Images:
    """Pictures of six formats with changed bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pixels = make_image(0)[0].permute(1, 2, 0).mul(255).byte().numpy()
        picture = Image.fromarray(pixels)
        self.encoded: list[tuple[str, bytes]] = []
        for suffix in ("png", "jpeg", "gif", "webp", "bmp", "tiff"):
            buffer = io.BytesIO()
            picture.save(buffer, suffix)
            self.encoded.append((suffix, buffer.getvalue()))

    def run(self, _number: int, chance: random.Random) -> Outcome:
        suffix, data = chance.choice(self.encoded)
        path = self.folder / f"picture.{suffix}"
        path.write_bytes(mutate_bytes(data, chance))
        try:
            image = sl.read(path)
        except sl.SightlineError as error:
            return refuse_odd_message(str(error))
        is_image = image.ndim == 4 and image.shape[1] == 3 and bool(image.isfinite().all())
        if not is_image or float(image.min()) < 0 or float(image.max()) > 1:
            raise RuntimeError(f"read {tuple(image.shape)}, which is no image")
        return Outcome("right")


FORMULAS = (
    "channel('3', 1) - 0.1 * tv()",
    "logit(2) + 1e-3 * roughness(1.5)",
    "direction('3', (1, 0, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1), 2)",
    "neuron('0', 3, 4, 5) + diversity('3', 2)",
    "bounded(2) - cross_entropy('cat')",
)
PIECES = (
    *("tv(", "channel(", "logit(", "layer=", "lambda:", "'3'", "'cat'", "'", "\0", "\ud800", "²"),
    *(")", "(", "()", "[", ",", "-", "+", "*", "**", "=", " ", "1e9", "0", "nan", "9" * 50),
)


class Formulas:
    """Formulas put together from pieces, and right ones with changed characters."""

    def __init__(self, _folder: Path) -> None:
        self.model = make_model()
        self.images = torch.cat([make_image(seed) for seed in range(3)])

    def run(self, _number: int, chance: random.Random) -> Outcome:
        if chance.random() < 0.5:
            text = "".join(chance.choices(PIECES, k=chance.randrange(13)))
        else:
            characters = list(chance.choice(FORMULAS))
            for _ in range(chance.randrange(3)):
                characters[chance.randrange(len(characters))] = chance.choice(PIECES)
            text = "".join(characters)
        try:
            objective = parse_objective(text)
            score = objective.bind(self.model)
            names = [self.model.layer(name) for name in objective.layers]
            scores = score(self.images, self.model.run(self.images, names))
        except sl.SightlineError as error:
            return refuse_odd_message(str(error))
        if scores.shape != (3,):
            raise RuntimeError(f"scores {tuple(scores.shape)} of {text!r}")
        return Outcome("right")


ANY_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 10**30, 0.5, float("nan"), float("inf"), [], {}, [1], [[]]),
    *("", "top", "rocket", "..", "a" * 5000, "\0", "os:system", {"x": None}),
)


class Recipes:
    """Recipes of several methods, each with one part replaced, removed or added."""

    def __init__(self, _folder: Path) -> None:
        self.model = make_model()
        self.image = make_image(0)
        results = [
            sl.saliency(self.model, self.image, label=2, samples=2),
            sl.occlusion(self.model, self.image, window=16, stride=16),
            sl.synthesis(self.model, "channel('3', 1)", steps=2),
            sl.adversarial(self.model, self.image, steps=2),
            sl.deepdream(self.model, self.image, octaves=1, steps=2),
        ]
        self.recipes = [json.loads(json.dumps(dict(result.recipe))) for result in results]

    def run(self, _number: int, chance: random.Random) -> Outcome:
        recipe = copy.deepcopy(chance.choice(self.recipes))
        mutate_json(recipe, chance)
        image = self.image if "image" in recipe else None
        try:
            result = sl.again(recipe, model=self.model, image=image)
        except sl.SightlineError as error:
            return refuse_odd_message(str(error))
        return Outcome("right", repr(result)[:80])


def mutate_json(content: Any, chance: random.Random) -> None:
    """Replaces, removes or adds one value, at any depth."""
    while True:
        keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = chance.choice(keys)
        value = content[key]
        if isinstance(value, (dict, list)) and value and chance.random() < 0.7:
            content = value
            continue
        action = chance.random()
        if action < 0.15:
            del content[key]
        elif action < 0.25 and isinstance(content, dict):
            content[chance.choice(("extra", "", "label"))] = chance.choice(ANY_VALUES)
        else:
            content[key] = copy.deepcopy(chance.choice(ANY_VALUES))
        return


# ── stores ──

STORE_DAMAGES = ("flip", "cut", "remove", "swap", "zero", "json")


class Stores:
    """Copies of a complete store with one damage, then everything that opens a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_model()
        self.photos = make_photos(folder / "photos", 8)
        self.valid = sl.scan(self.model, self.photos, store=folder / "valid.scan", batch=4, k=3)
        self.expected = read_answers(self.valid)

    def run(self, number: int, chance: random.Random) -> Outcome:
        damage = STORE_DAMAGES[number % len(STORE_DAMAGES)]
        store = self.folder / "damaged.scan"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.valid.path, store)
        damage_store(store, damage, chance)

        messages: list[str] = []
        answers: list[Tensor] = []
        # Of what a store holds, thumbnails and paths are not compared.
        uses: list[Callable[[], object]] = [
            lambda: messages.extend(verify_store(store)),
            lambda: answers.extend(read_answers(sl.Scan.open(store))),
            lambda: sl.neighbors(sl.Scan.open(store), id=1, k=2),
            lambda: compact_store(store),
            lambda: sl.scan(self.model, self.photos, store=store, batch=4, k=3),
        ]
        for use in uses:
            try:
                use()
            except sl.SightlineError as error:
                messages.append(str(error))
        if messages:
            return refuse_odd_message(messages[0])
        lost = count_changed_bytes(answers, self.expected)
        return Outcome("wrong" if lost else "right", damage, lost)


def damage_store(store: Path, damage: str, chance: random.Random) -> None:
    """Damages one file of a store."""
    paths = sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)
    path = chance.choice(paths)
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    match damage:
        case "flip":
            data[place] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        case "cut":
            path.write_bytes(data[:place])
        case "zero":
            path.write_bytes(data[:place] + bytes(len(data) - place))
        case "remove":
            path.unlink()
        case "swap":
            other = chance.choice(paths)
            other_data = other.read_bytes()
            other.write_bytes(data)
            path.write_bytes(other_data)
        case _:
            content = json.loads((store / "scan.json").read_text(encoding="utf-8"))
            mutate_json(content, chance)
            (store / "scan.json").write_text(json.dumps(content), encoding="utf-8")


def read_answers(scan: sl.Scan) -> list[Tensor]:
    """What a store knows of its units and images, as tensors."""
    answers = [*scan.top("0"), *scan.top("3"), *scan.top5, scan.vectors()]
    if scan.has_responses:
        answers += [torch.from_numpy(scan.responses(layer)) for layer in ("0", "3")]
    return [answer for answer in answers if answer is not None]


def count_changed_bytes(answers: list[Tensor], expected: list[Tensor]) -> int:
    """Bytes of the expected tensors that are missing or other in the answers."""
    changed = 0
    for index, value in enumerate(expected):
        answer = answers[index] if index < len(answers) else None
        if answer is None or answer.shape != value.shape:
            changed += value.numel() * value.element_size()
            continue
        is_same = (answer == value) | (answer.isnan() & value.isnan())
        changed += int((~is_same).sum()) * value.element_size()
    return changed
