"""Files of style networks: written and read again, blends, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import sightline as sl
from sightline.generators import checkpoint
from sightline.generators.apply import restyle_images
from sightline.generators.architectures.adain import (
    AdaINStylizer,
    apply_adain,
    compute_channel_statistics,
)
from sightline.generators.architectures.style import (
    ConditionalInstanceNorm,
    Stylizer,
    make_stylizer,
)
from sightline.generators.checkpoint import (
    AnyStyleNetwork,
    FixedStyleNetwork,
    normalize_style_weights,
    parse_style_blend,
    read_fixed_style_network,
    read_style_network,
    write_any_style_network,
    write_fixed_style_network,
)
from sightline.generators.header import ANY_STYLE_KIND, FIXED_STYLE_KIND
from sightline.images.io import pictures as images

NAMES = ("wave", "night", "scream")

HEADER: dict[str, Any] = {
    "kind": FIXED_STYLE_KIND,
    "styles": list(NAMES),
    "width": 4,
    "blocks": 1,
    "norm": "conditional",
}


def make_network(style_count: int = 3, norm: Any = "conditional") -> Stylizer:
    """A tiny network whose rows differ from style to style."""
    network = make_stylizer(0, style_count, width=4, blocks=1, norm=norm).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ConditionalInstanceNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=random))
                module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=random))
    return network


def write_with_header(path: Path, header: Any, state: dict[str, Tensor] | None = None) -> Path:
    """A file with a header of any form, given as JSON or as text."""
    if state is None:
        state = {
            name: value.half().contiguous() for name, value in make_network().state_dict().items()
        }
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(state, path, {"sightline": text})
    return path


@pytest.fixture(scope="module")
def any_style() -> AnyStyleNetwork:
    return AnyStyleNetwork(AdaINStylizer(sl.load()).eval())


# ── there and back ──


def test_a_file_gives_the_network_back(tmp_path: Path) -> None:
    network = make_network()
    path = tmp_path / "a.safetensors"
    write_fixed_style_network(network, NAMES, path, {"step": 7, "note": {"by": ["me"]}})
    style_network = read_fixed_style_network(path)
    assert style_network.names == NAMES
    assert style_network.metadata == {"step": 7, "note": {"by": ["me"]}}

    image = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
    mix = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    with torch.no_grad():
        difference = network(image, mix) - style_network.network(image, mix)
    assert difference.abs().max() < 0.01, "half precision"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_kind_of_norm_comes_back(norm: str, tmp_path: Path) -> None:
    write_fixed_style_network(make_network(1, norm), ["wave"], tmp_path / "a.safetensors")
    style_network = read_fixed_style_network(tmp_path / "a.safetensors")
    assert style_network.network.norm_kind == norm


def test_a_network_for_any_style_comes_back(any_style: AnyStyleNetwork, tmp_path: Path) -> None:
    path = tmp_path / "any.safetensors"
    write_any_style_network(any_style.network, path, {"step": 3})
    style_network = read_style_network(path)
    assert isinstance(style_network, AnyStyleNetwork)
    assert style_network.metadata == {"step": 3}
    image = smooth(side=56)[..., :40, :]
    mix = any_style.make_mix("scream")
    difference = restyle_images(style_network, image, mix) - restyle_images(any_style, image, mix)
    assert difference.abs().max() < 0.01, "half precision"
    with pytest.raises(sl.SightlineError, match=r"any\.safetensors is a network for any style"):
        read_fixed_style_network(path)


# ── blends ──


def test_a_blend_is_a_row_of_shares() -> None:
    style_network = FixedStyleNetwork(make_network(), NAMES)
    assert style_network.make_mix("night").tolist() == [[0, 1, 0]]
    mix = style_network.make_mix(parse_style_blend("wave:3, scream"))
    torch.testing.assert_close(mix, torch.tensor([[0.75, 0, 0.25]]))
    with pytest.raises(sl.SightlineError, match="did you mean night"):
        style_network.make_mix("nigt")


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"wave": 0.0},
        {"wave": 2.0, "night": -1.0},
        {"wave": float("inf")},
        {"wave": float("nan")},
    ],
)
def test_weights_that_have_no_shares_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(sl.SightlineError, match="must be 0 or more and not all 0"):
        normalize_style_weights(weights)


def test_a_blend_that_is_no_name_and_weight_is_refused() -> None:
    with pytest.raises(sl.SightlineError, match="'wave:much' is not a style and its weight"):
        parse_style_blend("night, wave:much")
    with pytest.raises(sl.SightlineError, match="'wave' is given twice"):
        parse_style_blend("wave:1,night,wave:2")


def test_a_name_may_hold_commas_and_colons() -> None:
    names = ("Munch, The Scream: 1893", "wave")
    assert parse_style_blend(names[0], names) == {names[0]: 1.0}
    assert parse_style_blend("wave:2", names) == {"wave": 2.0}


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_a_header_of_any_length_is_read(padding: int, tmp_path: Path) -> None:
    """The length comes first in the file; of one in 32 the first byte is that of a pickle."""
    path = tmp_path / "a.safetensors"
    write_fixed_style_network(make_network(), NAMES, path, {"note": "x" * padding})
    assert read_fixed_style_network(path).names == NAMES


@torch.no_grad()
def test_a_blend_of_pictures_is_the_blend_of_their_features(
    any_style: AnyStyleNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Huang 2017, section 7.1: the weighted sum of the features for each style is decoded."""
    monkeypatch.setattr(any_style.network, "decode_features", lambda features, *_: features)
    image = smooth(side=64, seed=3)[..., :48, :]
    styles = [smooth(side=60, seed=seed)[..., :52] for seed in (4, 5)]
    for name, style in zip("ab", styles, strict=True):
        images.write(style, tmp_path / f"{name}.png")
    weights = {str(tmp_path / "a.png"): 3, str(tmp_path / "b.png"): 1}
    features = restyle_images(any_style, image, any_style.make_mix(weights, strength=0.6))

    network = any_style.network
    content = network.encode_image(image)
    stylized = [
        apply_adain(
            content,
            compute_channel_statistics(network.encode_image(sl.read(tmp_path / f"{name}.png"))),
        )
        for name in "ab"
    ]
    expected = 0.4 * content + 0.6 * (0.75 * stylized[0] + 0.25 * stylized[1])
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_a_picture_that_is_no_style_is_refused(any_style: AnyStyleNetwork, tmp_path: Path) -> None:
    images.write(smooth(side=20), tmp_path / "speck.png")
    images.write(smooth(side=60), tmp_path / "wave.png")
    for name, message in (
        ("speck.png", "speck.png is 20×20 pixels at this style size"),
        ("wav.png", "did you mean wave.png"),
    ):
        with pytest.raises(sl.SightlineError, match=message):
            any_style.make_mix(str(tmp_path / name))


