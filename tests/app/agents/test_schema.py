"""Schemas of parameters, methods and recipes, checked by another library where it is installed."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import small_network, smooth

import sightline as sl
from sightline.app.agents.schema import describe_parameter, describe_type
from sightline.app.cli.declarations import RECIPE_SCHEMA_FILE, format_recipe_schema
from sightline.app.cli.main import main
from sightline.methods import load_methods


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (int, {"type": "integer"}),
        (Path, {"type": "string"}),
        (None, {"type": "null"}),
        (bool | None, {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (tuple[float, ...], {"type": "array", "items": {"type": "number"}}),
        (torch.Tensor | str, {"type": "string"}),
        (
            tuple[int | str, ...] | None,
            {
                "anyOf": [
                    {
                        "type": "array",
                        "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                    },
                    {"type": "null"},
                ]
            },
        ),
    ],
)
def test_types(kind: Any, schema: dict[str, Any]) -> None:
    assert describe_type(kind) == schema


def test_a_type_without_a_schema() -> None:
    with pytest.raises(TypeError, match="no JSON schema"):
        describe_type(torch.Tensor)


def test_limits_are_those_of_numbers_alone() -> None:
    schema = describe_parameter(int | str | None, "How many.", 3, (1, 12))
    assert schema["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 12},
        {"type": "string"},
        {"type": "null"},
    ]
    assert (schema["description"], schema["default"]) == ("How many.", 3)
    assert "default" not in describe_parameter(str, "A name.", object(), None)


def test_the_file_is_what_the_methods_declare() -> None:
    written = RECIPE_SCHEMA_FILE.read_text(encoding="utf-8")
    assert written == format_recipe_schema(), "make declarations writes it again"


def test_a_recipe_fits_its_schema_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads(RECIPE_SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    model = sl.load(small_network(), size=32)
    sl.saliency(model, smooth(), kind="smoothgrad", samples=2).save(tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(recipe)] == []
    for wrong in (
        {**recipe, "method": "salience"},
        {**recipe, "knobs": {"samples": 0}},
        {**recipe, "knobs": {"nosuch": 1}},
        {**recipe, "other": 1},
    ):
        assert list(validator.iter_errors(wrong))


def test_the_command_prints_methods_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    methods = load_methods()
    assert list(rows) == list(methods)
    for name, method in methods.items():
        declared = [key for key in method.parameters if key != "callback"]
        assert list(rows[name]["parameters"]) == declared
        for key in declared:
            spec, written = method.parameters[key], rows[name]["parameters"][key]
            assert written["description"] == spec.doc
            default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
            assert written["default"] == default
            if spec.value_range is not None and written.get("type") in ("integer", "number"):
                assert written["minimum"] == spec.value_range.low
    assert rows["occlusion"]["quick"] == dict(methods["occlusion"].quick_parameters)
    assert main(["methods"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(methods)
    assert main(["methods", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "recipe.json of Sightline"
