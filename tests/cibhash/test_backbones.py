"""Backbones: features as defined, which part learns, weights from files, and refusals that name what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from cibhash.backbones import CONVNET_SMALL, build_backbone, feature_dim, mark_trained, resolve, set_mode
from cibhash.errors import ConfigError
from cibhash.specs import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec


def _spec(name: str = "test_resnet", image_size: int = 32, **settings: Any) -> BackboneSpec:
    return BackboneSpec(**{"name": name, "weights": "none", "image_size": image_size, **settings})


def _build(name: str = "test_resnet", image_size: int = 32, **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build_backbone(_spec(name, image_size, **settings), weights="none")


def _images(size: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "features"), [(CONVNET_SMALL, 1024), ("test_resnet", 96), ("test_vit", 64)])
def test_a_backbone_gives_one_vector_per_image(name: str, features: int) -> None:
    backbone = _build(name).eval()
    assert feature_dim(backbone, 32) == features
    with torch.inference_mode():
        out = backbone(_images(32, 3))
    assert out.shape == (3, features)
    assert out.dtype == torch.float32
    assert not torch.equal(out[0], out[1])


def _mean_over_positions(feature_map: Tensor) -> Tensor:
    return feature_map.mean((2, 3))


def _class_token(tokens: Tensor) -> Tensor:
    return tokens[:, 0]


@pytest.mark.parametrize(
    ("name", "image_size", "features", "module", "definition"),
    [
        ("resnet50.a1_in1k", 32, 2048, "layer4", _mean_over_positions),
        ("mobilenetv2_100", 32, 1280, "bn2", _mean_over_positions),
        ("vit_small_patch16_224", 48, 384, "norm", _class_token),
        ("vit_base_patch16_224", 32, 768, "norm", _class_token),
        ("vit_small_patch14_dinov2.lvd142m", 42, 384, "norm", _class_token),
        ("vit_base_patch16_clip_224.openai", 32, 768, "norm", _class_token),
        ("vit_base_patch16_siglip_224.webli", 32, 768, "attn_pool", lambda pooled: pooled),
    ],
)
def test_the_feature_is_what_the_classifier_would_read(
    name: str, image_size: int, features: int, module: str, definition: Callable[[Tensor], Tensor]
) -> None:
    """At an image size of our own, which fixes the positions of a ViT when it is built."""
    backbone, outputs = _build(name, image_size).eval(), list[Tensor]()
    backbone.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.inference_mode():
        found = backbone(_images(image_size))
    assert found.shape == (1, features)
    assert found.std() > 0
    torch.testing.assert_close(found, definition(outputs[0]))


def test_the_default_is_the_papers_vgg16_up_to_fc7() -> None:
    """torchvision's, classifier[:6]: in evaluation mode, and with both dropouts at p = 0.5 in training mode."""
    spec = BackboneSpec(dropout=True)
    assert (spec.name, spec.image_size, spec.trainable) == ("vgg16.tv_in1k", 224, False)
    ours: Any = _build(spec.name, 224, dropout=True)
    draws = torch.Generator().manual_seed(4)
    for name, tensor in ours.state_dict().items():
        if name.endswith("bias"):
            tensor.uniform_(-0.5, 0.5, generator=draws)
    with torch.device("meta"):
        paper = torchvision.models.vgg16()
        paper.classifier = paper.classifier[:6]
    weights = {name: tensor for name, tensor in ours.state_dict().items() if name.startswith("features.")}
    for ours_name, name, inputs in (("fc1", "0", 512 * 7 * 7), ("fc2", "3", 4096)):
        weights[f"classifier.{name}.weight"] = ours.get_parameter(f"pre_logits.{ours_name}.weight").view(4096, inputs)
        weights[f"classifier.{name}.bias"] = ours.get_parameter(f"pre_logits.{ours_name}.bias")
    paper.load_state_dict(weights, assign=True)
    with torch.inference_mode():
        expected = paper.eval()(_images(224))
        found = ours.eval()(_images(224))
        assert found.shape == (1, 4096)
        assert 0 < (found == 0).float().mean() < 1
        torch.testing.assert_close(found, expected)

        feature_map = torch.randn(1, 512, 7, 7, generator=draws).relu()
        set_mode(ours, spec, training=True)
        paper.classifier.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            expected = paper.classifier(feature_map.flatten(1))
            torch.manual_seed(5)
            found = ours.forward_head(feature_map)
        assert (found == 0).float().mean() > 0.6
        torch.testing.assert_close(found, expected)


