"""Run all steps of a study: questions, annotate, variants, sweep, report; first a world if no model is given.

slick study demo
slick study smoke --out studies/smoke
slick study smoke --questions entity_questions.zip --out studies/real-facts
slick study paper --model ID_OR_PATH --questions dataset.zip --out s3://bucket/study
slick study paper --dry-run                        # print the settings, and their cost on stderr
slick study paper --config study.yaml              # settings from YAML or JSON, such as a study.json
slick study demo --experiments idk,p_true          # train only what these need; later runs may add more
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from jobs.common import is_help_command, parse_config, parse_out, parse_preset, run_main
from jobs.config_file import expand_config_file
from jobs.cost_forecast import forecast_cost, include_finished_variants, needs_training, resolve_experiments
from jobs.flags import pop_switch
from jobs.presets import STUDY, StudyConfig
from jobs.study_file import settings_selector
from slick.errors import SettingsError
from slick.experiments import EXPERIMENTS, parse_experiment_names
from slick.formatting import format_duration
from slick.storage import Folder
from slick.study import STUDY as STUDY_FILE
from slick.study import Manifest, read_study_settings, settings_to_json, versions
from slick.variants import extend_drawn


def main(argv: Sequence[str]) -> None:
    """Run the study, or print its settings and cost."""
    if is_help_command(argv):
        print(f"{(__doc__ or '').strip()}\n\nPresets: {', '.join(STUDY)}. All flags: `slick study PRESET --help`")
        lines = (
            f"  {name:<14} {experiment.exhibits or 'beyond':<15} {experiment.description}"
            for name, experiment in EXPERIMENTS.items()
        )
        print("\n".join(("\nExperiments, and where they are in the paper:", *lines)))
        return
    name, preset, rest = parse_preset(argv, "slick study", STUDY)
    out, rest = parse_out(rest, "slick study", default=f"studies/{name}")
    dry_run, rest = pop_switch(rest, "--dry-run")
    prog, others = f"slick study {name}", ("out", "dry-run", "config")
    rest = expand_config_file(rest, preset(), prog, settings_selector("study"), others)
    config = parse_config(preset(), rest, prog, others)
    config = resolve(config, needs_model=not dry_run)
    if dry_run:
        print(json.dumps(settings_to_json(config), indent=2))
        print(forecast_cost(config, out), file=sys.stderr)  # so that the output alone is a file for --config
        return
    run_study(out, config)


def resolve(config: StudyConfig, *, needs_model: bool = True) -> StudyConfig:
    """Copy the study's model, questions and seed to its steps, and the variants of its experiments to the sweep.

    Without a model a world is built; questions, if given, are then the facts of the world.

    Args:
        config: as parsed.
        needs_model: raise if the model or its questions are missing; a dry run does without them.

    Raises:
        SettingsError: neither a model nor a world, a model without questions, or experiments that need other settings.
    """
    if needs_model:
        _check_model(config)
    config = resolve_experiments(config)
    seed, prepare, grid = config.seed, config.prepare, config.sweep.grid
    grid = replace(grid, seeds=tuple(seed + offset for offset in grid.seeds))
    return replace(
        config,
        world=replace(config.world, seed=seed, questions=config.questions or config.world.questions),
        prepare=(
            replace(prepare, questions=config.questions)
            if config.model
            else replace(prepare, questions="", audit=config.questions or prepare.audit)
        ),
        annotate=replace(
            config.annotate, model=config.model, seed=seed, sampling=replace(config.annotate.sampling, seed=seed)
        ),
        variants=replace(config.variants, seed=seed),
        sweep=replace(config.sweep, grid=grid, train=replace(config.sweep.train, model=config.model)),
    )


def _check_model(config: StudyConfig) -> None:
    if config.model and not config.questions:
        raise SettingsError(
            f"--model {config.model} needs --questions FILE: the EntityQuestions download, or any question set "
            "(see `slick questions --help`)"
        )
    if not config.model and not config.embedded:
        raise SettingsError(
            "this preset needs a model: give --model ID_OR_PATH and --questions FILE, or use the preset demo, which "
            "builds a small model"
        )


def run_study(study: Folder, config: StudyConfig) -> None:
    """Run the unfinished steps in order, and print the path of the report."""
    began = time.monotonic()
    steps = _steps(config)
    for number, (name, run) in enumerate(steps, 1):
        step_began = time.monotonic()
        print(f"[{number}/{len(steps)}] {name}", flush=True)
        run(study)
        seconds = time.monotonic() - step_began
        print(f"[{number}/{len(steps)}] {name}: done in {format_duration(seconds)}\n", flush=True)
        if number == 1:  # only after a step has accepted the settings for this folder
            merged = replace(
                config, experiments=_all_experiments(study, config), variants=extend_drawn(study, config.variants)
            )
            study.write_json(STUDY_FILE, {"settings": settings_to_json(merged), "versions": versions()})
    print(f"The study took {format_duration(time.monotonic() - began)}. Report: {study.child('report')}/index.html")


def _all_experiments(study: Folder, config: StudyConfig) -> tuple[str, ...]:
    """The experiments requested by this run and by earlier ones."""
    stored = read_study_settings(study)
    return parse_experiment_names([*(stored.experiments if stored else ()), *config.experiments])


def _steps(config: StudyConfig) -> list[tuple[str, Callable[[Folder], Manifest]]]:
    from slick.annotation import annotate
    from slick.datasets import prepare_questions
    from slick.report import make_report
    from slick.variants import draw_variants
    from slick.world import build_world
    from tuning.sweep import sweep

    steps: list[tuple[str, Callable[[Folder], Manifest]]] = []
    if not config.model:
        steps.append(("world", lambda study: build_world(study, config.world)))
    steps += [
        ("questions", lambda study: prepare_questions(study, config.prepare)),
        ("annotate", lambda study: annotate(study, config.annotate)),
    ]
    if needs_training(config):  # all variants are drawn, so that later runs can train more of them
        steps += [
            ("variants", lambda study: draw_variants(study, config.variants)),
            ("sweep", lambda study: sweep(study, include_finished_variants(study, config))),
        ]
    return [*steps, ("report", lambda study: make_report(study, config.report))]


if __name__ == "__main__":
    run_main(main)
