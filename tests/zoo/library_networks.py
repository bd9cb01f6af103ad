"""Networks of timm, torchvision, transformers and open_clip, small and with random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import nn

CLASSES = 7
SIDE = 64


@dataclass(frozen=True)
class LibraryNetwork:
    """A network that a library builds, and the side of the images that it takes here."""

    build: Callable[[], nn.Module]
    side: int = SIDE


# ── timm: one of each family, the smallest ──

# Families that take images of any size.
TIMM_OF_ANY_SIZE = """
    caformer_s18 convnext_atto convnext_atto_rms cpubone_nano crossvit_9_240 csatv2 cspnext_tiny
    cspresnet50 davit_tiny densenet121 dla34 dpn48b eca_nfnet_l0 edgenext_xx_small efficientnet_b0
    efficientvim_m1 efficientvit_b0 ese_vovnet19b_slim fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcresnext26ts gernet_s ghostnet_050 ghostnetv2_100 hardcorenas_a hgnetv2_b0 hrnet_w18_small
    iformer_t inception_next_atto lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception
    lowformer_b0 mambaout_femto mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small_035
    mobileone_s0 nextvit_small nf_regnet_b0 poolformer_s12 pvt_v2_b0 rdnet_tiny regnetx_002
    repghostnet_050 repvgg_a0 res2net50_14w_8s resnest14d resnet18 resnetblur50 resnetv2_18
    rexnet_100 selecsls42b seresnet18 shvit_s1 skresnet18 starnet_s050 swiftformer_xs test_byobnet
    test_convnext test_efficientnet test_mambaout test_nfnet test_resnet tf_efficientnet_lite0
    tresnet_m twins_svt_small vgg11 xception41
"""

# Families whose size is an option.
TIMM_OF_ONE_SIZE: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "botnet26t_256": {},
    "cait_xxs24_224": {"depth": 2},
    "coat_lite_tiny": {},
    "coatnet_0_rw_224": {},
    "convit_tiny": {"depth": 3},
    "deit3_small_patch16_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "efficientformerv2_s0": {},
    "efficientvit_m0": {},
    "eva02_tiny_patch14_224": {"depth": 2},
    "gcvit_xxtiny": {},
    "gmlp_ti16_224": {},
    "hiera_tiny_224": {},
    "levit_128s": {},
    "maxvit_pico_rw_256": {},
    "mixer_s32_224": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {},
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 96, "num_heads": 3},
    "nest_tiny": {},
    "pit_ti_224": {},
    "repvit_m0_9": {},
    "resmlp_12_224": {},
    "samvit_base_patch16_224": {"depth": 2},
    "test_vit": {},
    "vit_tiny_patch16_224": {"depth": 2},
}


def build_timm(name: str, **options: Any) -> nn.Module:
    """A network of timm with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def list_timm_networks() -> dict[str, LibraryNetwork]:
    """The networks of timm by name."""
    networks = {
        f"timm/{name}": LibraryNetwork(partial(build_timm, name))
        for name in TIMM_OF_ANY_SIZE.split()
    }
    for name, options in TIMM_OF_ONE_SIZE.items():
        build = partial(build_timm, name, img_size=SIDE, **options)
        networks[f"timm/{name}"] = LibraryNetwork(build)
    networks["timm/inception_v3"] = LibraryNetwork(partial(build_timm, "inception_v3"), side=96)
    return networks


# ── torchvision ──

TORCHVISION_CLASSIFIERS = """
    alexnet convnext_tiny densenet121 efficientnet_b0 mnasnet0_5 mobilenet_v2 mobilenet_v3_small
    regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t vgg11_bn
"""
TORCHVISION_DETECTORS = """
    fasterrcnn_mobilenet_v3_large_320_fpn fcos_resnet50_fpn keypointrcnn_resnet50_fpn
    maskrcnn_resnet50_fpn retinanet_resnet50_fpn ssdlite320_mobilenet_v3_large
"""
TORCHVISION_SEGMENTATION = """
    deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large
"""
DETECTOR_SIDE = 96
# With random weights everything is an object, and each takes as long as a small network.
FEW_OBJECTS = {"rpn_post_nms_top_n_test": 24, "box_detections_per_img": 6}
SMALLEST_INCEPTION = 96
# Nothing is downloaded, and few classes.
UNTRAINED = {"weights": None, "num_classes": CLASSES}


