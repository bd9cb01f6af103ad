"""The command line's door: light enough that `--help` does not wait for torch. Commands are made in `commands`."""

import ast
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cyclopts import App, CycloptsError, Group

from sightline.errors import SightlineError
from sightline.methods import TOPICS

GENERAL_COMMANDS = {
    "tour": "Writes one self-contained HTML report: every method on one image.",
    "again": "Makes a result again from its recipe.json.",
    "layers": "Lists the layers of a network with shapes, names and landmarks.",
    "models": "Lists the names of networks that can be loaded.",
    "samples": "Lists the sample photographs, which stand for an image by name.",
}

# Commands with commands of their own, which `NAME_commands` makes.
COMMAND_GROUPS = {
    "stylizer": (
        "Feed-forward style networks: trained once, they restyle an image in one pass.",
        {
            "train": "Trains a style network on a folder of photographs; the same command goes on where it was stopped.",
            "apply": "Restyles an image, a folder of images or a video with a trained style network.",
            "export": "Writes a style network as ONNX, for images of any size and any blend of its styles.",
        },
    ),
}

SCAN_COMMANDS = {
    "scan": "Passes a collection of images through a network once and keeps what it answers."
}

STORE_COMMANDS = {
    "info": "Tells what a store holds.",
    "verify": "Reads a whole store and tells what is wrong with it.",
    "compact": "Merges the pieces that a scan's commits left.",
    "index": "Builds an index for approximate search and measures its recall.",
}


def read_method_summaries() -> dict[str, str]:
    """Every method's name and first docstring line, read from the source without importing it."""
    found: dict[str, str] = {}
    for topic in TOPICS:
        source = (
            Path(__file__)
            .parents[2]
            .joinpath("methods", *topic.split("."))
            .with_suffix(".py")
            .read_text(encoding="utf-8")
        )
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and any(
                "method" in ast.unparse(mark) for mark in node.decorator_list
            ):
                found[node.name] = (ast.get_docstring(node) or "").split("\n")[0]
    return found


def make_app() -> App:
    """The application with every command known by name and summary; each is built when it is called."""
    app = App(
        name="sightline",
        help="Shows what a vision network has learned. Start with `sightline tour`.",
        version=version("sightline"),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    faces, methods = (
        Group("Reports and lists", sort_key=0),
        Group("Methods: NETWORK IMAGE [OPTIONS]", sort_key=1),
    )
    for commands, group in ((GENERAL_COMMANDS, faces), (read_method_summaries(), methods)):
        for name, summary in commands.items():
            app.command(
                f"sightline.app.cli.methods:{name}",
                name=name,
                help=summary,
                group=group,
                sort_key=len(list(app)),
            )
    for name, summary in SCAN_COMMANDS.items():
        app.command(
            f"sightline.app.cli.scan:{name}",
            name=name,
            help=summary,
            group=faces,
            sort_key=len(list(app)),
        )
    store = App(
        name="store",
        help="What a scan's store holds, whether it is whole, and how it is made smaller.",
        group=faces,
    )
    for name, summary in STORE_COMMANDS.items():
        store.command(f"sightline.app.cli.scan:{name}", name=name, help=summary)
    app.command(store)
    for name, (summary, commands) in COMMAND_GROUPS.items():
        suite = App(
            name=name,
            help=summary,
            help_format="plaintext",
            group=faces,
            sort_key=len(list(app)),
            version_flags=[],
        )
        for inner, told in commands.items():
            suite.command(f"sightline.app.cli.{name}:{inner}", name=inner, help=told)
        app.command(suite)
    return app


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Shows a warning as a line of ours, without the source line that raised it."""
    print(f"sightline: note: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Exit status: 0 done, 1 refused with one line of why, 2 usage, 130 interrupted."""
    # Large maps in huge pages, which torch looks up when it starts: a tenth of the time and a sixth of the memory of a large style step.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        status = make_app()(
            arguments, exit_on_error=False, print_error=True, result_action="return_value"
        )
        return status if isinstance(status, int) else 0
    except CycloptsError:
        return 2
    except SightlineError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sightline: interrupted", file=sys.stderr)
        return 130


def run_script() -> None:
    """The installed command. Output that goes to a program such as `head` may end before all is written."""
    warnings.showwarning = print_warning
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)
