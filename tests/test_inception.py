"""The Inception network of --inception, with random weights: the real ones are not at hand."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.inception import InceptionA, InceptionE

from evaluation import inception
from utils.checkpoint import CheckpointError

SMALL = 75  # pixels, the fewest that the network takes


@pytest.fixture(scope="module")
def weights():
    """Random ones, so that the variance is about the same in all layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return inception.build().state_dict()


@pytest.fixture(scope="module")
def network(weights, tmp_path_factory):
    """From a file as old programs write it, without the counters of batches."""
    path = tmp_path_factory.mktemp("inception") / "w.pth"
    kept = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    torch.save(kept, path, _use_new_zipfile_serialization=False)
    return inception.load(path)


def images(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_features_are_2048_the_same_again_and_of_every_image_alone(network):
    x = images(3, 1, 28, 20)
    found = inception.features(network, x, SMALL)
    assert found.shape == (3, 2048)
    assert torch.equal(inception.features(network, x, SMALL), found)
    torch.testing.assert_close(inception.features(network, x[1:2], SMALL), found[1:2])
    assert not torch.allclose(found[0], found[1])  # control
    colour = x.expand(-1, 3, -1, -1)
    assert torch.equal(inception.features(network, colour, SMALL), found)  # grey is that RGB
    assert inception.features(network, x[:0], SMALL).shape == (0, 2048)


def test_keys_and_shapes_are_those_of_the_graph(weights):
    assert weights["fc.weight"].shape == (1008, 2048)
    assert weights["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert weights["Mixed_7c.branch_pool.bn.running_var"].shape == (192,)
    assert not [name for name in weights if "AuxLogits" in name]


def test_the_pools_are_those_of_tensorflow():
    """Of ones, the average is 1 up to the border; torchvision's counts zeros beyond it."""
    ones = torch.ones(1, 192, 5, 5)
    block = InceptionA(192, 32, identity_of_pool).eval()
    _, _, _, pooled = inception.repooled(block, inception.average, ones)
    assert (pooled == 1).all()
    assert not (block._forward(ones)[-1] == 1).all()  # control
    negative = -torch.arange(25.0).view(1, 1, 5, 5).expand(1, 8, 5, 5)
    last = InceptionE(8, identity_of_pool).eval()
    pooled = inception.repooled(last, inception.largest, negative)[-1]
    assert torch.equal(pooled, F.max_pool2d(negative, 3, 1, 1))


def identity_of_pool(_channels, _out, **kernel):
    """A block whose branches are not convolved."""
    del kernel
    return torch.nn.Identity()


def test_which_blocks_are_repooled(network):
    """All but those that halve the image; the last with the maximum."""
    blocks = dict(network.named_children())
    pools = {k: v._forward.args[1] for k, v in blocks.items() if "_forward" in vars(v)}
    assert {k for k, v in blocks.items() if hasattr(v, "branch_pool")} == pools.keys()
    largest = {k for k, pool in pools.items() if pool is inception.largest}
    assert largest == {"Mixed_7c"}


def test_the_resize_is_that_of_tensorflow_1():
    """Pixel i lies at i H / size, and beyond the last pixel the image goes on as that one."""
    row = torch.tensor([0.0, 10.0, 20.0]).view(1, 1, 1, 3)
    found = inception.resize(row, 6)
    assert found[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 20]
    assert found.shape == (1, 1, 6, 6)
    centred = F.interpolate(row, (6, 6), mode="bilinear")
    assert not torch.equal(centred, found)  # control: PyTorch's has half pixels
    ramp = torch.arange(28.0).view(1, 1, 28, 1).expand(1, 1, 28, 28)
    at = (torch.arange(299) * 28 / 299).clamp(max=27)
    torch.testing.assert_close(inception.resize(ramp, 299)[0, 0, :, 0], at)
    assert torch.equal(inception.resize(ramp, 28), ramp)


def test_a_file_of_other_weights_is_refused_in_a_line(weights, tmp_path):
    other = {k: v[:1000] if k.startswith("fc.") else v for k, v in weights.items()}  # torchvision's
    for name, content in (("other", other), ("list", [1]), ("text", None)):
        path = tmp_path / name
        torch.save(content, path) if content else path.write_text("text")
        with pytest.raises(CheckpointError, match=f"--inception .*{name}") as error:
            inception.load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="cannot read"):
        inception.load(tmp_path / "nowhere")
