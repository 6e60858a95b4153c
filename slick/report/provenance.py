"""Provenance of a study: model, questions, seeds, versions, devices and cost, from the manifests of its steps. Pure.

Values that a manifest does not have are None, never 0: manifests of earlier versions have fewer.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slick.annotation.set_aside import set_aside_file
from slick.formatting import format_duration
from slick.precision import merge_runtimes
from slick.report.loading import finished_runs
from slick.report.measurements import InsufficientDataError
from slick.report.page import Section, table_exhibit
from slick.report.setting_differences import StudyIdentity, study_identity
from slick.report.tables import CellValue, Table
from slick.storage import Folder
from slick.study import Manifest, fingerprint, read_manifest
from slick.uris import public_name

STEPS = ("world", "questions", "annotate", "variants", "sweep")

MANIFEST_FOLDERS = ("world", "questions", "annotate", "annotate/p_true", "annotate/hidden", "variants", "sweep")
"""Folders with a manifest, except those of the runs."""

SPLITS = ("train", "dev", "test")

_STORE_LABELS = {
    "generations": "labels",
    "gold": "labels",
    "repeats": "repeated annotation",
    "controls": "control questions",
    "p_true": "P(True)",
    "hidden": "scores of stored answers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCost:
    """Time and tokens that a study has used so far. Seconds of workers are summed over all workers."""

    questions: int | None = None
    generations: int | None = None
    answer_tokens: int | None = None
    """Tokens of all answers."""
    decoded_tokens: int | None = None
    """Answer tokens that were decoded: answers share the tokens of their common prefix."""
    prompt_tokens: int | None = None
    prefilled_tokens: int | None = None
    """Prompt tokens that were prefilled: shared prefixes are prefilled once."""
    engine_seconds: float | None = None
    trainings: int = 0
    epochs: int = 0
    train_tokens: int | None = None
    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    device: str | None = None
    """Of the trainings: `cpu`, `cuda`, or both."""
    engine_device: str | None = None
    """Of the engines: `cpu`, `cuda`, or both; None if the manifest does not state it."""
    at_least: bool = False
    """Whether a training was interrupted: its manifest lacks the cost before the interruption."""
    step_seconds: Mapping[str, float]
    """Wall-clock time of each finished step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Model, questions, seeds, versions, state and cost of a study. comparison.json stores these fields."""

    model: str
    """Hub id, or the last part of its path; for the model of a world, its number of parameters."""
    model_mark: str | None
    """Fingerprint of weights, config and tokenizer."""
    questions_mark: str | None
    """Fingerprint of all rows."""
    matcher: str | None
    seeds: Mapping[str, tuple[int, ...]]
    """Seeds of the world, the annotation, its samples, the variants and the trainings."""
    recipe: str | None
    """Fingerprint of the settings without seeds; None before the annotation, and if a setting is not known."""
    basis: StudyIdentity
    """Everything that determines the results."""
    dropped: tuple[tuple[str, int], ...]
    """Each rule of the filter, in order, and the number of questions that it drops."""
    read: int | None
    kept: int | None
    versions: Mapping[str, tuple[str, ...]]
    """Versions of each library over all steps."""
    changed_versions: Mapping[str, tuple[str, ...]]
    """Libraries whose version differs between steps."""
    finished: tuple[str, ...]
    missing: tuple[str, ...]
    cost: StudyCost
    runtimes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """`device`, `dtype` and `attention` of annotation, P(True) and trainings, as far as their manifests state them."""


def read_manifests(study: Folder) -> dict[str, Manifest]:
    """The manifests of all finished steps, by name, and of all finished runs, by `runs/RUN_ID`."""
    folders = {name: study.child(*name.split("/")) for name in MANIFEST_FOLDERS}
    folders |= {f"runs/{run_id}": study.child("runs", run_id) for run_id in finished_runs(study)}
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def read_provenance(manifests: Mapping[str, Manifest]) -> Provenance:
    """The provenance of a study.

    Args:
        manifests: as returned by `read_manifests`.
    """
    runs = _run_manifests(manifests)
    annotate, questions = manifests.get("annotate"), manifests.get("questions")
    steps = [name for name in STEPS if name != "world" or "world" in manifests]
    basis, versions = study_identity(manifests), _versions(manifests.values())
    return Provenance(
        model=_model(manifests),
        model_mark=annotate.inputs.get("model") if annotate else None,
        questions_mark=questions.fingerprint if questions else None,
        matcher=annotate.settings.get("matcher") if annotate else None,
        seeds=_seeds(manifests, runs),
        recipe=fingerprint(basis.settings) if annotate and not basis.unknown else None,
        basis=basis,
        dropped=_dropped(questions),
        read=questions.counts.get("rows") if questions else None,
        kept=_sum_nested(questions.counts["kept"]) if questions and "kept" in questions.counts else None,
        versions=versions,
        changed_versions={library: several for library, several in versions.items() if len(several) > 1},
        finished=tuple(name for name in steps if name in manifests),
        missing=tuple(name for name in steps if name not in manifests),
        cost=_cost(manifests, runs),
        runtimes=_runtimes(manifests, runs),
    )


def _run_manifests(manifests: Mapping[str, Manifest]) -> list[Manifest]:
    return [manifest for name, manifest in manifests.items() if name.startswith("runs/")]


def _versions(manifests: Iterable[Manifest]) -> dict[str, tuple[str, ...]]:
    versions: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for library, version in manifest.versions.items():
            versions.setdefault(library, {})[version] = None
    return {library: tuple(distinct) for library, distinct in versions.items()}


def _model(manifests: Mapping[str, Manifest]) -> str:
    world, annotate = manifests.get("world"), manifests.get("annotate")
    if annotate is not None and annotate.settings.get("model"):
        return public_name(str(annotate.settings["model"]))
    if world is None:
        return "not yet chosen"
    parameters = world.counts.get("training", {}).get("parameters")
    return f"planted world, {parameters:,} parameters" if parameters else "planted world"


def _seeds(manifests: Mapping[str, Manifest], runs: Iterable[Manifest]) -> dict[str, tuple[int, ...]]:
    seeds: dict[str, tuple[int, ...]] = {}
    for name in ("world", "annotate", "variants"):
        if name in manifests and isinstance(manifests[name].settings.get("seed"), int):
            seeds[name] = (manifests[name].settings["seed"],)
    sampling = manifests["annotate"].settings.get("sampling") if "annotate" in manifests else None
    if sampling:
        seeds["samples"] = (sampling["seed"],)
    trained = sorted({manifest.settings["seed"] for manifest in runs if "seed" in manifest.settings})
    return seeds | ({"trainings": tuple(trained)} if trained else {})


def _dropped(questions: Manifest | None) -> tuple[tuple[str, int], ...]:
    if questions is None:
        return ()
    counts = questions.counts
    by_rule = [(rule, _sum_nested(by_relation)) for rule, by_relation in counts.get("dropped", {}).items()]
    others = [("bad rows", counts.get("rejected", 0)), ("over the limit per relation", counts.get("over_limit", 0))]
    return (*by_rule, *((name, num) for name, num in others if num))


def _cost(manifests: Mapping[str, Manifest], runs: list[Manifest]) -> StudyCost:
    annotated: Mapping[str, Any] = manifests["annotate"].counts if "annotate" in manifests else {}
    devices = sorted({device for run in runs for device in _devices(run)})
    engine_devices = sorted(_devices(manifests["annotate"])) if "annotate" in manifests else []
    return StudyCost(
        questions=annotated.get("questions"),
        generations=annotated.get("generations"),
        answer_tokens=annotated.get("answer_tokens"),
        decoded_tokens=annotated.get("decoded_tokens"),
        prompt_tokens=annotated.get("prompt_tokens"),
        prefilled_tokens=annotated.get("prefilled_tokens"),
        engine_seconds=annotated.get("engine_seconds"),
        trainings=len(runs),
        epochs=sum(int(run.counts.get("epochs", 0)) for run in runs),
        train_tokens=_sum_over_runs(runs, "tokens_now"),
        training_seconds=_sum_over_runs(runs, "training_seconds"),
        evaluation_seconds=_sum_over_runs(runs, "evaluation_seconds"),
        device=" and ".join(devices) or None,
        engine_device=" and ".join(engine_devices) or None,
        at_least=any(run.counts.get("epochs_now", 0) < run.counts.get("epochs", 0) for run in runs),
        step_seconds={name: manifests[name].seconds for name in STEPS if name in manifests},
    )


def _devices(manifest: Manifest) -> set[str]:
    """The kinds of device of a step, `cpu` or `cuda`. A CPU build of torch implies `cpu`."""
    if "device" in manifest.counts:
        return {re.split(r"[:\s]", name)[0] for name in str(manifest.counts["device"]).split(" and ")}
    return {"cpu"} if manifest.versions.get("torch", "").endswith("+cpu") else set()


def _runtimes(manifests: Mapping[str, Manifest], runs: list[Manifest]) -> dict[str, dict[str, str]]:
    """Runtime of each part. Earlier manifests have only the device, and the dtype among their settings."""
    parts = {
        "annotation": [manifests[name] for name in ("annotate",) if name in manifests],
        "P(True)": [manifests[name] for name in ("annotate/p_true",) if name in manifests],
        "scores of stored answers": [manifests[name] for name in ("annotate/hidden",) if name in manifests],
        "trainings": runs,
    }
    runtimes = {
        part: merge_runtimes(
            {"device": " and ".join(sorted(_devices(item))), "dtype": item.settings.get("dtype"), **item.counts}
            for item in items
        )
        for part, items in parts.items()
    }
    return {part: runtime for part, runtime in runtimes.items() if runtime}


def _sum_over_runs(runs: list[Manifest], name: str) -> Any:
    """The sum of a count over all runs; None if a manifest lacks it."""
    values = [run.counts[name] for run in runs if run.counts.get(name) is not None]
    return sum(values) if values and len(values) == len(runs) else None


def _sum_nested(nested: Mapping[str, Mapping[str, int]]) -> int:
    return sum(num for counts in nested.values() for num in counts.values())


def provenance_section(manifests: Mapping[str, Manifest], requested: tuple[str, ...] | None) -> Section:
    """The tables of the page's last section.

    Args:
        manifests: of the finished steps and runs.
        requested: names of the requested experiments, if they are known.
    """
    provenance = read_provenance(manifests)
    exhibits = [
        table_exhibit("Model, questions and seeds.", partial(study_identity_table, provenance, requested)),
        table_exhibit("Questions read, dropped by each filter rule, and kept.", partial(filter_table, manifests)),
    ]
    if set_aside_rows(manifests):
        caption = "Questions set aside: they have no label and are in no count."
        exhibits.append(table_exhibit(caption, partial(set_aside_table, manifests)))
    caption = "Time and cost of each step. Worker time is the sum over all workers; other times are wall-clock times."
    exhibits.append(table_exhibit(caption, partial(steps_table, manifests, provenance)))
    return Section(name="provenance", title="Provenance", text="", exhibits=tuple(exhibits))


def study_identity_table(provenance: Provenance, requested: tuple[str, ...] | None = None) -> Table:
    """Model, questions, seeds and runtimes of a study, as far as its manifests state them."""
    seeds = ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in provenance.seeds.items())
    rows: list[tuple[CellValue, ...]] = [
        ("model", provenance.model),
        ("model fingerprint (weights, config and tokenizer)", provenance.model_mark),
        ("questions fingerprint (all rows)", provenance.questions_mark),
        ("matcher", provenance.matcher),
        ("seeds", seeds),
        *(
            (f"{part} ran with", ", ".join(f"{name} {value}" for name, value in runtime.items()))
            for part, runtime in provenance.runtimes.items()
        ),
        ("requested experiments", ", ".join(requested) if requested else None),
        (
            "versions that differ between steps",
            ", ".join(f"{name} {' and '.join(texts)}" for name, texts in provenance.changed_versions.items()) or None,
        ),
        ("steps not finished", ", ".join(provenance.missing) or None),
    ]
    shown = tuple(row for row in rows if row[1])
    return Table(name="provenance", columns=("", "this study"), rows=shown, text_columns=frozenset({1}))


def filter_table(manifests: Mapping[str, Manifest]) -> Table:
    """Questions by split: read, dropped by each filter rule, and kept.

    Raises:
        InsufficientDataError: the manifest of the questions step has no counts.
    """
    counts = manifests["questions"].counts if "questions" in manifests else {}
    if "kept" not in counts:
        raise InsufficientDataError("the manifest of the questions step has no counts")

    def row(label: str, nested: Mapping[str, Mapping[str, int]], sign: int = 1) -> tuple[CellValue, ...]:
        by_split = [sign * sum(by_relation.get(split, 0) for by_relation in nested.values()) for split in SPLITS]
        return (label, *by_split, sum(by_split))

    rows = [row("read", counts["read"])] if "read" in counts else []
    rows += [row(f"dropped: {rule}", nested, -1) for rule, nested in counts.get("dropped", {}).items()]
    if counts.get("over_limit"):
        rows.append(("dropped: over the limit per relation", None, None, None, -counts["over_limit"]))
    rows.append(row("kept", counts["kept"]))
    total = frozenset({len(rows) - 1})
    return Table(name="questions_filtered", columns=("", *SPLITS, "together"), rows=tuple(rows), total_rows=total)


def set_aside_rows(manifests: Mapping[str, Manifest]) -> list[tuple[CellValue, ...]]:
    """Questions that were set aside: left out of, reason, relation, split, number, and the file that lists them.

    For each reason and split, the fine-tuning run with the most questions is listed.
    """
    rows: list[tuple[CellValue, ...]] = []
    for step in ("annotate", "annotate/p_true", "annotate/hidden"):
        folder = "annotate/hidden" if step == "annotate/hidden" else "annotate"
        stores = manifests[step].counts.get("set_aside", {}) if step in manifests else {}
        rows += [
            (_STORE_LABELS.get(store, store), reason, relation, split, num, f"{folder}/{set_aside_file(store, reason)}")
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


def set_aside_table(manifests: Mapping[str, Manifest]) -> Table:
    """The table of `set_aside_rows`."""
    columns = ("left out of", "reason", "relation", "split", "questions", "listed in")
    return Table(name="set_aside", columns=columns, rows=tuple(set_aside_rows(manifests)), text_columns=frozenset({5}))


def steps_table(manifests: Mapping[str, Manifest], provenance: Provenance) -> Table:
    """Fingerprint, time and cost of each finished step, and of all trainings together."""
    runs = _run_manifests(manifests)
    rows: list[tuple[CellValue, ...]] = [
        (
            name,
            manifests[name].fingerprint,
            format_duration(manifests[name].seconds),
            _step_cost_text(name, manifests[name], provenance),
        )
        for name in MANIFEST_FOLDERS
        if name in manifests
    ]
    if runs:
        mark = fingerprint(sorted(run.fingerprint for run in runs))
        wall = format_duration(sum(run.seconds for run in runs))
        rows.append((f"{len(runs)} fine-tuning runs", mark, f"{wall} in sum", _training_cost_text(provenance)))
    columns = ("step", "fingerprint", "time", "spent")
    return Table(name="provenance_steps", columns=columns, rows=tuple(rows), text_columns=frozenset({3}))


def _step_cost_text(name: str, manifest: Manifest, provenance: Provenance) -> str:
    cost, counts = provenance.cost, manifest.counts
    if name == "world":
        training = counts.get("training", {})
        return _join_counts((training.get("steps"), "steps"), (training.get("tokens"), "tokens"))
    if name == "questions":
        return _join_counts((provenance.read, "rows read"), (provenance.kept, "kept"))
    if name == "annotate":
        text = _join_counts(
            (cost.questions, "questions"),
            (cost.generations, "generations"),
            (cost.answer_tokens, "answer tokens"),
            (cost.decoded_tokens, "of them decoded"),
            (cost.prompt_tokens, "prompt tokens"),
            (cost.prefilled_tokens, "of them prefilled"),
        )
        where = " on CPU" if cost.engine_device == "cpu" else ""
        return text + (f"; worker time{where} {format_duration(cost.engine_seconds)}" if cost.engine_seconds else "")
    if name == "variants":
        return f"{len(counts)} fine-tuning sets"
    if name == "sweep":
        return _join_counts((counts.get("trainings"), "trainings"), (counts.get("points"), "points"))
    return _join_counts((counts.get("questions"), "questions"), (counts.get("prefilled_tokens"), "prefilled tokens"))


def _training_cost_text(provenance: Provenance) -> str:
    cost = provenance.cost
    text = _join_counts((cost.epochs, "epochs"), (cost.train_tokens, "tokens"))
    for seconds, activity in ((cost.training_seconds, "training"), (cost.evaluation_seconds, "evaluation")):
        text += f"; worker time of {activity} {format_duration(seconds)}" if seconds else ""
    where = {"cpu": "on CPU", "cuda": "on GPU"}.get(cost.device or "", "on CPU and GPU" if cost.device else "")
    text += f"; {where}" if where else ""
    return text + ("; a lower bound, because some were interrupted" if cost.at_least else "")


def _join_counts(*parts: tuple[int | None, str]) -> str:
    return ", ".join(f"{number:,} {unit}" for number, unit in parts if number is not None)
