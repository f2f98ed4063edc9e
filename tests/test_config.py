"""Sections are signatures, presets rebuild, bad values are one line."""

import inspect
import json
from dataclasses import asdict, fields

import pytest

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
    add_options,
)
from models import UNet

SECTIONS = list(vars(Config()).values())


@pytest.mark.parametrize(
    ("section", "configured", "not_configured"),
    [
        (DataConfig, data.load, {"train", "download"}),
        (ModelConfig, UNet, set()),
        (DiffusionConfig, diffusion.make_diffusion, set()),
    ],
)
def test_sections_are_the_keyword_arguments_of_what_they_configure(
    section, configured, not_configured
):
    parameters = set(inspect.signature(configured).parameters) - not_configured
    assert {f.name for f in fields(section)} == parameters


def test_sample_section_holds_every_option_of_every_sampler():
    names = {f.name for f in fields(PRESETS["mnist"].sample)}
    for sampler in diffusion.SAMPLERS.values():
        own = inspect.signature(sampler).parameters.values()
        assert {p.name for p in own if p.kind is p.KEYWORD_ONLY} <= names


def test_field_names_are_unique_across_sections():
    names = [f.name for section in SECTIONS for f in fields(section)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_stored_configuration_rebuilds_itself(config):
    config.check({})
    assert Config.from_dict(asdict(config)) == config
    json.dumps(asdict(config))


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
        Config().override(**{field: value}).check({})


def parser() -> Parser:
    made = Parser(prog="x")
    add_options(made, SECTIONS, {"sampler": ["ddim", "ddpm"]})
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
            shown = "--" + f.name.replace("_", "-") in text
            assert shown == (f.name != "image_channels")  # which follows from the data
    assert "[0.0007]" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [("heads", "x"), ("heads", 4.0), ("clip", 1), ("steps", True), ("lr", "1"), ("alphas", [0.5])],
)
def test_a_stored_value_of_another_type_is_one_line(field, value):
    with pytest.raises(ConfigError, match=f"--{field} must not be"):
        Config().override(**{field: value}).check({})


def test_a_stored_name_that_this_release_lacks_is_one_line():
    choices = {"sampler": ["ddpm", "ddim"]}
    Config().check(choices)  # control
    with pytest.raises(ConfigError, match="--sampler must be one of ddim, ddpm, got 'next'"):
        Config().override(sampler="next").check(choices)
