"""A training step, and a sampling step, read nothing back from the device: each read waits for it.

Pretended, as there may be no such device; tests/test_gpu.py asks CUDA itself.
"""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import ranks
import torch
from faults import DIGITS, DRAWN, run
from numpy.testing import assert_allclose
from pretend_mps import CPU, MPS, pretend_device
from sabotage import steps_take
from test_distributed import SHORT, curve
from torch.utils._python_dispatch import TorchDispatchMode

import train
import training.clock
from config import PRESETS
from data.image_set import StreamSet, TensorSet
from diffusion import SAMPLERS, DiffusionModel, Sampler, generate
from models import PowerEMA
from training.build import build
from training.clock import AGREE_SECONDS, Clock
from training.state import TrainState
from utils.distributed import Ranks
from utils.process import StopSignal

baselines = pytest.importorskip("benchmarks.baselines", exc_type=ImportError)  # diffusers
TINY = PRESETS["mnist"].override(
    **{"image_channels": 1, "image_size": (28, 28), "num_classes": 10, "precision": "fp32"},
    **{"base_channels": 8, "emb_channels": 16, "timesteps": 50, "dropout": 0.1},
    **{"batch_size": 4, "min_epoch_images": 1, "epochs": 0, "max_steps": 1000},
)
FEW_AND_MORE = (3, 8)  # steps
WAYS = {
    "muon": {},
    "adamw": {"optimizer": "adamw"},
    "flip": {"flip": True},
    "micro-batches": {"grad_accum": 2},
    "importance": {"importance_sampling": True},
    "learned variance": {"learn_variance": True},
    "kl": {"prediction": "x0", "loss": "kl", "discrete_pixels": True},
    "checkpointed": {"checkpoint_activations": True},
}


def streamed(images: TensorSet) -> StreamSet:
    """The same set, read one image at a time."""
    digests = torch.zeros(len(images), 32, dtype=torch.uint8)
    names = tuple(map(str, range(len(images))))
    return StreamSet(
        "", "", DIGITS, lambda name, _: images.images[int(name)], names, images.labels,
        images.image_shape, "", digests,
    )  # fmt: skip


def crossings(steps: int, stream: bool = False, **changes) -> list[str]:
    """Where train_epoch waited for the device, in so many steps."""
    images = TensorSet("", "", DIGITS, *(part[:80] for part in DRAWN[True]))
    with pretend_device() as seen:
        state = TrainState.create(TINY.override(**changes), 4 * steps, MPS, Ranks(), None)
        clock, logger = (
            Clock(MPS, lambda: 0.0),
            baselines.silent_logger(state),
        )  # time stands: no logging
        images = (streamed(images) if stream else images).to(MPS)
        seen.crossings.clear()
        train.train_epoch(state, images, logger, clock, StopSignal())
        assert state.step == steps
        assert seen.violations == []
        return list(seen.crossings)


FIRST = [("muon", False), ("micro-batches", False), ("learned variance", False), ("flip", True)]
ALL = [*((way, False) for way in WAYS), ("muon", True), ("flip", True)]
OTHERS = [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FIRST]


@pytest.mark.parametrize(("way", "stream"), [*FIRST, *OTHERS])
def test_more_steps_wait_no_more(way, stream):
    few, more = (crossings(steps, stream, **WAYS[way]) for steps in FEW_AND_MORE)
    assert few == more


def test_a_step_that_looks_at_its_loss_is_seen(monkeypatch):
    """The control."""
    original = train.output_gradient
    monkeypatch.setattr(train, "output_gradient", lambda loss: (loss.item(), original(loss))[1])
    few, more = (crossings(steps) for steps in FEW_AND_MORE)
    assert len(more) == len(few) + FEW_AND_MORE[1] - FEW_AND_MORE[0]
    assert more[-1].endswith(": item")


def drawn(sampler: str, steps: int, **settings) -> list[str]:
    """Where sampling waited for the device."""
    with pretend_device() as seen:
        network, diffusion = build(TINY)
        ema = PowerEMA(network, 13.0, 0.9999).to(MPS)
        model = DiffusionModel(ema, diffusion.to(MPS), (1, 28, 28), 10, torch.ones(51))
        labels, options = torch.arange(3), {"eta": 1.0, "guidance": 2.0} | settings
        seen.crossings.clear()
        generate(model, Sampler(sampler, steps, **options), range(3), labels)
        assert seen.violations == []
        return list(seen.crossings)


