"""Commands: presets, flags, exit statuses and messages."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli, presets
from jobs.common import parse_config, parse_out, parse_preset, run_main
from jobs.study import forecast_cost, resolve
from slick.errors import DataError, SettingsError
from slick.study import settings_to_json
from slick.variants import VariantsConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("step", "name"), [(step, name) for step, named in presets.STEP_PRESETS.items() for name in named]
)
def test_presets_are_valid_and_serializable(step: str, name: str) -> None:
    config = presets.STEP_PRESETS[step][name]()
    assert json.loads(json.dumps(settings_to_json(config)))
    assert parse_config(config, [], f"slick {step}") == config


def test_paper_preset_has_the_settings_of_the_paper() -> None:
    study = presets.paper_study()
    train, sampling = study.sweep.train, study.annotate.sampling
    assert (train.epochs, train.learning_rate, train.batch_size, train.dropout) == (50, 1e-5, 128, 0.05)
    assert (study.annotate.num_exemplar_sets, study.annotate.num_shots) == (10, 4)
    assert (sampling.num_samples, sampling.temperature, sampling.top_k) == (16, 0.5, 40)
    assert study.prepare.filter == "paper"
    assert len(study.sweep.grid.variants) == 17


def test_flags_override_nested_settings() -> None:
    arguments = ["--seed", "3", "--annotate.max-actors", "4", "--sweep.train.learning-rate", "0.5"]
    config = parse_config(presets.demo_study(), arguments, "slick study demo")
    assert (config.seed, config.annotate.max_actors, config.sweep.train.learning_rate) == (3, 4, 0.5)


def test_seed_is_copied_to_every_step() -> None:
    first, second = resolve(presets.StudyConfig(seed=0)), resolve(presets.StudyConfig(seed=7))
    assert second.world.seed == second.annotate.seed == second.annotate.sampling.seed == second.variants.seed == 7
    assert second.sweep.grid.seeds == (7,)
    assert first.world.seed == 0


def test_sweep_trains_all_variants_unless_it_names_some() -> None:
    config = resolve(presets.StudyConfig(variants=VariantsConfig(unknown_shares=(0.0, 1.0), known_shares=(0.5,))))
    assert "unknown-050" not in config.sweep.grid.variants
    assert "unknown-100" in config.sweep.grid.variants


def test_model_requires_questions() -> None:
    config = resolve(presets.StudyConfig(model="m", questions="q.zip"))
    assert (config.prepare.questions, config.annotate.model, config.sweep.train.model) == ("q.zip", "m", "m")
    with pytest.raises(SettingsError, match="needs --questions"):
        resolve(presets.StudyConfig(model="m"))
    with pytest.raises(SettingsError, match="--model ID_OR_PATH"):
        resolve(presets.paper_study())


def test_questions_without_a_model_are_the_facts_of_the_world() -> None:
    config = resolve(presets.StudyConfig(questions="q.zip"))
    assert (config.world.questions, config.prepare.questions, config.prepare.audit) == ("q.zip", "", "q.zip")


def test_cost_forecast_counts_generations_runs_and_points() -> None:
    text = forecast_cost(resolve(presets.demo_study()))
    assert "170 generations a question" in text
    assert "25 trainings" in text


def test_demo_trains_all_shares_of_unknown_rows_at_ten_times_the_learning_rate_too() -> None:
    sweep = resolve(presets.demo_study()).sweep
    shares = {f"unknown-{share:03}" for share in (0, 10, 25, 50, 75, 90, 100)}
    others = [(training.variant, dict(training.settings)) for training in sweep.trajectories if training.settings]
    assert {variant for variant, _ in others} == shares
    assert all(settings == {"learning_rate": 10 * sweep.train.learning_rate} for _, settings in others)
    assert shares < {training.variant for training in sweep.trajectories if not training.settings}


def test_share_of_famous_rivals_is_a_setting_of_a_study() -> None:
    config = parse_config(presets.smoke_study(), ["--world.famous-rivals", "0"], "slick study smoke")
    world = resolve(config).world
    assert (world.famous_rivals, world.rival_mentions_ratio) == (0, 1)


def test_missing_out_or_preset_is_an_error() -> None:
    with pytest.raises(SettingsError, match="needs --out DIR"):
        parse_out([], "slick world")
    with pytest.raises(SettingsError, match=r"no preset 'domo' \(did you mean demo\?\); its presets are demo, smoke"):
        parse_preset(["domo"], "slick world", presets.WORLD)
    with pytest.raises(SettingsError, match="a preset first"):
        parse_preset(["--out", "x"], "slick world", presets.WORLD)


def test_slick_error_is_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        raise DataError("row 3 is empty")

    with pytest.raises(SystemExit) as stop:
        run_main(main, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == "slick: row 3 is empty"


def test_ctrl_c_is_status_130_and_other_exceptions_pass(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    def broken(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as stop:
        run_main(stopped, [])
    assert stop.value.code == 130
    assert "the same command resumes it" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_main(broken, [])


def test_sigterm_is_status_143_also_if_a_library_raises_keyboard_interrupt_itself() -> None:
    code = """
