"""Where the numbers of a report come from: model, questions, seeds, and what each step has spent."""

from collections.abc import Mapping
from functools import partial

from slick.analysis.loading.runs import finished_runs
from slick.analysis.provenance import Provenance, read_provenance
from slick.analysis.terms import InsufficientDataError
from slick.formatting import format_duration
from slick.report.page import Section, table_exhibit
from slick.report.tables import CellValue, Table
from slick.storage import Folder
from slick.study import Manifest, fingerprint, read_manifest

MANIFEST_FOLDERS = ("world", "questions", "annotate", "annotate/p_true", "variants", "sweep")
"""Everything with a manifest, apart from the runs."""

SPLITS = ("train", "dev", "test")


def read_manifests(study: Folder) -> dict[str, Manifest]:
    """The manifests of all finished steps, by name, and of all finished runs, by `runs/RUN_ID`."""
    folders = {name: study.child(*name.split("/")) for name in MANIFEST_FOLDERS}
    folders |= {f"runs/{run_id}": study.child("runs", run_id) for run_id in finished_runs(study)}
    found = {name: read_manifest(folder) for name, folder in folders.items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def provenance_section(manifests: Mapping[str, Manifest], requested: tuple[str, ...] | None) -> Section:
    """The tables of the page's last section.

    Args:
        manifests: of the finished steps and runs.
        asked: names of the experiments that were asked for, if that is known.
    """
    of_study = read_provenance(manifests)
    return Section(
        name="provenance",
        title="Provenance",
        text="",
        exhibits=(
            table_exhibit("Model, questions and seeds.", partial(study_identity_table, of_study, requested)),
            table_exhibit(
                "Questions read, dropped by each rule in its order, and kept.", partial(filter_table, manifests)
            ),
            *(
                [
                    table_exhibit(
                        "Questions set aside: neither labelled nor counted anywhere.",
                        partial(set_aside_table, manifests),
                    )
                ]
                if set_aside_rows(manifests)
                else []
            ),
            table_exhibit(
                "What each step took. Worker time adds up over all workers; the rest is wall clock.",
                partial(steps_table, manifests, of_study),
            ),
        ),
    )


def study_identity_table(of_study: Provenance, requested: tuple[str, ...] | None = None) -> Table:
    """What the study is of; what no manifest says is left out."""
    seeds = ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in of_study.seeds.items())
    rows: list[tuple[CellValue, ...]] = [
        ("model", of_study.model),
        ("its fingerprint, over weights, config and tokenizer", of_study.model_mark),
        ("questions' fingerprint, over all rows", of_study.questions_mark),
        ("matcher", of_study.matcher),
        ("seeds", seeds),
        *(
            (f"{part} ran with", ", ".join(f"{name} {value}" for name, value in runtime.items()))
            for part, runtime in of_study.runtimes.items()
        ),
        ("experiments asked for", ", ".join(requested) if requested else None),
        (
            "versions that changed between steps",
            ", ".join(f"{name} {' and '.join(found)}" for name, found in of_study.changed_versions.items()) or None,
        ),
        ("steps not finished", ", ".join(of_study.missing) or None),
    ]
    shown = tuple(row for row in rows if row[1])
    return Table(name="provenance", columns=("", "this study"), rows=shown, text_columns=frozenset({1}))


def filter_table(manifests: Mapping[str, Manifest]) -> Table:
    """Questions by split: as read, taken by each rule, kept.

    Raises:
        NotTestable: the questions step left no counts.
    """
    counts = manifests["questions"].counts if "questions" in manifests else {}
    if "kept" not in counts:
        raise InsufficientDataError("the questions step has not counted what it read")

    def row(what: str, nested: Mapping[str, Mapping[str, int]], sign: int = 1) -> tuple[CellValue, ...]:
        by_split = [sign * sum(of_relation.get(split, 0) for of_relation in nested.values()) for split in SPLITS]
        return (what, *by_split, sum(by_split))

    rows = [row("read", counts["read"])] if "read" in counts else []
    rows += [row(f"dropped: {rule}", nested, -1) for rule, nested in counts.get("dropped", {}).items()]
    if counts.get("over_limit"):
        rows.append(("dropped: over the limit a relation", None, None, None, -counts["over_limit"]))
    rows.append(row("kept", counts["kept"]))
    last = len(rows) - 1
    return Table(
        name="questions_filtered", columns=("", *SPLITS, "together"), rows=tuple(rows), total_rows=frozenset({last})
    )


