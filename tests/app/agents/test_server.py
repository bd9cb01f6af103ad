"""The MCP server: its tools are the methods, and a client of the official SDK gets pictures."""

import asyncio
import base64
import io
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from PIL import Image

import sightline as sl
from sightline.app.agents import server
from sightline.app.agents.server import call_tool, list_tools, shrink_picture
from sightline.app.cli.main import main
from sightline.app.recipe import NETWORK_PARAMETERS
from sightline.images.io.pictures import write
from sightline.methods import load_methods

needs_mcp = pytest.mark.skipif(
    find_spec("mcp") is None, reason="the extra «mcp» is not installed: pip install sightline[mcp]"
)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """A small picture, not square."""
    write(smooth(side=72)[..., :60], tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_every_method_is_a_tool() -> None:
    tools = {tool.name: tool for tool in list_tools()}
    methods = load_methods()
    assert set(tools) == {*methods, "list_layers", "list_samples"}
    for name, method in methods.items():
        schema = tools[name].input_schema
        assert schema["type"] == "object"
        assert {key for key in method.parameters if key != "callback"} <= set(schema["properties"])
        assert ("image" in schema["properties"]) == (method.subject == "image")
        assert method.caution in tools[name].description


def test_a_call_gives_pictures_captions_numbers_and_a_recipe(photo: str) -> None:
    arguments = {"image": photo, "image_size": 48, "label": "church", "kind": "gradient"}
    answer = call_tool("saliency", arguments)
    picture = Image.open(io.BytesIO(answer.pictures[0]))
    assert picture.format == "PNG"
    assert "church" in answer.texts[0]
    assert answer.numbers["recipe"]["image"]["path"] == photo
    model = sl.load()
    image = model.fit(sl.read(photo), 48)
    expected = sl.saliency(model, image, label="church", kind="gradient").numbers
    assert answer.numbers["values"]["attribution"] == expected["attribution"]


def test_lists() -> None:
    layers = call_tool("list_layers", {}).numbers
    assert [row["name"] for row in layers["layers"]] == list(sl.load().layers)
    assert "rocket" in call_tool("list_samples", {}).texts[0]


def test_an_objective_and_lists_as_json_has_them() -> None:
    answer = call_tool("synthesis", {"objective": "tench", "steps": 1, "size": 40})
    assert answer.numbers["recipe"]["objective"]
    listed = call_tool("activations", {"layers": ["conv1"], "image_size": 48})
    assert listed.pictures


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("salience", {}, "no tool named 'salience'; did you mean saliency?"),
        ("saliency", {"steps": 3}, "no parameter of saliency named 'steps'"),
        ("saliency", {"image": "nosuch.png"}, "nosuch.png"),
        ("saliency", {"model": "os:getcwd"}, "code, which this server does not run"),
        ("saliency", {"model": 3}, "are texts"),
        ("list_layers", {"model": ["sightnet"]}, "are texts"),
        ("list_layers", {"weights": {"file": "a.pt"}}, "are texts"),
        ("saliency", {"image": ["a.png"]}, "a sample's name"),
        ("saliency", {"image_size": "64"}, "image_size is '64'; it must be a whole number"),
        ("saliency", {"image_size": 64.0}, "it must be a whole number"),
        ("saliency", {"image_size": True}, "it must be a whole number"),
        ("saliency", {"image_size": 0}, "must lie between 16 and 4096"),
        ("saliency", {"image_size": 10**9}, "must lie between 16 and 4096"),
        ("saliency", {"uncropped": "no"}, "it must be true or false"),
    ],
)
def test_what_is_refused_is_one_line(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(sl.SightlineError) as refused:
        call_tool(name, arguments)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("transfer", {"others": ["planted:leave_trace"]}),
        ("transfer", {"others": ["sightnet_plain", "planted:leave_trace=random"]}),
        ("contrast", {"other": "planted:leave_trace"}),
        ("synthesis", {"objective": "tench", "steps": 1, "judge": "planted:leave_trace"}),
        ("adversarial", {"peer": "planted:leave_trace"}),
    ],
)
def test_no_parameter_runs_code(
    name: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    code = f"def leave_trace(): open({str(trace)!r}, 'w').close()\nleave_trace()\n"
    (tmp_path / "planted.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(sl.SightlineError) as refused:
        call_tool(name, arguments)
    assert not trace.exists()
    assert "\n" not in str(refused.value)


def test_every_parameter_that_names_a_network_is_known() -> None:
    named_as_on_the_command_line = {
        name
        for method in load_methods().values()
        for name, spec in method.parameters.items()
        if "command line" in spec.doc
    }
    assert named_as_on_the_command_line
    assert named_as_on_the_command_line <= set(NETWORK_PARAMETERS)


def test_closed_streams_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["mcp"]) == 1
    said = capsys.readouterr().err
    assert "is closed" in said
    assert said.count("\n") == 1


def test_large_pictures_are_shrunk() -> None:
    assert shrink_picture(torch.rand(1, 3, 500, 3000)).shape == (1, 3, 171, 1024)
    small = torch.rand(1, 3, 50, 30)
    assert shrink_picture(small) is small


def test_without_the_extra_one_line_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(server, "import_module", fail)
    assert main(["mcp"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'sightline[mcp]'" in said
    assert said.count("\n") == 1


@needs_mcp
@pytest.mark.slow  # starts the command as a process, which imports torch
def test_a_client_speaks_to_it(photo: str) -> None:
    from mcp import ClientSession, StdioServerParameters  # type: ignore[import-not-found]
    from mcp.client.stdio import stdio_client  # type: ignore[import-not-found]

    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "sightline", "mcp"], env=dict(os.environ)
    )

    async def speak() -> tuple[Any, Any, Any]:
        async with (
            stdio_client(parameters) as (read_stream, write_stream),
            ClientSession(read_stream, write_stream) as session,
        ):
            await session.initialize()
            tools = await session.list_tools()
            arguments = {"image": photo, "image_size": 48}
            found = await session.call_tool("saliency", arguments)
            refused = await session.call_tool("saliency", {"image": photo, "label": "churhc"})
            return tools, found, refused

    tools, found, refused = asyncio.run(speak())
    assert {tool.name for tool in tools.tools} >= set(load_methods())
    kinds = [block.type for block in found.content]
    assert kinds == ["text", "image"]
    picture = Image.open(io.BytesIO(base64.b64decode(found.content[1].data)))
    assert picture.format == "PNG"
    assert picture.width > picture.height
    assert found.structured_content["recipe"]["method"] == "saliency"
    assert refused.is_error
    assert "did you mean church?" in refused.content[0].text
