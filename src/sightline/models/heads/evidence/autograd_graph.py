"""What autograd's graph tells of how an output was made."""

import re
from typing import Any

from torch import Tensor

# Operations that only rearrange or convert, named as autograd names them.
REARRANGING_OPERATIONS = (
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Select",
    "Slice",
    "Alias",
    "Clone",
    "ToCopy",
    "Permute",
    "Transpose",
    "TBackward",
    "Split",
    "Unbind",
    "AsStrided",
    "Diagonal",
    "Unfold",
    "torch::autograd::CopySlices",
    "torch::autograd::CopyBackwards",
)

# Operations that multiply by weights, named as autograd or their Function names them.
WEIGHTED_OPERATIONS = re.compile(r"Addmm|Addbmm|Baddbmm|Mm|Bmm|Mv|Dot|Convolution|Linear|Cdist")

# Operations that pick a few of the values that they are given.
PICKING_OPERATIONS = re.compile(r"Topk|Sort|Kthvalue|Mode|Median|Gather")

# Operations that make probabilities, or their logarithms, of any numbers.
SQUASHING_OPERATIONS = ("Sigmoid", "Softmax", "Hardsigmoid", "LogSigmoid", "LogSoftmax")

# Operations by which probabilities are averaged, limited, inverted, joined or chosen, as torch's
# dispatcher names them.
COMBINING_NAMES = (
    *("mean", "sum", "cumsum", "exp", "log", "log1p", "expm1", "sqrt", "clamp", "clamp_min"),
    *("clamp_max", "hardtanh", "mul", "add", "sub", "rsub", "div", "neg", "pow", "prod", "cumprod"),
    *("stack", "cat", "max", "amax", "maximum", "min", "amin", "minimum", "median", "topk", "sort"),
    *("index", "index_select", "gather", "where", "masked_fill", "expand", "repeat", "lerp"),
    *("flip", "nan_to_num", "adaptive_avg_pool2d", "avg_pool2d", "adaptive_max_pool2d"),
    *("max_pool2d_with_indices", "upsample_bilinear2d", "upsample_bilinear2d_aa"),
    *("upsample_nearest2d", "upsample_nearest_exact2d", "upsample_bicubic2d"),
    *("upsample_bicubic2d_aa", "constant_pad_nd", "grid_sampler_2d", "pixel_shuffle"),
    *("pixel_unshuffle", "roll", "rot90", "round", "cummax", "masked_select", "fill", "zero"),
    *("index_put", "index_add", "index_fill", "scatter", "scatter_add"),
)

# The same as autograd names them: «ClampMin», «AvgPool2D».
COMBINING_OPERATIONS = re.compile(
    f"({'|'.join(name.title().replace('_', '') for name in COMBINING_NAMES)})Backward"
)


def has_graph(value: Any) -> bool:
    """Whether a value is a tensor of real numbers that autograd followed."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.grad_fn is not None


def is_made_of_probabilities(tensor: Tensor) -> bool:
    """Whether a tensor is computed from the results of sigmoids or softmaxes alone, unweighted.

    So are the mean of several of them, 1 − p, and p kept away from 0 and 1. Constants may take
    part: autograd's graph has no place for them.
    """
    unseen: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    is_squashed = False
    while unseen:
        node = unseen.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name.startswith(SQUASHING_OPERATIONS):
            is_squashed = True
        elif keeps_probabilities(node):
            unseen += [function for function, _ in node.next_functions]
        else:
            return False
    return is_squashed


def keeps_probabilities(node: Any) -> bool:
    """Whether an operation only rearranges or combines the values that it is given.

    A product of matrices does so where both are computed, as weights of attention and what they
    weigh are; else one of them is a layer's weight. So does a sum of products; with constants it is
    an expected value, in a unit of its own.
    """
    name = node.name()
    if name.startswith("Bmm"):
        return has_computed_inputs(node)
    if name.startswith("Sum"):
        summed = node.next_functions[0][0]
        is_product = summed is not None and summed.name().startswith("Mul")
        return not is_product or has_computed_inputs(summed)
    is_rearranging = name.startswith(REARRANGING_OPERATIONS)
    return is_rearranging or COMBINING_OPERATIONS.match(name) is not None


def has_computed_inputs(node: Any) -> bool:
    """Whether all that an operation takes is computed from the image, and nothing is constant."""
    return all(function is not None for function, _ in node.next_functions)


def list_names_between(output: Tensor, features: Tensor) -> tuple[set[str], bool]:
    """What lies between features and what is computed from them.

    Returns the names of the operations, as autograd has them, and whether one with weights is
    among them. A product of two matrices that are both computed has none.
    """
    source = features.grad_fn
    leads_to_features: dict[Any, bool] = {None: False}
    order: list[Any] = []
    stack: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in leads_to_features:
            leads_to_features[node] = node is source
            if node is not source:
                stack.append((node, True))
                stack += [(function, False) for function, _ in node.next_functions]
    names: set[str] = set()
    has_weights = False
    for node in order:  # every operation after those that it takes its values from
        inputs = [function for function, _ in node.next_functions]
        if any(leads_to_features[function] for function in inputs):
            leads_to_features[node] = True
            names.add(node.name())
            has_weights = has_weights or is_weighted(node)
    return names, has_weights


def is_weighted(node: Any) -> bool:
    """Whether an operation multiplies by weights, and not one computed matrix by another."""
    name = node.name()
    if WEIGHTED_OPERATIONS.search(name) is None:
        return False
    is_plain_product = name.startswith(("Mm", "Bmm"))
    return not is_plain_product or any(function is None for function, _ in node.next_functions)