def build_torchvision(name: str, **options: Any) -> nn.Module:
    """A network of torchvision with random weights."""
    return torchvision.models.get_model(name, **UNTRAINED, **options)


def list_torchvision_networks() -> dict[str, LibraryNetwork]:
    """The networks of torchvision by name."""
    networks = {
        f"torchvision/{name}": LibraryNetwork(partial(build_torchvision, name))
        for name in TORCHVISION_CLASSIFIERS.split()
    }
    for name in ("googlenet", "inception_v3"):
        build = partial(build_torchvision, name, init_weights=False, aux_logits=False)
        networks[f"torchvision/{name}"] = LibraryNetwork(build, side=SMALLEST_INCEPTION)
    transformer = partial(
        torchvision.models.VisionTransformer, SIDE, 16, 2, 2, 32, 64, num_classes=CLASSES
    )
    networks["torchvision/vit"] = LibraryNetwork(transformer)
    for name in TORCHVISION_DETECTORS.split():
        options = {} if name.startswith("ssd") else {"min_size": DETECTOR_SIDE}
        if "rcnn" in name:
            options |= FEW_OBJECTS
        build = partial(build_torchvision, name, weights_backbone=None, **options)
        networks[f"torchvision/{name}"] = LibraryNetwork(build, side=DETECTOR_SIDE)
    for name in TORCHVISION_SEGMENTATION.split():
        build = partial(build_torchvision, name, weights_backbone=None)
        networks[f"torchvision/{name}"] = LibraryNetwork(build)
    return networks


# ── transformers ──

SMALL_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 16,
}
SMALL_STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": SIDE}
SMALL_CONVOLUTIONS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}

SMALL_YOLOS = {**SMALL_TRANSFORMER, "image_size": [SIDE, SIDE], "num_detection_tokens": 5}

# The start of the class's name, its end, and its configuration.
TRANSFORMERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ViT", "ForImageClassification", SMALL_TRANSFORMER),
    ("DeiT", "ForImageClassificationWithTeacher", SMALL_TRANSFORMER),
    ("Beit", "ForImageClassification", SMALL_TRANSFORMER),
    ("Dinov2", "ForImageClassification", SMALL_TRANSFORMER),
    ("ViTMAE", "Model", SMALL_TRANSFORMER),
    ("CLIPVision", "Model", SMALL_TRANSFORMER),
    ("SiglipVision", "Model", SMALL_TRANSFORMER),
    ("Yolos", "ForObjectDetection", SMALL_YOLOS),
    ("Swin", "ForImageClassification", SMALL_STAGES),
    ("Swinv2", "ForImageClassification", SMALL_STAGES),
    ("ConvNext", "ForImageClassification", SMALL_CONVOLUTIONS),
    ("ConvNextV2", "ForImageClassification", SMALL_CONVOLUTIONS),
    ("ResNet", "ForImageClassification", {**SMALL_CONVOLUTIONS, "embedding_size": 8}),
    ("MobileNetV2", "ForImageClassification", {"image_size": SIDE}),
    ("Segformer", "ForImageClassification", {"depths": [1, 1, 1, 1]}),
    ("Segformer", "ForSemanticSegmentation", {"depths": [1, 1, 1, 1]}),
)


def build_transformers(start: str, end: str, settings: dict[str, Any]) -> nn.Module:
    """A network of transformers with random weights."""
    import transformers

    configuration = getattr(transformers, f"{start}Config")(num_labels=CLASSES, **settings)
    return getattr(transformers, start + end)(configuration)


def list_transformers() -> dict[str, LibraryNetwork]:
    """The networks of transformers by name."""
    return {
        f"transformers/{start}{end}": LibraryNetwork(
            partial(build_transformers, start, end, settings)
        )
        for start, end, settings in TRANSFORMERS
    }


# ── open_clip ──


def build_open_clip(vision: dict[str, Any]) -> nn.Module:
    """The part of a CLIP that sees, from image to embedding, with random weights."""
    import open_clip

    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(16, vision_cfg=vision, text_cfg=text).visual


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "vit": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "resnet": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16},
}


def list_open_clip() -> dict[str, LibraryNetwork]:
    """The networks of open_clip by name."""
    return {
        f"open_clip/{name}": LibraryNetwork(partial(build_open_clip, vision))
        for name, vision in OPEN_CLIP.items()
    }


LIBRARY_NETWORKS: dict[str, LibraryNetwork] = {
    **list_torchvision_networks(),
    **list_timm_networks(),
    **list_transformers(),
    **list_open_clip(),
}
