"""Every command by its name and summary, and how one is run.

Commands are given to cyclopts as «module:function» and imported when they are called. Nothing here
imports torch, so that `--help` answers at once.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from cyclopts import (
    App,
    Argument,
    ArgumentCollection,
    CycloptsError,
    Group,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from sightline.app.cli.declarations import read_method_declarations
from sightline.app.cli.methods import refuse_old_order
from sightline.app.cli.options import UsageError
from sightline.app.corrections import (
    explain_network,
    explain_store,
    explain_unknown_command,
    explain_unknown_option,
    explain_unused_words,
    find_option_value,
    split_pixel,
)
from sightline.app.machine.sharing import share_machine

GENERAL_COMMANDS = {
    "tour": "Writes one self-contained HTML report: every method on one image.",
    "again": "Makes a result again from its recipe.json.",
    "layers": "Lists the layers of a network with shapes, names and landmarks.",
    "models": "Lists the names of networks that can be loaded.",
    "samples": "Lists the sample photographs, which stand for an image by name.",
    "methods": "Lists the methods; with --json their parameters, ranges, defaults and "
    "documentation.",
    "mcp": "Serves the methods to programs by the Model Context Protocol, on standard input and "
    "output.",
    "doctor": "Lists versions, devices, threads, fast paths, the cache and extras, for a report of "
    "a bug.",
}

CACHE_HELP = "Lists or removes what the cache holds: scans without a store of their own."
CACHE_COMMANDS = {
    "info": "Lists what the cache holds: scans without a store of their own, the largest first.",
    "clear": "Removes what the cache holds, and says what it removed. Nothing else is touched.",
}

SCAN_COMMANDS = {
    "scan": "Passes a dataset through a network once and stores its responses.",
}

EXPLORER_COMMANDS = {
    "explore": "Serves the pages of a scan on this machine: network, layers, units, classes, "
    "images, live.",
    "export": "Writes the same pages as files, which open from the disk and on any static host.",
}

UNIT_COMMANDS = {
    "units": "Lists the units of a layer: how often they fire, for which class, and which are "
    "alike.",
}

DIAGNOSIS_COMMANDS = {
    "compare": "Compares two networks by their scans of the same images: layers, units, groups, "
    "answers.",
    "mistakes": "Groups a network's mistakes over a scan, and tests what causes them.",
    "ablate": "Turns each unit of a layer off, and measures its effect on accuracy and on every "
    "class.",
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
    _add_commands(app, "commands.general", GENERAL_COMMANDS, general)
    _add_commands(app, "methods", method_summaries, methods)
    _add_commands(app, "commands.scan", SCAN_COMMANDS, general)
    _add_commands(app, "commands.explore", EXPLORER_COMMANDS, general)
    _add_commands(app, "commands.units", UNIT_COMMANDS, general)
    _add_commands(app, "commands.diagnosis", DIAGNOSIS_COMMANDS, general)
    store = _add_command_group(app, "store", STORE_HELP, general)
    _add_commands(store, "commands.scan", STORE_COMMANDS)
    cache = _add_command_group(app, "cache", CACHE_HELP, general)
    _add_commands(cache, "commands.general", CACHE_COMMANDS, prefix="cache_")
    stylizer = _add_command_group(app, "stylizer", STYLIZER_HELP, general)
    _add_commands(stylizer, "commands.stylizer", STYLIZER_COMMANDS)
    return app


def _add_commands(
    app: App,
    module: str,
    summaries: Mapping[str, str],
    group: Group | None = None,
    prefix: str = "",
) -> None:
    """Adds functions of a module of this package as commands, in this order.

    A function's name is the command's behind the prefix.
    """
    for name, summary in summaries.items():
        function = f"sightline.app.cli.{module}:{prefix}{name}"
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
    share_machine()  # before a command imports torch
    refuse_old_order(words)
    refuse_misplaced_files(words)
    app = make_app()
    app.config = (fill_from_project,)
    try:
        status = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UsageError(explain_usage_error(error, words)) from error
    return status if isinstance(status, int) else 0


def refuse_misplaced_files(words: Sequence[str]) -> None:
    """Raises UsageError for a picture or a file of code as the network, a folder as the store."""
    if not words:
        return
    network = find_option_value(words, "--model")
    if network is None and words[0] in ("filters", "layers") and len(words) > 1:
        network = words[1]
    store = find_option_value(words, "--store")
    reads_store = store is not None and "--folder" not in words and words[0] != "scan"
    reason = explain_network(words, network) if network else ""
    if not reason and store is not None and reads_store:
        reason = explain_store(words, store)
    if reason:
        raise UsageError(reason)


def explain_usage_error(error: CycloptsError, words: Sequence[str]) -> str:
    """What the command probably meant, with the corrected line where there is one."""
    options: list[str] = []
    if error.app is not None and error.target is not None:
        collection = error.app.assemble_argument_collection()
        options = [name for argument in collection for name in argument.names if argument.parse]
    match error:
        case UnknownOptionError():
            option = error.token.keyword or error.token.value
            return explain_unknown_option(words, option, options)
        case UnknownCommandError() if error.unused_tokens:
            commands = [name for name in error.app or () if not name.startswith("-")]
            return explain_unknown_command(words, error.unused_tokens[0], commands)
        case UnusedCliTokensError() if error.unused_tokens:
            return explain_unused_words(words, error.unused_tokens, options)
        case _:
            return split_pixel(words) or " ".join(str(error).split())


def fill_from_project(_app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Gives a command the network of the folder's `sightline.toml`, and says so.

    An option on the command line wins. The file is about one network: it is left alone where
    another is named, where a store brings its own, and where neither names one.
    """
    by_name = {argument.name.removeprefix("--"): argument for argument in arguments}
    if not {"model", "weights"} <= set(by_name):
        return
    # Imported here, since pydantic takes a tenth of a second that `--help` does without.
    from sightline.app.project import SETTINGS_FILE, describe_settings, read_project_settings

    settings = read_project_settings(Path())
    if not _is_about_network(settings, commands, by_name):
        return
    used = {
        name: values
        for name, values in settings.items()
        if name in by_name and not by_name[name].tokens
    }
    for name, values in used.items():
        for index, value in enumerate(values):
            token = Token(keyword=f"--{name}", value=value, source=SETTINGS_FILE, index=index)
            by_name[name].append(token)
    is_quiet = "quiet" in by_name and bool(by_name["quiet"].tokens)
    if used and not is_quiet:
        print(describe_settings(used), file=sys.stderr)


def _is_about_network(
    settings: Mapping[str, list[str]], commands: Sequence[str], by_name: Mapping[str, Argument]
) -> bool:
    """Whether the settings are about the network that the command runs."""
    tokens = by_name["model"].tokens
    named_network = tokens[0].value if tokens else None
    own_network = settings.get("model", [named_network])[0]
    if own_network is None:
        return False
    if named_network is None:
        return not _has_stored_network(commands, by_name)
    return named_network == own_network


def _has_stored_network(commands: Sequence[str], by_name: Mapping[str, Argument]) -> bool:
    """Whether the command reads a recipe or a store, which know their network."""
    if list(commands) == ["again"]:
        return True
    store, folder = by_name.get("store"), by_name.get("folder")
    if store is None or list(commands) == ["scan"]:
        return False
    return bool(store.tokens) and not (folder is not None and folder.tokens)
