"""Run all steps of a study: questions, annotate, variants, sweep, report; first a world if no model is given.

slick study demo
slick study smoke --out studies/smoke
slick study smoke --questions entity_questions.zip --out studies/real-facts
slick study paper --model ID_OR_PATH --questions dataset.zip --out s3://bucket/study
slick study lora --model FOLDER --questions FILE   # the paper's study with LoRA; `large`: sharded over GPUs
slick study paper --dry-run                        # print the settings; their cost and memory on stderr
slick study paper --config study.yaml              # settings from YAML or JSON, such as a study.json
slick study demo --experiments idk,p_true          # train only what these need; later runs may add more
slick study demo --experiments remedies            # remedies against forgetting, on unknown-050
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from jobs.common import is_help_command, parse_config, parse_out, parse_preset, run_main
from jobs.config_file import expand_config_file, settings_selector
from jobs.flags import pop_switch
from jobs.presets import STUDY, StudyConfig
from slick.errors import SettingsError, StudyError
from slick.experiments import (
    EXPERIMENTS,
    PAPER_EXPERIMENTS,
    further_settings_for,
    missing_requirements,
    parse_experiment_names,
    variants_for_experiments,
)
from slick.formatting import format_duration, format_table
from slick.precision import ASSUMED_GPU, resolve_train_dtype
from slick.storage import Folder
from slick.study import STUDY as STUDY_FILE
from slick.study import Manifest, read_manifest, read_study_settings, require_manifest, settings_to_json, versions
from slick.variants import extend_drawn
from slick.variants.config import variant_names
from tuning.config import TrainConfig
from tuning.estimates import estimate_training_memory, model_shape
from tuning.grid import GridConfig, points
from tuning.runs import plan_runs
from tuning.sweep import SweepConfig, resolve_sweep_precision


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
    grid = replace(
        grid,
        seeds=tuple(seed + offset for offset in grid.seeds),
        further_seeds=tuple(seed + offset for offset in grid.further_seeds),
    )
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
    from tuning.wording import reword

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
            (
                "sweep",
                lambda study: sweep(study, include_finished_settings(study, include_finished_variants(study, config))),
            ),
        ]
    if any(EXPERIMENTS[name].wording for name in config.experiments):
        steps.append(("wording", lambda study: reword(study, config.wording)))
    return [*steps, ("report", lambda study: make_report(study, config.report))]


def resolve_experiments(config: StudyConfig) -> StudyConfig:
    """Complete the experiments of a study, and set the variants that they train.

    Without requested experiments these are all of the paper, and further ones whose requirements the settings meet. A
    sweep that names its variants keeps them.

    Raises:
        SettingsError: an unknown experiment, or one whose requirements the settings do not meet.
    """
    requested = parse_experiment_names(config.experiments)
    has_variants = config.sweep.grid.variants != GridConfig().variants
    if requested and has_variants:
        raise SettingsError("--experiments and --sweep.grid.variants both determine the trained variants; give one")
    for name in requested:
        shares = EXPERIMENTS[name].shares_setting
        if shares and not getattr(config.variants, shares):
            half: dict[str, Any] = {shares: (0.5,)}
            config = replace(config, variants=replace(config.variants, **half))
        if EXPERIMENTS[name].scored_answers:
            config = replace(config, annotate=replace(config.annotate, hidden=True))
    for name in requested:
        if reasons := unmet_requirements(name, config):
            raise SettingsError(f"experiment {name} cannot run with these settings: it {'; it '.join(reasons)}")
    if not requested:
        trained = config.sweep.grid.variants if has_variants else variant_names(config.variants)
        beyond = [
            name
            for name, experiment in EXPERIMENTS.items()
            if name not in PAPER_EXPERIMENTS and not experiment.on_request and not unmet_requirements(name, config)
        ]
        return _with_experiments(config, (*PAPER_EXPERIMENTS, *beyond), trained)
    config = _with_experiments(config, requested, variants_for_experiments(requested, config.variants))
    return _with_further_settings(config, further_settings_for(requested))


def _with_further_settings(config: StudyConfig, texts: Iterable[str]) -> StudyConfig:
    """The study whose grid has further settings too. LoRA is left out if all trainings have it."""
    added = [text for text in texts if not (config.sweep.train.lora_rank and text.startswith("lora_rank="))]
    return replace(config, sweep=_with_texts(config.sweep, added))


def _with_experiments(config: StudyConfig, names: tuple[str, ...], trained: tuple[str, ...]) -> StudyConfig:
    grid = replace(config.sweep.grid, variants=trained) if trained else config.sweep.grid
    p_true = any(EXPERIMENTS[name].p_true and not unmet_requirements(name, config) for name in names)
    return replace(
        config,
        experiments=names,
        annotate=replace(config.annotate, p_true=config.annotate.p_true or p_true),
        sweep=replace(config.sweep, grid=grid),
    )


def unmet_requirements(name: str, config: StudyConfig) -> list[str]:
    """The requirements of an experiment that the settings do not meet, each with the flag that would meet it."""
    experiment, annotate = EXPERIMENTS[name], config.annotate
    reasons = [
        f"needs {requirement.label}, which is not drawn (add {requirement.flag})"
        for requirement in missing_requirements(experiment, config.variants)
    ]
    if experiment.needs_all_answers and (annotate.mode, annotate.estimator) != ("full", "sampled"):
        reasons.append("needs every answer (--annotate.mode full, --annotate.estimator sampled)")
    if experiment.needs_repeats and not annotate.repeats_per_relation:
        reasons.append("needs questions that are annotated twice (add --annotate.repeats-per-relation 20)")
    if experiment.scored_answers and not annotate.hidden:
        reasons.append("needs scores of the stored answers (add --annotate.hidden)")
    if experiment.world and (config.model or not config.embedded):
        reasons.append("needs planted facts: a study without --model")
    return reasons


def needs_training(config: StudyConfig) -> bool:
    """Whether any experiment of the study needs training."""
    return any(EXPERIMENTS[name].requirements for name in config.experiments)


def include_finished_variants(study: Folder, config: StudyConfig) -> SweepConfig:
    """The sweep, extended by the variants that earlier runs have finished, so that its points cover the whole study.

    A variant is added if all of its runs are finished with these settings.
    """
    sweep, needed = config.sweep, set(config.sweep.grid.variants)
    names = require_manifest(study.child("variants"), "variants").counts
    drawn = [name for name in names if name not in needed]
    other_run_ids = replace(sweep, grid=replace(sweep.grid, variants=tuple(drawn))).trajectories if drawn else []
    sweep = resolve_sweep_precision(study, sweep, other_run_ids=[run.run_id for run in other_run_ids])
    if not drawn:
        return sweep
    others = replace(sweep, grid=replace(sweep.grid, variants=tuple(drawn)))
    finished = {
        run.run_id: run.config(sweep.train)
        for run in others.trajectories
        if read_manifest(study.child("runs", run.run_id)) is not None
    }
    if not finished:
        return sweep
    stops_early = sweep.scheduler != "none"
    try:
        plans = plan_runs(study, finished, sweep.stop_policies, accept_early_stopped=stops_early)
    except StudyError as error:
        print(f"sweep: runs with other settings are left out of its points: {error}")
        return sweep
    unfinished = {run.run_id for run in others.trajectories} - finished.keys() | {plan.run_id for plan in plans}
    missing = {run.variant for run in others.trajectories if run.run_id in unfinished}
    kept = needed | (set(drawn) - missing)
    ordered = dict.fromkeys([*names, *sweep.grid.variants])
    return replace(sweep, grid=replace(sweep.grid, variants=tuple(name for name in ordered if name in kept)))


def include_finished_settings(study: Folder, sweep: SweepConfig) -> SweepConfig:
    """The sweep, extended by the further settings of experiments whose trainings earlier runs have finished."""
    if sweep.search != "grid":
        return sweep
    run_ids = {run.run_id for run in sweep.trajectories}
    candidates: dict[str, dict[str, TrainConfig]] = {}
    for text in further_settings_for(list(EXPERIMENTS)):
        runs = _with_texts(sweep, [text]).trajectories
        added = {run.run_id: run.config(sweep.train) for run in runs if run.run_id not in run_ids}
        if added and all(read_manifest(study.child("runs", run_id)) is not None for run_id in added):
            candidates[text] = added
    if not candidates:
        return sweep
    configs = {run_id: config for added in candidates.values() for run_id, config in added.items()}
    try:
        plans = plan_runs(study, configs, sweep.stop_policies, accept_early_stopped=sweep.scheduler != "none")
    except StudyError as error:
        print(f"sweep: runs with other settings are left out of its points: {error}")
        return sweep
    unfinished = {plan.run_id for plan in plans}
    return _with_texts(sweep, [text for text, added in candidates.items() if not added.keys() & unfinished])


def _with_texts(sweep: SweepConfig, texts: Iterable[str]) -> SweepConfig:
    """The sweep with further settings in addition to its own."""
    grid = sweep.grid
    return replace(sweep, grid=replace(grid, further_settings=tuple(dict.fromkeys([*grid.further_settings, *texts]))))


def forecast_cost(config: StudyConfig, study: Folder | None = None) -> str:
    """The experiments, generations, engine and runs of a study.

    Args:
        config: resolved settings.
        study: its folder; finished runs in it are counted.
    """
    from slick.annotation.candidates import DISTRACTOR_NEIGHBORS
    from slick.annotation.step import forecast_engine

    sampling, num_sets = config.annotate.sampling, config.annotate.num_exemplar_sets
    per_question = num_sets * (1 + sampling.num_samples)
    lines = ["", *_experiment_lines(config), "", f"{per_question} generations a question ({num_sets} prompts x "
             f"(1 greedy + {sampling.num_samples} samples)){_question_count(config, per_question)}"]  # fmt: skip
    if config.annotate.p_true:
        lines.append("and P(True) of the gold answer of each test question")
    if config.annotate.hidden:
        num_answers = 2 * config.annotate.hidden_answers + 2 * DISTRACTOR_NEIGHBORS + 1
        lines.append(
            f"and scores of up to {num_answers} answers to each of up to {config.annotate.hidden_questions} Unknown "
            "questions per relation, and a quarter as many of each other category"
        )
    model = config.model if os.path.isdir(config.model) else ""  # a forecast downloads nothing
    lines.append(f"annotation: {forecast_engine(study, config.annotate, model)}")
    if not needs_training(config):
        return "\n".join([*lines, "no training"])
    sweep = config.sweep
    runs, cells = sweep.trajectories, points(sweep.grid, sweep.train, shared=not sweep.independent_reason)
    lines.append(
        f"{len(runs)} trainings, {sum(run.epochs for run in runs):,} epochs in all, give {len(cells):,} points of the "
        "grid; variants that several experiments need are trained once"
    )
    lines += _memory_lines(config)
    done = [run for run in runs if study and read_manifest(study.child("runs", run.run_id)) is not None]
    if done:
        lines.append(f"{len(done)} of these trainings are finished in {study}")
    return "\n".join(lines)


def _memory_lines(config: StudyConfig) -> list[str]:
    """The memory of a training on GPUs, if the model is a folder on this machine."""
    train = config.sweep.train
    if not os.path.exists(os.path.join(os.path.expanduser(config.model), "config.json")):
        return []
    try:
        shape = model_shape(config.model)
    except SettingsError as error:
        return [f"the memory of a training is not known: {error}"]
    dtype = resolve_train_dtype(train.dtype, ASSUMED_GPU)
    trainings = {run.settings: run.config(replace(train, dtype=dtype)) for run in config.sweep.trajectories}
    memories = [estimate_training_memory(shape, training, train.num_workers) for training in trainings.values()]
    device_bytes = max(memory.peak_device_bytes for memory in memories)
    machine_bytes = max(memory.peak_machine_bytes(train.num_workers) for memory in memories)
    return [
        f"a training takes up to {device_bytes / 1e9:,.1f} GB of GPU memory per worker ({dtype}, "
        f"{train.num_workers} workers) and up to {machine_bytes / 1e9:,.1f} GB on a "
        f"machine with all workers; `slick plan --model {config.model} --gpus {train.num_workers}` compares settings"
    ]


def _experiment_lines(config: StudyConfig) -> list[str]:
    """One line per experiment: its tables and figures in the paper, its runs, or why it is left out."""
    rows = [("experiment", "in the paper", "variants", "trainings", "epochs", "")]
    combinations_only = replace(config.sweep, grid=replace(config.sweep.grid, further_settings=()))
    for name in config.experiments:
        experiment = EXPERIMENTS[name]
        variants = set(variants_for_experiments([name], config.variants)) & set(config.sweep.grid.variants)
        sweep = config.sweep if experiment.further_settings else combinations_only
        runs = [run for run in sweep.trajectories if run.variant in variants] if experiment.requirements else []
        numbers = (str(len(variants)), str(len(runs)), f"{sum(run.epochs for run in runs):,}") if runs else ("-",) * 3
        why = "; ".join(unmet_requirements(name, config))
        rows.append((name, experiment.exhibits or "beyond", *numbers, f"left out: {why}" if why else ""))
    lines = format_table(rows, right=(2, 3, 4))
    rest = [name for name in EXPERIMENTS if name not in config.experiments]
    return [*lines, f"not requested: {', '.join(rest)}"] if rest else lines


def _question_count(config: StudyConfig, per_question: int) -> str:
    """The number of questions, if it is known before they are read."""
    world = config.world
    if config.model or not config.embedded or world.questions or config.annotate.limit_per_relation:
        return ""
    num = len(world.id_relations) * (world.num_train + world.num_test) + len(world.ood_relations) * world.num_ood_test
    return f", {num:,} questions: {num * per_question:,} generations, shared by all experiments"


if __name__ == "__main__":
    run_main(main)
