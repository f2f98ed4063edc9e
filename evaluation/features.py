"""The feature extractor: a small classifier of the run's own training set, cached on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import ImageSet
from models import Classifier
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.devices import autocast
from utils.images import normalize, to_uint8
from utils.seeding import mix, permutation

STEPS, BATCH, LR, SHIFT = 1900, 128, 3e-3, 2  # pixels of shift; about four epochs of MNIST
CHUNK = 500  # images per forward pass
KIND = "ddpm-classifier-1"  # change it with the recipe: other features


@dataclass(frozen=True)
class LabeledImages:
    """uint8 images (N, C, H, W) and the class of each (N,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, image_set: ImageSet, most: int) -> Self:
        """Up to ``most`` images in memory, shuffled: any prefix is a random subset."""
        indices = permutation(len(image_set), 0, 0)[:most]
        parts = [(to_uint8(x), y) for x, y in image_set.batches(indices, CHUNK)]
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.images.to(device), self.labels.to(device))

    @property
    def x_0(self) -> Tensor:
        """As the denoising network takes them: float32 in [-1, 1]."""
        return channels_last(self.images)


@dataclass(frozen=True)
class Features:
    """Images with their features (N, 128) and predicted classes (N,)."""

    source: LabeledImages
    features: Tensor
    predicted: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return type(self)(self.source[index], self.features[index], self.predicted[index])


@dataclass(frozen=True)
class FeatureExtractor:
    """A trained classifier, with its accuracy on the test set."""

    model: Classifier
    scale: float  # of the features, so that their mean variance over the training set is 1
    accuracy: float
    source: str

    @torch.no_grad()
    def extract(self, source: LabeledImages) -> Features:
        """The inputs of the last layer, scaled, and the predicted classes."""
        parts = []
        for chunk in source.images.split(CHUNK):
            features = self.model.features(channels_last(chunk))
            parts.append((self.scale * features, self.model.head(features).argmax(1)))
        return Features(source, *(torch.cat(part) for part in zip(*parts, strict=True)))


def channels_last(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1], in the memory format that convolutions are fastest in."""
    return normalize(images).contiguous(memory_format=torch.channels_last)


def load_or_train(
    train: LabeledImages, test: LabeledImages, classes: int, path: Path, steps: int = STEPS
) -> FeatureExtractor:
    """The classifier of these images: from its file, or trained and stored there.

    Raises CheckpointError where it cannot be written. A damaged file is replaced.
    """
    torch.manual_seed(mix("classifier"))
    model = Classifier(train.images.shape[1], classes)
    model = model.to(train.images.device, memory_format=torch.channels_last)
    try:
        content = checkpoint.load(path, KIND, ("model", "unit", "accuracy"))
        model.load_state_dict(content["model"])
        return FeatureExtractor(
            model.eval(), content["unit"], content["accuracy"], f"loaded from {path}"
        )
    except CheckpointError as e:
        if path.exists():
            print(f"{e}: training another", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    print("training a classifier as feature extractor: about a minute, once", flush=True)
    fit(model, train, steps)
    unscaled = FeatureExtractor(model.eval(), 1.0, 0.0, "")
    variance = unscaled.extract(train).features.double().var(0).mean()
    scale = variance.clamp(min=1e-12).rsqrt().item()
    accuracy = (unscaled.extract(test).predicted == test.labels).double().mean().item()
    content = {"model": model.state_dict(), "unit": scale, "accuracy": accuracy}
    checkpoint.save(path, content, KIND)
    return FeatureExtractor(model, scale, accuracy, f"trained and stored as {path}")


def fit(model: Classifier, train: LabeledImages, steps: int = STEPS) -> None:
    """AdamW with a one-cycle learning rate (Smith & Topin 2018); each batch shifted at random.

    Its randomness is keyed: on one machine the same images give the same classifier.
    """
    device = train.images.device
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, 0.2, cycle_momentum=False)
    per_epoch = -(-len(train) // BATCH)
    for step in tqdm(range(steps), "classifier", unit="step", disable=None):
        epoch, n = divmod(step, per_epoch)
        if n == 0:
            order = permutation(len(train), mix("classifier"), epoch).to(device)
        batch = train[order[n * BATCH : (n + 1) * BATCH]]
        with autocast(device, "auto"):
            logits = model(shifted(channels_last(batch.images), mix("classifier shift", step)))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        schedule.step()


def shifted(x: Tensor, key: int) -> Tensor:
    """The batch moved by up to SHIFT pixels each way; the border is repeated."""
    dy, dx = key % (2 * SHIFT + 1), key // (2 * SHIFT + 1) % (2 * SHIFT + 1)
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT,) * 4, mode="replicate")
    return padded[..., dy : dy + height, dx : dx + width]
