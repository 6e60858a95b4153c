"""Show the finished steps of a study, their rows, and the remaining work.

slick status --out studies/demo
"""

from collections.abc import Iterator, Sequence

from jobs.common import has_help_flag, parse_out, run_main
from jobs.flags import FlagParser
from slick.errors import DataError, StudyError
from slick.experiments import EXPERIMENTS, variants_for_experiments
from slick.formatting import format_duration
from slick.locks import lock_owners
from slick.manifest_fields import StudySettings
from slick.report.grading import SHEET_FILE, parse_grading_sheet
from slick.report.step import requested_experiments
from slick.storage import Folder
from slick.study import STARTED, read_manifest, read_start_record, read_study_settings
from slick.variants import config_from_stored
from tuning.run_status import (
    PLANNED_FILE,
    PlannedRun,
    RunStatus,
    progress_line,
    read_driver_status,
    read_planned,
    read_run_statuses,
    status_table,
)

STUDY_STEPS = ("world", "questions", "annotate", "variants", "sweep", "report")
P_TRUE, HIDDEN, CURATE, WORDING = "P(True)", "hidden", "curate", "wording"


def main(argv: Sequence[str]) -> None:
    """Print one line per step."""
    if has_help_flag(argv):
        print((__doc__ or "").strip())
        return
    study, rest = parse_out(argv, "slick status")
    FlagParser("slick status", names=["out"]).parse_all(rest)
    if not study.exists():
        raise StudyError(f"{study} does not exist; begin a study with `slick study demo --out {study}`")
    print(f"study {study}")
    if requested := requested_experiments(study):
        print(f"  {'requested':<10} {', '.join(requested)}")
    for step in STUDY_STEPS:
        print(f"  {step:<10} {describe_step(study, step)}")
        if step == "annotate" and (p_true_state := describe_p_true(study)):
            print(f"  {P_TRUE:<10} {p_true_state}")
        if step == "annotate" and (hidden_state := describe_hidden(study)):
            print(f"  {HIDDEN:<10} {hidden_state}")
        if step == "annotate" and study.child(CURATE).exists():
            print(f"  {CURATE:<10} {describe_step(study, CURATE)}")
        if step == "sweep" and (study.child(WORDING).exists() or _requests_wording(study)):
            print(f"  {WORDING:<10} {describe_step(study, WORDING)}")
        if step == "sweep" and _is_in_progress(study, step):
            print("".join(f"  {line}\n" for line in status_table(sweep_run_statuses(study))), end="")
    if left := "; ".join(experiments_left(study)):
        print(f"  {'left':<10} {left}")


def describe_step(study: Folder, step: str) -> str:
    """The state of one step, such as `done in 12 s, 1,000 questions`."""
    manifest = read_manifest(study.child(step))
    if manifest is not None:
        state = f"done in {format_duration(manifest.seconds)}{_progress_text(study, step)}"
    elif _is_in_progress(study, step):
        state = f"begun, not finished{_progress_text(study, step)}"
    else:
        state = f"not begun{_skip_reason(study, step)}"
    return state + _owner_note(study, step)


def _owner_note(study: Folder, step: str) -> str:
    """The process that holds the lock of the step; for the sweep also that of one of its runs."""
    owners = lock_owners(study)
    run_owners = [owner for name, owner in owners.items() if step == "sweep" and name.startswith("runs/")]
    owner = owners.get(step) or (run_owners[0] if run_owners else None)
    if owner is None:
        return ""
    return f"; being written by {owner}" if owner.is_alive is not False else f"; its process has died ({owner})"


def describe_p_true(study: Folder) -> str:
    """The state of P(True); empty if it is not requested."""
    folder = study.child("annotate", "p_true")
    manifest = read_manifest(folder)
    if manifest is None and not folder.exists(STARTED):
        return "not begun" if _requests_p_true(study) else ""
    from slick.annotation.progress import p_true_progress

    state = f"done in {format_duration(manifest.seconds)}" if manifest else "begun, not finished"
    progress = p_true_progress(study)
    if progress:
        note = _set_aside_note(progress.set_aside)
        state += f", {progress.num:,} of {progress.expected:,} gold answers scored{note}"
    return state


