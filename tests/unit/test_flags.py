"""Flags: accepted spellings, suggestions, and one message for an invalid command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli, presets
from jobs.common import parse_config
from jobs.flags import closest_names, flag_names
from slick.errors import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("step", presets.STEP_PRESETS)
def test_flag_names_equal_those_of_the_help(
    step: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    config = next(iter(presets.STEP_PRESETS[step].values()))()
    with pytest.raises(SystemExit) as stop:
        parse_config(config, ["--help"], f"slick {step}")
    assert not stop.value.code
    listed = {word.strip(",│") for word in capsys.readouterr().out.split() if word.startswith("--")}
    for name, is_switch in flag_names(type(config)).items():
        before, dot, last = name.rpartition(".")
        assert f"--{name}" in listed
        assert (f"--{before}{dot}no-{last}" in listed) is is_switch, name


@pytest.mark.parametrize(
    "flag",
    [
        "--variants.no-single-categories",
        "--no-variants.single-categories",
        "--variants.no_single_categories",
        "--no_variants.single_categories",
    ],
)
def test_switch_can_be_turned_off_in_several_spellings(flag: str) -> None:
    assert presets.demo_study().variants.single_categories
    assert not parse_config(presets.demo_study(), [flag], "slick study demo").variants.single_categories
    both = [flag, "--variants.single-categories"]
    assert parse_config(presets.demo_study(), both, "slick study demo").variants.single_categories


def test_underscores_are_hyphens_in_flag_names_only() -> None:
    arguments = ["--annotate.max_actors=4", "--sweep.train.learning_rate", "0.5", "--model", "my_model"]
    config = parse_config(presets.demo_study(), arguments, "slick study demo")
    assert (config.annotate.max_actors, config.sweep.train.learning_rate, config.model) == (4, 0.5, "my_model")


@pytest.mark.parametrize("flag", ["questions", "source"])
def test_questions_flag_accepts_its_former_name(flag: str) -> None:
    for name in ("questions", "world"):
        config = parse_config(presets.STEP_PRESETS[name]["demo"](), [f"--{flag}", "q.zip"], f"slick {name} demo")
        assert config.questions == "q.zip"
    arguments = [f"--{flag}", "a", f"--prepare.{flag}", "b", f"--world.{flag}=c"]
    study = parse_config(presets.demo_study(), arguments, "slick study demo")
    assert (study.questions, study.prepare.questions, study.world.questions) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["study", "demo", "--learning-rate", "1"],
            "--learning-rate (did you mean --sweep.train.learning-rate or --wo",
        ),
        (["study", "demo", "--sweep.train.lerning-rate", "1"], "(did you mean --sweep.train.learning-rate?)"),
        (["study", "demo", "--dry-rum"], "no flag --dry-rum (did you mean --dry-run?)"),
        (["annotate", "smoke", "--out", "OUT", "--no-p-tru"], "no flag --no-p-tru (did you mean --no-p-true?)"),
        (["annotate", "smoke", "--out", "OUT", "--xyzzy", "--mod", "full"], "no flag --xyzzy, nor --mod (did you mean"),
        (["annotate", "smoke", "--ot", "OUT"], "no flag --ot (did you mean --out?)"),
        (["annotate", "smoke", "--out"], "--out: expected one argument"),
        (
            ["annotate", "smoke", "--out", "OUT", "--mode", "lables"],
            "--mode takes full or labels, got 'lables' (did you",
        ),
        (["annotate", "smoke", "--out", "OUT", "--matcher", "exat"], "no matcher 'exat'; did you mean exact?"),
        (["annotate", "smoke", "--out", "OUT", "--matcher", "f1>=70"], "needs a word F1 in (0, 1], got 'f1>=70'"),
        (["finetune", "smoke", "--out", "OUT", "--matcher", "f1>=.7"], "shortest form; write 'f1>=0.7'"),
        (["annotate", "smoke", "--out", "OUT", "--mode"], "--mode takes a value, got nothing"),
        (["annotate", "smoke", "--out", "OUT", "--max_actors", "two"], "takes None or an integer, got 'two'"),
        (["annotate", "smoke", "--out", "OUT", "more"], "slick annotate smoke does not take 'more'"),
        (["world", "smoke", "--out", "OUT", "--learning-rate", "high"], "takes a number, got 'high'"),
        (["world", "smoke", "--out", "OUT", "--firm-mentions", "3"], "takes 2 values, got '3'"),
        (["sweep", "smoke", "--out", "OUT", "--grid.epochs", "a", "b"], "takes an integer, once or more, got 'a b'"),
        (["anotate"], "no step 'anotate' (did you mean annotate?)"),
        (["study", "dem"], "no preset 'dem' (did you mean demo?)"),
        (["plan", "--model-sise", "7B"], "no flag --model-sise (did you mean --model-size?)"),
        (["plan", "--gpus", "many"], "--gpus takes an integer, got 'many'"),
        (["compare", "a", "b", "--num-chunk", "3"], "no flag --num-chunk (did you mean --num-chunks?)"),
        (["compare", "a", "b", "--num_chunks", "x"], "--num-chunks: invalid int value: 'x'"),
        (["status", "--ou", "OUT"], "no flag --ou (did you mean --out?)"),
        (["status", "--out", "OUT", "--al"], "slick status has no flag --al;"),
        (["status", "--out", "OUT", "more"], "slick status does not take 'more'"),
        (["jobs", "--folow", "a"], "no flag --folow (did you mean --follow?)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_flags_are_one_message_and_write_nothing(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as error:
        cli._run_step(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(capsys.readouterr())
    assert not list(tmp_path.iterdir())


def test_invalid_flag_is_one_line_on_stderr() -> None:
    command = [sys.executable, "-m", "jobs.cli", "annotate", "smoke", "--out", "nowhere", "--mode", "lables"]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (2, "")
    (line,) = completed.stderr.strip().splitlines()
    assert line.startswith("slick: slick annotate smoke: --mode takes full or labels, got 'lables'")


def test_no_suggestion_without_a_similar_name() -> None:
    assert closest_names("xyzzy", ["model", "mode"]) == []
    assert closest_names("model", []) == []
