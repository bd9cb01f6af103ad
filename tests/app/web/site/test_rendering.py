"""Pages as HTML: relative addresses, and everything from outside escaped."""

import pytest
from jinja2 import UndefinedError

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.site import rendering
from sightline.app.web.site.rendering import describe_site, render_page


def test_a_page_links_from_where_it_is(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def collect(_template: str, *, package: str, **content: object) -> str:
        seen.update(content, package=package)
        return ""

    monkeypatch.setattr(rendering, "render_template", collect)
    render_page(explorer, Page("x.html", {"own": 1}, "Unit 7"), "units/conv2/7.html")
    link, url = seen["link"], seen["url"]
    assert callable(link)
    assert callable(url)
    assert link("layer", layer="conv1") == "../../layers/conv1.html"
    assert url("pictures/a.webp") == "../../pictures/a.webp"
    assert (seen["root"], seen["title"], seen["own"]) == ("../../", "Unit 7", 1)


def test_what_is_filled_in_is_text(explorer: Explorer) -> None:
    title = "<script>alert('1')</script>\"&"
    page = Page("base.html", {"breadcrumb": [(title, 'x" onclick="alert(1)')]}, title)
    html = render_page(explorer, page, "index.html")
    assert "<script>alert" not in html
    assert ' onclick="' not in html
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;" in html


def test_what_is_missing_raises(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.images.plotting.html import render_template

    with pytest.raises(UndefinedError):
        render_template("base.html", package="sightline.app.web")


def test_the_site_says_what_it_was_made_with(explorer: Explorer) -> None:
    site = describe_site(explorer)
    assert (site["images"], site["classes"], site["is_served"]) == (14, 5, True)
    assert site["weights"] == explorer.scan.description.network.weights[:12]
    html = render_page(explorer, Page("base.html", {}, "x"), "index.html")
    assert f"weights {site['weights']}) on 14 images of web.scan" in html
