"""The judge of images: a small classifier of the run's own training set, kept for the next time."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from config import Config
from data import ImageSet
from diffusion import GaussianDiffusion
from models import Classifier
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.devices import autocast
from utils.images import to_uint8
from utils.seeding import mix, permutation

STEPS, BATCH, LR, SHIFT = 1900, 128, 3e-3, 2  # pixels of shift; about four epochs of MNIST
KIND = "ddpm-classifier-1"  # another recipe, another number


@dataclass(frozen=True)
class Photos:
    """Images as they are judged: uint8 (N, C, H, W), and the class of each (N,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, image_set: ImageSet, most: int) -> "Photos":
        """Up to ``most`` images in memory on the set's device, shuffled: any part is a sample."""
        indices = permutation(len(image_set), 0, 0)[:most]
        parts = [(to_uint8(x), y) for x, y in image_set.batches(indices, 500)]
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Photos":
        return Photos(self.images.to(device), self.labels.to(device))

    def __getitem__(self, index: Tensor | slice) -> "Photos":
        return Photos(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and the real images it is compared with."""

    model: nn.Module
    diffusion: GaussianDiffusion
    config: Config
    flags: Namespace
    train: Photos
    test: Photos
    classes: int


@dataclass(frozen=True)
class Judge:
    """A trained classifier, with its accuracy on the test set."""

    model: Classifier
    unit: float  # what features are multiplied with: their mean variance in training becomes 1
    accuracy: float
    source: str

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 128) and predicted classes (N,) of uint8 images."""
        read = []
        for chunk in images.split(500):
            features = self.model.features(normalize(chunk))
            read.append((self.unit * features, self.model.head(features).argmax(1)))
        features, classes = (torch.cat(part) for part in zip(*read, strict=True))
        return features, classes


def normalize(images: Tensor) -> Tensor:
    """0 ... 255 -> [-1, 1], in the layout that convolutions are fastest in."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def judge_of(train: Photos, test: Photos, classes: int, path: Path) -> Judge:
    """The judge of these images: from its file, or trained and stored there.

    Raises CheckpointError where it cannot be written. A damaged file is replaced.
    """
    torch.manual_seed(mix("classifier"))
    model = Classifier(train.images.shape[1], classes)
    model = model.to(train.images.device, memory_format=torch.channels_last)
    try:
        state = checkpoint.load(path, KIND, ("model", "unit", "accuracy"))
        model.load_state_dict(state["model"])
        return Judge(model.eval(), state["unit"], state["accuracy"], f"from {path}")
    except CheckpointError as e:
        if path.exists():
            print(f"{e}: training another", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    print("training a classifier to judge with: about a minute, once", flush=True)
    fit(model, train)
    raw = Judge(model.eval(), 1.0, 0.0, "")
    unit = raw.read(train.images)[0].double().var(0).mean().clamp(min=1e-12).rsqrt().item()
    accuracy = (raw.read(test.images)[1] == test.labels).double().mean().item()
    state = {"model": model.state_dict(), "unit": unit, "accuracy": accuracy}
    checkpoint.save(path, state, KIND)
    return Judge(model, unit, accuracy, f"trained, kept as {path}")


def fit(model: Classifier, train: Photos) -> None:
    """AdamW at a one-cycle rate (Smith & Topin 2018), every batch shifted by a pixel or two.

    Its randomness is keyed: on one machine the same images give the same classifier.
    """
    device = train.images.device
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05, fused=True)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, 0.2, cycle_momentum=False)
    per_epoch = -(-len(train) // BATCH)
    for step in tqdm(range(STEPS), "classifier", unit="step", disable=None):
        epoch, n = divmod(step, per_epoch)
        if n == 0:
            order = permutation(len(train), mix("classifier"), epoch).to(device)
        batch = train[order[n * BATCH : (n + 1) * BATCH]]
        with autocast(device, "auto"):
            logits = model(shifted(normalize(batch.images), mix("classifier shift", step)))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        plan.step()


def shifted(x: Tensor, key: int) -> Tensor:
    """The batch moved by up to SHIFT pixels each way; the border is repeated."""
    dy, dx = key % (2 * SHIFT + 1), key // (2 * SHIFT + 1) % (2 * SHIFT + 1)
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT,) * 4, mode="replicate")
    return padded[..., dy : dy + height, dx : dx + width]
