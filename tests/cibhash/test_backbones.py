"""Backbones: features of the promised shape, weights from files, and refusals that name what is wrong."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from cibhash.backbones import CONVNET_SMALL, build_backbone, feature_dim
from cibhash.errors import ConfigError
from cibhash.specs import BackboneSpec


@pytest.mark.parametrize(("name", "features"), [(CONVNET_SMALL, 1024), ("test_resnet", 96), ("test_vit", 64)])
def test_a_backbone_gives_one_vector_per_image(name: str, features: int) -> None:
    size = 160 if name == "test_vit" else 32
    backbone = build_backbone(BackboneSpec(name=name, weights="none", image_size=size), weights="none").eval()
    assert feature_dim(backbone, size) == features
    with torch.inference_mode():
        out = backbone(torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (3, features)
    assert out.dtype == torch.float32
    assert not torch.equal(out[0], out[1])


def test_the_default_is_the_papers() -> None:
    """VGG-16 up to fc7: 4,096 features of 224 x 224 images."""
    spec = BackboneSpec()
    assert (spec.name, spec.image_size, spec.trainable) == ("vgg16.tv_in1k", 224, False)
    with torch.device("meta"):
        backbone = timm.create_model(spec.name, num_classes=0)
        assert backbone.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)


def test_finding_the_width_leaves_the_mode_as_it_was() -> None:
    backbone = build_backbone(BackboneSpec(name="test_resnet", weights="none", image_size=32), weights="none")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    for mode in (True, False):
        backbone.train(mode)
        feature_dim(backbone, 32)
        assert backbone.training is mode
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_weights_come_from_a_safetensors_file_in_timms_layout(tmp_path: Path) -> None:
    """With the classifier that the file has and the backbone has not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    spec = BackboneSpec(name="test_resnet", weights=str(tmp_path / "weights.safetensors"), image_size=64)
    backbone = build_backbone(spec, weights=spec.weights).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone(images), expected)


def test_options_reach_timm() -> None:
    spec = BackboneSpec(name="test_vit", weights="none", image_size=160, options={"embed_dim": 96})
    assert feature_dim(build_backbone(spec, weights="none"), 160) == 96


def test_an_image_size_that_a_backbone_cannot_take_is_a_config_error() -> None:
    backbone = timm.create_model("test_vit", pretrained=False, num_classes=0, dynamic_img_size=False)
    with pytest.raises(ConfigError, match="image_size 32"):
        feature_dim(backbone, 32)


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


@pytest.mark.parametrize("name", ["test_resnet", CONVNET_SMALL])
def test_weights_that_do_not_fit_are_a_config_error(tmp_path: Path, name: str) -> None:
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors at all")
    for file in ("other.safetensors", "broken.safetensors", "missing.safetensors"):
        with pytest.raises(ConfigError) as caught:
            build_backbone(BackboneSpec(name=name, image_size=32), weights=str(tmp_path / file))
        assert "\n" not in str(caught.value)


def test_a_backbone_without_one_vector_per_image_is_refused() -> None:
    backbone = timm.create_model("test_resnet", pretrained=False, num_classes=0, global_pool="")
    with pytest.raises(ConfigError, match=r"shape \(1, 96, "):
        feature_dim(backbone, 32)


@pytest.mark.parametrize(
    "settings", [{"image_size": 7}, {"image_size": 1025}, {"std": (0.2, 0.0, 0.2)}, {"std": (0.2, float("nan"), 0.2)}]
)
def test_settings_out_of_range_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        BackboneSpec(**settings)  # type: ignore[arg-type]