def set_aside_rows(manifests: Mapping[str, Manifest]) -> list[tuple[CellValue, ...]]:
    """What was left out, why, of which relation and split, how many questions, and the file with the list.

    Of all fine-tuning runs those with the most are shown.
    """
    rows: list[tuple[CellValue, ...]] = []
    for step in ("annotate", "annotate/p_true"):
        stores = manifests[step].counts.get("set_aside", {}) if step in manifests else {}
        rows += [
            (_STORE_LABELS.get(store, store), reason, relation, split, num, f"annotate/set_aside/{store}.parquet")
            for store, reasons in stores.items()
            for reason, relations in reasons.items()
            for relation, splits in relations.items()
            for split, num in splits.items()
        ]
    most: dict[tuple[str, str], tuple[int, str]] = {}
    for name, manifest in manifests.items():
        for reason, splits in manifest.counts.get("set_aside", {}).items() if name.startswith("runs/") else ():
            for split, num in splits.items():
                most[reason, split] = max(most.get((reason, split), (0, "")), (num, name))
    rows += [
        ("fine-tuning, most of a run", reason, None, split, num, f"{name}/set_aside.parquet")
        for (reason, split), (num, name) in most.items()
    ]
    return rows


_STORE_LABELS = {
    "generations": "labels",
    "gold": "labels",
    "repeats": "asked again",
    "controls": "of subjects nobody knows",
    "p_true": "P(True)",
}


def set_aside_table(manifests: Mapping[str, Manifest]) -> Table:
    """See `set_aside_rows`."""
    columns = ("left out of", "reason", "relation", "split", "questions", "listed in")
    return Table(name="set_aside", columns=columns, rows=tuple(set_aside_rows(manifests)), text_columns=frozenset({5}))


def steps_table(manifests: Mapping[str, Manifest], of_study: Provenance) -> Table:
    """Every finished step, and all trainings together: fingerprint, time, what was spent."""
    runs = [manifest for name, manifest in manifests.items() if name.startswith("runs/")]
    rows: list[tuple[CellValue, ...]] = [
        (
            name,
            manifests[name].fingerprint,
            format_duration(manifests[name].seconds),
            _step_cost_text(name, manifests[name], of_study),
        )
        for name in MANIFEST_FOLDERS
        if name in manifests
    ]
    if runs:
        mark = fingerprint(sorted(run.fingerprint for run in runs))
        wall = format_duration(sum(run.seconds for run in runs))
        rows.append((f"{len(runs)} fine-tuning runs", mark, f"{wall}, one by one", _training_cost_text(of_study)))
    columns = ("step", "fingerprint", "time", "spent")
    return Table(name="provenance_steps", columns=columns, rows=tuple(rows), text_columns=frozenset({3}))


def _step_cost_text(name: str, manifest: Manifest, of_study: Provenance) -> str:
    cost, counts = of_study.cost, manifest.counts
    if name == "world":
        training = counts.get("training", {})
        return _join_counts((training.get("steps"), "steps"), (training.get("tokens"), "tokens"))
    if name == "questions":
        return _join_counts((of_study.read, "rows read"), (of_study.kept, "kept"))
    if name == "annotate":
        requested = _join_counts(
            (cost.questions, "questions"),
            (cost.generations, "generations"),
            (cost.answer_tokens, "tokens of answers"),
            (cost.decoded_tokens, "of them made by the model"),
            (cost.prompt_tokens, "tokens of prompts"),
            (cost.prefilled_tokens, "of them read"),
        )
        where = " on CPU" if cost.engine_device == "cpu" else ""
        return requested + (
            f"; worker time{where} {format_duration(cost.engine_seconds)}" if cost.engine_seconds else ""
        )
    if name == "variants":
        return f"{len(counts)} fine-tuning sets"
    if name == "sweep":
        return _join_counts((counts.get("trainings"), "trainings"), (counts.get("points"), "points of the grid"))
    return _join_counts((counts.get("questions"), "questions"), (counts.get("prefilled_tokens"), "tokens read"))


def _training_cost_text(of_study: Provenance) -> str:
    cost = of_study.cost
    text = _join_counts((cost.epochs, "epochs"), (cost.train_tokens, "tokens"))
    for seconds, what in ((cost.training_seconds, "training"), (cost.evaluation_seconds, "evaluation")):
        text += f"; worker time of {what} {format_duration(seconds)}" if seconds else ""
    where = {"cpu": "on CPU", "cuda": "on GPU"}.get(cost.device or "", "on CPU and GPU" if cost.device else "")
    text += f"; {where}" if where else ""
    return text + ("; at least, since some were interrupted" if cost.at_least else "")


def _join_counts(*parts: tuple[int | None, str]) -> str:
    return ", ".join(f"{number:,} {what}" for number, what in parts if number is not None)
