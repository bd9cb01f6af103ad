"""Free words as concepts, by a network for images and texts (CLIP) that is on the user's disk.

Nothing is downloaded, no code of the folder is run, and no pickled weights are read.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.data.store.reader import Scan
from sightline.errors import (
    SightlineError,
    escape_for_display,
    get_first_error_line,
    is_out_of_memory,
)
from sightline.methods.units.naming.concepts import ConceptTable
from sightline.models.model import Model
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.load import load

WORDS_PER_IMAGE = 5  # that an image has: those of the list that CLIP finds most similar to it
MAX_WORDS = 50_000
PROMPT = "a photo of a {}"  # Radford 2021, section 3.1.4

ENCODED_IMAGES = 32  # at once
ENCODED_TEXTS = 256

OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"


@dataclass(frozen=True)
class TextImageEncoder:
    """Two networks that give images and texts vectors of one space.

    `encode_texts` gives n×d for n texts; the output of `images` is its vector.
    """

    images: Model
    encode_texts: Callable[[Sequence[str]], Tensor]


def collect_word_concepts(scan: Scan, words: Sequence[str], clip: Path) -> ConceptTable:
    """Words as concepts of a scan's images: each image has the five that are most similar to it.

    `clip` is a folder as open_clip or transformers save it. Raises SightlineError for one that
    can't be loaded, without words, and where the images are gone.
    """
    if not words:
        raise SightlineError("words is empty; give at least one word")
    if len(words) > MAX_WORDS:
        raise SightlineError(f"words has {len(words):,} words; at most {MAX_WORDS:,} can be tried")
    encoder = load_text_image_encoder(clip)
    texts = encode_words(encoder, words)
    best_words = [
        find_best_words(texts, encode_images(encoder, scan, start))
        for start in range(0, scan.images, ENCODED_IMAGES)
    ]
    concepts = torch.cat(best_words)
    images = torch.arange(scan.images)[:, None].expand_as(concepts)
    shown_words = [escape_for_display(word) for word in words]
    return ConceptTable.from_pairs(
        shown_words, images.flatten().numpy(), concepts.flatten().numpy(), scan.images
    )


def read_words(path: Path) -> list[str]:
    """The words of a file, one a line, each once. Raises SightlineError if it can't be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = get_first_error_line(error)
        raise SightlineError(f"words is {str(path)!r}, which can't be read: {reason}") from error
    words = [line.strip() for line in lines]
    return list(dict.fromkeys(word for word in words if word))


# ── vectors ──


def encode_words(encoder: TextImageEncoder, words: Sequence[str]) -> Tensor:
    """The unit vectors of words, n×d."""
    prompts = [PROMPT.format(word) for word in words]
    vectors: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(prompts), ENCODED_TEXTS):
            vectors.append(encoder.encode_texts(prompts[start : start + ENCODED_TEXTS]))
    return nn.functional.normalize(torch.cat(vectors).float(), dim=1)


def encode_images(encoder: TextImageEncoder, scan: Scan, start: int) -> Tensor:
    """The unit vectors of the next images of a scan, n×d."""
    ids = range(start, min(start + ENCODED_IMAGES, scan.images))
    squares = torch.cat([scan.image(image_id) for image_id in ids])
    with torch.no_grad():
        vectors = encoder.images.logits(encoder.images.fit(squares))
    return nn.functional.normalize(vectors.float().cpu(), dim=1)


def find_best_words(texts: Tensor, images: Tensor) -> Tensor:
    """The indices of the words that are most similar to each image, images×5 or fewer.

    Departure from CLIP-Dissect (Oikarinen & Weng 2023), which weighs images by their similarity:
    labels of yes and no can be tested as those of classes are.
    """
    similarity = images @ texts.T
    return similarity.topk(min(WORDS_PER_IMAGE, len(texts)), dim=1).indices


# ── loading ──


def load_text_image_encoder(folder: Path) -> TextImageEncoder:
    """The networks of a folder that open_clip or transformers saved.

    Raises SightlineError for other folders, and where the library is not installed.
    """
    if (folder / OPEN_CLIP_CONFIG).is_file():
        require_library("open_clip", "clip", folder)
        return load_or_refuse(load_open_clip_encoder, folder)
    if (folder / TRANSFORMERS_CONFIG).is_file():
        require_library("transformers", "hf", folder)
        return load_or_refuse(load_transformers_encoder, folder)
    raise SightlineError(
        f"clip is {str(folder)!r}; it must be a folder on this machine with {OPEN_CLIP_CONFIG} "
        f"(of open_clip) or {TRANSFORMERS_CONFIG} (of transformers)"
    )


def require_library(library: str, extra: str, folder: Path) -> None:
    """Raises SightlineError where a library is not installed."""
    if find_spec(library) is None:
        raise SightlineError(
            f"clip is {str(folder)!r}, which needs {library}: pip install 'sightline[{extra}]'"
        )


def load_or_refuse(
    load_encoder: Callable[[Path], TextImageEncoder], folder: Path
) -> TextImageEncoder:
    """What a loader returns. Raises SightlineError for whatever the library raises."""
    try:
        return load_encoder(folder)
    except SightlineError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SightlineError(
            f"the networks of clip={str(folder)!r} can't be loaded "
            f"({type(error).__name__}: {get_first_error_line(error):.200})"
        ) from error


def find_safetensors(folder: Path) -> Path:
    """The weights of a folder. Raises SightlineError unless it holds one file of safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise SightlineError(
            f"clip is {str(folder)!r}; it has {len(files)} safetensors files and must have one "
            "(pickled weights are not read)"
        )
    return files[0]


def load_open_clip_encoder(folder: Path) -> TextImageEncoder:
    """The networks of a folder with open_clip's configuration."""
    import open_clip

    weights = find_safetensors(folder)
    name = f"local-dir:{folder}"
    config = open_clip.get_model_config(name) or {}
    if "hf_model_name" in config.get("text_cfg", {}):
        raise SightlineError(
            f"clip is {str(folder)!r}; its text network is one of the Hugging Face hub, "
            "which would be downloaded: give a folder of transformers"
        )
    with silence_warnings():
        network: Any = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    fill_network_weights(network, read_weights(weights), weights, str(folder))
    network.eval()
    tokenize: Any = open_clip.get_tokenizer(name)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        return network.encode_text(tokenize(list(texts)))

    return TextImageEncoder(load(network.visual), encode_texts)


@contextmanager
def silence_warnings() -> Generator[None, None, None]:
    """While the block runs, nothing logs that a network has random weights: it gets its own."""
    disabled_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled_level)


def load_transformers_encoder(folder: Path) -> TextImageEncoder:
    """The networks of a folder with transformers' configuration."""
    from transformers import AutoModel, AutoTokenizer

    images = load(f"hf:{folder}")
    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    network: Any = AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    if not hasattr(network, "get_text_features"):
        raise SightlineError(
            f"clip is {str(folder)!r}, a {type(network).__name__} without a part for texts"
        )
    network.eval()
    length = int(network.config.text_config.max_position_embeddings)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(texts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        features = network.get_text_features(**tokens)
        return features if isinstance(features, Tensor) else features.pooler_output

    return TextImageEncoder(images, encode_texts)
