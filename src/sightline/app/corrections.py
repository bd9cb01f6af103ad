"""What a command that can't be understood probably meant, with the corrected line.

Nothing here imports torch.
"""

import ast
import mimetypes
import os
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from sightline.errors import find_closest_name, suggest_closest_name
from sightline.images.files import walk_files

# A folder may be a whole disk: of so many files it is told whether they are pictures.
MAX_SEEN_FILES = 2000

# What other tools call an option of ours.
OPTION_SYNONYMS = {
    "--network": "--model",
    "--net": "--model",
    "--arch": "--model",
    "--checkpoint": "--weights",
    "--ckpt": "--weights",
    "--class": "--label",
    "--cls": "--label",
    "--output": "--out",
    "--outdir": "--out",
    "-o": "--out",
    "--resolution": "--size",
    "--img-size": "--size",
    "--image-size": "--size",
    "--iterations": "--steps",
    "--iters": "--steps",
    "--num-steps": "--steps",
    "--epsilon": "--eps",
    "--learning-rate": "--lr",
    "--batch-size": "--batch",
    "--style": "--styles",
    "--fast": "--quick",
}

# Without arguments of their own; in their place stands an option with one.
FLAG_SYNONYMS = {
    "--gpu": ("--device", "cuda"),
    "--cuda": ("--device", "cuda"),
    "--cpu": ("--device", "cpu"),
}

# What `sl.load` takes of a network and no option can say; the function of `--model FILE:FUNCTION`
# returns it.
NETWORK_SETTINGS = frozenset(
    ("output_kind", "inputs", "preprocess", "bands", "multilabel", "unit", "resize")
)

# `mymodel.py:Net`, `nets/mymodel.py:Net` and `mymodel.py`.
CODE_FILE = re.compile(r"(?P<path>.+)\.py(?::(?P<name>\w*))?")

MAX_CODE_BYTES = 1_000_000


def format_command(words: Sequence[str]) -> str:
    """The line that one would type."""
    return shlex.join(["sightline", *words])


def replace_word(words: Sequence[str], old: str, *new: str) -> list[str]:
    """The words with others in place of the first that is `old`, or that is `old=VALUE`."""
    replaced: list[str] = []
    is_done = False
    for word in words:
        name, sign, value = word.partition("=")
        if is_done or old not in (word, name):
            replaced.append(word)
            continue
        is_done = True
        replaced += list(new) if word == old else [f"{new[0]}{sign}{value}"]
    return replaced


# ── options and words ──


def explain_unknown_option(words: Sequence[str], option: str, allowed: Collection[str]) -> str:
    """One line for an option that the command does not have."""
    name = option.partition("=")[0]
    said = f"there is no option {name}"
    flag = FLAG_SYNONYMS.get(name)
    if flag and flag[0] in allowed:
        return f"{said}; did you mean {' '.join(flag)}? {_correct(words, name, *flag)}"
    synonym = OPTION_SYNONYMS.get(name, "")
    if synonym in allowed:
        return f"{said}; did you mean {synonym}? {_correct(words, name, synonym)}"
    setting = name.removeprefix("--").replace("-", "_")
    if setting in NETWORK_SETTINGS and "--model" in allowed:
        return (
            f"{said}; the function of --model FILE:FUNCTION brings it beside the network: "
            f'return network, {{"{setting}": VALUE}}'
        )
    meant = find_closest_name(name, allowed)
    if meant is not None:
        return f"{said}; did you mean {meant}? {_correct(words, name, meant)}"
    return f"{said}; {format_command([*_find_command(words), '--help'])} lists those of the command"


def split_pixel(words: Sequence[str]) -> str | None:
    """The line with the words of a pixel apart: --pixel 10,20,cat was meant as 10 20 cat."""
    value = find_option_value(words, "--pixel")
    if value is None or value not in words or value.count(",") < 2:
        return None
    parts = value.split(",", 2)
    return f"--pixel takes 3 words: {format_command(replace_word(words, value, *parts))}"


