"""The Inception network of the standard FID (Heusel et al. 2017), from a file of its weights.

It is torchvision's Inception v3 but for the pooling of its blocks, the number of its classes and
the resize, which are those of TensorFlow's graph of 2015-12-05. The file is that of torch-fidelity
and pytorch-fid, weights-inception-2015-12-05-6726825d.pth; it is never downloaded.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from utils.checkpoint import CheckpointError
from utils.progress import track
from utils.pytree import mismatches

CLASSES, SIZE, CHUNK = 1008, 299, 50  # of the graph; pixels; images per forward pass
COUNTER = "num_batches_tracked"  # which the file may lack


def load(path: Path) -> Inception3:
    """The network with the weights of this file, without its last layer. Raises CheckpointError."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as e:
        raise CheckpointError(f"cannot read --inception {path}: {e.strerror or e}") from e
    except Exception as e:  # whatever the bytes of another file make of it
        raise CheckpointError(
            f"--inception {path} is no file of weights: {type(e).__name__}"
        ) from e
    with torch.device("meta"):  # whose values would take seconds to draw, for nothing
        network = build()
    if lines := mismatches(without_counters(weights), without_counters(network.state_dict())):
        raise CheckpointError(
            f"--inception {path} has not the weights of torch-fidelity's "
            f"weights-inception-2015-12-05-6726825d.pth: {'; '.join(lines)}"
        )
    network.load_state_dict(weights, strict=False, assign=True)
    network.fc = nn.Identity()
    return network.eval().requires_grad_(False)


def without_counters(weights: Any) -> dict[str, Any]:
    """The weights but for the counters of batches; nothing where they are no dict."""
    items = weights.items() if isinstance(weights, dict) else ()
    return {name: own for name, own in items if not str(name).endswith(COUNTER)}


def build() -> Inception3:
    """The network, untrained: (N, 3, H, W) in [-1, 1] -> (N, 1008)."""
    network = Inception3(CLASSES, aux_logits=False, init_weights=False)
    for name, block in network.named_children():
        if isinstance(block, InceptionA | InceptionC | InceptionE):
            pool = largest if name == "Mixed_7c" else average
            block._forward = partial(repooled, block, pool)
    return network


def repooled(block: nn.Module, pool: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The branches of a block, the last of them with another pooling."""
    return [*type(block)._forward(block, x)[:-1], block.branch_pool(pool(x))]


def average(x: Tensor) -> Tensor:
    """Over 3 x 3; unlike torchvision's, without the zeros beyond the border."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    """Over 3 x 3: in the last block, where torchvision and the paper have the average."""
    return F.max_pool2d(x, 3, 1, 1)


@torch.no_grad()
def features(network: nn.Module, images: Tensor, size: int = SIZE) -> Tensor:
    """Of uint8 images (N, C, H, W), grey or RGB: (N, 2048)."""
    parts = []
    for chunk in track(images.split(CHUNK), "Inception", "batches"):
        x = chunk.float().expand(-1, 3, -1, -1)
        parts.append(network((resize(x, size) - 128) / 128))
    return torch.cat(parts) if parts else images.new_empty(0, 2048, dtype=torch.float32)


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear, (N, C, H, W) -> (N, C, size, size), as TensorFlow 1: pixel i is at i H / size."""
    for dim in (3, 2):
        n = x.shape[dim]
        at = torch.arange(size, device=x.device) * (n / size)
        low = at.long()
        a, b = (x.index_select(dim, index) for index in (low, (low + 1).clamp(max=n - 1)))
        x = a + (b - a) * (at - low).view(-1, *[1] * (3 - dim))
    return x
