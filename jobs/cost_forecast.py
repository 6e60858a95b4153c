"""What a study is asked for: experiments to the fine-tuning sets that are trained, and what all of it will cost."""

from dataclasses import replace

from jobs.presets import StudyConfig
from slick.errors import SettingsError, StudyError
from slick.experiments import (
    EXPERIMENTS,
    PAPER_EXPERIMENTS,
    missing_requirements,
    parse_experiment_names,
    variants_for_experiments,
)
from slick.formatting import format_table
from slick.storage import Folder
from slick.study import read_manifest, require_manifest
from slick.variants.config import variant_names
from tuning.grid import GridConfig, points
from tuning.runs import plan_runs
from tuning.sweep import SweepConfig, resolve_sweep_precision


def resolve_experiments(config: StudyConfig) -> StudyConfig:
    """Name the experiments in full, and the fine-tuning sets that they train.

    Nothing asked for means all of the paper, and what goes beyond it but takes no more. A sweep that names its own
    sets keeps them.

    Raises:
        SettingsError: an experiment that does not exist, or that these settings cannot give.
    """
    asked = parse_experiment_names(config.experiments)
    own_sets = config.sweep.grid.variants != GridConfig().variants
    if asked and own_sets:
        raise SettingsError(
            "--experiments and --sweep.grid.variants both say which fine-tuning sets are trained; give one of them"
        )
    if "concentration" in asked and not config.variants.concentrated_shares:
        config = replace(config, variants=replace(config.variants, concentrated_shares=(0.5,)))
    for name in asked:
        if reasons := unmet_requirements(name, config):
            raise SettingsError(f"experiment {name} cannot be done with these settings: it {'; it '.join(reasons)}")
    if not asked:
        trained = config.sweep.grid.variants if own_sets else variant_names(config.variants)
        beyond = [
            name for name in EXPERIMENTS if name not in PAPER_EXPERIMENTS and not unmet_requirements(name, config)
        ]
        return _with_experiments(config, (*PAPER_EXPERIMENTS, *beyond), trained)
    return _with_experiments(config, asked, variants_for_experiments(asked, config.variants))


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
    """Why the settings cannot give an experiment, each with the flag that would; empty if they can."""
    experiment, annotate = EXPERIMENTS[name], config.annotate
    reasons = [
        f"needs {need.label}, which is not drawn (add {need.flag})"
        for need in missing_requirements(experiment, config.variants)
    ]
    if experiment.needs_all_answers and (annotate.mode, annotate.estimator) != ("full", "sampled"):
        reasons.append("needs every answer (--annotate.mode full, --annotate.estimator sampled)")
    if experiment.needs_repeats and not annotate.repeats_per_relation:
        reasons.append("needs questions that are asked again (add --annotate.repeats-per-relation 20)")
    if experiment.world and (config.model or not config.embedded):
        reasons.append("needs facts that were planted: a study without --model")
    return reasons


def needs_training(config: StudyConfig) -> bool:
    """Whether what is asked for takes any training."""
    return any(EXPERIMENTS[name].requirements for name in config.experiments)


def include_finished_variants(study: Folder, config: StudyConfig) -> SweepConfig:
    """The sweep with all fine-tuning sets that were trained before, so that its points stay those of the whole study.

    A set counts if nothing of it is left to train at these settings; one of other settings is left alone.
    """
    sweep, needed = config.sweep, set(config.sweep.grid.variants)
    names = require_manifest(study.child("variants"), "variants").counts
    drawn = [name for name in names if name not in needed]
    other_run_ids = replace(sweep, grid=replace(sweep.grid, variants=tuple(drawn))).trajectories if drawn else []
    sweep = resolve_sweep_precision(study, sweep, other_run_ids=[run.run_id for run in other_run_ids])
    if not drawn:
        return sweep
    others = replace(sweep, grid=replace(sweep.grid, variants=tuple(drawn)))
    there = {
        run.run_id: run.config(sweep.train)
        for run in others.trajectories
        if read_manifest(study.child("runs", run.run_id)) is not None
    }
    if not there:
        return sweep
    ended = sweep.scheduler != "none"
    try:
        left = {plan.run_id for plan in plan_runs(study, there, sweep.stop_policies, accept_early_stopped=ended)}
    except StudyError as error:
        print(f"sweep: trainings of other settings are left out of its points: {error}")
        return sweep
    missing = {run.variant for run in others.trajectories if run.run_id not in there or run.run_id in left}
    kept = needed | (set(drawn) - missing)
    ordered = dict.fromkeys([*names, *sweep.grid.variants])
    return replace(sweep, grid=replace(sweep.grid, variants=tuple(name for name in ordered if name in kept)))


def forecast_cost(config: StudyConfig, study: Folder | None = None) -> str:
    """What the study will cost, before any of it runs: experiments, generations, trainings.

    Args:
        config: settled.
        study: its folder; what is trained there already is said.
    """
    sampling, num_sets = config.annotate.sampling, config.annotate.num_exemplar_sets
    per_question = num_sets * (1 + sampling.num_samples)
    lines = ["", *_experiment_lines(config), "", f"{per_question} generations a question ({num_sets} prompts x "
             f"(1 greedy + {sampling.num_samples} samples)){_question_count(config, per_question)}"]  # fmt: skip
    if config.annotate.p_true:
        lines.append("and of each test question, P(True) of its gold answer")
    if not needs_training(config):
        return "\n".join([*lines, "no training"])
    sweep = config.sweep
    runs, cells = sweep.trajectories, points(sweep.grid, sweep.train, shared=not sweep.independent_reason)
    lines.append(
        f"{len(runs)} trainings, {sum(run.epochs for run in runs):,} epochs in all, give {len(cells):,} points of the "
        "grid; sets that several experiments need are trained once"
    )
    done = [run for run in runs if study and read_manifest(study.child("runs", run.run_id)) is not None]
    if done:
        lines.append(f"{len(done)} of these trainings are finished in {study}")
    return "\n".join(lines)


def _experiment_lines(config: StudyConfig) -> list[str]:
    """One line an experiment: where it is in the paper, what it trains, or why it is left out."""
    rows = [("experiment", "in the paper", "variants", "trainings", "epochs", "")]
    for name in config.experiments:
        experiment = EXPERIMENTS[name]
        wanted = set(variants_for_experiments([name], config.variants)) & set(config.sweep.grid.variants)
        runs = [run for run in config.sweep.trajectories if run.variant in wanted] if experiment.requirements else []
        numbers = (str(len(wanted)), str(len(runs)), f"{sum(run.epochs for run in runs):,}") if runs else ("-",) * 3
        why = "; ".join(unmet_requirements(name, config))
        rows.append((name, experiment.exhibits or "beyond", *numbers, f"left out: {why}" if why else ""))
    rest = [name for name in EXPERIMENTS if name not in config.experiments]
    return [*format_table(rows, right=(2, 3, 4)), *([f"not asked for: {', '.join(rest)}"] if rest else [])]


def _question_count(config: StudyConfig, per_question: int) -> str:
    """The number of questions, where it is known before they are read."""
    world = config.world
    if config.model or not config.embedded or world.questions or config.annotate.limit_per_relation:
        return ""
    num = len(world.id_relations) * (world.num_train + world.num_test) + len(world.ood_relations) * world.num_ood_test
    return f", {num:,} questions: {num * per_question:,} generations, shared by all experiments"
