"""Links of Markdown files that stand elsewhere in the project, as the manual needs them."""

import re
from pathlib import Path, PurePosixPath

# Files outside docs/ that are pages of the manual, and the pages that are made of them.
PAGES = {
    "CHANGELOG.md": "project/changelog",
    "LEDGER.md": "project/ledger",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
    "training/README.md": "project/model_cards",
    "bench/RESULTS.md": "performance",
    "README.md": "index",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def resolve_links(text: str, source: str, page: str) -> str:
    """Turns the links of a project's file into those of a page of the manual.

    `source` is the file's path in the project, `page` the name of the page that it becomes. A link
    to a file that is no page, such as source code, becomes its text.
    """

    def resolve(match: re.Match[str]) -> str:
        label, address = match.groups()
        if address.startswith(("http:", "https:", "#", "mailto:")):
            return match[0]
        path, _, anchor = address.partition("#")
        target = _normalize(PurePosixPath(source).parent / path)
        name = PAGES.get(target)
        if name is None and target.startswith("docs/") and target.endswith(".md"):
            name = target.removeprefix("docs/").removesuffix(".md")
        if name is None:
            return label
        link = _relate(f"{name}.md", page)
        return f"[{label}]({link}{'#' + anchor if anchor else ''})"

    return LINK.sub(resolve, text)


def resolve_pictures(text: str, source: str, page: str) -> str:
    """The same for pictures, which all lie in docs/."""

    def resolve(match: re.Match[str]) -> str:
        label, address = match.groups()
        target = _normalize(PurePosixPath(source).parent / address)
        return f"![{label}]({_relate(target.removeprefix('docs/'), page)})"

    return re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", resolve, text)


def read_project_file(root: Path, source: str, page: str) -> str:
    """A file of the project as the text of a page."""
    text = (root / source).read_text(encoding="utf-8")
    return resolve_pictures(resolve_links(text, source, page), source, page)


def _normalize(path: PurePosixPath) -> str:
    """The path without «..»."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            del parts[-1:]
        else:
            parts.append(part)
    return "/".join(parts)


def _relate(target: str, page: str) -> str:
    """The path of a file of the manual as a page addresses it."""
    return "../" * page.count("/") + target
