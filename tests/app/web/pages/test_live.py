"""The live page says what it needs."""

from sightline.app.web.delivery.live.schema import LiveRequest
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.live import ATTRIBUTIONS, build_live_page
from sightline.app.web.site.rendering import render_page


def test_served_it_has_controls(explorer: Explorer) -> None:
    html = render_page(explorer, build_live_page(explorer), "live.html")
    assert 'id="canvas" width="32"' in html
    assert "live.js" in html


def test_exported_it_says_how_to_serve_it(explorer: Explorer) -> None:
    exported = Explorer(
        explorer.scan, explorer.model, pictures=explorer.pictures, command="sightline explore"
    )
    html = render_page(exported, build_live_page(exported), "live.html")
    assert "only while it is served" in html
    assert "live.js" not in html


def test_without_the_network_it_says_why(explorer: Explorer) -> None:
    bare = Explorer(
        explorer.scan, None, pictures=explorer.pictures, model_note="it is gone", is_served=True
    )
    assert "it is gone" in render_page(bare, build_live_page(bare), "live.html")


def test_the_server_knows_its_attributions() -> None:
    for name, _ in ATTRIBUTIONS:
        LiveRequest.model_validate({"image": "s-1", "attribution": name})
