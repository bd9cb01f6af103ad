"""A method's docstring: read into its sections, and composed again for `help`.

Authors write a summary, a description, `Args:` and, where there is more to say, `Returns:`,
`Raises:`, `Source:` and `Example:`. Everything else that `help` shows is added from the
declaration: the positional arguments, shared parameters, ranges, choices, defaults, the papers
that the module cites, an example.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.registry.parameter import ParameterSpec, format_value

# What these mean is the same everywhere, so a method need not say it again.
SHARED_PARAMETER_DOCS = {
    "label": "Class to ask about: an index, a name or an unambiguous part of one, "
    'or "top" for the predicted class; a list has one for each image.',
    "target": "What to ask about instead of a class: unit, classes, pixel, region, box, "
    "similar_to, regression or score of `sightline`, their text, or a function of the network's "
    "output.",
    "layer": "Layer to look at: its name, alias (conv4_2) or landmark "
    "(first, last_conv, penultimate).",
    "memory": "Gigabytes that the features of one batch may take, by estimate; less makes smaller "
    "batches, not other numbers.",
    "seed": "Seed of the local random generator; the same seed gives the same picture.",
    "callback": "Called with a Step after every step; returning True stops the run and keeps the "
    "picture.",
}
SUBJECT_DOCS = {
    "model": "The network to look into, a Model as `sightline.load` gives it.",
    "image": "Images N×3×H×W, RGB with values in [0, 1], as `sightline.read` gives them; "
    "`model.fit` brings them to the network's size.",
    "objective": "What is increased: an Objective, or its formula or a class label as text.",
}
SCAN_DOC = "A Scan can be given instead; its network and images are used."
OPTIONAL_DOC = "May be left out."

RETURNS_DOC = (
    "A Result. `panels` are pictures 1×3×H×W in [0, 1] by name, `captions` say what they show, "
    "`values` are the numbers and tensors described above, `recipe` makes the result again; "
    "`save(folder)` writes them all."
)
ERROR_DOC = (
    "SightlineError: A parameter that does not exist, or outside its range or choices; a request "
    "that the network cannot meet."
)
IMAGE_ERROR_DOC = (
    "SightlineError: A parameter that does not exist, or outside its range or choices; an image "
    "that is not N×3×H×W in [0, 1]; a request that the network cannot meet."
)

SECTION_NAMES = ("Args", "Returns", "Raises", "Source", "Example")
# «(Zeiler & Fergus 2014, section 4.2)»: words and a year in parentheses.
CITATION_PATTERN = r"\(([^()]*[^\W\d_][^()]*\b(?:19|20)\d\d\b[^()]*)\)"

TEXT_WIDTH = 100
INDENT = "    "


@dataclass(frozen=True)
class MethodDocstring:
    """A docstring's summary line, further prose, parameters' lines and other sections by name."""

    summary: str
    description: str
    parameter_docs: Mapping[str, str]
    sections: Mapping[str, str]


def read_docstring(function: Callable[..., Any]) -> MethodDocstring:
    """Splits a function's docstring. Raises TypeError if it has none."""
    from docstring_parser import parse

    text = inspect.getdoc(function)
    if not text:
        raise TypeError(f"{function.__name__} has no docstring")
    prose, sections = _split_sections(text)
    summary, _, description = prose.partition("\n\n")
    entries = textwrap.indent(sections.pop("Args", ""), INDENT)
    arguments = parse(f"{summary}\n\nArgs:\n{entries}").params
    return MethodDocstring(
        summary=_join_lines(summary),
        description=description.strip(),
        parameter_docs={item.arg_name: _join_lines(item.description or "") for item in arguments},
        sections=sections,
    )


