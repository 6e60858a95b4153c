"""The whole study: questions, annotation, variants, sweep, report; before them a world, where no model is given.

slick study demo
slick study smoke --out studies/smoke
slick study smoke --questions entity_questions.zip --out studies/real-facts
slick study paper --model ID_OR_PATH --questions dataset.zip --out s3://bucket/study
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from jobs.door import parse_config, parse_out, parse_preset, run_main, wants_help
from jobs.presets import STUDY, StudyConfig
from slick.errors import SettingsError
from slick.progress import duration
from slick.storage import Folder
from slick.study import Manifest, plain_settings, versions
from slick.variants.plan import variant_names
from tuning.grid import GridConfig, points


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    if wants_help(argv):
        print(f"{(__doc__ or '').strip()}\n\nPresets: {', '.join(STUDY)}. All flags: `slick study PRESET --help`")
        return
    name, preset, rest = parse_preset(argv, "slick study", STUDY)
    out, rest = parse_out(rest, "slick study", default=f"studies/{name}")
    dry_run = "--dry-run" in rest
    config = parse_config(preset(), [word for word in rest if word != "--dry-run"], f"slick study {name}")
    config = resolve(config)
    if dry_run:
        print(json.dumps(plain_settings(config), indent=2))
        print(forecast(config))
        return
    run_study(out, config)


def resolve(config: StudyConfig) -> StudyConfig:
    """Hand the study's own model, questions and seed down to its steps.

    Without a model a world is built; questions, if given, are then the facts that the world plants.

    Raises:
        SettingsError: neither a model nor a world, or a model without questions.
    """
    if config.model and not config.questions:
        raise SettingsError(
            f"--model {config.model} needs --questions FILE: the EntityQuestions download, or any question set "
            "(see `slick questions --help`)"
        )
    if not config.model and not config.embedded:
        raise SettingsError(
            "this preset asks a model of yours: give --model ID_OR_PATH and --questions FILE, or use the preset demo, "
            "which builds a small model of its own"
        )
    seed, prepare = config.seed, config.prepare
    grid = config.sweep.grid
    variants = variant_names(config.variants) if grid.variants == GridConfig().variants else grid.variants
    grid = replace(grid, variants=variants, seeds=tuple(seed + offset for offset in grid.seeds))
    return replace(
        config,
        world=replace(config.world, seed=seed, source=config.questions or config.world.source),
        prepare=(
            replace(prepare, source=config.questions)
            if config.model
            else replace(prepare, source="", audit=config.questions or prepare.audit)
        ),
        annotate=replace(
            config.annotate, model=config.model, seed=seed, sampling=replace(config.annotate.sampling, seed=seed)
        ),
        variants=replace(config.variants, seed=seed),
        sweep=replace(config.sweep, grid=grid, train=replace(config.sweep.train, model=config.model)),
    )


def forecast(config: StudyConfig) -> str:
    """What the study will cost, in generations and trainings, before any of it runs."""
    sampling = config.annotate.sampling
    per_question = config.annotate.num_exemplar_sets * (1 + sampling.num_samples)
    sweep = config.sweep
    runs, cells = sweep.trajectories, points(sweep.grid, sweep.train, shared=not sweep.why_independent)
    epochs = sum(run.epochs for run in runs)
    return (
        f"\n{per_question} generations a question ({config.annotate.num_exemplar_sets} prompts x (1 greedy + "
        f"{sampling.num_samples} samples))\n"
        f"{len(runs)} trainings, {epochs} epochs in all, give {len(cells)} points of the grid"
    )


def run_study(study: Folder, config: StudyConfig) -> None:
    """Run the steps that are not finished, in order, and say where the report is."""
    began = time.monotonic()
    steps = _steps(config)
    for number, (name, run) in enumerate(steps, 1):
        step_began = time.monotonic()
        print(f"[{number}/{len(steps)}] {name}", flush=True)
        manifest = run(study)
        seconds = time.monotonic() - step_began
        print(f"[{number}/{len(steps)}] {name}: done in {duration(seconds)}\n", flush=True)
        if number == 1:  # not before a step has agreed that the folder is of these settings
            study.write_json("study.json", {"settings": plain_settings(config), "versions": versions()})
        assert manifest.step == name, f"{name} returned the manifest of {manifest.step}"
    print(f"The study took {duration(time.monotonic() - began)}. Report: {study.child('report')}/index.html")


def _steps(config: StudyConfig) -> list[tuple[str, Callable[[Folder], Manifest]]]:
    from slick.annotation import annotate
    from slick.questions import prepare_questions
    from slick.report import make_report
    from slick.variants import draw_variants
    from slick.world import build_world
    from tuning.sweep import sweep

    steps: list[tuple[str, Callable[[Folder], Manifest]]] = []
    if not config.model:
        steps.append(("world", lambda study: build_world(study, config.world)))
    return [
        *steps,
        ("questions", lambda study: prepare_questions(study, config.prepare)),
        ("annotate", lambda study: annotate(study, config.annotate)),
        ("variants", lambda study: draw_variants(study, config.variants)),
        ("sweep", lambda study: sweep(study, config.sweep)),
        ("report", lambda study: make_report(study, config.report)),
    ]


if __name__ == "__main__":
    run_main(main)
