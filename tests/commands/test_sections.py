"""Options keep the section that they were declared in, in the order of declaration; all else of click is as it was."""

import re

import click
import pytest
from click.testing import CliRunner

from demkd.cli import main
from demkd.commands.options import STUDY
from demkd.commands.sections import FIRST, SectionedCommand, section, sections_of
from demkd.pipeline.methods import CHOICES, CONTROLS

inner = section("Inner", click.option("--deep"))
outer = section("Outer", click.option("--one"), inner, click.option("--two/--no-two"))


@click.command(cls=SectionedCommand)
@click.argument("what")
@click.option("--free", help="Of no section.")
@outer
@click.option("--hidden", hidden=True)
def command(what: str, free: str, one: str, deep: str, two: bool, hidden: str) -> None:
    """Say what came."""
    click.echo(f"{what} {free} {one} {deep} {two} {hidden}")


def test_sections_are_those_of_the_declaration() -> None:
    found = {title: [option.name for option in options] for title, options in sections_of(command).items()}
    assert found == {FIRST: ["free", "hidden"], "Outer": ["one", "two"], "Inner": ["deep"]}


def test_help_has_a_part_a_section_and_parsing_is_clicks() -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == ["Options", "Outer", "Inner"]
    assert (
        text.index("--free") < text.index("--help") < text.index("--one") < text.index("--two") < text.index("--deep")
    )
    assert "--hidden" not in text
    told = CliRunner().invoke(command, ["a", "--deep", "d", "--no-two", "--free", "f"]).stdout
    assert told == "a f None d False None\n"


def test_a_section_of_hidden_options_is_not_shown() -> None:
    @click.command(cls=SectionedCommand)
    @section("Secret", click.option("--hidden", hidden=True))
    def quiet(hidden: str) -> None:
        """Say nothing."""

    assert "Secret" not in CliRunner().invoke(quiet, ["--help"]).stdout


@pytest.mark.parametrize("name", main.commands)
def test_every_option_of_a_command_is_in_its_help_once(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"]).stdout
    options = [option for options in sections_of(main.commands[name]).values() for option in options]
    for option in options:
        assert len(re.findall(rf"^  .*{re.escape(option.opts[0])}\b(?!-)", shown, re.MULTILINE)) >= 1
    assert len(options) == sum(isinstance(one, click.Option) for one in main.commands[name].params)


def test_the_controls_of_a_study_are_apart_from_what_users_need() -> None:
    sections = sections_of(main.commands["distill"])
    assert {option.name for option in sections[STUDY]} == {*CONTROLS, "label_noise"}
    assert {option.name for option in sections["Method"]} >= {"method", "loss", "standardise", "kd_weight"}
    assert {option.name for option in sections["Teacher weights"]} >= CHOICES.keys() - {"loss"}
    assert [option.name for option in sections_of(main.commands["train"])[STUDY]] == ["label_noise"]
