"""Which steps of a study are done, how many rows they hold, and what is left.

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
P_TRUE = "P(True)"


def main(argv: Sequence[str]) -> None:
    """Print one line a step."""
    if has_help_flag(argv):
        print((__doc__ or "").strip())
        return
    study, rest = parse_out(argv, "slick status")
    FlagParser("slick status", names=["out"]).parse_all(rest)
    if not study.exists():
        raise StudyError(f"{study} is not there; begin one with `slick study demo --out {study}`")
    print(f"study {study}")
    if requested_experiments(study):
        print(f"  {'asked for':<10} {', '.join(requested_experiments(study) or ())}")
    for step in STUDY_STEPS:
        print(f"  {step:<10} {describe_step(study, step)}")
        if step == "annotate" and (scored := describe_p_true(study)):
            print(f"  {P_TRUE:<10} {scored}")
        if step == "sweep" and _is_in_progress(study, step):
            print("".join(f"  {line}\n" for line in status_table(sweep_run_statuses(study))), end="")
    if left := "; ".join(experiments_left(study)):
        print(f"  {'left':<10} {left}")


def describe_step(study: Folder, step: str) -> str:
    """The state of one step in a few words."""
    manifest = read_manifest(study.child(step))
    if manifest is not None:
        state = f"done in {format_duration(manifest.seconds)}{_progress_text(study, step)}"
    elif _is_in_progress(study, step):
        state = f"begun, not finished{_progress_text(study, step)}"
    else:
        state = f"not begun{_skip_reason(study, step)}"
    return state + _owner_note(study, step)


def _owner_note(study: Folder, step: str) -> str:
    """Which run writes the step now; for trainings, also those that `slick finetune` runs alone."""
    held = lock_owners(study)
    runs = [owner for name, owner in held.items() if step == "sweep" and name.startswith("runs/")]
    owner = held.get(step) or (runs[0] if runs else None)
    if owner is None:
        return ""
    return f"; being written by {owner}" if owner.is_alive is not False else f"; its run has died ({owner})"


def describe_p_true(study: Folder) -> str:
    """The state of P(True) in a few words; empty where nobody wants it."""
    folder = study.child("annotate", "p_true")
    manifest = read_manifest(folder)
    if manifest is None and not folder.exists(STARTED):
        return "not begun" if _wants_p_true(study) else ""
    from slick.annotation.status import p_true_progress

    scored = p_true_progress(study)
    size = (
        f", {scored.num:,} of {scored.expected:,} gold answers scored{_set_aside_note(scored.set_aside)}"
        if scored
        else ""
    )
    return (f"done in {format_duration(manifest.seconds)}" if manifest else "begun, not finished") + size


def _wants_p_true(study: Folder) -> bool:
    """Whether the study, or the annotation that was begun, asks for it."""
    started = read_start_record(study.child("annotate"))
    return _study_settings(study).annotate.p_true or bool(started and started.settings.get("p_true"))


def _study_settings(study: Folder) -> StudySettings:
    """Of `slick study`; empty where the steps are run one by one."""
    return read_study_settings(study) or StudySettings()


def _skip_reason(study: Folder, step: str) -> str:
    """What is not begun because the study does without."""
    asked, model = requested_experiments(study), _study_settings(study).model
    if step == "world" and model:
        return f": the model is {model}"
    if (
        step in ("variants", "sweep")
        and asked
        and not any(EXPERIMENTS[name].requirements for name in _known_experiments(asked))
    ):
        return ": nothing that is asked for trains"
    return ""


def _known_experiments(asked: Sequence[str]) -> list[str]:
    """Without those of another version."""
    return [name for name in asked if name in EXPERIMENTS]


def experiments_left(study: Folder) -> Iterator[str]:
    """The experiments that were asked for and are not done, each with what it lacks.

    What the settings cannot give, and the forecast of the study has left out, is not waited for.
    """
    settings = _study_settings(study)
    asked, config = requested_experiments(study), config_from_stored(settings.variants)
    if not asked or config is None or read_manifest(study.child("annotate")) is None:
        return  # before the labels are there, all of them are left
    runs = {row.run_id: row for row in (*_planned_statuses(study), *sweep_run_statuses(study))}
    p_true_done = read_manifest(study.child("annotate", "p_true")) is not None
    for name in _known_experiments(asked):
        experiment = EXPERIMENTS[name]
        expected = variants_for_experiments([name], config) if experiment.requirements else ()
        states = [row.state for row in runs.values() if row.variant in expected]
        lacks = []
        if experiment.p_true and settings.annotate.p_true and not p_true_done:
            lacks.append(P_TRUE)
        if states.count("done") < len(states):
            lacks.append(f"{len(states) - states.count('done')} of {len(states)} trainings")
        if lacks:
            yield f"{name} ({', '.join(lacks)})"


def _is_in_progress(study: Folder, step: str) -> bool:
    folder = study.child(step)
    return read_manifest(folder) is None and (folder.exists(STARTED) or folder.exists(PLANNED_FILE))


def _progress_text(study: Folder, step: str) -> str:
    """What the step has written so far, counted from its files."""
    if step == "questions":
        return f", {_count_rows(study.child('questions')):,} questions"
    if step == "annotate":
        return _annotation_progress(study)
    if step == "variants":
        return f", {len(study.child('variants').names('.parquet'))} fine-tuning sets"
    if step == "sweep":
        return _sweep_progress(study)
    return _grading_progress(study) if step == "report" else ""


def _count_rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))


def _annotation_progress(study: Folder) -> str:
    """Questions that were asked of those that the annotation is to ask, from its settings."""
    from slick.annotation.status import MAIN_ANSWERS, annotation_progress

    words = {MAIN_ANSWERS: "questions asked", "repeats": "asked again", "controls": "of subjects that nobody knows"}
    found = annotation_progress(study)
    return "".join(
        f", {one.num:,} of {one.expected:,} {words[store]}{_set_aside_note(one.set_aside)}"
        for store, one in found.items()
    )


def _set_aside_note(num: int) -> str:
    return f" ({num:,} more set aside: prompt too long, see annotate/set_aside)" if num else ""


def _grading_progress(study: Folder) -> str:
    """How much of the sheet of wrong answers is graded; nothing until a person has begun."""
    tables = study.child("report", "tables")
    if not tables.exists(SHEET_FILE):
        return ""
    try:
        sheet = parse_grading_sheet(tables.read_bytes(SHEET_FILE), SHEET_FILE)
    except DataError:
        return f", {SHEET_FILE} cannot be read"
    return f", {len(sheet.filled_grades)} of {len(sheet.grades)} wrong answers graded" if sheet.filled_grades else ""


def _sweep_progress(study: Folder) -> str:
    """How far the trainings of the sweep are, and the time left as its driver last told it."""
    rows, driver_status = sweep_run_statuses(study), read_driver_status(study.child("sweep"))
    if not rows or read_manifest(study.child("sweep")) is not None:
        return f", {progress_line(rows, None)}" if rows else ""
    return f", {progress_line(rows, driver_status.seconds_left)}" + (
        f"; last heard of {driver_status.at}" if driver_status.at else ""
    )


def sweep_run_statuses(study: Folder) -> list[RunStatus]:
    """The trainings of the sweep: as it has written them down, or as the study's settings have them."""
    sweep = study.child("sweep")
    planned = read_planned(sweep)
    return read_run_statuses(study, planned, read_driver_status(sweep)) if planned else _planned_statuses(study)


def _planned_statuses(study: Folder) -> list[RunStatus]:
    """The trainings that the study's settings name, at the sweep's own settings."""
    grid = _study_settings(study).sweep.grid
    planned = {
        f"{variant}-seed{seed}": PlannedRun(variant=variant, seed=seed, epochs=max(grid.epochs, default=0))
        for variant in grid.variants
        for seed in grid.seeds
    }
    return read_run_statuses(study, planned, read_driver_status(study.child("sweep")))


if __name__ == "__main__":
    run_main(main)