import os, signal, time
from jobs.common import run_main
def main(_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except BaseException:
        pass
    raise KeyboardInterrupt
run_main(main, [])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 143
    assert "the same command resumes it" in result.stderr


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["--help"], ["report", "demo", "--help"], ["sturdy"]], ids=" ".join)
def test_closed_output_pipe_ends_without_traceback(arguments: list[str], buffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    stderr = subprocess.STDOUT if arguments == ["sturdy"] else subprocess.PIPE
    completed = subprocess.run(command, stdout=writer, stderr=stderr, text=True, cwd=ROOT, env=environment, check=False)
    os.close(writer)
    assert completed.returncode == 141
    assert not completed.stderr


def test_other_broken_pipe_is_raised() -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError("a socket of a worker")

    with pytest.raises(BrokenPipeError, match="socket"):
        run_main(broken, [])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, "usage: slick STEP PRESET"),
        (["sturdy"], 2, "there is no step 'sturdy'"),
        (["annotate", "demo", "--out", "x", "--max-acters", "2"], 2, "max-actors"),
        (["status", "--out", "/nowhere/at/all"], 2, "/nowhere/at/all does not exist"),
        (["study", "paper"], 2, "give --model ID_OR_PATH"),
    ],
)
def test_command_line_in_a_subprocess(arguments: list[str], status: int, message: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stderr
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_every_step_has_a_module() -> None:
    for step in cli.STEP_DESCRIPTIONS:
        assert (ROOT / "jobs" / f"{step}.py").exists()


def test_commands_print_log_messages_as_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> None:
        logging.getLogger("slick.study").info("a message of %d words", 5)
        logging.getLogger("tuning.sweep").warning("a warning")
        logging.getLogger("slick.study").debug("a detail")
        logging.getLogger("other").info("a message of another library")

    run_main(main, [])
    run_main(main, [])
    captured = capsys.readouterr()
    assert captured.out == "a message of 5 words\n" * 2
    assert captured.err == "a warning\n" * 2


def test_library_code_prints_nothing_unless_logging_is_configured(tmp_path: Path) -> None:
    code = (
        "import slick, sys\n"
        "from slick.precision import CPU, Device, StoredDtype, resolve_step_dtype\n"
        "gpu = Device(is_gpu=True, supports_bfloat16=True, name='a GPU')\n"
        "stored = StoredDtype(dtype='float32', is_finished=False)\n"
        "for _ in range(2):\n"
        "    resolve_step_dtype('annotate', 'auto', stored, lambda: gpu)\n"
        "    import logging; logging.basicConfig(level='INFO', format='%(message)s', stream=sys.stdout)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.count("annotate: continues in float32") == 1
    assert result.stderr == ""
