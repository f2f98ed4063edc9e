"""README.md of an exported model: what it is, what it learned from, how good it is (a model card).

Mitchell et al. (2019), Model Cards for Model Reporting.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from config import Config, differences
from evaluation.report import TABLES, origin
from evaluation.run_folder import RunFolder, part
from evaluation.tables import escaped, markdown
from utils.errors import listed
from utils.progress import duration

NAME, PICTURE = "README.md", "grid.png"
EVALUATE = """Not measured. `python evaluate.py --ckpt FOLDER`, in the repository of the code,
measures them, beside those of real images (the floor)."""
LICENCE = """The code that trained this model, and `generate.py`, have the MIT licence. The training
images have a licence of their own, which this folder does not hold: it decides whether the weights
may be passed on."""
ABOUT = """A denoising diffusion model ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)) of
images of {shape} pixels."""
USE = """```bash
python generate.py  # images.png, by DDIM; needs torch, numpy and pillow alone
```

`torch.export.load("denoiser.pt2").module()` is a function ({takes}) that estimates the clean
images x_0 in [-1, 1], not clipped, from

{inputs}

Its `alpha_bar` (T + 1,) is the noise schedule. `model.safetensors` holds the EMA weights,
`config.json` every setting. In the repository of the code, `python sample.py --ckpt FOLDER` draws
with every sampler, and `load("FOLDER")` of `sample` is the model in Python."""


def model_card(
    config: Config, about: Mapping[str, Any], parameters: int, weights: str, run: RunFolder
) -> str:
    """Markdown. about: what config.json holds; run: the folder with the scores.

    weights: the digest of the EMA weights; scores of others are left out.
    """
    rows = dict(facts(config, about, parameters, run))
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {escaped(v)} |" for k, v in rows.items())])
    parts = [
        f"# {escaped(about['name'] or 'Denoising diffusion model')}",
        f"![Samples]({PICTURE})",
        ABOUT.format(shape=shape_of(config)),
        table,
        "## Use",
        usage(config),
        "## Scores",
        *(scores(run, weights) or [EVALUATE]),
        "## Licence",
        LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


def shape_of(config: Config) -> str:
    """Height and width, and channels where there are more than one."""
    channels, height, width = config.image_shape
    return f"{height} x {width}" + (f" x {channels}" if channels > 1 else "")


def facts(
    config: Config, about: Mapping[str, Any], parameters: int, run: RunFolder
) -> Iterator[tuple[str, str]]:
    """Data, classes, network, process, training, sampling, code."""
    c, names, environment = config, about["data"]["class_names"], about["environment"]
    yield "data", "; ".join([data_of(config, run), *about["data"]["notes"]])
    yield "classes", f"{len(names)}: {listed(names)}" if names else "none: unconditional"
    yield "network", f"U-Net with self-attention, {parameters:,} parameters; EMA weights"
    d = c.diffusion
    variance = ", learned variance" if d.learn_variance else ""
    yield (
        "process",
        f"T = {d.timesteps:,}, {d.schedule} schedule, {d.prediction}-prediction{variance}",
    )
    minutes = f", {duration(run.seconds)}" if run.seconds else ""
    yield (
        "training",
        f"{about['step']:,} steps of {c.train.batch_size:,} images{minutes}; loss {d.loss}, "
        f"{c.train.optimizer}",
    )
    preset, changed = differences(config)
    own = ", ".join(f"{flag} {value}" for flag, value in changed.items())
    yield "settings", f"preset {preset}" + (f", {own}" if own else "")
    guidance = f", guidance {c.sample.guidance:g}" if names else ""
    yield "sampling", f"{c.sample.sampler}, {c.sample.steps} steps{guidance}"
    yield "code", f"commit {environment.get('git', 'unknown')}"
    yield "exported with", f"PyTorch {environment['exported_with']}"


def data_of(config: Config, run: RunFolder) -> str:
    """The data set, and how many images where the run says so; not where they lay."""
    lines = run.about.get("data")
    line = str(lines[0]) if isinstance(lines, list) and lines else ""
    return line.partition(";")[0] or f"{config.data.dataset}, {shape_of(config)}"


def usage(config: Config) -> str:
    """What the files are, and how they are used."""
    K = config.model.num_classes
    inputs = {
        "x_t": f"(N, {', '.join(map(str, config.image_shape))}): noisy images, any number of them",
        "t": f"(N,) int64: their timesteps, 1 ... {config.diffusion.timesteps}",
    }
    if K:
        inputs["y"] = f"(N,) int64: their classes, 0 ... {K - 1}, or {K} for none"
    lines = [f"* `{name}` {what}" for name, what in inputs.items()]
    return USE.format(takes=", ".join(inputs), inputs="\n".join(lines))


def scores(run: RunFolder, weights: str) -> list[str]:
    """The sections of metrics.json that are of these weights, as tables of Markdown."""
    found: list[str] = []
    for name, (title, rows_in) in TABLES.items():
        of = part(run.metrics, name, "of")
        if of.get("weights") != weights or not (rows := rows_in(run)):
            continue
        found += [f"### {title}", origin(name, of), markdown(rows)]
        if verdict := part(run.metrics, name).get("verdict"):
            found.append(f"{escaped(str(verdict)).capitalize()}.")
    return found
