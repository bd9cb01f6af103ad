"""Words by tiny CLIP networks that transformers and open_clip saved into a folder."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.methods.units.naming import clip_words
from sightline.methods.units.naming.clip_words import (
    TextImageEncoder,
    collect_word_concepts,
    find_best_words,
    load_text_image_encoder,
    read_words,
)

SIDE = 32
NOUNS = ("cat", "dog", "tree", "sky", "car", "boat", "egg", "house")
WORDS = [f"{color} {noun}" for color in ("red", "old", "a tall", "wooden") for noun in NOUNS]


@pytest.fixture
def transformers_folder(tmp_path: Path) -> Path:
    """A random CLIP of transformers with a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers")
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *[f"{letter}</w>" for letter in letters]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24
    )
    tokenizer.save_pretrained(folder)
    shared = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={
            **shared,
            "vocab_size": len(tokens),
            "max_position_embeddings": 24,
            "bos_token_id": len(tokens) - 2,
            "eos_token_id": len(tokens) - 1,
            "pad_token_id": len(tokens) - 1,
        },
        vision_config={**shared, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Path:
    """A random CLIP of open_clip; its tokenizer comes with the package."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    folder = tmp_path / "oc"
    folder.mkdir()
    config = {
        "model_cfg": {
            "embed_dim": 12,
            "vision_cfg": {
                "image_size": SIDE,
                "layers": 2,
                "width": 16,
                "patch_size": 8,
                "head_width": 8,
            },
            "text_cfg": {
                "context_length": 24,
                "vocab_size": 49408,
                "width": 16,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        network.visual.class_embedding.zero_()  # so that the images differ
        network.visual.conv1.weight *= 20
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def scan() -> Any:
    """Five different images as a scan gives them."""
    images = smooth(5, side=SIDE)
    return SimpleNamespace(images=5, image=lambda number: images[number : number + 1])


def test_transformers_words_are_those_of_the_whole_network(
    transformers_folder: Path, scan: Any
) -> None:
    import transformers

    network: Any = transformers.CLIPModel.from_pretrained(transformers_folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(transformers_folder)
    prompts = [f"a photo of a {word}" for word in WORDS]
    mean = torch.tensor(transformers.image_utils.OPENAI_CLIP_MEAN)[:, None, None]
    std = torch.tensor(transformers.image_utils.OPENAI_CLIP_STD)[:, None, None]
    images = torch.cat([scan.image(number) for number in range(5)])
    with torch.no_grad():
        output = network(
            pixel_values=(images - mean) / std,
            **tokenizer(prompts, padding=True, return_tensors="pt"),
        )
    check_words(collect_word_concepts(scan, WORDS, transformers_folder), output.logits_per_image)


def test_open_clip_words_are_those_of_the_whole_network(open_clip_folder: Path, scan: Any) -> None:
    import open_clip

    network: Any = open_clip.create_model(f"local-dir:{open_clip_folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")(
        [f"a photo of a {word}" for word in WORDS]
    )
    images = torch.cat([scan.image(number) for number in range(5)])
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    std = torch.tensor([0.3, 0.2, 0.25])[:, None, None]
    with torch.no_grad():
        image_vectors = network.encode_image((images - mean) / std, normalize=True)
        similarity = image_vectors @ network.encode_text(tokens, normalize=True).T
    check_words(collect_word_concepts(scan, WORDS, open_clip_folder), similarity)


def check_words(table: Any, similarity: Tensor) -> None:
    """Each image has the five words of the highest similarity."""
    assert list(table.texts) == WORDS
    labels = torch.from_numpy(table.labels.toarray())
    expected = torch.zeros_like(labels)
    expected.scatter_(1, similarity.topk(5, dim=1).indices, torch.tensor(True).expand(5, 5))
    assert torch.equal(labels, expected)
    assert len({tuple(row) for row in labels.tolist()}) > 1, "the images differ"


def test_a_few_words_and_images_in_batches(scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Images:
        def fit(self, image: Tensor) -> Tensor:
            return image

        def logits(self, image: Tensor) -> Tensor:
            return image.mean((2, 3))

    def encode(texts: Any) -> Tensor:
        return torch.eye(3)[[int(text.removeprefix("a photo of a ")) for text in texts]]

    encoder = TextImageEncoder(Images(), encode)  # type: ignore[arg-type]
    monkeypatch.setattr(clip_words, "load_text_image_encoder", lambda folder: encoder)
    monkeypatch.setattr(clip_words, "ENCODED_IMAGES", 2)
    monkeypatch.setattr(clip_words, "ENCODED_TEXTS", 2)
    monkeypatch.setattr(clip_words, "WORDS_PER_IMAGE", 1)
    table = collect_word_concepts(scan, ["2", "0", "1"], Path("x"))
    brightest = [int(scan.image(number).mean((2, 3)).argmax()) for number in range(5)]
    assert table.labels.toarray().argmax(1).tolist() == [(channel + 1) % 3 for channel in brightest]
    assert find_best_words(torch.eye(2), torch.eye(2)).shape == (2, 1)


def test_words_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("cat\n\n a tree \ncat\n", encoding="utf-8-sig")
    assert read_words(file) == ["cat", "a tree"]
    with pytest.raises(sl.SightlineError, match=r"words is .*no\.txt', which can't be read"):
        read_words(tmp_path / "no.txt")


def test_folders_that_are_refused(
    tmp_path: Path, open_clip_folder: Path, scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(sl.SightlineError, match="must be a folder on this machine with open_clip"):
        load_text_image_encoder(tmp_path)
    with pytest.raises(sl.SightlineError, match="words is empty"):
        collect_word_concepts(scan, [], open_clip_folder)
    weights = open_clip_folder / "model.safetensors"
    weights.rename(open_clip_folder / "model.bin")
    with pytest.raises(sl.SightlineError, match="0 safetensors files and must have one"):
        load_text_image_encoder(open_clip_folder)
    (open_clip_folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(sl.SightlineError, match=r"model\.safetensors"):
        load_text_image_encoder(open_clip_folder)
    config = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    (open_clip_folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(sl.SightlineError, match="which would be downloaded"):
        load_text_image_encoder(open_clip_folder)
    (open_clip_folder / "open_clip_config.json").write_text("{")
    with pytest.raises(sl.SightlineError, match="can't be loaded"):
        load_text_image_encoder(open_clip_folder)
    monkeypatch.setattr(clip_words, "find_spec", lambda name: None)
    with pytest.raises(
        sl.SightlineError, match=r"needs open_clip: pip install 'sightline\[clip\]'"
    ):
        load_text_image_encoder(open_clip_folder)