def test_finding_the_width_leaves_the_mode_as_it_was() -> None:
    backbone = _build()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    for mode in (True, False):
        backbone.train(mode)
        feature_dim(backbone, 32)
        assert backbone.training is mode
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("vgg16.tv_in1k", IMAGENET_MEAN, IMAGENET_STD),
        (CONVNET_SMALL, IMAGENET_MEAN, IMAGENET_STD),
        ("vit_base_patch16_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (
            "vit_base_patch16_clip_224.openai",
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    ],
)
def test_mean_and_std_are_the_pretrained_models_own(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Values from the papers' code: torchvision, Google's ViT, OpenAI's CLIP."""
    spec = BackboneSpec(name=name)
    assert (resolve(spec).mean, resolve(spec).std) == (mean, std)
    assert resolve(resolve(spec)) == resolve(spec)
    stated = BackboneSpec(name=name, mean=(0.1, 0.2, 0.3))
    assert (resolve(stated).mean, resolve(stated).std) == ((0.1, 0.2, 0.3), std)
    stated = BackboneSpec(name="no_such_net", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert resolve(stated) == stated


@pytest.mark.parametrize("name", ["no_such_net", "vgg16.no_such_weights", "folder/model"])
def test_a_name_that_timm_does_not_know_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        resolve(BackboneSpec(name=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "train_from", "learns"),
    [
        ("test_resnet", "layer4", ("layer4.",)),
        ("test_resnet", "layer3", ("layer3.", "layer4.")),
        ("test_vit", "blocks.5", ("blocks.5.", "norm.")),
        ("test_vit", "blocks.4.mlp", ("blocks.4.mlp.", "blocks.5.", "norm.")),
        ("test_vit", "patch_embed", ("patch_embed.", "blocks.", "norm.")),
        ("test_vit", "norm", ("norm.",)),
        (CONVNET_SMALL, "layers.2", ("layers.2.",)),
        ("test_vit", "all", ("",)),
        ("test_vit", "", ()),
    ],
)
def test_what_learns_is_the_named_module_and_what_follows(name: str, train_from: str, learns: tuple[str, ...]) -> None:
    backbone, spec = _build(name), _spec(name, train_from=train_from)
    mark_trained(backbone, train_from)
    found = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert found == {name for name, _ in backbone.named_parameters() if name.startswith(learns)}
    set_mode(backbone, spec, training=True)
    for path, module in backbone.named_modules():
        own = [f"{path}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if own and path:
            assert module.training is (own[0] in found), path
    assert backbone.training is (train_from == "all")
    set_mode(backbone, spec, training=False)
    assert not any(module.training for module in backbone.modules())
    mark_trained(backbone, "all")
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_vgg_layers_are_named_by_number_and_pre_logits() -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(weights="none"), weights="none")
    for train_from, first in (("features.24", "features.24.weight"), ("pre_logits", "pre_logits.fc1.weight")):
        mark_trained(backbone, train_from)
        learning = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
        assert learning[0] == first
        assert learning[-1] == "pre_logits.fc2.bias"


@pytest.mark.parametrize(
    ("name", "train_from", "named"),
    [
        ("test_vit", "blocks.6", ["blocks.6", "patch_embed, blocks, norm", "blocks.5"]),
        ("test_vit", "block5", ["block5", "blocks.5"]),
        ("test_vit", "pos_embed", ["pos_embed", "patch_embed"]),
        ("test_resnet", "stage4", ["stage4", "layer1, layer2, layer3, layer4"]),
        ("test_resnet", "fc", ["nothing from there on has parameters"]),
    ],
)
def test_a_part_that_cannot_learn_is_a_config_error(name: str, train_from: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        mark_trained(_build(name), train_from)
    assert all(text in str(caught.value) for text in named), caught.value
    assert "\n" not in str(caught.value)


def test_frozen_batch_norm_keeps_its_statistics_and_trained_batch_norm_does_not() -> None:
    backbone = _build()
    mark_trained(backbone, "layer4")
    set_mode(backbone, _spec(train_from="layer4"), training=True)
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(_images(32, 4)).sum().backward()
    changed = {name for name, value in backbone.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("layer4.")}
    assert {name for name, parameter in backbone.named_parameters() if parameter.grad is not None} == {
        name for name, _ in backbone.named_parameters() if name.startswith("layer4.")
    }


def test_dropout_puts_only_dropout_layers_of_a_frozen_backbone_into_training_mode() -> None:
    """Not stochastic depth, which this ViT has too."""
    options = {"drop_path_rate": 0.2, "proj_drop_rate": 0.1}
    backbone, spec = _build("test_vit", dropout=True, options=options), _spec("test_vit", dropout=True)
    mark_trained(backbone, spec.train_from)
    set_mode(backbone, spec, training=True)
    active = {name for name, module in backbone.named_modules() if module.training}
    assert active == {name for name, module in backbone.named_modules() if type(module) is nn.Dropout}
    assert any(type(module).__name__ == "DropPath" for module in backbone.modules())
    assert backbone.get_submodule("head_drop").p == 0.5
    first, second = (backbone(_images(32)) for _ in range(2))
    assert not torch.equal(first, second)
    for other, training in ((spec, False), (_spec("test_vit"), True)):
        set_mode(backbone, other, training=training)
        torch.testing.assert_close(backbone(_images(32)), backbone(_images(32)), rtol=0, atol=0)


def test_the_dropout_rate_may_be_another() -> None:
    backbone = _build("test_vit", dropout=True, options={"drop_rate": 0.25})
    assert backbone.get_submodule("head_drop").p == 0.25


@pytest.mark.parametrize("name", ["test_resnet", CONVNET_SMALL])
def test_dropout_of_a_backbone_without_any_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*dropout"):
        _build(name, dropout=True)


def _saved(folder: Path, name: str, image_size: int, **changes: Tensor) -> tuple[Any, str]:
    """A classifier with random weights, and the file that they are in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        size: dict[str, Any] = {"img_size": image_size} if "vit" in name else {}
        model = timm.create_model(name, num_classes=10, **size).eval()
    path = folder / "weights.safetensors"
    save_file({**model.state_dict(), **changes}, path)
    return model, str(path)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_small_patch14_dinov2.lvd142m"])
def test_weights_come_from_a_safetensors_file_in_timms_layout(tmp_path: Path, name: str) -> None:
    """With the classifier that the file has and the backbone has not; DINOv2 never had one."""
    size = 42 if "14" in name else 64
    model, file = _saved(tmp_path, name, size)
    assert "head.weight" in model.state_dict() or "fc.weight" in model.state_dict()
    backbone = build_backbone(_spec(name, size, weights=file), weights=file).eval()
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(_images(size)), pre_logits=True)
        torch.testing.assert_close(backbone(_images(size)), expected)


def test_positions_in_a_file_are_resampled_to_the_image_size(tmp_path: Path) -> None:
    """From 10 x 10 to 4 x 4 patches, the class token's position left as it is."""
    model, file = _saved(tmp_path, "test_vit", 160)
    backbone = build_backbone(_spec("test_vit", 64, weights=file), weights=file)
    positions = model.get_parameter("pos_embed").detach()
    grid = positions[:, 1:].reshape(1, 10, 10, -1).permute(0, 3, 1, 2)
    resampled = functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        backbone.get_parameter("pos_embed").detach(), torch.cat([positions[:, :1], resampled], dim=1)
    )
    assert feature_dim(backbone, 64) == 64


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("test_resnet", "conv1.0.weight", (5, 3, 3, 3)),
        ("test_vit", "norm.weight", (7,)),
        ("test_vit", "pos_embed", (1, 17, 32)),
        ("test_vit", "pos_embed", (17,)),
        ("test_vit", "patch_embed.proj.weight", (64, 2)),
    ],
)
def test_weights_of_other_shapes_are_a_config_error_of_one_line(
    tmp_path: Path, name: str, tensor: str, shape: tuple[int, ...]
) -> None:
    _, file = _saved(tmp_path, name, 64, **{tensor: torch.zeros(shape)})
    with pytest.raises(ConfigError, match=file) as caught:
        build_backbone(_spec(name, 64, weights=file), weights=file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_tensors_that_a_file_lacks_are_counted_and_named(tmp_path: Path) -> None:
    model, file = _saved(tmp_path, "test_vit", 64)
    weights = model.state_dict()
    del weights["blocks.3.attn.qkv.weight"], weights["norm.bias"]
    save_file(weights, file)
    with pytest.raises(
        ConfigError, match=r"2 of its \d+ tensors are not in the file, first 'blocks.3.attn.qkv.weight'"
    ):
        build_backbone(_spec("test_vit", 64, weights=file), weights=file)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", CONVNET_SMALL])
def test_weights_that_do_not_fit_are_a_config_error(tmp_path: Path, name: str) -> None:
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors at all")
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for file in ("other.safetensors", "broken.safetensors", "missing.safetensors", "other.pth"):
        with pytest.raises(ConfigError) as caught:
            build_backbone(_spec(name), weights=str(tmp_path / file))
        assert "\n" not in str(caught.value)


def test_options_reach_timm() -> None:
    assert feature_dim(_build("test_vit", 160, options={"embed_dim": 96}), 160) == 96


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_vit", 8), ("test_vit", 40), ("test_vit", 1000), ("vit_small_patch14_dinov2", 8), ("swin_s3_tiny_224", 66)],
)
def test_an_image_size_that_is_no_multiple_of_the_patch_is_a_config_error(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"image_size {size}"):
        _build(name, size)


