"""Pages that nobody writes: one per method, from its declaration, and those of project files."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from manual.links import read_project_file
from sightline.registry.method import Method
from sightline.registry.parameter import (
    ParameterSpec,
    describe_parameter_type,
    format_value,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"

# Each question of the lecture, its page, and its methods in the order of the page.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "weights": ("predictions", "filters"),
    "one_image": (
        "activations",
        "saliency",
        "occlusion",
        "rise",
        "gradcam",
        "cam",
        "attention",
        "segment",
        "guided",
        "trust",
        "pointing",
    ),
    "many_images": ("neighbors", "embedding", "patches", "labels"),
    "which_image": ("synthesis", "inversion"),
    "adversarial": (
        "adversarial",
        "contrast",
        "boundary",
        "transfer",
        "universal",
        "adversarial_patch",
    ),
    "art": ("deepdream", "stylize", "norms", "texture", "style"),
}
# Pages that say more of a method.
FURTHER_PAGES: Mapping[str, tuple[str, ...]] = {
    "synthesis": ("synthesis",),
    "inversion": ("inversion",),
    "deepdream": ("deepdream",),
    "style": ("painting",),
    "texture": ("painting",),
    "norms": ("instance_norm",),
    "stylize": ("instance_norm",),
    "trust": ("trust",),
    "pointing": ("trust",),
    "neighbors": ("store",),
    "embedding": ("store",),
    "patches": ("store",),
    "labels": ("naming", "store"),
    "adversarial": ("adversarial",),
    "boundary": ("adversarial",),
    "transfer": ("adversarial",),
    "universal": ("adversarial",),
    "adversarial_patch": ("adversarial",),
}
PROJECT_PAGES = {
    "project/changelog": "CHANGELOG.md",
    "project/ledger": "LEDGER.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/security": "SECURITY.md",
    "project/model_cards": "training/README.md",
}


def write_pages(methods: Mapping[str, Method]) -> None:
    """Writes docs/methods/ and docs/project/. Pages that stay the same are not touched."""
    for method in methods.values():
        write_if_changed(DOCS / "methods" / f"{method.name}.md", compose_method_page(method))
    write_if_changed(DOCS / "methods" / "index.md", compose_method_list(methods))
    for page, source in PROJECT_PAGES.items():
        write_if_changed(DOCS / f"{page}.md", read_project_file(ROOT, source, page))


def write_if_changed(path: Path, text: str) -> None:
    """Writes a text unless the file holds it already, so that Sphinx reads it only when it must."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def compose_method_page(method: Method) -> str:
    """Everything that a method's declaration says, its example and the pictures of it."""
    sections = read_help_sections(method)
    blocks = [
        f"# {method.title}",
        f"`sl.{method.name}` · `sightline {method.name}`",
        f"*{method.question}*",
        method.summary,
        " ".join(_list_pictures(method.name)),
        f"**How to read it.** {method.reading}",
        f":::{{caution}}\n**What not to conclude.** {method.caution}\n:::",
        _link_further_pages(method.name),
        "## Example",
        f"```python\n{read_example(method.name)}```",
        f"On the command line: `{compose_command(method)}`. "
        f"[The example by itself](../examples/{method.name}.rst).",
        "## What it computes",
        sections[""],
        "## Parameters",
        compose_parameter_table(method.parameters.values()),
        "## Returns",
        sections.get("Returns", ""),
        "## Raises",
        list_errors(sections.get("Raises", "")),
    ]
    if sections.get("Source"):
        blocks += ["## Papers", sections["Source"]]
    return "\n\n".join(block for block in blocks if block) + "\n"


def read_example(name: str) -> str:
    """The script of a method in gallery/, without its docstring, whose text the page has."""
    text = (ROOT / "gallery" / f"{name}.py").read_text(encoding="utf-8")
    _, _, code = text.split('"""', 2)
    return code.lstrip("\n")


