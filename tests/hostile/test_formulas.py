"""Formulas that nobody would write: each has a value, or is refused in one line."""

from contextlib import suppress

import pytest
import torch
from helpers import OBJECTIVE_LABELS, ObjectiveNet
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.optim.objectives.objective import Objective
from sightline.optim.objectives.parser import MAX_OPERATIONS, parse_objective

COUNT = 3  # images of a batch

DIGITS = "9" * 400
LONG_NAME = "a" * 5000

REFUSED = {
    "no units": "channel('conv1', ())",
    "no labels": "logit(())",
    "no classes": "cross_entropy(())",
    "no neurons": "neuron('conv1', ())",
    "no vector": "direction('conv1', ())",
    "units for other images": "channel('conv1', (1, 2))",
    "classes for other images": "cross_entropy((0, 1))",
    "groups for other images": "diversity('conv1', 7)",
    "negative group": "diversity('conv1', -1)",
    "huge group": f"diversity('conv1', {DIGITS})",
    "huge sigma": "roughness(1e308)",
    "sigma of 400 digits": f"roughness({DIGITS})",
    "negative sigma": "roughness(-1)",
    "huge beta": "tv(1e308)",
    "infinite beta": "tv(1e999)",
    "beta of 400 digits": f"tv({DIGITS})",
    "negative power": "bounded(-1e308)",
    "huge power": "caricature('conv1', 'rocket', 1e308)",
    "power of 400 digits": f"direction('conv1', (1, 1, 1, 1), {DIGITS})",
    "huge component": "direction('conv1', (1e308, 1, 1, 1))",
    "infinite weight": "1e999 * tv()",
    "not a number": "(1e999 - 1e999) * tv()",
    "product of weights": "1e30 * 1e30 * 1e300 * tv()",
    "weight of 400 digits": f"{DIGITS} * tv()",
    "weight of 5000 digits": f"{'9' * 5000} * tv()",
    "unit of 400 digits": f"channel('conv1', {DIGITS})",
    "class of 400 digits": f"logit({DIGITS})",
    "row of 40 digits": "neuron('conv1', 1, 10, 1" + "0" * 40 + ")",
    "negative unit": "channel('conv1', -1)",
    "negative row": "neuron('conv1', 1, -1, 2)",
    "too many terms": " + ".join(["tv()"] * 600),
    "many differences": " - ".join(["channel('conv1', 1)"] * 600),
    "many signs": "-" * 900 + "tv()",
    "very many signs": "-" * 9000 + "tv()",
    "many brackets": "(" * 500 + "tv()" + ")" * 500,
    "many lists": "[" * 300 + "tv()" + "]" * 300,
    "nested calls": "tv(" * 200 + ")" * 200,
    "nested sums": "(tv() + " * 300 + "tv()" + ")" * 300,
    "truth for a number": "tv(True)",
    "truth for a unit": "channel('conv1', True)",
    "truth among units": "channel('conv1', (True, 1, 2))",
    "truth as a weight": "True * tv()",
    "complex": "tv(1j)",
    "bytes": "logit(b'goose')",
    "ellipsis": "logit(...)",
    "nothing": "tv(None)",
    "attribute": "tv().build(1)",
    "index": "tv()[0]",
    "comprehension": "tv([x for x in (1,)])",
    "lambda": "(lambda: tv())()",
    "import": "tv(__import__('os'))",
    "format": "tv(f'{1}')",
    "star": "tv(*(1,))",
    "two stars": "tv(**{})",
    "unknown keyword": "tv(nosuch=1)",
    "too many arguments": "tv(1, 2, 3)",
    "missing argument": "channel('conv1')",
    "text as a number": "tv('2')",
    "repeated text": "tv('a' * 1000000000000)",
    "repeated tuple": "channel('conv1', (1,) * 1000000000000)",
    "division": "tv() / 0",
    "power operator": "tv() ** 9999999",
    "matrix product": "tv() @ tv()",
    "objective in an objective": "logit(logit('goose'))",
    "sum with a number": "tv() + 1",
    "unknown objective": "nosuch('conv1')",
    "unknown layer": "energy('nosuch')",
    "long layer": f"energy('{LONG_NAME}')",
    "surrogate": "energy('\ud800')",
    "line break in a layer": "energy('conv1\\n\\x1b[2J')",
    "long file": f"content('conv1', '{LONG_NAME}')",
    "device": "content('conv1', '/dev/zero')",
    "null byte in a file": "content('conv1', 'a\\0b')",
    "null byte": "tv(\0)",
    "zero width": "tv(\u200b)",
    "open string": "logit('goose",
    "open call": "tv(",
    "too many closed": "tv())",
    "two statements": "tv(); tv()",
}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(ObjectiveNet(), labels=OBJECTIVE_LABELS, size=16, device="cpu")


def compute_scores(model: Model, objective: Objective) -> torch.Tensor:
    image = torch.rand(COUNT, 3, 16, 20, generator=torch.Generator().manual_seed(2))
    layers = [model.layer(layer) for layer in objective.layers]
    features = model.run(image, layers) if layers else {}
    return objective.bind(model)(image, features)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str, model: Model) -> None:
    with pytest.raises(SightlineError) as caught:
        compute_scores(model, parse_objective(REFUSED[case]))
    message = str(caught.value)
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("\uff54\uff56()", "tv()"),
        ("tv()\t+  tv()", "tv() + tv()"),
        ("tv()  # a comment", "tv()"),
        ("-(-(-tv()))", "-1 * tv()"),
        ("tv(0x2)", "tv()"),
        ("diversity('conv1', 3)", "diversity('conv1')"),
        ("roughness(0)", "0 * tv()"),
    ],
)
def test_odd_spellings_have_a_value(text: str, same: str, model: Model) -> None:
    scores = compute_scores(model, parse_objective(text))
    assert scores.shape == (COUNT,)
    assert torch.allclose(scores, compute_scores(model, parse_objective(same)))


def test_as_many_terms_as_are_allowed(model: Model) -> None:
    terms = MAX_OPERATIONS + 1
    scores = compute_scores(model, parse_objective(" + ".join(["tv()"] * terms)))
    assert torch.allclose(scores, terms * compute_scores(model, parse_objective("tv()")))
    with pytest.raises(SightlineError, match=f"has {terms} operations"):
        parse_objective(" + ".join(["tv()"] * (terms + 1)))


def test_signs_of_numbers_are_no_operations(model: Model) -> None:
    numbers = ", ".join(["-1.0"] * (MAX_OPERATIONS + 50))
    with pytest.raises(SightlineError, match=f"has {MAX_OPERATIONS + 50} numbers"):
        compute_scores(model, parse_objective(f"direction('conv1', ({numbers}))"))


PIECES = st.sampled_from(
    ["tv(", "channel(", "'conv1'", "diversity(", ")", "(", ",", "-", "+", "*", "1e9", "0",
     "7", "nan", "()", "\0", "\ud800", "'", "=", "layer=", " ", "\u00b2", "\u0661", "lambda:"]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_has_a_value_or_one_line(model: Model, text: str) -> None:
    # Any other exception than SightlineError fails the test.
    with suppress(SightlineError):
        assert compute_scores(model, parse_objective(text)).shape == (COUNT,)
