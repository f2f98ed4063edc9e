"""A trained model as files for others: its weights, a program of its denoiser, a loader."""

import io
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from config import Config, ConfigError
from data.class_names import readable
from diffusion import GaussianDiffusion
from diffusion.tensors import LabeledModel
from training.trained import TrainedModel
from utils import exported
from utils.checkpoint import EXPORTED
from utils.files import check_writable
from utils.progress import Progress

PROGRAM, LOADER = "denoiser.pt2", "generate.py"
SOURCE = Path(__file__).with_name("standalone.py")  # of LOADER
BATCH = 2  # images of the example from which the program is traced; 1 would be a constant of it
KNOWN = ("torch", "git", "device", "gpu")  # of the environment; a command has paths


class Denoiser(nn.Module):
    """x̂_θ(x_t, t, y) (B, C, H, W), not clipped, whatever the network predicts.

    alpha_bar: (T + 1,) float64.
    """

    def __init__(self, network: LabeledModel, diffusion: GaussianDiffusion) -> None:
        super().__init__()
        self.network, self.diffusion = network, diffusion
        self.register_buffer("alpha_bar", diffusion.alpha_bar)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), t (B,) int64 in 1 ... T, y (B,) int64 in 0 ... K, or None."""
        return self.diffusion.denoise(lambda x, t: self.network(x, t, y), x_t, t, clip=False)


def exported_files(model: TrainedModel, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The weights, the configuration, the program and the loader, by file name.

    model: on the CPU; about: what ``description`` returns.
    """
    tensors = {"ema": model.network.state_dict(), "x0_error": model.x0_error}
    tensors["value_prior"] = model.diffusion.stored_value_prior
    files = exported.encode({**about, **tensors})
    return files | {PROGRAM: program(model), LOADER: SOURCE.read_bytes()}


def description(model: TrainedModel, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds, but for formats and hash; stored: the content of the checkpoint.

    Without paths of this machine, and without the digests of single images.
    """
    data, environment = stored.get("data", {}), stored.get("environment", {})
    known = {name: environment[name] for name in KNOWN if name in environment}
    return {
        "name": stored.get("name") or "",
        "step": model.step,
        "config": asdict(without_paths(model.config)),
        "data": {
            "fingerprint": data.get("fingerprint"),
            "class_names": list(model.class_names),
            "notes": list(data.get("notes") or []),
        },
        "environment": known | {"exported_with": str(torch.__version__)},
    }


def without_paths(config: Config) -> Config:
    """With the last part alone of the paths of images and of earlier weights."""
    names = {
        "data_root": readable(Path(config.data.data_root).absolute().name) or config.data.dataset,
        "init_from": readable(PurePath(config.train.init_from).name),
    }
    return config.override(**names)


def program(model: TrainedModel) -> bytes:
    """A file of ``torch.export``: (x_t, t), or (x_t, t, y) of classes, as ``Denoiser`` takes them.

    For any number of images. model: on the CPU.
    """
    numbers = [torch.ones(BATCH).long() for _ in range(2 if model.num_classes else 1)]  # t, y
    example = (torch.zeros(BATCH, *model.image_shape), *numbers)
    # Saving warns of weights in channels_last memory, which it may not know from parts of tensors.
    network = deepcopy(model.network).to(memory_format=torch.contiguous_format)
    denoiser = Denoiser(network, model.diffusion).eval()
    batch, content = torch.export.Dim("batch"), io.BytesIO()
    with Progress("exporting the denoiser", 1, "programs"), torch.no_grad():
        shapes = tuple({0: batch} for _ in example)
        torch.export.save(torch.export.export(denoiser, example, dynamic_shapes=shapes), content)
    return content.getvalue()


def check_folder(folder: Path, overwrite: bool) -> None:
    """ConfigError unless the folder is new or empty and can be written.

    overwrite: it may be that of an exported model, too, but no other.
    """
    try:
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if found and not overwrite:
            raise ConfigError(f"{folder} is not empty: choose another --export, or --overwrite")
        if found and EXPORTED not in found:
            raise ConfigError(f"{folder} holds no exported model: choose another --export")
        check_writable(folder)
    except OSError as e:
        raise ConfigError(f"cannot write to --export {folder}: {e.strerror}") from e