def explain_unused_words(
    words: Sequence[str], unused: Sequence[str], allowed: Collection[str]
) -> str:
    """One line for words that the command has no place for."""
    word = unused[0]
    name, sign, value = word.partition("=")
    if sign and f"--{name}" in allowed:
        return f"{word} is not understood; did you mean --{name}? " + _correct(
            words, word, f"--{name}", value
        )
    if f"--{word}" in allowed:
        return f"{word} is not understood; did you mean --{word}? " + _correct(
            words, word, f"--{word}"
        )
    joined = _join_labels(words) or _join_unused_words(words, unused)
    if joined is not None:
        return joined
    plural = "is one word" if len(unused) == 1 else f"are {len(unused)} words"
    return (
        f"{' '.join(unused)} {plural} too many; "
        f"{format_command([*_find_command(words), '--help'])} says what the command takes"
    )


def _join_labels(words: Sequence[str]) -> str | None:
    """The line with the network's labels as one word: --labels cat dog was meant as cat,dog."""
    if "--labels" not in words:
        return None
    first = words.index("--labels") + 1
    last = first
    while last < len(words) and not words[last].startswith("-"):
        last += 1
    if last - first < 2:
        return None
    corrected = [*words[:first], ",".join(words[first:last]), *words[last:]]
    return f"labels are one word, with commas between them: {format_command(corrected)}"


def _join_unused_words(words: Sequence[str], unused: Sequence[str]) -> str | None:
    """The line with a name of several words in quotes: golf ball was «golf» and «ball»."""
    position = _find_sequence(words, unused)
    if position < 2 or words[position - 1].startswith("-"):
        return None
    if any(Path(word).suffix or word.startswith("-") for word in unused):
        return None
    together = " ".join([words[position - 1], *unused])
    if Path(words[position - 1]).exists() or Path(words[position - 1]).suffix:
        return None
    corrected = [*words[: position - 1], together, *words[position + len(unused) :]]
    return f"a name of several words needs quotes: {format_command(corrected)}"


def _find_sequence(words: Sequence[str], part: Sequence[str]) -> int:
    """Where `part` stands in the words, −1 if nowhere."""
    for position in range(len(words) - len(part) + 1):
        if list(words[position : position + len(part)]) == list(part):
            return position
    return -1


def explain_unknown_command(words: Sequence[str], word: str, allowed: Collection[str]) -> str:
    """One line for the name of a command that is not there."""
    meant = find_closest_name(word, allowed)
    if meant is not None:
        corrected = _correct(words, word, meant)
        return f'unknown command "{word}"; did you mean "{meant}"? {corrected}'
    return f'unknown command "{word}"; sightline --help lists all'


def _correct(words: Sequence[str], old: str, *new: str) -> str:
    return format_command(replace_word(words, old, *new))


def _find_command(words: Sequence[str]) -> list[str]:
    """The words before the first option or argument: a command, or a group and its command."""
    groups = ("store", "stylizer", "cache")
    return list(words[: 2 if words[:1] and words[0] in groups else 1])


# ── networks and stores ──


def explain_network(words: Sequence[str], network: str) -> str:
    """One line where what was given as the network is a picture or code; empty where it is fine."""
    code = CODE_FILE.fullmatch(network)
    if code is not None:
        return _explain_code_file(words, network, code["path"], code["name"] or "")
    file_type, _ = mimetypes.guess_type(network)
    if file_type is not None and file_type.startswith(("image/", "video/")):
        return _explain_picture(words, network)
    if re.fullmatch(r"[\w.]+:\w+", network) and not network.startswith("hf:"):
        return _explain_missing_module(words, network)
    return ""


def explain_store(words: Sequence[str], store: str) -> str:
    """One line where a folder of pictures was given as a store; empty where it is fine."""
    folder = Path(store)
    with suppress(OSError, ValueError):
        if not folder.is_dir() or (folder / "scan.json").exists():
            return ""
        seen_files = islice(walk_files(str(folder)), MAX_SEEN_FILES)
        is_picture_folder = any(map(is_picture_name, seen_files))
        if is_picture_folder:
            store_name = f"{folder.name or 'photos'}.scan"
            scanned = format_command(["scan", store, "--store", store_name])
            corrected = _correct_value(words, "--store", store_name)
            return f"{store} is a folder of pictures, not a store: {scanned}, then {corrected}"
    return ""


