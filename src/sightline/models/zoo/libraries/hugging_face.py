"""Networks of the Hugging Face hub and of folders in its format: `hf:NAME`, `hf:FOLDER`.

No code of a folder or a repository is run, and no pickled weights are read.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import SightlineError, get_first_error_line, is_out_of_memory
from sightline.models.weights.checkpoint import describe_remaining_keys, read_weights
from sightline.models.zoo.libraries.hub import HUB_TIMEOUT, can_reach
from sightline.models.zoo.libraries.hugging_face_settings import (
    load_image_processor,
    read_image_processor,
    read_network_config,
)
from sightline.models.zoo.libraries.settings import BuiltNetwork

HUGGING_FACE_PREFIX = "hf:"

# "resnet-50", "google/vit-base-patch16-224"
REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")

# Attention in plain operations can be looked into, and needs no foreign kernel.
ATTENTION = "eager"

# Networks for pictures and texts are known by their part for pictures.
VISION_PARTS = ("VisionModelWithProjection", "VisionModel")


def build_hugging_face_network(
    name: str, weights: str | None, options: dict[str, Any]
) -> BuiltNetwork:
    """The network of a folder or a name on the hub, with the preprocessing of its processor.

    Raises SightlineError where transformers is not installed, for folders and names that hold no
    vision network, for pickled weights, and where the hub can't be reached.
    """
    if find_spec("transformers") is None:
        raise SightlineError(f"{name} needs transformers: pip install 'sightline[hf]'")
    if options:
        raise SightlineError(
            f"{name} is built by its own configuration and takes no {next(iter(options))}="
        )
    source = name.removeprefix(HUGGING_FACE_PREFIX)
    only_local = check_source(source)
    with _silence_transformers():
        config = _load_config(name, source, only_local=only_local)
        network_class, config = choose_network_class(name, config)
        if weights is None:
            network = _load_pretrained(name, source, network_class, config, only_local=only_local)
        else:
            network = _build_from_config(name, network_class, config, weights)
        try:
            processor = load_image_processor(source, only_local=only_local)
        except Exception as error:
            raise _make_load_error(f"the image processor of {name}", error) from error
    settings = read_network_config(network)
    settings.update(read_image_processor(processor, network))
    return BuiltNetwork(network, settings)


def check_source(source: str) -> bool:
    """Whether only local files count: for a folder, and where the hub can't be reached.

    Raises SightlineError for a folder without a configuration, for what is no name either, and for
    a name that is not in the cache while the hub can't be reached.
    """
    folder = Path(source)
    if source and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SightlineError(
                f"the folder {source} has no config.json; `save_pretrained` of transformers "
                "writes the folders that hf: reads"
            )
        return True
    if not REPOSITORY_NAME.fullmatch(source):
        raise SightlineError(
            f"hf:{source} is neither a folder that is there nor a name on the hub, "
            "such as hf:google/vit-base-patch16-224"
        )
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and can_reach(constants.ENDPOINT, HUB_TIMEOUT):
        return False
    # Importing transformers takes seconds, which a refusal need not wait for.
    if not isinstance(try_to_load_from_cache(source, "config.json"), str):
        raise SightlineError(
            f"hf:{source} can't be downloaded (the hub can't be reached, and no copy is in its "
            "cache); give a folder: hf:FOLDER"
        )
    return True


def choose_network_class(name: str, config: Any) -> tuple[Any, Any]:
    """The class of transformers that a configuration names, and the configuration for it.

    Raises SightlineError for other classes, and for networks that take no pictures.
    """
    import transformers

    architectures = getattr(config, "architectures", None) or [""]
    network_class: Any = getattr(transformers, str(architectures[0]), None)
    if not _is_network_class(network_class):
        classifiers: Any = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        network_class = classifiers.get(type(config), None)
    if not _is_network_class(network_class):
        raise SightlineError(
            f"{name} is a {architectures[0] or type(config).__name__}, "
            "which transformers has no vision network for"
        )
    vision_config = getattr(config, "vision_config", None)
    if vision_config is not None:
        family = network_class.__name__.removesuffix("Model")
        for head_name in VISION_PARTS:
            vision_class = getattr(transformers, f"{family}{head_name}", None)
            if _is_network_class(vision_class):
                if hasattr(vision_config, "projection_dim") and hasattr(config, "projection_dim"):
                    vision_config.projection_dim = config.projection_dim
                return vision_class, vision_config
    if network_class.main_input_name != "pixel_values":
        raise SightlineError(
            f"{name} is a {network_class.__name__}, which takes {network_class.main_input_name} "
            "and no pictures"
        )
    return network_class, config


def _is_network_class(value: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(value, type) and issubclass(value, PreTrainedModel)


def _load_config(name: str, source: str, *, only_local: bool) -> Any:
    """The configuration, which must not ask for code or for quantized weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=only_local
        )
    except Exception as error:
        raise _make_load_error(name, error) from error
    if getattr(config, "quantization_config", None):
        raise SightlineError(f"{name} has quantized weights; load the network that it was made of")
    # The file has the backbone's weights; those of another library are not to be fetched.
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    return config


def _load_pretrained(
    name: str, source: str, network_class: Any, config: Any, *, only_local: bool
) -> nn.Module:
    """The network with all of its own weights."""
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise SightlineError(
            f"the folder {source} has no safetensors file; pickled weights are not read "
            "(`save_pretrained` of transformers writes safetensors)"
        )
    return _fill_from(name, source, network_class, config, local_files_only=only_local)


def _build_from_config(name: str, network_class: Any, config: Any, weights: str) -> nn.Module:
    """The network with weights from a file, or seeded "random" ones."""
    if weights != "random":
        # Files have the names of older versions, which transformers knows to convert.
        state_dict = read_weights(Path(weights))
        return _fill_from(name, None, network_class, config, state_dict=state_dict)
    config._attn_implementation = ATTENTION
    torch.manual_seed(0)
    try:
        return network_class(config)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _make_load_error(name, error) from error


def _fill_from(
    name: str, source: str | None, network_class: Any, config: Any, **choices: Any
) -> nn.Module:
    """The network with the weights of a folder, a repository or a state dict, every one of them."""
    try:
        network, facts = network_class.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
            output_loading_info=True,
            # What does not fit is told below, in one line.
            ignore_mismatched_sizes=True,
            **choices,
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _make_load_error(name, error) from error
    misshapen = sorted(str(key) for key, *_ in facts["mismatched_keys"])
    absent = sorted(map(str, facts["missing_keys"]))
    broken = [*misshapen, *absent]
    if broken:
        fault = "of another shape" if misshapen else "missing"
        remaining = describe_remaining_keys(broken)
        raise SightlineError(f"the weights do not fit {name}: {broken[0]} is {fault}{remaining}")
    return network


def _make_load_error(name: str, error: Exception) -> SightlineError:
    """The error for a network that transformers can't load."""
    return SightlineError(
        f"{name} can't be loaded ({type(error).__name__}: {get_first_error_line(error):.200})"
    )


@contextmanager
def _silence_transformers() -> Generator[None, None, None]:
    """While the block runs, transformers draws no progress bars and logs errors only."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    had_progress_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_progress_bars:
            logging.enable_progress_bar()
