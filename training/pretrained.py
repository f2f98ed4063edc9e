"""--init-from: a new run that starts from the EMA weights of another."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from config import ConfigError
from utils import checkpoint, exported
from utils.checkpoint import CheckpointError
from utils.pytree import form, mismatches


@dataclass(frozen=True)
class Pretrained:
    """The EMA weights of a checkpoint, by their names in the network."""

    path: Path
    weights: dict[str, Tensor]

    def initialize(self, model: nn.Module) -> None:
        """Copy every tensor with a name, shape and type of the network's; print what was not.

        ConfigError where there is none.
        """
        own = model.state_dict()
        fits = [name for name in own if form(self.weights.get(name)) == form(own[name])]
        taken, every = (sum(own[name].numel() for name in names) for names in (fits, own))
        if not fits:
            raise ConfigError(
                f"no weights of {self.path} fit this network: type the network settings of that run"
            )
        model.load_state_dict({name: self.weights[name] for name in fits}, strict=False)
        rest = "; ".join(mismatches(self.weights, own))
        line = f"Starting from {self.path}: {taken:,} of {every:,} weights taken"
        print(f"{line}; not taken: {rest}" if rest else line, flush=True)


def find_pretrained(where: str | None, run_root: Path) -> Pretrained | None:
    """What --init-from names, as --ckpt does. Raises CheckpointError."""
    if not where:
        return None
    path = checkpoint.find(where, run_root)
    ema = exported.load(path)["ema"]
    if not isinstance(ema, dict):
        raise CheckpointError(f"{path} does not fit: ema is not a dict of tensors")
    weights = {str(name).removeprefix("module."): value for name, value in ema.items()}
    weights.pop("n_averaged", None)
    return Pretrained(path, weights)