def read_help_sections(method: Method) -> dict[str, str]:
    """The sections of a method's help by name as Markdown; its prose without a name."""
    text = inspect.getdoc(method.function) or ""
    prose, *parts = re.split(r"^(Args|Returns|Raises|Source|Example):$", text, flags=re.MULTILINE)
    sections = {
        name: escape_markdown(inspect.cleandoc(content))
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    }
    _, _, description = prose.partition("\n\n")
    sections[""] = escape_markdown(description.strip())
    return sections


def list_errors(text: str) -> str:
    """The section Raises as a list, one error an item."""
    joined = " ".join(text.split())
    return re.sub(r"(?:^| )(\w+(?:Error|Interrupt)): ", r"\n- `\1`: ", joined).strip()


def escape_markdown(text: str) -> str:
    """Prose in which stars, underscores and brackets mean themselves, except between backquotes."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]|<>])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def compose_parameter_table(parameters: Sequence[ParameterSpec]) -> str:
    """Name, type, range, default and documentation of each parameter."""
    rows = ["| parameter | takes | default | |", "|---|---|---|---|"]
    for parameter in parameters:
        is_required = parameter.default is inspect.Parameter.empty
        default = "required" if is_required else f"`{format_value(parameter.default)}`"
        doc = escape_markdown(parameter.doc)
        rows.append(f"| `{parameter.name}` | {describe_values(parameter)} | {default} | {doc} |")
    return "\n".join(rows)


def describe_values(parameter: ParameterSpec) -> str:
    """Which values a parameter takes, in a few words."""
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.value_range:
        low, high = parameter.value_range.low, parameter.value_range.high
        return f"{format_limit(low)} to {format_limit(high)}"
    return escape_markdown(describe_parameter_type(parameter.type))


def format_limit(limit: float) -> str:
    """A limit of a range: 1,000,000, not 1e+06."""
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def compose_command(method: Method) -> str:
    """The command that does what the method's example does."""
    words = ["sightline", method.name]
    if method.subject == "image":
        words.append("cat.jpg")
    elif method.subject == "objective":
        words.append('"golf ball"')
    return " ".join(words)


def compose_method_list(methods: Mapping[str, Method]) -> str:
    """The page that lists all methods, by question."""
    blocks = ["# Methods", "Each method has the same name in Python and on the command line."]
    for question in QUESTIONS:
        names = list_methods(methods, question)
        title = read_title(DOCS / "questions" / f"{question}.md")
        rows = [f"| `{name}` | [{methods[name].question}]({name}.md) |" for name in names]
        blocks += [f"## {title}", "\n".join(["| method | what it answers |", "|---|---|", *rows])]
    names = "\n".join(name for question in QUESTIONS for name in list_methods(methods, question))
    blocks.append(f"```{{toctree}}\n:hidden:\n\n{names}\n```")
    return "\n\n".join(blocks) + "\n"


def compose_question_links(methods: Mapping[str, Method], question: str) -> str:
    """A table of the methods that answer a question, with a picture of each."""
    blocks: list[str] = []
    for name in list_methods(methods, question):
        method = methods[name]
        blocks.append(f"## [{method.title}](../methods/{name}.md)")
        blocks.append(f"*{method.question}*")
        blocks += _list_pictures(name)[:1]
        blocks.append(f"`sl.{name}` {method.reading}")
        blocks.append(f"**Not to conclude:** {method.caution}")
    return "\n\n".join(blocks)


def list_methods(methods: Mapping[str, Method], question: str) -> list[str]:
    """The names of the methods that answer a question."""
    return [name for name in QUESTIONS[question] if name in methods]


def read_title(page: Path) -> str:
    """The first heading of a page."""
    return page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def _list_pictures(name: str) -> list[str]:
    """The pictures that the example of a method made, as images of its page."""
    pictures = sorted((EXAMPLES / "images").glob(f"sphx_glr_{name}_[0-9][0-9][0-9].png"))
    return [f"![{name}](../examples/images/{picture.name})" for picture in pictures]


def _link_further_pages(name: str) -> str:
    pages = FURTHER_PAGES.get(name, ())
    links = [f"[{read_title(DOCS / f'{page}.md')}](../{page}.md)" for page in pages]
    return f"More: {', '.join(links)}." if links else ""
