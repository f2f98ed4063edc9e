"""Sections are signatures, choices are registries, presets rebuild, bad values are one line."""

import inspect
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import config
import data
import diffusion
from config import (
    PRESETS,
    Config,
    ConfigError,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    Parser,
    SampleConfig,
)
from data.decode import MODES, Rendering
from models import NORMS, UNet
from training.optim import DECAYS, OPTIMIZERS

SECTIONS = list(vars(Config()).values())


@pytest.mark.parametrize(
    ("section", "configured", "not_configured"),
    [
        (DataConfig, data.DataOptions, {"image_channels"}),
        (ModelConfig, UNet, {"outputs"}),
        (DiffusionConfig, diffusion.make_diffusion, set()),
    ],
)
def test_sections_are_the_keyword_arguments_of_what_they_configure(
    section, configured, not_configured
):
    parameters = set(inspect.signature(configured).parameters) - not_configured
    assert {f.name for f in fields(section)} == parameters


REGISTRIES = {
    "dataset": set(data.DATASETS),
    "fit": set(get_args(get_type_hints(Rendering)["fit"])),
    "image_channels": {0, *MODES},
    "norm": set(NORMS),
    "schedule": {*diffusion.SCHEDULES, "manual"},
    "prediction": set(diffusion.PREDICTIONS),
    "loss": set(diffusion.LOSSES),
    "optimizer": set(OPTIMIZERS),
    "decay": set(DECAYS),
    "sampler": set(diffusion.SAMPLERS),
    "spacing": set(diffusion.SPACINGS),
    "variance": set(diffusion.VARIANCES),
    "precision": {"auto", "bf16", "fp32"},
    "compile": {"auto", "on", "off"},
}


def test_the_choices_of_every_field_are_those_of_its_registry():
    choices = {
        name: get_args(kind)
        for section in SECTIONS
        for name, kind in get_type_hints(type(section)).items()
        if get_origin(kind) is Literal
    }
    assert {name: set(values) for name, values in choices.items()} == REGISTRIES
    assert all(len(set(values)) == len(values) for values in choices.values())


def test_the_sample_section_knows_which_options_are_whose():
    """Every option has a field, which names the samplers that have it, unless all have."""
    owners = {f.name: set(f.metadata["samplers"]) for f in fields(SampleConfig)}
    options = {name: diffusion.options_of(name) for name in diffusion.SAMPLERS}
    having = {
        option: {name for name, own in options.items() if option in own}
        for option in set().union(*options.values())
    }
    assert {name: owners[name] or set(options) for name in having} == having
    rest = {name: own for name, own in owners.items() if name not in having and own}
    assert rest == {"churn": {"heun"}}  # of its grid


def test_field_names_are_unique_across_sections():
    names = [f.name for section in SECTIONS for f in fields(section)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_stored_configuration_rebuilds_itself(config):
    config.check()
    assert Config.from_dict(asdict(config)) == config
    json.dumps(asdict(config))


def test_a_configuration_from_before_a_setting_existed_has_its_default():
    stored = asdict(Config())
    for name in ("spacing", "order", "churn", "restart", "restart_interval"):
        del stored["sample"][name]
    assert Config.from_dict(stored) == Config()


def test_unknown_fields_are_refused():
    with pytest.raises(ConfigError, match="epoch"):
        Config().override(epoch=1)
    stored = asdict(Config())
    stored["train"]["learning_rate"] = 1.0
    with pytest.raises(ConfigError, match="learning_rate"):
        Config.from_dict(stored)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", float("nan")), ("lr", 0.0), ("batch_size", 0), ("dropout", 1.0), ("epochs", -1)],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field.replace("_", "-")):
        Config().override(**{field: value}).check()


def parser() -> Parser:
    made = Parser(prog="x")
    for section in SECTIONS:
        made.add_section(section)
    return made


def test_only_typed_flags_are_passed_on():
    typed = vars(parser().parse_args(["--lr", "1e-4", "--channel-multipliers", "1", "2", "4"]))
    assert typed == {"lr": 1e-4, "channel_multipliers": (1, 2, 4)}
    assert vars(parser().parse_args(["--no-clip"])) == {"clip": False}


def test_values_can_come_from_a_file(tmp_path):
    path = tmp_path / "alphas.txt"
    path.write_text("0.9\n0.8\n")
    assert vars(parser().parse_args(["--alphas", f"@{path}"])) == {"alphas": (0.9, 0.8)}


@pytest.mark.parametrize(
    "argv", [["--epoch", "1"], ["--lr", "fast"], ["--sampler", "magic"], ["--lr"], ["stray"]]
)
def test_bad_input_is_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_shows_every_flag_with_its_default():
    text = parser().format_help()
    for section in SECTIONS:
        for f in fields(section):
            assert "--" + f.name.replace("_", "-") in text
    assert "[0.0007]" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [("heads", 4.0), ("clip", 1), ("steps", True), ("lr", "1"), ("alphas", [0.5])],
)
def test_a_stored_value_of_another_type_is_one_line(field, value):
    with pytest.raises(ConfigError, match=f"--{field} must not be"):
        Config().override(**{field: value}).check()


def test_a_stored_name_that_this_release_lacks_is_one_line():
    Config().check()  # control
    with pytest.raises(ConfigError, match=r"--sampler must be one of ddim, .*, got 'next'"):
        Config().override(sampler="next").check()


SAMPLING = [
    ({"steps": 1001}, "--steps must be in 1 ... 1000"),
    ({"sampler": "ddpm", "eta": 0.5}, "--eta has no effect on --sampler ddpm"),
    ({"sampler": "ddim", "variance": "beta"}, "--variance has no effect on --sampler ddim"),
    ({"guidance": 1.0, "guidance_interval": (0.1, 0.2)}, "has no effect on --guidance 1"),
    ({"guidance_interval": (0.8, 0.2)}, "takes two numbers"),
    ({"num_classes": 0, "guidance_interval": (0.1, 0.2)}, "has no effect on a network without"),
    ({"prediction": "x0", "discrete_pixels": True, "clip": False}, "--no-clip has no effect"),
]


@pytest.mark.parametrize(("typed", "message"), SAMPLING)
def test_settings_of_sampling_without_effect_are_refused(typed, message):
    with pytest.raises(ConfigError, match=message):
        Config().override(**typed).check_sampling(typed)


def test_settings_of_sampling_with_effect_are_taken():
    """The control of the test above; what was not typed has no need of an effect."""
    for typed in (
        {"steps": 1000, "spacing": "karras"},
        {"sampler": "ddim", "eta": 0.5},
        {"sampler": "dpmpp", "eta": 0.5},
        {"sampler": "heun", "churn": 9.0},
        {"sampler": "unipc", "order": 3},
        {"restart": 2, "restart_interval": (0.1, 0.2)},
        {"guidance": 2.0},
    ):
        Config().override(**typed).check_sampling(typed)
    Config().override(sampler="ddpm", eta=0.5).check_sampling(["sampler"])


def test_the_table_of_settings_is_current():
    """``python config.py > docs/settings.md`` makes it."""
    path = Path(config.__file__).parent / "docs/settings.md"
    assert path.read_text() == config.settings() + "\n"
