"""The network: shapes, the zero start, what it depends on, what it refuses."""

from dataclasses import asdict

import pytest
import torch

from config import PRESETS, ModelConfig
from models import UNet
from models.blocks import TIME_SCALE, ResidualBlock, SelfAttention, TimeEmbedding, attend

TINY = asdict(ModelConfig(image_channels=1, base_channels=8, emb_channels=16, num_classes=10))


def build(**changes) -> UNet:
    torch.manual_seed(0)
    return UNet(**{**TINY, **changes})


def nonzero(model: UNet) -> UNet:
    """Weights as after some training: nothing is zero any more."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_maps_an_image_to_one_of_its_shape(preset):
    c = PRESETS[preset]
    classes = 10 if c.model.num_classes else 0
    channels = 3 if preset == "cifar10" else 1
    model = UNet(**{**asdict(c.model), "num_classes": classes, "image_channels": channels})
    x = torch.randn(1, channels, *((28, 28) if preset in ("mnist", "smoke") else (32, 32)))
    assert model(x, torch.tensor([1])).shape == x.shape


def test_the_original_has_its_macro_structure():
    model = UNet(**asdict(PRESETS["original"].override(image_channels=1).model))
    assert [level.blocks[0].conv1.out_channels for level in model.down] == [64, 128, 256, 512]
    assert [len(level.blocks) for level in model.down] == [2] * 4
    assert [len(level.blocks) for level in model.up] == [3] * 4
    heads = [m.heads for m in model.modules() if isinstance(m, SelfAttention)]
    assert heads == [4] * 6  # two and three blocks at 8 x 8, one in the bottleneck
    assert (model.time.mlp[0].in_features, model.time.mlp[0].out_features) == (64, 128)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(57e6, rel=0.03)


def test_an_untrained_network_answers_zero():
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([1, 1000])
    assert build()(x, t).count_nonzero() == 0
    assert nonzero(build())(x, t).count_nonzero() > 0  # control


def test_blocks_start_as_the_identity():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    block = ResidualBlock(8, 8, 16, heads=2, dropout=0.5, norm="layer")
    torch.testing.assert_close(block(x, emb), x)
    torch.nn.init.ones_(block.conv2.weight)
    assert not torch.equal(block(x, emb), x)  # control


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_every_parameter_learns(norm):
    model = nonzero(build(norm=norm))
    model(torch.randn(2, 1, 28, 28), torch.tensor([3, 700]), torch.tensor([1, 10])).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_output_depends_on_t_and_on_the_class():
    model, x = nonzero(build()), torch.randn(1, 1, 28, 28)
    t, y = torch.tensor([5]), torch.tensor([3])
    assert not torch.allclose(model(x, t, y), model(x, t + 500, y))
    assert not torch.allclose(model(x, t, y), model(x, t, y + 1))
    torch.testing.assert_close(model(x, t), model(x, t, torch.tensor([10])))  # no class = null


def test_images_of_a_batch_do_not_see_each_other():
    model, x, t = nonzero(build()), torch.randn(3, 1, 28, 28), torch.tensor([1, 50, 900])
    torch.testing.assert_close(model(x, t)[1:2], model(x[1:2], t[1:2]), rtol=1e-4, atol=1e-4)


def test_time_embedding_is_computed_for_any_t():
    embedding = TimeEmbedding(8, 8)
    frequencies = torch.logspace(0, -4, 4)  # from 1 to 1e-4
    angles = torch.tensor([1_234.0])[:, None] * frequencies
    expected = TIME_SCALE * embedding.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
    torch.testing.assert_close(embedding(torch.tensor([1_234])), expected, rtol=1e-4, atol=1e-4)
    assert embedding(torch.tensor([123_456])).isfinite().all()


def test_attention_written_out_is_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 4, 49, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(attend(q, v, k), expected)  # control


def test_attention_is_equivariant_to_the_order_of_the_positions():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, "layer")
    torch.nn.init.normal_(attention.out.weight)
    x, order = torch.randn(1, 8, 1, 16), torch.randperm(16)
    torch.testing.assert_close(attention(x)[..., order], attention(x[..., order]))


def test_matrices_are_the_hidden_ones():
    model = build()
    taken = {id(p) for p in model.matrices()}
    left = {n for n, p in model.named_parameters() if id(p) not in taken and p.ndim > 1}
    scales = {n for n, _ in model.named_parameters() if n.endswith(".emb.weight")}
    ends = {"label.weight", "stem.weight", "head.weight"}
    assert left == {"time.mlp.0.weight", "time.mlp.2.weight"} | ends | scales


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "3 heads do not divide"),
        ({"attention_levels": (2,)}, "must lie in 0..1"),
        ({"norm": "group", "base_channels": 12}, "8 normalization groups do not divide"),
        ({"base_channels": 9}, "must be even"),
    ],
)
def test_widths_that_do_not_fit_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_sizes_that_do_not_divide_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"multiple of 4; pad to 32 x 32"):
        build()(torch.zeros(1, 1, 30, 30), torch.tensor([1]))
    build()(torch.zeros(1, 1, 28, 32), torch.tensor([1]))  # need not be square
