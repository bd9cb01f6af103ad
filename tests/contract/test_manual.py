"""What composes the manual: a page for each method, links, and the search for remote resources.

Sphinx itself is not needed here; `make docs` builds the pages.
"""

import sys

import pytest
from helpers import ROOT

from sightline.methods import load_methods
from sightline.registry.method import Method
from sightline.registry.parameter import format_value

sys.path.insert(0, str(ROOT / "docs"))

from manual import check, links, llms, pages

METHODS = load_methods()
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def test_every_method_answers_one_question() -> None:
    listed = [name for names in pages.QUESTIONS.values() for name in names]
    assert sorted(listed) == sorted(METHODS)


def test_every_question_has_a_page() -> None:
    for question in pages.QUESTIONS:
        page = ROOT / "docs" / "questions" / f"{question}.md"
        assert "<!-- methods of this question -->" in page.read_text(encoding="utf-8")


@every_method
def test_page_says_what_is_declared(method: Method) -> None:
    text = pages.compose_method_page(method)
    for part in (method.title, method.question, method.reading, method.caution):
        assert part in text
    for name, parameter in method.parameters.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert pages.escape_markdown(parameter.doc) in row
        assert f"`{format_value(parameter.default)}`" in row or "| required |" in row
        for choice in parameter.choices:
            assert f"`{choice}`" in row
    for heading in ("## Example", "## Parameters", "## Returns", "## Raises"):
        assert heading in text


@every_method
def test_llms_text_has_the_call(method: Method) -> None:
    call = llms.compose_call(method)
    assert call.startswith(f"{method.name}(model")
    for name in method.parameters.keys() - {"callback"}:
        assert f"{name}=" in call


def test_prose_keeps_its_stars() -> None:
    assert pages.escape_markdown("a * b, `c_d * e`, f_g [h]") == r"a \* b, `c_d * e`, f\_g \[h\]"


def test_links_lead_to_pages_of_the_manual() -> None:
    text = "[a](../bench/RESULTS.md) [b](store.md#the-index) [c](../src/x.py) [d](https://e.org)"
    resolved = links.resolve_links(text, "docs/cluster.md", "cluster")
    assert resolved == "[a](performance.md) [b](store.md#the-index) c [d](https://e.org)"
    text = "[a](docs/trust.md) ![b](docs/pictures/c.png)"
    resolved = links.resolve_links(text, "CHANGELOG.md", "project/changelog")
    assert resolved.startswith("[a](../trust.md)")
    assert links.resolve_pictures("![b](docs/pictures/c.png)", "CHANGELOG.md", "project/x") == (
        "![b](../pictures/c.png)"
    )


@pytest.mark.parametrize(
    ("page", "remote"),
    [
        ('<script src="https://e.org/a.js"></script>', ["https://e.org/a.js"]),
        ('<link rel="stylesheet" href="//e.org/a.css">', ["//e.org/a.css"]),
        ('<link rel="canonical" href="https://e.org/">', []),
        ('<img src="a.png"><a href="https://e.org">e</a>', []),
        ('<img srcset="http://e.org/b.png 2x">', ["http://e.org/b.png 2x"]),
        ("<style>@import 'https://e.org/c.css';</style>", ["https://e.org/c.css"]),
        ('<p style="background: url(https://e.org/d.png)">', ["https://e.org/d.png"]),
    ],
)
def test_finds_what_a_page_would_load(page: str, remote: list[str]) -> None:
    assert check.find_remote_addresses(page) == remote
