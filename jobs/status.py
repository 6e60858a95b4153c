"""Which steps of a study are done, how many rows they hold, and what is left.

slick status --out studies/demo
"""

from collections.abc import Sequence

from jobs.door import parse_out, run_main, wants_help
from slick.errors import StudyError
from slick.progress import duration
from slick.storage import Folder
from slick.study import STARTED, read_manifest

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
    if folder.exists(STARTED):
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
    """Trainings finished, of those that the study plans, and the epoch that each running one has reached."""
    runs = study.child("runs")
    names = runs.folders()
    done = [name for name in names if read_manifest(runs.child(name)) is not None]
    planned = ""
    if study.exists("study.json"):
        grid = study.read_json("study.json")["settings"]["sweep"]["grid"]
        planned = f" of {len(grid['variants']) * len(grid['seeds'])}"
    going = [
        f"{name} after epoch {len(runs.child(name, 'predictions').names('.parquet'))}"
        for name in names
        if name not in done
    ]
    return f", {len(done)}{planned} trainings finished" + "".join(f"; {text}" for text in going)


if __name__ == "__main__":
    run_main(main)
