"""Every command by its name and summary, and how one is run.

Commands are given to cyclopts as «module:function» and imported when they are called. Nothing here
imports torch, so that `--help` answers at once.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, Group

from sightline.app.cli.declarations import read_method_declarations
from sightline.app.cli.methods import refuse_old_order
from sightline.app.cli.options import UsageError

GENERAL_COMMANDS = {
    "tour": "Writes one self-contained HTML report: every method on one image.",
    "again": "Makes a result again from its recipe.json.",
    "layers": "Lists the layers of a network with shapes, names and landmarks.",
    "models": "Lists the names of networks that can be loaded.",
    "samples": "Lists the sample photographs, which stand for an image by name.",
}

SCAN_COMMANDS = {
    "scan": "Passes a dataset through a network once and stores its responses.",
}

STYLIZER_HELP = "Feed-forward style networks: trained once, they restyle an image in one pass."
STYLIZER_COMMANDS = {
    "train": "Trains a style network on a folder of photographs, or resumes its training.",
    "apply": "Restyles an image, a folder of images or a video with a trained style network.",
    "export": "Writes a style network as ONNX, for images of any size and any blend of its styles.",
}

STORE_HELP = "Describes, checks, compacts and indexes the store of a scan."
STORE_COMMANDS = {
    "info": "Describes what a store holds.",
    "verify": "Reads a whole store and reports what is damaged.",
    "compact": "Merges the fragments that a scan's commits left.",
    "index": "Builds an index for approximate search and measures its recall.",
}


def make_app() -> App:
    """The application with every command known by name and summary."""
    app = App(
        name="sightline",
        help="Shows what a vision network has learned. Start with `sightline tour`.",
        version=version("sightline"),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    general = Group("Reports and lists", sort_key=0)
    methods = Group("Methods: SUBJECT [OPTIONS] --model NETWORK", sort_key=1)
    method_summaries = {
        name: declaration.summary for name, declaration in read_method_declarations().items()
    }
    _add_commands(app, "general", GENERAL_COMMANDS, general)
    _add_commands(app, "methods", method_summaries, methods)
    _add_commands(app, "scan", SCAN_COMMANDS, general)
    store = _add_command_group(app, "store", STORE_HELP, general)
    _add_commands(store, "scan", STORE_COMMANDS)
    stylizer = _add_command_group(app, "stylizer", STYLIZER_HELP, general)
    _add_commands(stylizer, "stylizer", STYLIZER_COMMANDS)
    return app


def _add_commands(
    app: App, module: str, summaries: Mapping[str, str], group: Group | None = None
) -> None:
    """Adds functions of a module of this package as commands, in this order."""
    for name, summary in summaries.items():
        function = f"sightline.app.cli.{module}:{name}"
        position = len(list(app))
        app.command(function, name=name, help=summary, group=group, sort_key=position)


def _add_command_group(app: App, name: str, summary: str, group: Group) -> App:
    """Adds a command that has commands of its own, and returns it."""
    position = len(list(app))
    command_group = App(
        name=name,
        help=summary,
        help_format="plaintext",
        group=group,
        sort_key=position,
        version_flags=[],
    )
    app.command(command_group)
    return command_group


def run_command(words: Sequence[str]) -> int:
    """Runs the command that the words name. Returns the exit status.

    Raises UsageError for a command that can't be understood.
    """
    refuse_old_order(words)
    app = make_app()
    try:
        status = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UsageError(" ".join(str(error).split())) from error
    return status if isinstance(status, int) else 0
