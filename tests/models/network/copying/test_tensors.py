"""Copies of tensors are detached, have the same values and layout, and keep what is tied tied."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.models.network.copying.tensors import copy_generator, copy_parameter, copy_values

WEIGHT = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


def test_a_shared_parameter_is_frozen_on_the_same_memory() -> None:
    parameter = nn.Parameter(WEIGHT.clone())
    copied = copy_parameter(parameter, {}, share_values=True)
    assert type(copied) is nn.Parameter
    assert copied.data_ptr() == parameter.data_ptr()
    assert not copied.requires_grad
    assert parameter.requires_grad


def test_parameters_on_one_memory_get_copies_on_one_memory() -> None:
    first = nn.Parameter(WEIGHT.clone())
    second = nn.Parameter(first.data.t())
    memo: dict[int, Any] = {}
    copies = [copy_parameter(each, memo, share_values=False) for each in (first, second)]
    assert copies[0].data_ptr() == copies[1].data_ptr() != first.data_ptr()
    assert copies[1].stride() == second.stride()
    assert torch.equal(copies[1], second)


@pytest.mark.parametrize(
    "tensor",
    [
        WEIGHT.clone().requires_grad_() * 2,
        WEIGHT.half(),
        WEIGHT.t(),
        WEIGHT[:1].expand(5, 4),
        WEIGHT.to_sparse(),
        torch.arange(3),
    ],
    ids=["graph", "half", "transposed", "expanded", "sparse", "integer"],
)
def test_values_and_layout(tensor: Tensor) -> None:
    copied = copy_values(tensor, {})
    assert not copied.requires_grad
    assert copied.dtype == tensor.dtype
    assert copied.layout == tensor.layout
    assert torch.equal(copied.to_dense(), tensor.to_dense())
    if tensor.layout == torch.strided:
        assert copied.stride() == tensor.stride()
        assert copied.data_ptr() != tensor.data_ptr()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_values() -> None:
    tensor = torch.quantize_per_tensor(WEIGHT, 0.1, 3, torch.quint8)
    copied = copy_values(tensor, {})
    assert torch.equal(copied.int_repr(), tensor.int_repr())
    assert (copied.q_scale(), copied.q_zero_point()) == (0.1, 3)


def test_parameters_of_inference_mode_are_copied_even_if_shared() -> None:
    with torch.inference_mode():
        parameter = nn.Parameter(WEIGHT.clone())
    copied = copy_parameter(parameter, {}, share_values=True)
    assert not copied.is_inference()
    assert torch.equal(copied, parameter)


def test_a_generator_does_not_advance_its_original() -> None:
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    copied = copy_generator(generator)
    numbers = torch.rand(2, generator=copied)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(torch.rand(2, generator=generator), numbers)


def test_a_parameter_without_memory_of_its_own_gets_some() -> None:
    """Its values are replaced where weights are shuffled."""
    parameter = nn.Parameter(WEIGHT[:1].expand(5, 4))
    copied = copy_parameter(parameter, {}, share_values=False)
    assert torch.equal(copied, parameter)
    copied.copy_(torch.arange(20.0).view(5, 4))
    assert copied[1, 0] == 4
    shared = copy_parameter(parameter, {}, share_values=True)
    assert shared.data_ptr() == parameter.data_ptr()