# ── what is refused ──


def remove(key: str) -> dict[str, Any]:
    return {name: value for name, value in HEADER.items() if name != key}


MANY_NAMES = [f"style {number}" for number in range(4096)]

DAMAGED_HEADERS: dict[str, tuple[Any, str]] = {
    "width below": ({**HEADER, "width": -1}, "'width' in its header is -1"),
    "width zero": ({**HEADER, "width": 0}, "'width' in its header is 0"),
    "width above": ({**HEADER, "width": 513}, "less than or equal to 512"),
    "width huge": ({**HEADER, "width": 10**30}, "less than or equal to 512"),
    "width text": ({**HEADER, "width": "4"}, "'width' in its header is '4'"),
    "width fraction": ({**HEADER, "width": 4.5}, "valid integer"),
    "width float": ({**HEADER, "width": 1e9}, "valid integer"),
    "width truth": ({**HEADER, "width": True}, "valid integer"),
    "width null": ({**HEADER, "width": None}, "valid integer"),
    "width list": ({**HEADER, "width": [4]}, "valid integer"),
    "width nested": ({**HEADER, "width": {"value": {"value": 4}}}, "valid integer"),
    "width missing": (remove("width"), "its header lacks 'width'"),
    "blocks below": ({**HEADER, "blocks": -1}, "'blocks' in its header is -1"),
    "blocks above": ({**HEADER, "blocks": 65}, "less than or equal to 64"),
    "blocks huge": ({**HEADER, "blocks": 10**9}, "less than or equal to 64"),
    "blocks missing": (remove("blocks"), "its header lacks 'blocks'"),
    "norm unknown": ({**HEADER, "norm": "layer"}, "'instance', 'batch' or 'conditional'"),
    "norm list": ({**HEADER, "norm": ["batch"]}, "'instance', 'batch' or 'conditional'"),
    "norm missing": (remove("norm"), "its header lacks 'norm'"),
    "styles none": ({**HEADER, "styles": []}, "at least 1 item"),
    "styles many": ({**HEADER, "styles": ["a"] * 4097}, "at most 4096 items"),
    "styles twice": ({**HEADER, "styles": ["a", "b", "a"]}, "2 styles are named 'a'"),
    "styles text": ({**HEADER, "styles": "wave"}, "valid list|valid array"),
    "styles numbers": ({**HEADER, "styles": ["a", 1]}, r"'styles\.1' in its header is 1"),
    "styles nested": ({**HEADER, "styles": [["a"]]}, r"'styles\.0' in its header"),
    "styles long": ({**HEADER, "styles": {"\n" * 999: 1}}, "valid list|valid array"),
    "encoder missing": ({"kind": ANY_STYLE_KIND}, "its header lacks 'encoder'"),
    "encoder list": ({"kind": ANY_STYLE_KIND, "encoder": []}, "'encoder' in its header"),
}

