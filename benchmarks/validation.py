"""What validation costs at the defaults: seconds of one, and its share of the default run.

OMP_NUM_THREADS=1 python -m benchmarks.validation --data-root datasets    # minutes on one core

Steps and validations alternate, so that both see the same load of the machine. The share is that of
the 30 epochs of the preset ``mnist``: all validations that train.py makes of it.
"""

import statistics
import time

import torch

import train
from benchmarks.trials import RESULTS
from config import Parser
from data import ImageSet
from training.setup import load_data, parse_args
from training.state import TrainState
from training.validate import Validation, samples_to_score
from utils.devices import pick_device, tune
from utils.distributed import Ranks
from utils.runs import environment, write_json

ROUNDS, STEPS = 5, 30
EARLY = 1500  # the step of a validation of as many points and samples as an early one has at most


def main() -> None:
    """Print the seconds of each part and the shares, and write them as JSON."""
    parser = Parser(prog="validation", description=__doc__)
    parser.add_argument("--data-root", required=True, help="where MNIST is")
    own, _ = parser.parse(None, [])
    found = measure(own["data_root"])
    for name, value in found.items():
        print(f"{name:40} {value:.4g}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    found["environment"] = environment(torch.device("cpu"))
    write_json(RESULTS / "validation.json", found)


def measure(data_root: str) -> dict[str, float]:
    """Medians over the rounds."""
    device, ranks = pick_device("auto"), Ranks()
    tune(device)
    config, train_set, test_set = load_data(parse_args(["--data-root", data_root], ""), ranks)
    state = TrainState.create(config, len(train_set), device, ranks, None)
    validation = Validation(state, train_set.to(device), test_set.to(device))
    steps(state, train_set, 3)
    labels = torch.arange(config.train.score_images) % max(1, config.model.num_classes)
    whole = state.validation_schedule.steady
    parts = {
        "step": lambda: steps(state, train_set, STEPS) / STEPS,
        "early validation": lambda: timed(lambda: run(validation, state, EARLY)),
        "validation": lambda: timed(lambda: run(validation, state, whole)),
        "1,000 samples to score": lambda: timed(lambda: samples_to_score(state, labels)),
    }
    rounds = [{name: take() for name, take in parts.items()} for _ in range(ROUNDS)]
    seconds = {f"seconds of a {k}": statistics.median(own[k] for own in rounds) for k in parts}
    return seconds | shares(state, *seconds.values())


def shares(
    state: TrainState, step: float, early: float, late: float, score: float
) -> dict[str, float]:
    """Of the default run: its validations, and scores at every 1,000th step."""
    schedule, total = state.validation_schedule, state.schedule.total_steps
    small, whole = (schedule.count(schedule.steady - 1), schedule.count(total - 1) + 1)
    validations = small * early + (whole - small) * late
    scored = total // 1000 * score
    return {
        "validations of the default run": whole,
        "share of validation": validations / (total * step + validations),
        "share of scores every 1,000 steps": scored / (total * step + validations + scored),
    }


def run(validation: Validation, state: TrainState, step: int) -> None:
    """What a validation after this step takes."""
    state.step = step
    validation.measure(state)
    validation.draw(state)


def steps(state: TrainState, train_set: ImageSet, count: int) -> float:
    """Train; the seconds."""
    state.step = 0
    began = time.perf_counter()
    for x_0, y in state.batches(train_set, most=count):
        state.step += 1
        train.train_step(state, x_0, y)
    return time.perf_counter() - began


def timed(action) -> float:
    """Seconds."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