def _requests_p_true(study: Folder) -> bool:
    """Whether the settings of the study, or of its annotation, request P(True)."""
    started = read_start_record(study.child("annotate"))
    return _study_settings(study).annotate.p_true or bool(started and started.settings.get("p_true"))


def _requests_wording(study: Folder) -> bool:
    """Whether an experiment of the study needs answers in a second wording."""
    return any(EXPERIMENTS[name].wording for name in _known(requested_experiments(study) or ()))


def describe_hidden(study: Folder) -> str:
    """The state of the scores of stored answers; empty if they are not requested."""
    folder = study.child("annotate", HIDDEN)
    manifest = read_manifest(folder)
    if manifest is not None:
        counts = manifest.counts
        num = f"{counts['candidates']:,} answers to {counts['questions']:,} questions scored"
        return f"done in {format_duration(manifest.seconds)}, {num}"
    if not folder.exists(STARTED):
        started = read_start_record(study.child("annotate"))
        is_requested = _study_settings(study).annotate.hidden or bool(started and started.settings.get("hidden"))
        return "not begun" if is_requested else ""
    num_scores = sum(_count_rows(folder.child(store)) for store in ("log_probabilities", "p_true"))
    return f"begun, not finished, {num_scores:,} scores"


def _study_settings(study: Folder) -> StudySettings:
    """The settings of `slick study`; the defaults if the steps were run one by one."""
    return read_study_settings(study) or StudySettings()


def _skip_reason(study: Folder, step: str) -> str:
    """Why the study does not need a step; empty if it does."""
    requested, model = requested_experiments(study), _study_settings(study).model
    if step == "world" and model:
        return f": the model is {model}"
    is_training = step in ("variants", "sweep")
    if is_training and requested and not any(EXPERIMENTS[name].requirements for name in _known(requested)):
        return ": no requested experiment needs training"
    return ""


def _known(names: Sequence[str]) -> list[str]:
    """The experiments of this version; a study may have been written by another one."""
    return [name for name in names if name in EXPERIMENTS]


def experiments_left(study: Folder) -> Iterator[str]:
    """The requested experiments that are not finished, each with the missing parts.

    Parts that the settings of the study exclude are not counted.
    """
    settings = _study_settings(study)
    requested, config = requested_experiments(study), config_from_stored(settings.variants)
    if not requested or config is None or read_manifest(study.child("annotate")) is None:
        return  # without labels, none is finished
    runs = {row.run_id: row for row in (*_planned_statuses(study), *sweep_run_statuses(study))}
    p_true_done, hidden_done = (read_manifest(study.child("annotate", name)) is not None for name in ("p_true", HIDDEN))
    for name in _known(requested):
        experiment = EXPERIMENTS[name]
        expected = variants_for_experiments([name], config) if experiment.requirements else ()
        states = [row.state for row in runs.values() if row.variant in expected]
        missing = []
        if experiment.p_true and settings.annotate.p_true and not p_true_done:
            missing.append(P_TRUE)
        if experiment.wording and read_manifest(study.child(WORDING)) is None:
            missing.append("answers in a second wording")
        if experiment.scored_answers and settings.annotate.hidden and not hidden_done:
            missing.append("scores of stored answers")
        if states.count("done") < len(states):
            missing.append(f"{len(states) - states.count('done')} of {len(states)} trainings")
        if missing:
            yield f"{name} ({', '.join(missing)})"


def _is_in_progress(study: Folder, step: str) -> bool:
    folder = study.child(step)
    is_begun = folder.exists(STARTED) or folder.exists(PLANNED_FILE) or (step == CURATE and folder.exists())
    return read_manifest(folder) is None and is_begun