FOREIGN_HEADERS: dict[str, Any] = {
    "null": None,
    "number": 5,
    "text": "wave",
    "list": [HEADER],
    "empty": {},
    "no kind": remove("kind"),
    "other kind": {**HEADER, "kind": "sightline-classifier"},
    "kind list": {**HEADER, "kind": [FIXED_STYLE_KIND]},
    "kind nested": {**HEADER, "kind": {"kind": FIXED_STYLE_KIND}},
    "no JSON": "{kind",
    "no text": "",
    "deep": json.dumps(HEADER)[:-1] + ', "note": ' + "[" * 9000 + "]" * 9000 + "}",
    "many digits": json.dumps(HEADER).replace('"width": 4', '"width": ' + "9" * 9000),
}


@pytest.fixture
def refuse_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a network is built, with or without memory."""

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("a network was built")

    for name in ("Stylizer", "make_stylizer", "AdaINStylizer", "load_recipe_model"):
        monkeypatch.setattr(checkpoint, name, fail)


@pytest.mark.usefixtures("refuse_to_build")
@pytest.mark.parametrize("case", DAMAGED_HEADERS)
def test_a_damaged_header_is_refused_before_a_network_is_built(case: str, tmp_path: Path) -> None:
    header, message = DAMAGED_HEADERS[case]
    path = write_with_header(tmp_path / "a.safetensors", header)
    with pytest.raises(sl.SightlineError, match=message) as error:
        read_style_network(path)
    assert str(error.value).startswith("a.safetensors is a damaged style network: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.usefixtures("refuse_to_build")
@pytest.mark.parametrize("case", FOREIGN_HEADERS)
def test_a_header_of_something_else_is_refused(case: str, tmp_path: Path) -> None:
    path = write_with_header(tmp_path / "a.safetensors", FOREIGN_HEADERS[case])
    with pytest.raises(sl.SightlineError, match="not of a style network") as error:
        read_style_network(path)
    assert "\n" not in str(error.value)


def test_headers_at_the_limits_are_read(tmp_path: Path) -> None:
    network = make_stylizer(0, len(MANY_NAMES), width=1, blocks=0)
    write_fixed_style_network(network, MANY_NAMES, tmp_path / "many.safetensors")
    assert read_fixed_style_network(tmp_path / "many.safetensors").names == tuple(MANY_NAMES)
    deep_network = make_stylizer(0, 1, width=1, blocks=64, norm="batch")
    write_fixed_style_network(deep_network, ["a"], tmp_path / "deep.safetensors")
    assert read_fixed_style_network(tmp_path / "deep.safetensors").network.blocks == 64


@pytest.mark.parametrize("change", [{"width": 512}, {"blocks": 64}, {"styles": MANY_NAMES}])
def test_a_header_that_describes_more_than_the_file_holds_is_refused(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 channels and 64 blocks would be 19 GB."""
    monkeypatch.delattr(checkpoint, "make_stylizer")
    path = write_with_header(tmp_path / "a.safetensors", {**HEADER, **change})
    with pytest.raises(sl.SightlineError, match=r"its header describes [\d,]+ weights") as error:
        read_style_network(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["exchange", "bit"])
def test_changed_weights_of_the_right_shapes_are_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_fixed_style_network(make_network(), NAMES, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    pairs = [
        (name, other)
        for name, value in state.items()
        for other, other_value in state.items()
        if name < other and value.shape == other_value.shape and not value.equal(other_value)
    ]
    name, other = pairs[0]
    if change == "exchange":
        state[name], state[other] = state[other], state[name]
    else:
        state[name].view(torch.int16)[0] ^= 1
    save_file(state, path, metadata)
    with pytest.raises(sl.SightlineError, match="its weights are not those that were written"):
        read_style_network(path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = write_with_header(tmp_path / "a.safetensors", {**HEADER, "width": 3})
    with pytest.raises(sl.SightlineError, match="doesn't fit its style network"):
        read_style_network(path)


def test_files_that_are_no_style_network_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "net.safetensors")
    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pt")
    (tmp_path / "text.safetensors").write_text("no weights")
    write_fixed_style_network(make_network(), NAMES, tmp_path / "good.safetensors")
    content = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(content[: len(content) // 2])
    nan_state = {name: value * torch.nan for name, value in make_network().state_dict().items()}
    contiguous_state = {name: value.contiguous() for name, value in nan_state.items()}
    write_with_header(tmp_path / "nan.safetensors", HEADER, contiguous_state)

    for name, message in (
        ("net.safetensors", "not of a style network"),
        ("net.pt", "not of a style network"),
        ("text.safetensors", "not a whole safetensors file"),
        ("half.safetensors", "not a whole safetensors file"),
        ("nan.safetensors", "NaN"),
        ("absent.safetensors", "no weights file"),
        ("paynters", "did you mean painters"),
    ):
        source: str | Path = tmp_path / name if "." in name else name
        with pytest.raises(sl.SightlineError, match=message) as error:
            read_fixed_style_network(source)
        assert "\n" not in str(error.value)
