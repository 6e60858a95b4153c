"""Which steps of a study are done, how many rows they hold, and what is left.

slick status --out studies/demo
"""

from collections.abc import Sequence

from jobs.door import parse_out, run_main, wants_help
from slick.errors import StudyError
from slick.progress import duration
from slick.storage import Folder
from slick.study import STARTED, read_manifest
from tuning.standing import PLANNED, Standing, headline, read_live, read_planned, read_standings, table

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
        if step == "sweep" and _is_under_way(study, step):
            print("".join(f"  {line}\n" for line in table(standings(study))), end="")


def describe(study: Folder, step: str) -> str:
    """The state of one step in a few words."""
    folder = study.child(step)
    manifest = read_manifest(folder)
    if manifest is not None:
        return f"done in {duration(manifest.seconds)}{_size(study, step)}"
    if _is_under_way(study, step):
        return f"begun, not finished{_size(study, step)}"
    return "not begun"


def _is_under_way(study: Folder, step: str) -> bool:
    folder = study.child(step)
    return read_manifest(folder) is None and (folder.exists(STARTED) or folder.exists(PLANNED))


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
    """How far the trainings of the sweep are, and the time left as its driver last told it."""
    rows, live = standings(study), read_live(study.child("sweep"))
    if not rows or read_manifest(study.child("sweep")) is not None:
        return f", {headline(rows, None)}" if rows else ""
    return f", {headline(rows, live.seconds_left)}" + (f"; last heard of {live.at}" if live.at else "")


def standings(study: Folder) -> list[Standing]:
    """The trainings of the sweep: as it has written them down, or as the study's settings have them."""
    sweep = study.child("sweep")
    planned = read_planned(sweep)
    if not planned and study.exists("study.json"):
        grid = study.read_json("study.json")["settings"]["sweep"]["grid"]
        planned = {
            f"{variant}-seed{seed}": {"variant": variant, "seed": seed, "settings": "", "epochs": max(grid["epochs"])}
            for variant in grid["variants"]
            for seed in grid["seeds"]
        }
    return read_standings(study, planned, read_live(sweep))


if __name__ == "__main__":
    run_main(main)
