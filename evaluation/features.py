"""The feature extractor: a small classifier of the run's own training set, cached on disk.

It predicts the classes or, where there are no labels, a pretext task: evaluation/tasks.py.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from data import ImageSet
from evaluation.tasks import Task
from models.classifier import WIDTHS, Classifier
from models.summary import FORWARD_SHARE
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.devices import autocast, double
from utils.images import normalize, to_uint8
from utils.progress import track
from utils.seeding import mix, permutation

STEPS, BATCH, LR, SHIFT = 1900, 128, 3e-3, 2  # pixels of shift; about four epochs of MNIST
MAX_REAL = 60_000  # real images in memory
CHUNK = 500  # images per forward pass
TIMED = 5  # steps for a forecast
LEAST_BF16_SIDE = 2 ** (len(WIDTHS) - 1)  # up to this the last strided convolution has one column
KIND = "ddpm-classifier-2"  # change it with the recipe: other features


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
    """Images with their features (N, 128) and predicted labels (N,): of the task's classifier.

    inception: those of the Inception network (N, 2048), where it is at hand.
    """

    source: LabeledImages
    features: Tensor
    predicted: Tensor
    task: Task
    inception: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice) -> Self:
        return replace(
            self,
            source=self.source[index],
            features=self.features[index],
            predicted=self.predicted[index],
            inception=None if self.inception is None else self.inception[index],
        )

    @property
    def spaces(self) -> dict[str, Tensor]:
        """The features that distances are taken in, by their names."""
        found = {self.task.space: self.features}
        return found if self.inception is None else found | {"inception": self.inception}


@dataclass(frozen=True)
class FeatureExtractor:
    """A classifier trained for the task, with its accuracy on the test set."""

    model: Classifier
    task: Task
    scale: float  # of the features, so that their mean variance over the training set is 1
    accuracy: float | None  # None: there are no test images
    source: str

    @property
    def summary(self) -> str:
        """What is predicted, how well, and where the classifier comes from."""
        what, chance = "classifier", ""
        if self.task.pretext:
            what = f"classifier of {self.task.name} (a pretext task: Gidaris et al. 2018)"
            chance = f", {100 / len(self.task.outputs):.0f} % by chance"
        if self.accuracy is None:
            return f"{what}: accuracy not known without test images; {self.source}"
        return f"{what}: {100 * self.accuracy:.2f} % of the test set{chance}; {self.source}"

    @torch.no_grad()
    def extract(self, source: LabeledImages) -> Features:
        """The inputs of the last layer, scaled, and the predicted labels."""
        parts = []
        for chunk in track(source.images.split(CHUNK), "features", "batches"):
            features = self.model.features(channels_last(chunk))
            parts.append((self.scale * features, self.model.head(features).argmax(1)))
        return Features(source, *(torch.cat(part) for part in zip(*parts, strict=True)), self.task)


def labels_or_zeros(labels: Tensor | None, count: int) -> Tensor:
    """Labels (count,); zeros for samples of an unconditional network, which have none."""
    return torch.zeros(count, dtype=torch.int64) if labels is None else labels


def channels_last(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1], in the memory format that convolutions are fastest in."""
    return normalize(images).contiguous(memory_format=torch.channels_last)


def cache_path(folder: Path, image_set: ImageSet, task: Task) -> Path:
    """Where the classifier of these images for this task is cached: named by their content."""
    _, height, width = image_set.image_shape
    name = f"{image_set.name}_{height}x{width}_{image_set.fingerprint[:16]}_{task.name}.pt"
    return folder / name


