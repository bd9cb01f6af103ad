"""The explorer in a browser: every page opens, is read, searched, and used with keys alone."""

from typing import Any

import pytest

PAGES = {
    "network": "index.html",
    "layer": "layers/conv2.html",
    "unit": "units/conv2/7.html",
    "class": "classes/0.html",
    "image": "images/5.html",
    "map": "map.html",
    "live": "live.html",
}
every_page = pytest.mark.parametrize("address", PAGES.values(), ids=PAGES)


def read_layout(page: Any) -> dict[str, Any]:
    """What can be measured of a page that is right."""
    return page.evaluate(
        """() => ({
            overflow: document.documentElement.scrollWidth - window.innerWidth,
            wide: [...document.body.querySelectorAll("*")].filter(
                element => element.getBoundingClientRect().right > window.innerWidth + 1
            ).map(element => element.outerHTML.slice(0, 120)).slice(0, 5),
            cutViews: [...document.querySelectorAll(".views")].filter(
                views => !views.querySelector("a:nth-child(4)")
                    && views.scrollWidth > views.clientWidth
            ).length,
            headings: document.querySelectorAll("h1").length,
            language: document.documentElement.lang,
            unnamed: [...document.querySelectorAll("button, a[href], input, select")].filter(
                element => element.offsetParent !== null && !(
                    element.textContent.trim() || element.getAttribute("aria-label")
                    || element.title || element.labels?.length
                    || element.querySelector("img[alt]:not([alt=''])")
                )).map(element => element.outerHTML.slice(0, 120)),
            broken: [...document.images].filter(
                image => image.getAttribute("src") && image.complete
                    && image.naturalWidth === 0 && image.loading !== "lazy"
            ).map(image => image.src),
            background: getComputedStyle(document.body).backgroundColor,
        })"""
    )


@every_page
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_opens_served_and_from_the_disk(
    site: Any, open_page: Any, address: str, width: int
) -> None:
    backgrounds: set[str] = set()
    for root, scheme in ((site.served, "light"), (site.files, "dark")):
        with open_page(width, scheme) as watched:
            page = watched.open(root + address)
            page.wait_for_timeout(150)
            layout = read_layout(page)
            assert layout["overflow"] <= 0, layout["wide"]
            assert layout["cutViews"] == 0
            assert layout["headings"] == 1
            assert layout["language"] == "en"
            assert layout["unnamed"] == []
            assert layout["broken"] == []
            assert page.title().endswith("Sightline")
            backgrounds.add(layout["background"])
    assert len(backgrounds) == 2


