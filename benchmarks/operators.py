"""Where the passes of a network go, by kind of operator: what keeps a step from the peak.

python -m benchmarks.operators    # under two minutes on two cores
"""

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from benchmarks.baselines import Loop, Task, bare
from config import Parser
from utils.devices import pick_device

KINDS = {  # the first whose word an operator's name contains; what computes FLOPs first
    "convolution": ("conv",),
    "matrix product": ("mm", "linear"),
    "normalization": ("norm",),
    "copy, cast, concatenation": ("copy", "cat", "to_", "fill", "zero", "empty"),
    "elementwise and the rest": ("",),
}


def main() -> None:
    """Print a table for each number format."""
    parser = Parser(prog="operators", description=__doc__)
    parser.add_argument("--preset", default="original", choices=("original", "mnist"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    flags = parser.parse_args()
    device = pick_device(flags.device)
    print("| network | format | operators | share of the time | of the convolution peak |")
    print("|---|---|---|---|---|")
    for precision, dtype in measure.DTYPES.items():
        run = bare(Task(flags.preset, precision, device))
        run(2)
        peak = measure.peaks(device, dtype)["convolution"]
        spent, work = seconds_by_kind(run, device), flops_by_kind(run)
        whole = sum(spent.values())
        rows = {**spent, "all of them": whole}
        work["all of them"] = sum(work.values())
        for kind, seconds in rows.items():
            share = f"{work[kind] / seconds / peak:.0%}" if work[kind] else ""
            cells = f"{kind} | {seconds / whole:.0%} | {share}"
            print(f"| {flags.preset} | {precision} | {cells} |")


def kind_of(name: str) -> str:
    """Of an operator, by its name."""
    return next(kind for kind, words in KINDS.items() if any(word in name for word in words))


def seconds_by_kind(run: Loop, device: torch.device) -> dict[str, float]:
    """Of one step, without what an operator calls in its turn; in the order of KINDS."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        run(1)
        measure.synchronize(device)
    spent = dict.fromkeys(KINDS, 0.0)
    for event in recorded.key_averages():
        if event.key.startswith("aten::"):
            on_cuda = device.type == "cuda"
            own = event.self_device_time_total if on_cuda else event.self_cpu_time_total
            spent[kind_of(event.key)] += 1e-6 * own
    return spent


def flops_by_kind(run: Loop) -> dict[str, int]:
    """Of one step."""
    work = dict.fromkeys(KINDS, 0)
    for operator, count in measure.flops_by_operator(lambda: run(1)).items():
        work[kind_of(operator)] += count
    return work


if __name__ == "__main__":
    main()
