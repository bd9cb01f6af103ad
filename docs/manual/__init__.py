"""The Sphinx extension of the manual: pages from declarations, llms.txt, and a last check."""

from pathlib import Path
from typing import Any

from manual.check import find_remote_resources
from manual.links import read_project_file, resolve_links
from manual.llms import compose_llms_text
from manual.pages import ROOT, compose_question_links, write_pages
from sightline.methods import load_methods

# In a page's source: what stands in its place.
METHODS_MARK = "<!-- methods of this question -->"
RESULTS_MARK = "<!-- bench/RESULTS.md -->"


def setup(app: Any) -> dict[str, Any]:
    """Connects the extension."""
    # After sphinx-gallery, whose pictures the pages of the methods show.
    app.connect("builder-inited", write_generated_pages, priority=900)
    app.connect("source-read", complete_source)
    app.connect("build-finished", finish_build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_generated_pages(_app: Any) -> None:
    write_pages(load_methods())


def complete_source(_app: Any, page: str, content: list[str]) -> None:
    """Resolves links out of docs/, and puts in what is composed."""
    text = content[0]
    if not page.startswith(("examples/", "methods/", "project/")):
        text = resolve_links(text, f"docs/{page}.md", page)
    if METHODS_MARK in text:
        links = compose_question_links(load_methods(), Path(page).name)
        text = text.replace(METHODS_MARK, links)
    if RESULTS_MARK in text:
        results = read_project_file(ROOT, "bench/RESULTS.md", page)
        text = text.replace(RESULTS_MARK, results.removeprefix("# Results\n"))
    content[0] = text


def finish_build(app: Any, error: Exception | None) -> None:
    """Writes llms.txt, and refuses pages that would load anything from elsewhere."""
    if error is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir)
    text = compose_llms_text(load_methods(), app.env)
    (folder / "llms.txt").write_text(text, encoding="utf-8")
    remote = find_remote_resources(folder)
    if remote:
        from sphinx.errors import ExtensionError

        raise ExtensionError("the manual would load from elsewhere:\n" + "\n".join(remote))
