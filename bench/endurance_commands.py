"""The command lines of `endurance.py`, made from what the methods declare, and several at once."""

import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args, get_origin

from endurance_cases import Outcome, make_image, make_photos

import sightline as sl
from sightline.app.cli.declarations import ParameterDeclaration, read_method_declarations
from sightline.app.cli.main import main

ODD_WORDS = (
    *("", "-1", "0", "1", "2", "0.5", "1e9", "nan", "inf", "9" * 60, "1,2", "[]", "--", "--size"),
    *("text", "cat", "True", "conv1", "..", "/nowhere", "\x1b[2J", "é"),
)


class CommandLines:
    """Command lines made from the declared parameters, right ones and wrong ones."""

    def __init__(self, folder: Path) -> None:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        make_photos(Path("photos"), 6)
        sl.write(make_image(0, 72, 64), "photo.png")
        self.declarations = list(read_method_declarations().values())

    def run(self, _number: int, chance: random.Random) -> Outcome:
        declaration = chance.choice(self.declarations)
        words = [declaration.name]
        if declaration.subject == "image":
            words.append("photo.png" if chance.random() < 0.95 else "absent.png")
            words += ["--size", "64"]
        elif declaration.subject == "objective":
            words.append(chance.choice(("3", "cat", "channel('conv2_1', 1)", "channel(")))
        for parameter in declaration.parameters.values():
            is_short = parameter.name in ("steps", "samples", "octaves", "iterations")
            if parameter.name == "folder":
                words += ["--folder", "photos"]
            elif is_short or chance.random() < 0.2:
                option = f"--{parameter.name.replace('_', '-')}"
                words += [option, write_value(parameter, chance, valid_share=0.8)]
        words += ["--out", "out", "--quiet"]
        return run_command_line(words)


def run_command_line(words: list[str]) -> Outcome:
    """Runs a command. RuntimeError where it is refused in anything but one line."""
    printed = io.StringIO()
    errors = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        status = main(words)
    shutil.rmtree("out", ignore_errors=True)
    if status == 0:
        return Outcome("right")
    lines = errors.getvalue().strip().splitlines()
    # Of a command that can't be understood cyclopts writes a box.
    if status not in (1, 2) or not lines or (status == 1 and len(lines) > 1):
        raise RuntimeError(f"{words} ended with {status} and {errors.getvalue()!r:.300}")
    return Outcome("refused", lines[0][:200])


def write_value(parameter: ParameterDeclaration, chance: random.Random, valid_share: float) -> str:
    """A value as a word: often one that is allowed, and small; else an odd one."""
    if chance.random() > valid_share:
        return chance.choice(ODD_WORDS)
    if get_origin(parameter.type) is not None and "Literal" in str(parameter.type):
        choices = [choice for choice in get_args(parameter.type) if isinstance(choice, str)]
        return chance.choice(choices) if choices else "1"
    if parameter.limits:
        low = parameter.limits[0]
        return str(low + chance.choice((0, 1, 1))) if low == int(low) else str(low)
    return chance.choice(("1", "2", "conv2_1", "top"))


CROWD_SIZE = 4


class Crowds:
    """Real commands that read one folder at once: with a store that is there, and with none yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_photos(folder / "photos", 12)
        self.expected = self.run_commands("warm", 1)[0]

    def run_commands(self, cache: str, count: int) -> list[bytes]:
        """What so many `neighbors` at once say and find. RuntimeError where one does not succeed.

        The store lies in the folder `cache`.
        """
        command = [sys.executable, "-m", "sightline", "neighbors", "photos/003.png", "--k", "3"]
        processes = [
            subprocess.Popen(
                [*command, "--folder", "photos", "--out", f"{cache} {number}"],
                cwd=self.folder,
                env={**os.environ, "XDG_CACHE_HOME": str(self.folder / cache)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for number in range(count)
        ]
        answers: list[bytes] = []
        for number, process in enumerate(processes):
            _, errors = process.communicate(timeout=300)
            if process.returncode or b"Traceback" in errors:
                raise RuntimeError(f"exit status {process.returncode}: {errors.decode()[-300:]}")
            answers.append((self.folder / f"{cache} {number}" / "values.json").read_bytes())
        return answers

    def run(self, number: int, _chance: random.Random) -> Outcome:
        cache = "warm" if number % 2 else "cold"
        shutil.rmtree(self.folder / "cold", ignore_errors=True)
        answers = self.run_commands(cache, CROWD_SIZE)
        lost = sum(
            left != right
            for answer in answers
            for left, right in zip(answer, self.expected, strict=False)
        )
        is_same = all(answer == self.expected for answer in answers)
        return Outcome("right" if is_same else "wrong", cache, lost)
