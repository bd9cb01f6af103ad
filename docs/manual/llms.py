"""llms.txt: the manual as one text for language models, with links to the source of each page."""

from collections.abc import Mapping
from typing import Any

from sightline.registry.method import Method
from sightline.registry.parameter import format_value

START = """# Sightline

> Shows what a PyTorch vision network has learned: its filters, what it responds to in images, and
> which image would cause a response. One call or one command per question; results hold pictures,
> unscaled numbers and a recipe that makes them again.

- `import sightline as sl`; `model = sl.load(NAME or nn.Module)`; `image = model.fit(sl.read(PATH))`
  is N×3×H×W, RGB, float32 in [0, 1]; `sl.METHOD(model, image, ...)` gives a Result.
- `result.panels` are pictures, `result.values` numbers and tensors, `result.save(FOLDER)` writes
  all.
- The same on the command line: `sightline METHOD IMAGE --model NAME --out FOLDER`; `--json` prints
  the numbers.
- Wrong input raises `sl.SightlineError` with one line.
"""
# Pages that repeat others.
LEFT_OUT = ("examples/", "methods/", "search", "genindex")


def compose_llms_text(methods: Mapping[str, Method], environment: Any) -> str:
    """The text: how the library is used, every page, every method with its parameters."""
    lines = [START, "## Pages", ""]
    for page in sorted(environment.found_docs):
        if not page.startswith(LEFT_OUT):
            title = environment.titles[page].astext()
            lines.append(f"- [{title}](_sources/{page}.md.txt)")
    lines += ["", "## Methods", ""]
    for method in methods.values():
        lines.append(f"- [{method.name}](_sources/methods/{method.name}.md.txt): {method.summary}")
        lines.append(f"  `sl.{compose_call(method)}`")
    return "\n".join(lines) + "\n"


def compose_call(method: Method) -> str:
    """A method's call with all parameters and their defaults."""
    arguments = ["model"]
    if method.subject:
        arguments.append(method.subject)
    for parameter in method.parameters.values():
        if parameter.name != "callback":
            arguments.append(f"{parameter.name}={format_value(parameter.default)}")
    return f"{method.name}({', '.join(arguments)})"
