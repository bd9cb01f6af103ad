"""The style network: its norm against torch's, its layout, sizes, blends, and the file that it is kept in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sightline as sl
from sightline.generators.architectures.style import (
    ConditionalInstanceNorm,
    Stylizer,
    make_stylizer,
)
from sightline.generators.checkpoint import (
    FIXED_STYLE_KIND,
    parse_style_blend,
    read_fixed_style_network,
    write_fixed_style_network,
)

NAMES = ("wave", "night", "scream")


def small(styles: int = 3, norm: str = "conditional", seed: int = 0) -> Stylizer:
    """A tiny network whose rows differ from style to style."""
    network = make_stylizer(seed, styles, width=4, blocks=1, norm=norm).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ConditionalInstanceNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=generator))
                module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=generator))
    return network


def images(count: int = 2, height: int = 20, width: int = 24) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def mix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_of_one_style_is_torchs_instance_norm(grad: bool, layout: torch.memory_format) -> None:
    own, other = ConditionalInstanceNorm(5), nn.InstanceNorm2d(5, affine=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, name in ((own.weight, "weight"), (own.bias, "bias")):
            parameter.copy_(torch.randn(1, 5, generator=generator))
            other.get_parameter(name).copy_(parameter[0])
    x = (torch.randn(3, 5, 6, 7, generator=generator) * 3 + 2).contiguous(memory_format=layout)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(own(x, torch.ones(3, 1)), other(x), rtol=1e-4, atol=1e-5)


def test_norm_has_torchs_gradient() -> None:
    own, other = ConditionalInstanceNorm(5), nn.InstanceNorm2d(5, affine=True)
    x = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    slopes: list[list[Tensor]] = []
    for run, norm in ((lambda y: own(y, torch.ones(3, 1)), own), (other, other)):
        leaf = x.clone().requires_grad_()
        slopes.append(
            [*torch.autograd.grad((run(leaf) ** 3).sum(), (leaf, norm.weight, norm.bias))]
        )
    for one, two in zip(*slopes, strict=True):
        torch.testing.assert_close(one.flatten(), two.flatten(), rtol=1e-3, atol=1e-4)
    assert slopes[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("grad", [True, False])
def test_norm_keeps_channels_last(grad: bool) -> None:
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad):
        assert ConditionalInstanceNorm(8)(x, torch.ones(2, 1)).is_contiguous(
            memory_format=torch.channels_last
        )


def test_rows_are_blended_by_weight() -> None:
    norm, x = ConditionalInstanceNorm(4, 2), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[1.0] * 4, [3.0] * 4]))
        norm.bias.copy_(torch.tensor([[0.0] * 4, [8.0] * 4]))
        found = norm(x, mix([0.75, 0.25]))
        torch.testing.assert_close(
            found, nn.functional.instance_norm(x) * 1.5 + 2, rtol=1e-4, atol=1e-4
        )


def test_conditional_with_one_style_is_instance() -> None:
    one, other = (
        make_stylizer(0, 1, width=4, blocks=1, norm="conditional"),
        make_stylizer(0, 1, width=4, blocks=1, norm="instance"),
    )
    with torch.no_grad():
        assert torch.equal(one(images(), torch.ones(2, 1)), other(images(), torch.ones(2, 1)))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 30), (33, 18), (16, 64)])
def test_any_size_gives_a_picture_of_that_size(height: int, width: int) -> None:
    with torch.no_grad():
        made = small()(images(1, height, width), mix([1, 0, 0]))
    assert made.shape == (1, 3, height, width)
    assert 0 <= made.min() <= made.max() <= 1


def test_each_image_of_a_batch_has_its_own_style() -> None:
    network, rows = small(), mix([1, 0, 0], [0, 0.5, 0.5])
    with torch.no_grad():
        together = network(images(), rows)
        for i in range(2):
            torch.testing.assert_close(
                together[i : i + 1],
                network(images()[i : i + 1], rows[i : i + 1]),
                rtol=1e-4,
                atol=1e-5,
            )
    assert (together[0] - network(images(), rows.flip(0))[0]).abs().mean() > 1e-3
    assert torch.equal(network.make_one_hot(torch.tensor([2, 0])), mix([0, 0, 1], [1, 0, 0]))


def test_the_kinds_compute_the_same_with_gradients_on() -> None:
    network = small()
    with torch.no_grad():
        quiet = network(images(), mix([1, 0, 0], [0, 1, 0]))
    torch.testing.assert_close(
        network(images(), mix([1, 0, 0], [0, 1, 0])).detach(), quiet, rtol=1e-4, atol=1e-5
    )


def test_seed_decides_the_start_and_nothing_else_is_drawn() -> None:
    before = torch.get_rng_state()
    one, same, other = (make_stylizer(seed, width=4, blocks=1).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["last.conv.weight"], other["last.conv.weight"])


def test_batch_norm_ignores_the_mix_and_depends_on_the_batch() -> None:
    network = small(1, "batch").train()
    with torch.no_grad():
        assert not torch.allclose(
            network(images(), torch.ones(2, 1))[:1],
            network(images()[:1], torch.ones(1, 1)),
            atol=1e-3,
        )


# ── files ──


def test_a_file_gives_the_network_back(tmp_path: Path) -> None:
    network = small()
    write_fixed_style_network(network, NAMES, tmp_path / "a.safetensors", {"step": 7})
    found = read_fixed_style_network(tmp_path / "a.safetensors")
    assert (found.names, found.metadata["step"]) == (NAMES, 7)
    with torch.no_grad():
        one, two = (net(images(), mix([1, 0, 0], [0, 1, 0])) for net in (network, found.network))
    assert (one - two).abs().max() < 0.01, "half precision"
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_other_norms_come_back_too(norm: str, tmp_path: Path) -> None:
    write_fixed_style_network(small(1, norm), ["wave"], tmp_path / "a.safetensors")
    assert read_fixed_style_network(tmp_path / "a.safetensors").network.norm_kind == norm


def test_blends(tmp_path: Path) -> None:
    write_fixed_style_network(small(), NAMES, tmp_path / "a.safetensors")
    found = read_fixed_style_network(tmp_path / "a.safetensors")
    assert torch.equal(found.make_mix("night"), mix([0, 1, 0]))
    assert torch.allclose(found.make_mix(parse_style_blend("wave:3, scream")), mix([0.75, 0, 0.25]))
    for wrong, said in (
        ({"nigt": 1.0}, "did you mean night"),
        ({"wave": -1.0}, "0 or more"),
        ({"wave": 0.0}, "not all 0"),
    ):
        with pytest.raises(sl.SightlineError, match=said):
            found.make_mix(wrong)
    with pytest.raises(sl.SightlineError, match="'wave:much' is not a style"):
        parse_style_blend("wave:much")


def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "net.safetensors")
    save_file(
        {"weight": torch.ones(2)},
        tmp_path / "short.safetensors",
        {"sightline": json.dumps({"kind": FIXED_STYLE_KIND, "styles": ["a"]})},
    )
    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pt")
    (tmp_path / "text.safetensors").write_text("no weights")
    write_fixed_style_network(small(), NAMES, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    state = {name: (value * torch.nan).contiguous() for name, value in small().state_dict().items()}
    head = {
        "kind": FIXED_STYLE_KIND,
        "styles": NAMES,
        "width": 4,
        "blocks": 1,
        "norm": "conditional",
    }
    save_file(state, tmp_path / "nan.safetensors", {"sightline": json.dumps(head)})
    for name, said in (
        ("net.safetensors", "not of a style network"),
        ("net.pt", "not of a style network|no style network"),
        ("short.safetensors", "damaged style network"),
        ("text.safetensors", "not a whole safetensors file"),
        ("half.safetensors", "not a whole safetensors file"),
        ("nan.safetensors", "NaN"),
        ("absent.safetensors", "no weights file"),
        ("paynters", "did you mean painters"),
    ):
        with pytest.raises(sl.SightlineError, match=said) as error:
            read_fixed_style_network(tmp_path / name if "." in name else name)
        assert "\n" not in str(error.value)