@pytest.mark.parametrize("address", ["compare.html", "mistakes.html"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_of_diagnosis_opens(
    diagnosed_site: Any, open_page: Any, address: str, width: int
) -> None:
    for root, scheme in ((diagnosed_site.served, "light"), (diagnosed_site.files, "dark")):
        with open_page(width, scheme) as watched:
            page = watched.open(f"{root}index.html")
            page.locator(f".views a[href='{address}']").click()
            page.wait_for_url(f"**/{address}*")
            page.wait_for_timeout(150)
            layout = read_layout(page)
            assert layout["overflow"] <= 0, layout["wide"]
            assert layout["headings"] == 1
            assert layout["broken"] == []
            # The stylesheet is there: without it tiles are a list.
            tiles = page.locator(".tiles").first
            if tiles.count():
                assert tiles.evaluate("list => getComputedStyle(list).display") == "flex"


def test_from_a_comparison_to_a_unit(diagnosed_site: Any, open_page: Any) -> None:
    with open_page() as watched:
        page = watched.open(f"{diagnosed_site.files}compare.html")
        page.locator("main a[href^='units/']").first.click()
        page.wait_for_url("**/units/**")


def test_from_the_network_to_a_unit(site: Any, open_page: Any) -> None:
    for root in (site.served, site.files):
        with open_page() as watched:
            page = watched.open(f"{root}index.html")
            page.get_by_role("link", name="conv2", exact=True).first.click()
            page.wait_for_url("**/layers/conv2.html*")
            assert page.locator("h1").inner_text() == "Layer conv2"
            page.locator("#sheet a[data-unit='7']").click()
            page.wait_for_url("**/units/conv2/7.html*")
            assert "7" in page.locator("h1").inner_text()
            page.go_back()
            page.wait_for_url("**/layers/conv2.html*")


def test_the_search_leads_to_pages(site: Any, open_page: Any) -> None:
    for root in (site.served, site.files):
        with open_page() as watched:
            page = watched.open(f"{root}units/conv1/0.html")
            page.keyboard.press("/")
            assert page.evaluate("document.activeElement.id") == "search"
            page.keyboard.type("conv3")
            page.locator("#search-results [role=option]").first.wait_for()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
            page.wait_for_url("**/conv3*")


def test_a_search_for_markup_shows_text(site: Any, open_page: Any) -> None:
    with open_page() as watched:
        page = watched.open(f"{site.served}index.html")
        page.locator("#search").fill("<script>alert")
        page.locator("#search-results [role=option]").first.wait_for()
        assert "<script>alert" in page.locator("#search-results").inner_text()


def read_shown_units(page: Any) -> list[str]:
    """The units of the sheet in the order in which they are seen."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#sheet a[data-unit]")].sort((a, b) => {
            const [first, second] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
            return first.top - second.top || first.left - second.left;
        }).map(cell => cell.dataset.unit)"""
    )


def test_a_layer_is_sorted_and_filtered(site: Any, open_page: Any) -> None:
    for root in (site.served, site.files):
        with open_page() as watched:
            page = watched.open(f"{root}layers/conv3.html")
            page.locator("#sheet a[data-unit]").first.wait_for()
            orders: set[tuple[str, ...]] = set()
            for option in page.locator("#sort option").all():
                page.select_option("#sort", option.get_attribute("value"))
                shown = read_shown_units(page)
                assert sorted(map(int, shown)) == list(range(16))
                orders.add(tuple(shown))
            assert len(orders) > 1
            page.fill("#filter", "1")
            assert set(read_shown_units(page)) == {"1", "10", "11", "12", "13", "14", "15"}


def test_a_picture_is_asked_about(site: Any, open_page: Any) -> None:
    with open_page() as watched:
        page = watched.open(f"{site.served}live.html")
        page.set_input_files("#file", str(site.picture))
        page.locator("#units img, #units canvas").first.wait_for()
        page.wait_for_function("document.querySelector('#answer').textContent.includes('%')")
        before = page.locator("#answer").inner_text()
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 4, box["y"] + 4)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.8, steps=5)
        page.mouse.up()
        page.wait_for_function(
            "text => document.querySelector('#answer').innerText !== text", arg=before
        )


def test_exported_live_says_what_it_needs(site: Any, open_page: Any) -> None:
    with open_page() as watched:
        page = watched.open(f"{site.files}live.html")
        assert "sightline explore" in page.locator("main").inner_text()


def test_keys_alone_lead_to_a_unit(site: Any, open_page: Any) -> None:
    with open_page() as watched:
        page = watched.open(f"{site.files}index.html")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip-link"
        page.keyboard.press("Enter")
        for _ in range(60):
            page.keyboard.press("Tab")
            target = page.evaluate("document.activeElement.getAttribute('href') || ''")
            if target.startswith("units/"):
                break
        assert target.startswith("units/")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        page.keyboard.press("Enter")
        page.wait_for_url("**/units/**")
        first = page.url
        page.keyboard.press("ArrowRight")
        page.wait_for_url(lambda url: url != first)


def test_nothing_is_loaded_from_elsewhere(site: Any, open_page: Any) -> None:
    hosts: set[str] = set()
    with open_page() as watched:
        watched.page.on("request", lambda asked: hosts.add(asked.url.split("/")[2]))
        for address in PAGES.values():
            watched.open(site.served + address)
    assert hosts == {site.served.split("/")[2]}


def test_the_first_view_is_light(site: Any, open_page: Any) -> None:
    """At most 500 kB for the first page and 300 kB for a unit, as they come."""
    for address, limit in (("index.html", 500_000), ("units/conv2/7.html", 300_000)):
        with open_page() as watched:
            page = watched.open(site.served + address)
            page.wait_for_timeout(200)
            loaded = page.evaluate(
                """() => ["navigation", "resource"].flatMap(
                    kind => performance.getEntriesByType(kind)
                ).reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
            )
        assert 10_000 < loaded <= limit