def _progress_text(study: Folder, step: str) -> str:
    """The progress of a step, counted from its files."""
    if step == "questions":
        return f", {_count_rows(study.child('questions')):,} questions"
    if step == "annotate":
        return _annotation_progress(study)
    if step == CURATE:
        return _curation_progress(study)
    if step == "variants":
        return f", {len(study.child('variants').names('.parquet'))} variants"
    if step == "sweep":
        return _sweep_progress(study)
    if step == WORDING:
        return _wording_progress(study)
    return _grading_progress(study) if step == "report" else ""


def _wording_progress(study: Folder) -> str:
    """Questions answered in the second wording, and the fine-tuned models that answered theirs."""
    folder = study.child(WORDING)
    num_models = sum(
        read_manifest(folder.child("trained", run_id)) is not None for run_id in folder.child("trained").folders()
    )
    return f", {_count_rows(folder.child('generations')):,} questions answered, {num_models} fine-tuned models asked"


def _count_rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))


def _annotation_progress(study: Folder) -> str:
    """Answered questions of each store, and their number in all by the settings of the annotation."""
    from slick.annotation.progress import MAIN_ANSWERS, annotation_progress

    labels = {MAIN_ANSWERS: "questions answered", "repeats": "repeated", "controls": "about fictional subjects"}
    text = "".join(
        f", {progress.num:,} of {progress.expected:,} {labels[store]}{_set_aside_note(progress.set_aside)}"
        for store, progress in annotation_progress(study).items()
    )
    num_graded = _count_decisions(study.child("annotate"))
    return f"{text}, {num_graded:,} answers graded by the judge" if num_graded else text


def _count_decisions(folder: Folder) -> int:
    from slick.annotation.judge_pool import JUDGE_FOLDER

    return _count_rows(folder.child(JUDGE_FOLDER))


def _curation_progress(study: Folder) -> str:
    """Labelled rows of the file, once the step is finished; before, the decisions of the judge."""
    folder = study.child(CURATE)
    if (manifest := read_manifest(folder)) is not None:
        return f", {manifest.counts['asked']:,} of {manifest.counts['rows']:,} rows labelled"
    num = _count_decisions(folder)
    return f", {num:,} prompts judged" if num else ""


def _set_aside_note(num: int) -> str:
    return f" ({num:,} more set aside: prompt too long, see annotate/set_aside)" if num else ""


def _grading_progress(study: Folder) -> str:
    """Graded rows of the grading sheet; empty before the first grade."""
    tables = study.child("report", "tables")
    if not tables.exists(SHEET_FILE):
        return ""
    try:
        sheet = parse_grading_sheet(tables.read_bytes(SHEET_FILE), SHEET_FILE)
    except DataError:
        return f", {SHEET_FILE} cannot be read"
    return f", {len(sheet.filled_grades)} of {len(sheet.grades)} wrong answers graded" if sheet.filled_grades else ""


def _sweep_progress(study: Folder) -> str:
    """The progress of the runs, and the driver's last estimate of the time left."""
    rows, driver_status = sweep_run_statuses(study), read_driver_status(study.child("sweep"))
    if not rows or read_manifest(study.child("sweep")) is not None:
        return f", {progress_line(rows, None)}" if rows else ""
    return f", {progress_line(rows, driver_status.seconds_left)}" + (
        f"; last update {driver_status.at}" if driver_status.at else ""
    )


def sweep_run_statuses(study: Folder) -> list[RunStatus]:
    """The runs of the sweep, by its own plan or, before it has begun, by the settings of the study."""
    sweep = study.child("sweep")
    planned = read_planned(sweep)
    return read_run_statuses(study, planned, read_driver_status(sweep)) if planned else _planned_statuses(study)


def _planned_statuses(study: Folder) -> list[RunStatus]:
    """The runs that the settings of the study name, at the sweep's base settings."""
    grid = _study_settings(study).sweep.grid
    planned = {
        f"{variant}-seed{seed}": PlannedRun(variant=variant, seed=seed, epochs=max(grid.epochs, default=0))
        for variant in grid.variants
        for seed in (*grid.seeds, *(grid.further_seeds if variant in grid.further_seed_variants else ()))
    }
    return read_run_statuses(study, planned, read_driver_status(study.child("sweep")))


if __name__ == "__main__":
    run_main(main)
