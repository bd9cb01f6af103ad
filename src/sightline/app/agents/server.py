"""An MCP server (Model Context Protocol) with one tool for each method, over standard input.

Made from METHODS: a method that is registered is a tool. Pictures are returned as images, numbers
as structured content. Needs the extra `mcp`.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from torch import Tensor

from sightline.app.agents.schema import describe_parameters, describe_spec
from sightline.app.recipe import refuse_code
from sightline.app.replay import prepare_network_input, record_image_source
from sightline.data.store.reader import Scan
from sightline.errors import (
    SightlineError,
    convert_memory_errors,
    make_out_of_range_error,
    make_unknown_name_error,
)
from sightline.images.io.pictures import encode_png, read_file_or_sample, samples
from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.images.transforms import resize_image
from sightline.methods import load_methods, takes_scan
from sightline.models.model import Model
from sightline.models.zoo.load import load
from sightline.models.zoo.names import list_network_names
from sightline.registry.method import Method
from sightline.registry.result import Result

# Of the side in pixels to which a call may have an image resized.
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096

# A parameter that names attacks of other libraries, which it tells from code by itself.
PEER_PARAMETER = "peer"

# Pixels of the longer side of a picture that is returned.
MAX_PICTURE_SIDE = 1024

INSTRUCTIONS = (
    "Sightline shows what a vision network has learned. Each tool is a method: it takes a network "
    "by name (sightnet is embedded, names of torchvision and timm are known), mostly an image by "
    "file or sample, and returns pictures, their captions with what not to conclude, and unscaled "
    "numbers. list_layers has the names of layers and landmarks, list_samples those of images."
)

SHARED_PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "model": {
        "type": "string",
        "description": "The network: sightnet (embedded), or a name of torchvision or timm.",
        "default": "sightnet",
    },
    "weights": {
        "type": "string",
        "description": 'File with the weights of the network, or "random".',
    },
}

IMAGE_PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    "image": {
        "type": "string",
        "description": "An image file, or the name of a sample (list_samples).",
        "default": DEFAULT_SAMPLE,
    },
    "image_size": {
        "type": "integer",
        "minimum": MIN_IMAGE_SIZE,
        "maximum": MAX_IMAGE_SIZE,
        "description": "Side in pixels to which the image is resized; the network's own by "
        "default.",
    },
    "uncropped": {
        "type": "boolean",
        "default": False,
        "description": "Use the whole image, and not its central square.",
    },
}

OBJECTIVE_PROPERTY: Mapping[str, Any] = {
    "type": "string",
    "description": "A class label, a formula such as \"channel('conv4_1', 7) - 0.1 * tv()\", or a "
    "target. Leave it out for the units of a layer.",
    "default": "",
}


@dataclass(frozen=True)
class Tool:
    """A tool as MCP describes it."""

    name: str
    title: str
    description: str
    input_schema: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a tool returns: texts and PNG pictures in their order, and numbers."""

    texts: list[str] = field(default_factory=list[str])
    pictures: list[bytes] = field(default_factory=list[bytes])
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])


# ── the tools ──


def list_tools() -> list[Tool]:
    """One tool for each method, and two that list names."""
    tools = [describe_method_tool(method) for method in load_methods().values()]
    tools.append(
        Tool(
            "list_layers",
            "Layers",
            "Lists the layers of a network with shapes, aliases and landmarks.",
            describe_parameters(SHARED_PROPERTIES),
        )
    )
    tools.append(
        Tool(
            "list_samples",
            "Samples",
            "Lists the sample photographs, which stand for an image by name, and how many networks "
            "can be named.",
            describe_parameters({}),
        )
    )
    return tools


def describe_method_tool(method: Method) -> Tool:
    """The tool of a method: what it answers, how to read it, and its parameters."""
    properties: dict[str, Mapping[str, Any]] = dict(SHARED_PROPERTIES)
    if method.subject == "image":
        properties |= IMAGE_PROPERTIES
    elif method.subject == "objective":
        properties["objective"] = OBJECTIVE_PROPERTY
    for name, spec in method.parameters.items():
        if name != "callback":
            properties[name] = describe_spec(spec)
    description = (
        f"{method.question} {method.summary}\n\nHow to read it: {method.reading}\n\n"
        f"What not to conclude: {method.caution}"
    )
    return Tool(method.name, method.title, description, describe_parameters(properties))


# ── a call ──


def call_tool(name: str, arguments: Mapping[str, Any]) -> Answer:
    """Runs a tool. Raises SightlineError for what can't be met."""
    parameters = dict(arguments)
    if name == "list_samples":
        count = sum(map(len, list_network_names().values()))
        return Answer([", ".join(samples()), f"{count} networks can be named."])
    methods = load_methods()
    if name != "list_layers" and name not in methods:
        raise make_unknown_name_error("tool", name, [*methods, "list_layers", "list_samples"])
    network = parameters.pop("model", "sightnet")
    weights = parameters.pop("weights", None)
    if not isinstance(network, str) or not isinstance(weights, str | None):
        raise SightlineError("model and weights are texts: a name and a file")
    if ":" in network and not network.startswith("hf:"):
        raise SightlineError(f"model is {network!r:.80}, code, which this server does not run")
    with convert_memory_errors(f"for {name}", "image_size", "size", "batch"):
        model = load_named_network(network, weights)
        if name == "list_layers":
            return describe_layers(model)
        return run_method_call(methods[name], model, parameters)


