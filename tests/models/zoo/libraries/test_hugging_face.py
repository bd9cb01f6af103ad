"""Folders in the format of transformers: tiny random networks, and what is refused. No network."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.zoo.libraries.hugging_face import check_source

transformers = pytest.importorskip("transformers")

LABELS = ("harbor", "meadow", "quarry")
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "patch_size": 8,
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars from the tests' own calls."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for images of 24×40, with its labels and processor. Nobody may change it."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=(24, 40), id2label=dict(enumerate(LABELS)), **TINY)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": 24, "width": 40}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copied_folder(vit_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(vit_folder, tmp_path / "copy"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def make_image(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(seed))


def expect_refusal(folder: Path | str, message: str, **arguments: Any) -> None:
    with pytest.raises(SightlineError, match=message) as refused:
        sl.load(f"hf:{folder}", device="cpu", **arguments)
    assert "\n" not in str(refused.value)


# ── what is loaded ──


def test_a_folder_brings_labels_size_and_normalization(vit_folder: Path) -> None:
    model = sl.load(f"hf:{vit_folder}", device="cpu")
    assert model.labels == LABELS
    assert model.image_size == (24, 40)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])

    image = make_image()
    processor = transformers.AutoImageProcessor.from_pretrained(vit_folder)
    pixels = processor(image.mul(255).round().byte(), return_tensors="pt")["pixel_values"]
    network = transformers.ViTForImageClassification.from_pretrained(vit_folder)
    with torch.no_grad():
        expected = network(pixels).logits
    torch.testing.assert_close(model.logits(image), expected, rtol=1e-2, atol=2e-3)


def test_weights_of_a_file_and_random_ones(vit_folder: Path) -> None:
    name = f"hf:{vit_folder}"
    image = make_image()
    pretrained = sl.load(name, device="cpu").logits(image)
    file = vit_folder / "model.safetensors"
    from_file = sl.load(name, weights=file, device="cpu")
    assert torch.equal(from_file.logits(image), pretrained)
    first = sl.load(name, weights="random", device="cpu")
    second = sl.load(name, weights="random", device="cpu")
    assert torch.equal(first.logits(image), second.logits(image))
    assert first.recipe["weights"] == "random"


def test_a_module_brings_what_its_folder_tells(vit_folder: Path) -> None:
    network = transformers.ViTForImageClassification.from_pretrained(vit_folder)
    model = sl.load(network)
    assert (model.labels, model.image_size) == (LABELS, (24, 40))
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    own = sl.load(network, labels=["a", "b", "c"], mean=[0.5] * 3)
    assert own.labels == ("a", "b", "c")
    assert own.mean.flatten().tolist() == [0.5] * 3


def test_placeholders_are_no_labels() -> None:
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=16, num_labels=5, **TINY)
    )
    model = sl.load(network)
    assert (model.size, model.labels[4]) == (16, "class 4")


@pytest.mark.parametrize(
    ("make_network", "kind", "labels"),
    [
        (
            lambda: transformers.CLIPVisionModelWithProjection(
                transformers.CLIPVisionConfig(image_size=24, projection_dim=11, **TINY)
            ),
            "embedding",
            11,
        ),
        (
            lambda: transformers.Dinov2Model(
                transformers.Dinov2Config(
                    image_size=24, id2label={0: "a", 1: "b"}, mlp_ratio=1, **TINY
                )
            ),
            "embedding",
            16,
        ),
        (
            lambda: transformers.YolosForObjectDetection(
                transformers.YolosConfig(
                    image_size=[24, 40],
                    num_detection_tokens=4,
                    id2label={0: "cup", 1: "pan", 2: "jug"},
                    **TINY,
                )
            ),
            "positions",
            4,
        ),
        (
            lambda: transformers.SegformerForSemanticSegmentation(
                transformers.SegformerConfig(
                    num_encoder_blocks=2,
                    depths=[1, 1],
                    sr_ratios=[2, 1],
                    hidden_sizes=[8, 8],
                    patch_sizes=[3, 3],
                    strides=[2, 2],
                    num_attention_heads=[1, 1],
                    mlp_ratios=[1, 1],
                    decoder_hidden_size=8,
                    image_size=32,
                    id2label={0: "sky", 1: "sea", 2: "sun", 3: "sand"},
                )
            ),
            "dense",
            4,
        ),
    ],
    ids=["clip", "dino", "yolos", "segformer"],
)
def test_networks_of_every_kind(make_network: Any, kind: str, labels: int) -> None:
    torch.manual_seed(0)
    model = sl.load(make_network())
    assert (model.output_kind, len(model.labels)) == (kind, labels)
    if kind == "positions":
        assert model.labels == ("cup", "pan", "jug", "no object")
    if kind == "dense":
        assert model.labels == ("sky", "sea", "sun", "sand")


def test_of_pictures_and_texts_the_part_for_pictures_is_loaded(tmp_path: Path) -> None:
    vision = transformers.CLIPVisionConfig(image_size=24, **TINY).to_dict()
    text_options = {key: value for key, value in TINY.items() if key != "patch_size"}
    text = transformers.CLIPTextConfig(
        vocab_size=20, max_position_embeddings=6, bos_token_id=1, eos_token_id=2, **text_options
    ).to_dict()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=9)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    model = sl.load(f"hf:{tmp_path}", device="cpu")
    assert (model.output_kind, len(model.labels), model.size) == ("embedding", 9, 24)


# ── what is refused ──


def test_networks_that_take_no_pictures(tmp_path: Path) -> None:
    options = {key: value for key, value in TINY.items() if key != "patch_size"}
    config = transformers.BertConfig(vocab_size=20, architectures=["BertModel"], **options)
    config.save_pretrained(tmp_path)
    expect_refusal(tmp_path, "is a BertModel, which takes input_ids and no pictures")


def test_pickled_weights_are_not_read(copied_folder: Path) -> None:
    state = load_file(copied_folder / "model.safetensors")
    (copied_folder / "model.safetensors").unlink()
    torch.save(state, copied_folder / "pytorch_model.bin")
    expect_refusal(copied_folder, "has no safetensors file; pickled weights are not read")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.weight"), "classifier.weight is missing$"),
        (
            lambda state: state.update({"classifier.bias": torch.zeros(9)}),
            "classifier.bias is of another shape$",
        ),
    ],
    ids=["missing", "shape"],
)
def test_no_weights_stay_random(copied_folder: Path, change: Any, message: str) -> None:
    state = load_file(copied_folder / "model.safetensors")
    change(state)
    save_file(state, copied_folder / "model.safetensors", {"format": "pt"})
    expect_refusal(copied_folder, f"the weights do not fit hf:{copied_folder}: {message}")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_no_code_of_a_folder_is_run(copied_folder: Path, tmp_path: Path, file: str) -> None:
    code = f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n"
    (copied_folder / "own.py").write_text(code, encoding="utf-8")
    own_code = {"AutoConfig": "own.C", "AutoImageProcessor": "own.P"}
    (copied_folder / file).write_text(
        json.dumps({"model_type": "own", "image_processor_type": "P", "auto_map": own_code}),
        encoding="utf-8",
    )
    expect_refusal(copied_folder, "can't be loaded .*custom code")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["os.system"], "model_type": "bert"}, "is a os.system, which transform"),
        ({"architectures": ["AutoConfig"], "model_type": "bert"}, "has no vision network for"),
        ({"hidden_size": -16}, "can't be loaded"),
        ({"quantization_config": {"quant_method": "awq"}}, "has quantized weights"),
        ({"model_type": "no such type"}, "can't be loaded"),
    ],
    ids=["architecture", "no network", "size", "quantized", "type"],
)
def test_configurations_that_fit_nothing(
    copied_folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(copied_folder, **changes)
    expect_refusal(copied_folder, message, weights="random")


def test_other_wrong_names(tmp_path: Path, vit_folder: Path) -> None:
    expect_refusal(tmp_path, "has no config.json; `save_pretrained` of transformers writes")
    expect_refusal("", "is neither a folder that is there nor a name on the hub")
    expect_refusal("../no/such/folder", "is neither a folder that is there nor a name")
    expect_refusal("http://example.org/x", "is neither a folder that is there nor a name")
    expect_refusal(vit_folder, "takes no trust_remote_code=", trust_remote_code=True)
    (tmp_path / "config.json").write_text("{not json", encoding="utf-8")
    expect_refusal(tmp_path, "can't be loaded")


def test_a_name_without_a_hub_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.models.zoo.libraries.hugging_face.can_reach", lambda *_: False)
    start = time.monotonic()
    expect_refusal("someone/vit-nowhere", "can't be downloaded .the hub can't be reached, and no")
    assert time.monotonic() - start < 5


def test_a_name_is_asked_of_the_hub_only_if_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "sightline.models.zoo.libraries.hugging_face.can_reach"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(place, lambda *_: True)
    assert check_source("someone/vit-nowhere") is False


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.models.zoo.libraries.hugging_face.find_spec", lambda _: None)
    expect_refusal("someone/vit", r"needs transformers: pip install 'sightline\[hf\]'$")
