"""README and docs match the code: commands parse, links and pictures exist, findings and columns are complete."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobs import presets
from jobs.cli import STEP_DESCRIPTIONS
from jobs.common import parse_config, parse_out, parse_preset
from jobs.curate import pop_forecast_flags
from jobs.plan import PlanConfig
from jobs.submit import parse_submission
from slick.annotation import RescoreConfig
from slick.curation.config import CurateConfig
from slick.report.findings.base import findings
from slick.study import Manifest
from slick.study_files import (
    EPOCHS_SCHEMA,
    GENERATION_SCHEMA,
    GOLD_SCHEMA,
    KNOWLEDGE_SCHEMA,
    P_TRUE_SCHEMA,
    PLANTED_SCHEMA,
    POINTS_SCHEMA,
    PREDICTIONS_SCHEMA,
    QUESTION_SCHEMA,
    RIGHT_TO_WRONG_SCHEMA,
    ROWS_SCHEMA,
    SET_ASIDE_SCHEMA,
    VARIANT_SCHEMA,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
SCHEMAS = {
    "questions/": [QUESTION_SCHEMA],
    "annotate/": [GENERATION_SCHEMA, GOLD_SCHEMA, P_TRUE_SCHEMA, SET_ASIDE_SCHEMA, KNOWLEDGE_SCHEMA],
    "variants/": [VARIANT_SCHEMA],
    "runs/RUN_ID/": [EPOCHS_SCHEMA, PREDICTIONS_SCHEMA, ROWS_SCHEMA, RIGHT_TO_WRONG_SCHEMA],
    "sweep/": [POINTS_SCHEMA],
    "world/": [PLANTED_SCHEMA],
}


def commands(text: str) -> list[str]:
    """The `slick` commands in code blocks, without their comments and optional parts; continued lines are joined."""
    joined = re.sub(r" *\\\n *", " ", text)
    lines = re.findall(r"^(?: {4})?(slick [a-z].*?)(?: {2,}#.*)?$", joined, re.MULTILINE)
    return sorted({re.sub(r" \[.*?\]$", "", line) for line in lines})


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page.read_text())]


def section(page: str, heading: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"docs/{page} has no section {heading}"
    return match[1]


def test_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 110] == []


def test_readme_has_the_two_commands() -> None:
    assert "    make demo" in README
    assert "    make test" in README


def test_readme_headings_are_in_order() -> None:
    headings = [
        *("Quick start", "Your own data", "Reproduce the paper", "On a cluster", "From Python", "How it works"),
        *("Results", "Performance", "Limits", "Documentation, citation, license"),
    ]
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == headings
    assert README.index("![") < README.index("## ")


def test_pages_have_commands() -> None:
    pages = {name for name, _ in COMMANDS}
    assert {"README.md", "cluster.md", "benchmarks.md"} <= pages
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_valid(page: str, command: str) -> None:
    step, *arguments = shlex.split(command)[1:]
    assert step in STEP_DESCRIPTIONS
    if step == "submit":
        parse_submission([word.replace("dataset.zip", "s3://bucket/dataset.zip") for word in arguments])
        return
    if step == "jobs":
        assert arguments[0] == "--address"
        return
    _, arguments = parse_out(arguments, step, default="x")
    if step == "status":
        assert not arguments
        return
    if step == "compare":
        assert len(arguments) > 1
        assert not any(word.startswith("-") for word in arguments)
        return
    if step == "plan":
        parse_config(PlanConfig(), arguments, step)
        return
    if step == "curate":
        parse_config(CurateConfig(), pop_forecast_flags(arguments[1:])[1], step)
        return
    step_presets = getattr(presets, step.upper())
    _, preset, arguments = parse_preset(arguments, step, step_presets)
    if "--rescore" in arguments:
        preset = RescoreConfig
        arguments.remove("--rescore")
    parse_config(preset(), [word for word in arguments if word != "--dry-run"], step)


@pytest.mark.parametrize("command", ["slick finetune lora --variants x", "slick study paper --quest x"])
def test_invalid_command_is_detected(command: str) -> None:
    (parsed,) = commands(f"    {command}  # comment\n")
    with pytest.raises(Exception, match="--"):
        test_commands_are_valid("x", parsed)


def test_flags_of_benchmarks_exist() -> None:
    text = re.sub(r" *\\\n *", " ", (ROOT / "docs" / "benchmarks.md").read_text())
    commands_of_benchmarks = re.findall(r"python -m tests\.benchmarks\.(\w+)(.*)", text)
    assert {name for name, _ in commands_of_benchmarks} == {
        path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py")
    }
    for name, flags in commands_of_benchmarks:
        code = (ROOT / "tests" / "benchmarks" / f"{name}.py").read_text()
        for flag in re.findall(r"--[a-z-]+", flags):
            assert f'"{flag}"' in code, f"tests/benchmarks/{name}.py has no {flag}"


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub generates for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "tests" / "benchmarks" / "README.md"], ids=lambda page: page.name)
def test_link_targets_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_pictures_exist() -> None:
    pictures = [(page, name) for page in PAGES for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())]
    assert any(page.name == "README.md" for page, _ in pictures)
    for page, name in pictures:
        assert (page.parent / name).stat().st_size > 1000


def test_every_page_of_docs_is_linked_from_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README


def test_findings_match_the_code() -> None:
    rows = {}
    for line in (ROOT / "docs" / "findings.md").read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(r"E\d+", cells[0]):
            rows[cells[0]] = cells[1:]
    assert sorted(rows) == sorted(findings.names())
    assert len(rows) == 25
    for name, finding in findings.items():
        claim, paper, rule, link = rows[name]
        assert claim == finding.claim
        values = finding.paper if isinstance(finding.paper, list) else [finding.paper]
        assert paper.removesuffix(" points") == ", ".join(map(str, values))
        assert rule.endswith(".")
        code = ROOT / "docs" / re.findall(r"\(([^)]+)\)", link)[0]
        assert f"def {name.lower()}(" in code.read_text(), f"{name} is not in {code.name}"


@pytest.mark.parametrize("heading", SCHEMAS)
def test_every_column_of_a_study_is_documented(heading: str) -> None:
    text = section("study-folder.md", heading)
    for schema in SCHEMAS[heading]:
        for column in schema.names:
            split = column.partition("_")[0]
            documented = "SPLIT_CATEGORY" if split in ("train", "dev", "test", "ood") else column
            assert re.search(rf"\b{re.escape(documented)}\b", text), column


def test_every_key_of_a_manifest_is_documented() -> None:
    text = section("study-folder.md", "Manifests and locks")
    for key in Manifest.__dataclass_fields__:
        assert f"| {key} |" in text


def test_every_package_is_described() -> None:
    text = section("architecture.md", "Packages")
    packages = [*(ROOT / "slick").glob("*/__init__.py"), ROOT / "slick/x", ROOT / "tuning/x", ROOT / "jobs/x"]
    for package in packages:
        assert f"**{package.parent.relative_to(ROOT).as_posix()}/**" in text


def test_paths_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`((?:slick|tuning|jobs|tests)/[\w/.]+)`", text))
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_continuous_integration_runs_the_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