@lru_cache(maxsize=2)
def load_named_network(name: str, weights: str | None) -> Model:
    """The network of a call, kept for the next."""
    return load(name, weights=weights)


def describe_layers(model: Model) -> Answer:
    """The layers by name with shapes and aliases, and the landmarks."""
    layers = [
        {"name": layer.name, "kind": layer.kind, "shape": layer.shape, "alias": layer.alias}
        for layer in model.layers.values()
    ]
    numbers = {"layers": layers, "landmarks": dict(model.landmarks)}
    return Answer([json.dumps(numbers)], numbers=numbers)


def run_method_call(method: Method, model: Model, arguments: dict[str, Any]) -> Answer:
    """Runs a method on the image or objective of its arguments."""
    subject: list[Tensor | str] = []
    source = arguments.pop("image", DEFAULT_SAMPLE)
    if not isinstance(source, str):
        raise SightlineError(f"image is {source!r:.60}; it must be a file or a sample's name")
    size = read_image_size(arguments.pop("image_size", None))
    whole = read_flag("uncropped", arguments.pop("uncropped", False))
    objective = arguments.pop("objective", "")
    parameters = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    method.check_parameter_names(parameters)
    for name, value in parameters.items():
        if name != PEER_PARAMETER:
            refuse_code(name, value, "call")
    target: Model | Scan = model
    if method.subject == "image":
        picture = read_file_or_sample(source)
        subject.append(prepare_network_input(model, picture, size, whole=whole))
    elif method.subject == "objective":
        subject.append(objective)
    elif parameters.get("store") and not parameters.get("folder") and takes_scan(method):
        target = Scan.open(str(parameters.pop("store")))
    result = method.function(target, *subject, **parameters)
    if method.subject == "image":
        result = record_image_source(result, source, size, whole=whole)
    return describe_result(result)


def read_flag(name: str, value: object) -> bool:
    """A parameter that is true or false. Raises SightlineError for anything else."""
    if not isinstance(value, bool):
        raise SightlineError(f"{name} is {value!r:.60}; it must be true or false")
    return value


def read_image_size(size: object) -> int | None:
    """The side in pixels to which a call's image is resized; None for the network's own.

    Raises SightlineError for anything else.
    """
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool):
        raise SightlineError(f"image_size is {size!r:.60}; it must be a whole number")
    if not MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE:
        raise make_out_of_range_error("image_size", size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    return size


def describe_result(result: Result) -> Answer:
    """Captions, pictures and numbers, with the recipe that makes the result again."""
    texts = [f"{name}: {text}" for name, text in result.captions.items()]
    pictures = [encode_png(shrink_picture(panel)) for panel in result.panels.values()]
    numbers = json.loads(json.dumps(result.numbers, default=str))
    recipe = json.loads(json.dumps(dict(result.recipe), default=str))
    return Answer(texts, pictures, {"values": numbers, "recipe": recipe})


def shrink_picture(panel: Tensor) -> Tensor:
    """A picture whose longer side has at most 1024 pixels."""
    height, width = panel.shape[-2:]
    share = MAX_PICTURE_SIDE / max(height, width)
    if share >= 1:
        return panel
    return resize_image(panel, max(1, round(height * share)), max(1, round(width * share)))


# ── the protocol ──


def serve() -> None:
    """Answers on standard output what is asked on standard input, until that is closed.

    Raises SightlineError without the extra `mcp`, and where one of the two is closed.
    """
    if sys.stdin is None or sys.stdout is None:
        raise SightlineError(
            "standard input or output is closed; a program that speaks the Model Context Protocol "
            "starts this command and keeps both open"
        )
    try:
        server_module = import_module("mcp.server")
        stdio = import_module("mcp.server.stdio")
        types = import_module("mcp_types")
    except ImportError as error:
        raise SightlineError(
            f"the MCP server needs the extra «mcp» ({error}); pip install 'sightline[mcp]'"
        ) from error
    lock = asyncio.Lock()

    async def answer_list(_context: Any, _parameters: Any) -> Any:
        tools = [types.Tool(**vars(tool)) for tool in list_tools()]
        return types.ListToolsResult(tools=tools)

    async def answer_call(_context: Any, parameters: Any) -> Any:
        async with lock:  # one run at a time: each takes all processors
            return await asyncio.to_thread(
                make_call_result, types, parameters.name, parameters.arguments or {}
            )

    async def run() -> None:
        server = server_module.Server(
            "sightline",
            version=version("sightline"),
            instructions=INSTRUCTIONS,
            on_list_tools=answer_list,
            on_call_tool=answer_call,
        )
        async with stdio.stdio_server() as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())

    asyncio.run(run())


def make_call_result(types: Any, name: str, arguments: Mapping[str, Any]) -> Any:
    """The result of a call as MCP holds it; a refusal is one line, for the caller to read."""
    try:
        answer = call_tool(name, arguments)
    except (SightlineError, OSError) as error:
        return types.CallToolResult(content=[types.TextContent(text=str(error))], is_error=True)
    content: list[Any] = [types.TextContent(text=text) for text in answer.texts]
    for picture in answer.pictures:
        data = base64.b64encode(picture).decode("ascii")
        content.append(types.ImageContent(data=data, mime_type="image/png"))
    return types.CallToolResult(content=content, structured_content=dict(answer.numbers) or None)