def compose_help(
    function: Callable[..., Any],
    docstring: MethodDocstring,
    hints: Mapping[str, Any],
    parameters: Mapping[str, ParameterSpec],
    example_parameters: Mapping[str, Any],
) -> str:
    """The complete docstring of a method, in sections.

    `hints` are the annotations of all arguments, `parameters` the keyword-only ones, and
    `example_parameters` those that the example sets.
    """
    positional = [
        argument
        for argument in inspect.signature(function).parameters.values()
        if argument.kind is not argument.KEYWORD_ONLY
    ]
    argument_docs = {
        argument.name: _describe_positional(argument, docstring, hints[argument.name])
        for argument in positional
    }
    argument_docs |= {name: parameter.describe() for name, parameter in parameters.items()}

    subject = positional[1].name if len(positional) > 1 else ""
    general_error = _wrap_entry(IMAGE_ERROR_DOC if subject == "image" else ERROR_DOC)
    composed = {
        "Args": "\n".join(_wrap_entry(f"{name}: {doc}") for name, doc in argument_docs.items()),
        "Returns": textwrap.fill(RETURNS_DOC, TEXT_WIDTH - len(INDENT)),
        "Raises": general_error,
        "Source": _find_citations(function),
        "Example": _write_example(function.__name__, subject, example_parameters),
    }
    # What the author wrote replaces what is composed, except that errors are added up.
    sections = {**composed, **docstring.sections}
    if "Raises" in docstring.sections:
        sections["Raises"] = f"{docstring.sections['Raises']}\n{general_error}"

    blocks = [docstring.summary, docstring.description]
    for name, content in sections.items():
        if content:
            blocks.append(f"{name}:\n{textwrap.indent(content, INDENT)}")
    return "\n\n".join(block for block in blocks if block)


def _split_sections(text: str) -> tuple[str, dict[str, str]]:
    """The prose before the first section, and each section's text without its indentation."""
    pattern = rf"^({'|'.join(SECTION_NAMES)}):[ ]*(.*)$"
    prose: list[str] = []
    lines_by_section: dict[str, list[str]] = {}
    current = prose
    for line in text.splitlines():
        header = re.match(pattern, line)
        if header:
            name, first_line = header.groups()
            current = lines_by_section.setdefault(name, [])
            current.append(INDENT + first_line)
        else:
            current.append(line)
    sections = {
        name: textwrap.dedent("\n".join(lines)).strip() for name, lines in lines_by_section.items()
    }
    return "\n".join(prose).strip(), sections


def _describe_positional(argument: inspect.Parameter, docstring: MethodDocstring, hint: Any) -> str:
    """What the model or the subject of a method may be."""
    doc = docstring.parameter_docs.get(argument.name) or SUBJECT_DOCS.get(argument.name, "")
    type_names = {getattr(kind, "__name__", "") for kind in get_args(hint)}
    if argument.name == "model" and "Scan" in type_names:
        doc += f" {SCAN_DOC}"
    if argument.default is not argument.empty:
        doc += f" {OPTIONAL_DOC}"
    return doc


def _find_citations(function: Callable[..., Any]) -> str:
    """The papers that the function's module names in its docstring, separated by semicolons."""
    module_doc = sys.modules[function.__module__].__doc__ or ""
    citations = re.findall(CITATION_PATTERN, _join_lines(module_doc))
    return textwrap.fill("; ".join(citations), TEXT_WIDTH - len(INDENT))


def _write_example(name: str, subject: str, parameters: Mapping[str, Any]) -> str:
    """One line that runs as it stands, but for `import sightline as sl`."""
    settings = dict(parameters)
    sample_name = settings.pop("image", DEFAULT_SAMPLE)
    arguments = ["model"]
    if subject == "image":
        arguments.append(f'model.fit(sl.sample("{sample_name}"))')
    elif subject == "objective":
        arguments.append('"golf ball"')
    arguments += [f"{setting}={format_value(value)}" for setting, value in settings.items()]
    return f"model = sl.load(); sl.{name}({', '.join(arguments)})"


def _wrap_entry(entry: str) -> str:
    """An entry of a section, «name: description», its further lines indented."""
    return textwrap.fill(
        entry,
        TEXT_WIDTH - len(INDENT),
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _join_lines(text: str) -> str:
    return " ".join(text.split())
