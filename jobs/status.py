"""Which steps of a study are done, how many rows they hold, and what is left.

slick status --out studies/demo
"""

from collections.abc import Sequence

from jobs.door import parse_out, run_main, wants_help
from slick.errors import StudyError
from slick.progress import duration
from slick.storage import Folder
from slick.study import STARTED, read_manifest
from tuning.watching import PACE, PLANNED

STEPS = ("world", "questions", "annotate", "variants", "sweep", "report")


def main(argv: Sequence[str]) -> None:
    """Print one line a step."""
    if wants_help(argv):
        print((__doc__ or "").strip())
        return
    study, _ = parse_out(argv, "slick status")
    if not study.exists():
        raise StudyError(f"{study} is not there; begin one with `slick study demo --out {study}`")
    print(f"study {study}")
    for step in STEPS:
        print(f"  {step:<10} {describe(study, step)}")


def describe(study: Folder, step: str) -> str:
    """The state of one step in a few words."""
    folder = study.child(step)
    manifest = read_manifest(folder)
    if manifest is not None:
        return f"done in {duration(manifest.seconds)}{_size(study, step)}"
    if folder.exists(STARTED) or (step == "sweep" and folder.exists(PLANNED)):
        return f"begun, not finished{_size(study, step)}"
    return "not begun"


def _size(study: Folder, step: str) -> str:
    """What the step has written so far, counted from its files."""
    if step == "questions":
        return f", {_rows(study.child('questions')):,} questions"
    if step == "annotate":
        wanted = _annotated(study)
        stores = [study.child("annotate", name) for name in ("generations", "gold")]
        return f", {sum(_rows(store) for store in stores):,} of {wanted:,} questions asked"
    if step == "variants":
        return f", {len(study.child('variants').names('.parquet'))} fine-tuning sets"
    if step == "sweep":
        return _runs(study)
    return ""


def _rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))


def _annotated(study: Folder) -> int:
    """Questions that the annotation is to ask, from its settings."""
    from slick.annotation import questions_to_ask

    return questions_to_ask(study)


def _runs(study: Folder) -> str:
    """Trainings finished, epochs done, those that are running, and the time left at the pace so far."""
    runs = study.child("runs")
    found = {name: _epochs_done(runs.child(name)) for name in runs.folders()}
    done = [name for name in found if read_manifest(runs.child(name)) is not None]
    planned = _planned(study)
    if not planned:
        return f", {len(done)} trainings finished"
    text = f", {len([name for name in done if name in planned])} of {len(planned)} trainings finished"
    text += f", {sum(min(found.get(name, 0), epochs) for name, epochs in planned.items()):,} of "
    text += f"{sum(planned.values()):,} epochs"
    going = [f"{name} after epoch {found[name]}" for name in found if name not in done]
    if study.child("sweep").exists(PACE):
        pace = study.child("sweep").read_json(PACE)
        text += f"; {duration(pace['seconds_left'])} left when last looked at, {pace['at']}"
    return text + "".join(f"; {text}" for text in going)


def _epochs_done(run: Folder) -> int:
    return len(run.child("predictions").names(".parquet"))


def _planned(study: Folder) -> dict[str, int]:
    """Epochs of every training of the sweep, as the sweep has written it down, or as the study's settings have it."""
    if study.child("sweep").exists(PLANNED):
        planned: dict[str, int] = study.child("sweep").read_json(PLANNED)
        return planned
    if not study.exists("study.json"):
        return {}
    grid = study.read_json("study.json")["settings"]["sweep"]["grid"]
    epochs = max(grid["epochs"])
    return {f"{variant}-seed{seed}": epochs for variant in grid["variants"] for seed in grid["seeds"]}


if __name__ == "__main__":
    run_main(main)