def load_or_train(
    train: LabeledImages, test: LabeledImages, task: Task, path: Path, steps: int = STEPS
) -> FeatureExtractor:
    """The classifier of these images for the task: from its file, or trained and stored there.

    Raises CheckpointError where it cannot be written. A damaged file is replaced.
    """
    torch.manual_seed(mix("classifier"))
    model = Classifier(train.images.shape[1], len(task.outputs))
    model = model.to(train.images.device, memory_format=torch.channels_last)
    try:
        return load_extractor(path, model, task)
    except CheckpointError as e:
        if path.exists():
            print(f"{e}: training another", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    what = f"{steps:,} steps of {BATCH} images"
    print(f"training a classifier as feature extractor, once: {what}", flush=True)
    fit(model, train, task, steps)
    unscaled = FeatureExtractor(model.eval(), task, 1.0, None, "")
    scale, accuracy = unit_scale(unscaled.extract(train).features), accuracy_of(model, test, task)
    content = {"model": model.state_dict(), "unit": scale, "accuracy": accuracy, "task": task.name}
    checkpoint.save(path, content, KIND)
    return FeatureExtractor(model, task, scale, accuracy, f"trained and stored as {path}")


def load_extractor(path: Path, model: Classifier, task: Task) -> FeatureExtractor:
    """The stored weights in this model. Raises CheckpointError, also for those of another task."""
    content = checkpoint.load(path, KIND, ("model", "unit", "accuracy", "task"))
    if content["task"] != task.name:
        raise CheckpointError(f"{path} predicts {content['task']}, not {task.name}")
    checkpoint.check_fits(path, "model", content["model"], model.state_dict())
    model.load_state_dict(content["model"])
    scale, accuracy = content["unit"], content["accuracy"]
    return FeatureExtractor(model.eval(), task, scale, accuracy, f"loaded from {path}")


def unit_scale(features: Tensor) -> float:
    """The factor that makes the mean variance of features (N, D) 1; 1 where none vary (N = 1)."""
    variance = double(features).var(0).mean().item() if len(features) > 1 else 0.0
    return variance**-0.5 if variance > 1e-12 else 1.0


@torch.no_grad()
def accuracy_of(model: Classifier, test: LabeledImages, task: Task) -> float | None:
    """The share of the task's examples that are right; None without test images."""
    right = []
    for i in range(0, len(test), CHUNK):
        chunk = test[i : i + CHUNK]
        images, labels = task.examples(chunk.images, chunk.labels)
        right.append(model(channels_last(images)).argmax(1) == labels)
    return double(torch.cat(right)).mean().item() if right else None


def seconds_to_train(image_set: ImageSet, task: Task, count: int, trained: bool) -> float:
    """What a classifier takes, from a few timed steps: STEPS, and the features of count images.

    trained: the features alone.
    """
    images = LabeledImages.of(image_set, BATCH)
    model = Classifier(images.images.shape[1], len(task.outputs)).to(images.images.device)
    fit(model, images, task, 1)  # warms up
    began = time.monotonic()
    fit(model, images, task, TIMED)
    unscaled = FeatureExtractor(model.eval(), task, 1.0, None, "")
    unscaled.extract(images).features.cpu()  # waits for the device
    step = (time.monotonic() - began) / TIMED
    return step * (0 if trained else STEPS) + FORWARD_SHARE * step * count / BATCH


def fit(model: Classifier, train: LabeledImages, task: Task, steps: int = STEPS) -> None:
    """AdamW with a one-cycle learning rate (Smith & Topin 2018); each batch shifted at random.

    Its randomness is keyed: on one machine the same images give the same classifier.
    """
    device = train.images.device
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, 0.2, cycle_momentum=False)
    size = BATCH // max(1, len(task.views))  # images whose views, all in one batch, are BATCH
    per_epoch = -(-len(train) // size)
    # In bfloat16 oneDNN's gradient of a strided convolution of one column reads unwritten memory.
    precision = "auto" if min(train.images.shape[-2:]) > LEAST_BF16_SIDE else "fp32"
    for step in track(range(steps), "training the classifier", "steps"):
        epoch, n = divmod(step, per_epoch)
        if n == 0:
            order = permutation(len(train), mix("classifier"), epoch).to(device)
        batch = train[order[n * size : (n + 1) * size]]
        images, labels = task.examples(batch.images, batch.labels)
        with autocast(device, precision):
            logits = model(shifted(channels_last(images), mix("classifier shift", step)))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        schedule.step()


def shifted(x: Tensor, key: int) -> Tensor:
    """The batch moved by up to SHIFT pixels each way; the border is repeated."""
    dy, dx = key % (2 * SHIFT + 1), key // (2 * SHIFT + 1) % (2 * SHIFT + 1)
    height, width = x.shape[-2:]
    padded = F.pad(x, (SHIFT,) * 4, mode="replicate")
    return padded[..., dy : dy + height, dx : dx + width]
