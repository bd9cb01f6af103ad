"""A sample of the matrix, and whether it would notice what it is to notice."""

import random
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn
from zoo.backbone import Classifier
from zoo.cells import LOADING, Cell, FaultError, check_result, load_network, run_cell, run_network
from zoo.matrix import choose_methods, list_missing
from zoo.networks import ZooNetwork, list_networks
from zoo.quick_runs import make_folder
from zoo.table import write_table

import sightline as sl
from sightline.methods import load_methods

METHODS = load_methods()
NETWORKS = list_networks()
MADE_BY_HAND = ("operation", "interface", "views", "state")
SAMPLE_SEED = 0


def deal_methods() -> list[tuple[str, str]]:
    """One method for each network made by hand, in a seeded order, so that all have their turn."""
    names = [name for name, entry in NETWORKS.items() if entry.family in MADE_BY_HAND]
    order = random.Random(SAMPLE_SEED).sample(list(METHODS), len(METHODS))
    return list(zip(names, cycle(order), strict=False))


REFUSED_AT_LOADING = ("operation/lazy", "operation/scripted")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small folder that methods read."""
    return make_folder(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(("name", "method"), deal_methods())
def test_a_method_runs_or_refuses(name: str, method: str, folder: Path) -> None:
    cells = list(run_network(NETWORKS[name], {method: METHODS[method]}, folder))
    bad = [cell for cell in cells if cell.outcome not in ("ok", "refused")]
    assert bad == []
    assert cells[0].outcome == ("refused" if name in REFUSED_AT_LOADING else "ok")


def test_the_sample_meets_every_method() -> None:
    assert {method for _, method in deal_methods()} == set(METHODS)


def test_the_catalogue_is_large() -> None:
    assert len(NETWORKS) >= 200
    assert {entry.family for entry in NETWORKS.values()} >= {
        *MADE_BY_HAND,
        "timm",
        "torchvision",
        "transformers",
        "open_clip",
    }


# ── what a cell notices ──


def raise_refusal() -> None:
    raise sl.SightlineError("label is 9; the network has 5 classes")


def draw_number() -> None:
    torch.rand(1)


def change_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)


def divide_by_zero() -> None:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("work", "outcome", "reason"),
    [
        (lambda: None, "ok", ""),
        (raise_refusal, "refused", "label is 9; the network has 5 classes"),
        (draw_number, "fault", "changes the process: torch generator"),
        (change_default_dtype, "fault", "changes the process: default dtype"),
        (divide_by_zero, "traceback", "ZeroDivisionError: division by zero"),
    ],
    ids=["nothing", "refusal", "generator", "dtype", "traceback"],
)
def test_outcomes(work: Callable[[], None], outcome: str, reason: str) -> None:
    try:
        cell = run_cell("operation/classifier", "saliency", work)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (cell.outcome, cell.reason) == (outcome, reason)


def change_weight(network: Classifier) -> None:
    with torch.no_grad():
        network.backbone.conv2.weight[1, 2, 0, 1].neg_()


def change_gradient_flag(network: Classifier) -> None:
    network.head.bias.requires_grad_(False)


def add_hook(network: Classifier) -> None:
    network.backbone.relu2.register_forward_hook(lambda *arguments: None)


def change_mode(network: Classifier) -> None:
    network.backbone.norm1.train()


@pytest.mark.parametrize("change", [change_weight, change_gradient_flag, add_hook, change_mode])
def test_a_changed_network_is_noticed(change: Callable[[Classifier], None]) -> None:
    network = Classifier().eval()
    assert run_cell("operation/classifier", "saliency", lambda: None, network).outcome == "ok"
    cell = run_cell("operation/classifier", "saliency", lambda: change(network), network)
    assert (cell.outcome, cell.reason) == ("fault", "changes the network")


PICTURE = torch.full((1, 3, 6, 9), 0.25)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (sl.Result({}, {}), "no picture"),
        (sl.Result({"a": PICTURE[:, :1]}, {}), r"\(1, 1, 6, 9\)"),
        (sl.Result({"a": PICTURE * 5}, {}), "leaves"),
        (sl.Result({"a": PICTURE / 0}, {}), "leaves"),
        (sl.Result({"a": PICTURE.double()}, {}), "float64"),
        (sl.Result({"a": PICTURE}, {"b": [{"c": float("nan")}]}), "'b'"),
        (sl.Result({"a": PICTURE}, {"b": PICTURE.log() * 0 / 0}), "'b'"),
    ],
    ids=["none", "gray", "bright", "infinite", "double", "nested_nan", "nan"],
)
def test_a_wrong_result_is_noticed(result: sl.Result, message: str) -> None:
    check_result("saliency", sl.Result({"a": PICTURE}, {"b": [0.5, PICTURE]}))
    with pytest.raises(FaultError, match=message):
        check_result("saliency", result)


# ── what is run, and the page ──


def test_the_choice_of_methods_is_seeded() -> None:
    names = list(METHODS)
    first, second = NETWORKS["timm/resnet18"], NETWORKS["timm/vgg11"]
    assert choose_methods(first, names, 0.3) == choose_methods(first, names, 0.3)
    assert choose_methods(first, names, 0.3) != choose_methods(second, names, 0.3)
    assert choose_methods(first, names, 1.0) == names


def test_what_is_in_the_log_is_not_run_again() -> None:
    entry = NETWORKS["timm/resnet18"]
    cells = [
        Cell(entry.name, LOADING, "ok"),
        Cell(entry.name, "saliency", "traceback", "KeyError: 'x'"),
        Cell(entry.name, "attention", "refused", "no attention"),
    ]
    log = {(cell.network, cell.method): cell for cell in cells}
    names = ["saliency", "attention", "rise"]
    assert list_missing(names, entry, log, again=False) == ["rise"]
    assert list_missing(names, entry, log, again=True) == ["saliency", "rise"]
    log[entry.name, LOADING] = Cell(entry.name, LOADING, "refused", "a scripted module")
    assert list_missing(names, entry, log, again=True) == []


def test_the_same_seed_builds_the_same_network() -> None:
    random.seed(1)
    entry = ZooNetwork("operation/x", Classifier, {"size": 32})
    networks: list[nn.Module] = [load_network(entry)[0] for _ in range(2)]
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_page() -> None:
    cells = [
        Cell("timm/a", LOADING, "ok"),
        Cell("timm/a", "saliency", "ok"),
        Cell("timm/a", "gradcam", "refused", "A has no layer with positions"),
        Cell("timm/a", "attention", "refused", "A has no attention"),
        Cell("timm/b", LOADING, "ok"),
        Cell("timm/b", "saliency", "ok"),
        Cell("timm/b", "gradcam", "refused", "B has no layer with positions"),
        Cell("timm/b", "attention", "refused", "B has no attention"),
        Cell("timm/c", LOADING, "ok"),
        Cell("timm/c", "saliency", "hang", "over 180 s"),
        Cell("timm/d", LOADING, "refused", "a scripted module can't be looked into"),
        Cell("timm/e", "attention", "refused", "E has no attention"),
        Cell("timm/e", "style", "ok"),
        Cell("timm/e", "saliency", "ok"),
        Cell("timm/e", "gradcam", "refused", "E has no layer with positions"),
        Cell("timm/f", "style", "ok"),
    ]
    page = write_table(cells)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    header, first, second, third, fourth = rows
    position = {name.strip("| "): number for number, name in enumerate(header)}
    assert [row[0] for row in (first, second, third)] == ["| a, b, e", "| c", "| d"]
    assert fourth[0] == "| f"
    assert first[position["attribution"]] == "✓ but gradcam [1]"
    assert first[position["attention"]] == "— [2]"
    assert first[position["style"]] == "✓"
    assert first[position["predictions"]] == ""
    assert second[position["attribution"]] == "✗ saliency"
    assert third[position["attribution"]] == "— [3]"
    assert "2. A has no attention" in page.splitlines()
    assert "6 networks, 12 combinations: 5 ran, 6 refused, 1 failed." in page.splitlines()