@pytest.mark.parametrize(
    ("variance", "interval"), [("posterior", (0.0, 1.0)), ("optimal", (0.3, 0.8))]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_of_sampling_wait_no_more(sampler, variance, interval):
    settings = {"variance": variance, "guidance_interval": interval}
    few, more = (drawn(sampler, steps, **settings) for steps in FEW_AND_MORE)
    assert few == more


def test_what_waits_is_seen():
    """The control of what the tests above count."""
    with pretend_device() as seen:
        x, mask = torch.ones(3, device=MPS), torch.zeros(3, dtype=torch.bool, device=MPS)
        seen.crossings.clear()
        for wait in (
            x.sum().item, x.tolist, x.cpu, x.nonzero, lambda: bool(x[0]), lambda: int(x[0]),
            lambda: x[mask], lambda: torch.where(x), lambda: torch.ones(3).to(MPS),
            lambda: torch.tensor([1.0], device=MPS), lambda: x.copy_(torch.ones(3)),
            lambda: x.masked_select(mask), lambda: x.to("cpu", non_blocking=True),
        ):  # fmt: skip
            before = len(seen.crossings)
            wait()
            assert len(seen.crossings) == before + 1
        before = len(seen.crossings)
        for go_on in (
            lambda: x + 1, lambda: x[torch.zeros(2, dtype=torch.long, device=MPS)],
            lambda: x.where(mask, 0), lambda: torch.ones(3).to(MPS, non_blocking=True),
            lambda: torch.full((3,), 2, device=MPS),
        ):  # fmt: skip
            go_on()
        assert len(seen.crossings) == before


class Operations(TorchDispatchMode):
    """Within it ``names`` lists the operations: on a GPU each is a launch, or one for a list."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def operations(blocks: int, **changes) -> dict[str, int]:
    """How many the parts of a step behind the backward pass take; blocks: per level."""
    config = TINY.override(blocks_per_level=blocks, **changes)
    state, found = TrainState.create(config, 80, CPU, Ranks(), None), {}
    for state.step in (1, 2):
        x_0, y = torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)
        own, state.optimizers = state.optimizers, []
        train.train_step(state, x_0, y)
        state.optimizers = own
        parts = {type(o).__name__: o.step for o in own}
        parts["EMA"] = lambda: state.ema.update_parameters(state.model)
        for name, part in parts.items():
            with Operations() as seen:
                part()
            found[name] = len(seen.names)
        for optimizer in own:
            optimizer.zero_grad()
    return found


def test_more_weights_take_no_more_launches():
    """Of AdamW and the EMA. Muon has a product or two for each matrix: the control."""
    for optimizer in ("adamw", "muon"):
        few, more = (operations(blocks, optimizer=optimizer) for blocks in (1, 3))
        assert few["EMA"] == more["EMA"] < 10
        assert few["AdamW"] == more["AdamW"] < 10
    assert few["Muon"] < more["Muon"]


class Counting(Ranks):
    """Two ranks, of which this one asks ``calls`` to agree, and is told what it says."""

    calls: ClassVar[list] = []

    def highest(self, *values: int) -> tuple[int, ...]:
        self.calls.append(values)
        return values


def agreements(step_seconds: float, steps: int, world: int = 2) -> tuple[int, float]:
    """How often the first rank agreed in so many steps, and the seconds until it heard a signal.

    Counted from when the throughput is known.
    """
    now, own, stop = 0.0, Counting(0, world), StopSignal(Ranks(0, 2))
    clock = Clock(CPU, lambda: now)
    state = SimpleNamespace(config=TINY, ranks=own, step=0, schedule=object())
    state.validation_schedule = SimpleNamespace(cost_up_to=lambda _: 0.0)
    while clock.step_seconds is None:
        state.step, now = state.step + 1, now + step_seconds
        clock.after_step(state, stop)
    assert len(own.calls) == state.step  # until then after every step
    own.calls.clear()
    for _ in range(steps):
        state.step, now = state.step + 1, now + step_seconds
        clock.after_step(state, stop)
    calls, began = len(own.calls), now
    stop.note(15)
    while not clock.after_step(state, stop).stop:
        state.step, now = state.step + 1, now + step_seconds
    own.calls.clear()
    return calls, now - began


def test_ranks_agree_ten_times_a_second_however_fast_they_are():
    for step_seconds, calls in ((0.005, 100), (0.01, 200), (0.2, 2000)):
        found, waited = agreements(step_seconds, 2000)
        assert found == pytest.approx(calls, abs=1)
        assert waited <= max(AGREE_SECONDS, step_seconds) + 1e-9
    assert agreements(0.005, 2000, world=1) == (
        2000,
        pytest.approx(0.005),
    )  # control: alone, after every step


def quick(_: int) -> None:
    """A hook: the throughput is known after four steps, and they are fast."""
    training.clock.SPEED_SECONDS = 0.001
    steps_take(1)


@pytest.mark.slow
def test_ranks_that_agree_seldom_train_to_the_same_losses(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for where in (alone, together):
        where.mkdir()
    assert run(alone, SHORT).code == 0
    ends = ranks.run(together, 2, SHORT, "test_synchronization.quick")
    assert [end.code for end in ends] == [0, 0]
    assert_allclose(curve(together), curve(alone), rtol=1e-5)
