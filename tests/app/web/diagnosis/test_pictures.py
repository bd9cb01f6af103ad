"""Tiles show the right images, and attributions those of the network itself."""

import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.app.web.diagnosis.pictures import (
    THUMBNAIL_SIDE,
    Side,
    draw_attribution,
    embed_picture,
    load_network,
    make_attribution_tiles,
    make_thumbnail_tiles,
    make_unit_tiles,
)
from sightline.images.plotting.maps import overlay_heatmap
from sightline.models.model import Model


def test_tiles_are_thumbnails_with_captions(two_scans: tuple[sl.Scan, sl.Scan]) -> None:
    kept: dict[str, Tensor] = {}

    def keep(key: str, picture: Tensor) -> str:
        kept[key] = picture
        return f"pictures/{len(kept)}"

    tiles = make_thumbnail_tiles(two_scans[0], [7, 3, 9], ["a", "", "c"], keep, limit=2)
    assert [tile.source for tile in tiles] == ["pictures/1", "pictures/2"]
    assert [tile.caption for tile in tiles] == ["a", ""]
    assert list(kept) == ["thumbnail 7", "thumbnail 3"]
    assert kept["thumbnail 7"].shape == (1, 3, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    assert make_thumbnail_tiles(two_scans[0], [], [], keep) == []


def test_a_unit_is_shown_by_its_strongest_images(two_scans: tuple[sl.Scan, sl.Scan]) -> None:
    scan = two_scans[0]
    tiles = make_unit_tiles(scan, "conv2", 5, lambda key, _: key, count=3)
    ids = scan.top("conv2").ids[:3, 5].tolist()
    assert [tile.source for tile in tiles] == [f"thumbnail {id}" for id in ids]


def test_an_attribution_is_grad_cam_over_the_image() -> None:
    model = Model(small_network().eval(), labels=LABELS, size=32)
    image = smooth(1, side=32, seed=4)
    values = sl.gradcam(model, image, label=2).values["attribution"].clamp_min(0)
    assert torch.equal(draw_attribution(model, image, 2), overlay_heatmap(image, values))


def test_without_a_network_there_are_no_attributions(two_scans: tuple[sl.Scan, sl.Scan]) -> None:
    # These networks were built in code.
    assert load_network(two_scans[0]) is None
    model = Model(small_network().eval(), labels=LABELS, size=32)
    sides = [Side("old", two_scans[0], model), Side("new", two_scans[1], None)]
    tiles = make_attribution_tiles(sides, 4, [1, 2], embed_picture)
    assert [tile.caption for tile in tiles] == ["old: what speaks for bee"]
    assert tiles[0].source.startswith("data:image/webp;base64,")