def test_a_padding_backbone_takes_any_image_size() -> None:
    assert feature_dim(_build("test_vit", 40, options={"dynamic_img_size": True, "dynamic_img_pad": True}), 40) == 64


def test_an_image_size_that_a_backbone_cannot_take_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="image_size 32"):
        feature_dim(_build("test_vit", 160, options={"dynamic_img_size": False}), 32)


@pytest.mark.parametrize(
    ("settings", "weights", "named"),
    [
        ({"name": "no_such_net"}, "none", "no_such_net"),
        ({"name": "test_resnet", "options": {"no_such_option": 1}}, "none", "no_such_option"),
        ({"name": CONVNET_SMALL}, "hub", "no pretrained weights"),
    ],
)
def test_what_cannot_be_built_is_a_config_error(settings: dict[str, object], weights: str, named: str) -> None:
    spec = BackboneSpec(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=named) as caught:
        build_backbone(spec, weights=weights)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_one_vector_per_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(1, 96, "):
        feature_dim(_build(options={"global_pool": ""}), 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 7},
        {"image_size": 1025},
        {"std": (0.2, 0.0, 0.2)},
        {"std": (0.2, float("nan"), 0.2)},
        {"std": (0.2,)},
        {"mean": (0.5, 0.5)},
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BackboneSpec(**settings)  # type: ignore[arg-type]
