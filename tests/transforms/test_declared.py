"""Options that are declared once: the check, its errors and the command line's options derive from the field."""

import re
from dataclasses import dataclass, field, fields

import click
import pytest

from pipeline.cli.app import cli
from pipeline.cli.options import gathered, options_of
from tests import ROOT
from transforms.declared import AT_LEAST_ONE, SEED, SHARE, check, declared, parse_numbers
from transforms.embedding.embed_images import EmbedImages
from transforms.embedding.settings import EmbedOptions
from transforms.embedding.unit import Job
from transforms.errors import UsageError
from transforms.spec import FeatureSpec, SpecOptions


@dataclass(frozen=True, kw_only=True)
class Inner:
    seed: int = declared(0, help="Seed of all", bounds=(SEED,))


@dataclass(frozen=True, kw_only=True)
class Base:
    share: float | None = declared(None, help="How much", bounds=(SHARE,), unset="all")


@dataclass(frozen=True, kw_only=True)
class Dummy(Base):
    place: str
    output: str = declared(help="Where to", flags=("--output", "-o"), metavar="OUT")
    colour: str = declared("red", help="How it looks", choices=("red", "green", "blue"))
    most_rows: int = declared(5, help="Most rows", bounds=(AT_LEAST_ONE,))
    names: tuple[str, ...] = declared((), help="A name", flags=("--name",))
    grid: tuple[float, ...] = declared((1.0,), help="Numbers", parse=parse_numbers)
    loud: bool = declared(False, help="Say it loudly")
    neat: bool = declared(True, help="Write neatly")
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"colour": "gren"}, "no colour 'gren'; did you mean green"),
        ({"most_rows": 0}, "--most-rows must be at least 1, not 0"),
        ({"share": float("nan")}, "--share is a share between 0 and 1, not nan"),
        ({"inner": Inner(seed=-1)}, "--seed -1: a seed is from 0 to 4294967295"),
    ],
)
def test_wrong_values(given, error):
    with pytest.raises(UsageError, match=error):
        check(Dummy(place="here", output="out", **given))


def test_right_values():
    check(Dummy(place="here", output="out", share=1.0, names=("a", "b"), colour="blue"))


def parsed(*args: str) -> Dummy:
    command = click.Command("dummy", params=options_of(Dummy, without=["place"]))
    return gathered(Dummy, command.make_context("dummy", list(args)).params, place="here")


def test_the_command_line():
    assert parsed("-o", "out") == Dummy(place="here", output="out")
    args = ["--share", "0.5", "--most-rows", "3", "--name", "a", "--name", "b", "--grid", "1,2", "--loud", "--no-neat"]
    assert parsed("--output", "out", *args, "--colour", "blue", "--seed", "7") == Dummy(
        place="here",
        output="out",
        share=0.5,
        colour="blue",
        most_rows=3,
        names=("a", "b"),
        grid=(1.0, 2.0),
        loud=True,
        neat=False,
        inner=Inner(seed=7),
    )
    for wrong in ([], ["-o", "out", "--grid", "1,x"], ["-o", "out", "--most-rows", "x"]):
        with pytest.raises(click.UsageError):
            parsed(*wrong)


def test_help():
    text = click.Command("dummy", params=options_of(Dummy)).get_help(click.Context(click.Command("dummy")))
    text = " ".join(text.split())
    assert "--output OUT Where to. [required]" in text
    assert "How it looks: red, green or blue. [default: red]" in text
    assert "How much. [default: all]" in text


def test_what_workers_need_is_an_option_of_all_who_embed():
    names = {own.name for own in fields(EmbedOptions)}
    for command in ("extract", "estimate", "predict"):
        assert names <= {parameter.name for parameter in cli.commands[command].params}
    assert names <= {own.name for own in fields(Job)}


def test_what_decides_the_numbers_is_an_option_and_in_the_spec():
    names = {own.name for own in fields(SpecOptions)}
    for command in ("extract", "estimate"):
        # The version of the rules for pixels is nobody's choice: a new OUT has the newest.
        assert names - {"pixel_rules"} <= {parameter.name for parameter in cli.commands[command].params}
    assert {own.name for own in fields(FeatureSpec)} == names | {"backbone", "weights", "features", "normalise"}


def test_a_transform_checks_its_settings():
    with pytest.raises(UsageError, match="did you mean ncnn"):
        EmbedImages(FeatureSpec("vgg19", "", ()), engine="nccn")
    with pytest.raises(UsageError, match="--max-pixels must be at least 1"):
        EmbedImages(FeatureSpec("vgg19", "", ()), max_pixels=0)


def test_no_command_gives_an_option_a_default_or_a_type_itself():
    """The function behind it would give them once more: they stand in its options class."""
    one = r"click\.option\((?:(?!\n@|\ndef |click\.option).)*"
    own = re.compile(one + r"(?:\b(?:default|show_default|type)=|\[default)", re.DOTALL)
    for path in sorted((ROOT / "pipeline/cli").glob("*.py")):
        assert not own.search(path.read_text()), path.name
