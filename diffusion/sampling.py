"""A sampler with its settings: its grid, what it costs, and its states."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.grids import SPACINGS, Grid, churned, restarted
from diffusion.guidance import guided
from diffusion.samplers import SAMPLERS, Randn, States, evaluated_at, options_of
from diffusion.tensors import LabeledModel, Model

CHURNS = "heun"  # the sampler of --churn


@dataclass(frozen=True)
class Sampler:
    """A reverse process with its settings: ``Sampler(**asdict(config.sample))``.

    steps: of the grid before restarts, which repeat some. restart: how often; restart_interval,
    guidance_interval: from and to which t / T they apply. Options that the named sampler does not
    have are ignored.
    """

    sampler: str
    steps: int
    spacing: str = "t"
    variance: str = "posterior"
    eta: float = 0.0
    order: int = 2
    churn: float = 0.0
    restart: int = 0
    restart_interval: tuple[float, float] = (0.1, 0.4)
    clip: bool = True
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __call__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        x: Tensor,
        grid: Grid,
        randn: Randn,
        x0_error: Tensor | None = None,
    ) -> States:
        """The states after x, which is the state at ``grid[0]``; model(x, t), guided or not."""
        own = {name: getattr(self, name) for name in options_of(self.sampler)}
        return SAMPLERS[self.sampler](model, diffusion, x, grid, randn, x0_error, **own)

    def grid(self, diffusion: GaussianDiffusion, start: int | None = None) -> list[int]:
        """The timesteps from start (default T) to 0, with every rise.

        ValueErrors of uniform_grid, and where a restart or churn has no effect.
        """
        grid = SPACINGS[self.spacing](diffusion, self.steps, start)
        if self.restart:
            low, high = (own * diffusion.timesteps for own in self.restart_interval)
            grid = restarted(grid, (low, high), self.restart)
        if self.churn and self.sampler == CHURNS:
            grid = churned(diffusion, grid, self.churn, self.steps)
        return grid

    def evaluations(self, diffusion: GaussianDiffusion, grid: Grid, labeled: bool) -> list[int]:
        """Network evaluations for an image of every move along the grid; rises take none.

        labeled: whether images have labels, without which there is no guidance. A guided evaluation
        counts as two.
        """
        first, last = (own * diffusion.timesteps for own in self.guidance_interval)
        doubled = labeled and self.guidance != 1

        def cost(t: int) -> int:
            return 2 if doubled and first <= t <= last else 1

        return [
            sum(map(cost, evaluated_at(self.sampler, diffusion, t, s))) if s < t else 0
            for t, s in pairwise(grid)
        ]

    def guide(
        self,
        model: LabeledModel,
        labels: Tensor | None,
        null_label: int,
        diffusion: GaussianDiffusion,
    ) -> Model:
        """The network with these labels (B,) and this sampler's guidance; see ``guided``."""
        first, last = self.guidance_interval
        times = (first * diffusion.timesteps, last * diffusion.timesteps)
        return guided(model, labels, null_label, self.guidance, times)
