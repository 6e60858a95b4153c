"""README is true: its commands parse, its tree names every file, it is short."""

import re
import shlex
from pathlib import Path

import pytest

from jobs import presets
from jobs.cli import STEPS
from jobs.door import parse_config, parse_out, parse_preset
from jobs.plan import PlanConfig
from jobs.submit import parse_submission
from slick.annotation import RescoreConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^ {4}(slick [a-z].*?)(?: {2,}#.*)?$", README, re.MULTILINE)))


def test_it_is_short_and_holds_the_two_commands() -> None:
    assert len(README.splitlines()) <= 200
    assert "make demo" in README
    assert "make test" in README


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_parses(command: str) -> None:
    step, *words = shlex.split(command)[1:]
    assert step in STEPS
    if step == "submit":
        assert parse_submission([word.replace("dataset.zip", "s3://bucket/dataset.zip") for word in words])
        return
    if step == "jobs":
        assert words[0] == "--address"
        return
    _, words = parse_out(words, step, default="x")
    if step == "status":
        assert not words
        return
    if step == "compare":
        assert len(words) > 1
        assert not any(word.startswith("-") for word in words)
        return
    if step == "plan":
        parse_config(PlanConfig(), words, step)
        return
    named = getattr(presets, step.upper())
    _, preset, words = parse_preset(words, step, named)
    if "--rescore" in words:
        preset = RescoreConfig
        words.remove("--rescore")
    parse_config(preset(), [word for word in words if word != "--dry-run"], step)


def test_the_tree_names_every_file() -> None:
    tree = README[README.index("## The house") : README.index("## Words")]
    rooms = dict(
        zip(
            ("slick", "tuning", "jobs"),
            re.split(r"^(?:slick|tuning|jobs)/  ", tree, flags=re.MULTILINE)[1:],
            strict=True,
        )
    )
    for root, text in rooms.items():
        for path in (ROOT / root).rglob("*.py"):
            if path.name != "__init__.py":
                assert re.search(
                    rf"[ /]{re.escape(path.name)}(?=[ ,:])|[ /]{re.escape(path.name)}$", text, re.MULTILINE
                ), path
        for named in re.findall(r"^  (\S+\.py) ", text, re.MULTILINE):
            assert (ROOT / root / named).exists(), f"README names {root}/{named}, which is not there"


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size > 1000