def _explain_picture(words: Sequence[str], network: str) -> str:
    """The picture comes first, and a network is named."""
    said = f"{network} is a picture, and no network"
    command = words[0]
    subject_words = [word for word in _drop_option(words[1:], "--model") if word != network]
    if command in ("filters", "layers", "scan"):
        return f"{said}; {command} looks at a network: {format_command([command, 'resnet50'])}"
    has_subject = bool(subject_words) and not subject_words[0].startswith("-")
    picture = [] if has_subject else [network]
    return f"{said}: {format_command([command, *picture, *subject_words, '--model', 'resnet50'])}"


def _explain_code_file(words: Sequence[str], network: str, path: str, name: str) -> str:
    file = Path(f"{path}.py")
    names = _list_definitions(file)
    function = name or (names[-1] if names else "FUNCTION")
    written = f"{file.stem}:{function}"
    folder = file.parent
    if folder.is_absolute() or ".." in folder.parts:
        corrected = _replace_network(words, network, written)
        return (
            f"{network} is written {written}, in the folder of the file: "
            f"cd {shlex.quote(str(folder))} && {corrected}"
        )
    written = ".".join([*folder.parts, written])
    said = f"{network} is written {written}"
    if not file.is_file():
        closest_module = _find_closest_module(file.stem)
        suggestion = "" if closest_module is None else f"; did you mean {closest_module}?"
        return f"{said}, and there is no file {file}{suggestion}"
    if name and names and name not in names:
        return f"{file} has no {name}{suggest_closest_name(name, names)}"
    return f"{said}: {_replace_network(words, network, written)}"


def _explain_missing_module(words: Sequence[str], network: str) -> str:
    module, _, function = network.partition(":")
    top = module.partition(".")[0]
    if _is_importable(top):
        return ""
    said = f"there is no module {top}: no {top}.py in {os.getcwd()}, and no installed package"
    meant = _find_closest_module(top)
    if meant is None:
        return f"{said}; run the command in the folder of {top}.py, or set PYTHONPATH to it"
    corrected = _replace_network(words, network, f"{meant}:{function}")
    return f"{said}; did you mean {meant}? {corrected}"


def _find_closest_module(name: str) -> str | None:
    """The closest name of a file of code in this folder, without its ending."""
    with suppress(OSError):
        return find_closest_name(name, [path.stem for path in Path().glob("*.py")])
    return None


def _is_importable(name: str) -> bool:
    """Whether a module of this name would be found, looked for as `load` does."""
    sys.path.insert(0, "")
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return True  # it is there, and importing it says what is wrong
    finally:
        sys.path.remove("")


def _list_definitions(file: Path) -> list[str]:
    """The functions and classes at the top of a file of code; empty where it can't be read."""
    with suppress(OSError, ValueError, SyntaxError, RecursionError):
        if file.stat().st_size <= MAX_CODE_BYTES:
            content = ast.parse(file.read_text(encoding="utf-8"))
            kinds = (ast.FunctionDef, ast.ClassDef)
            return [node.name for node in content.body if isinstance(node, kinds)]
    return []


def _replace_network(words: Sequence[str], network: str, written: str) -> str:
    if f"--model={network}" in words:
        return format_command(replace_word(words, f"--model={network}", f"--model={written}"))
    return format_command(replace_word(words, network, written))


def _correct_value(words: Sequence[str], option: str, value: str) -> str:
    """The line with another value of an option."""
    return format_command([*_drop_option(words, option), option, value])


def _drop_option(words: Sequence[str], option: str) -> list[str]:
    """The words without an option and its value."""
    words_without: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == option:
            next(remaining, None)
        elif not word.startswith(f"{option}="):
            words_without.append(word)
    return words_without


def find_option_value(words: Sequence[str], option: str) -> str | None:
    """The value behind an option, None without it."""
    for position, word in enumerate(words):
        if word == option:
            return words[position + 1] if position + 1 < len(words) else None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def is_picture_name(name: str) -> bool:
    """Whether a file of this name would be a picture."""
    file_type, _ = mimetypes.guess_type(name)
    return file_type is not None and file_type.startswith("image/")
