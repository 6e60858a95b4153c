"""Where a study's numbers come from: models, data, settings, devices and cost of every step."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCost:
    """What a study has spent so far; seconds of workers add up over all of them."""

    questions: int | None = None
    generations: int | None = None
    answer_tokens: int | None = None
    """Of all answers."""
    decoded_tokens: int | None = None
    """That the model made: answers that agree so far share them."""
    prompt_tokens: int | None = None
    prefilled_tokens: int | None = None
    """That the model read: shared prefixes are read once."""
    engine_seconds: float | None = None
    trainings: int = 0
    epochs: int = 0
    train_tokens: int | None = None
    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    device: str | None = None
    """Of the trainings: `cpu`, `cuda`, or both."""
    engine_device: str | None = None
    """Of the engines: `cpu`, or None where the manifest does not say."""
    at_least: bool = False
    """A training was interrupted; what it spent before that is not in its manifest."""
    step_seconds: Mapping[str, float]
    """Wall clock of each finished step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Which model, questions and seeds a study is of, and how far it is."""

    model: str
    """Hub id, or last part of its path; for a planted world how many parameters it has."""
    model_mark: str | None
    """Fingerprint over weights, config and tokenizer."""
    questions_mark: str | None
    matcher: str | None
    seeds: Mapping[str, tuple[int, ...]]
    """Of the world, the annotation, its samples, the variants and the trainings."""
    recipe: str | None
    """Equal for studies that have the same settings, whatever their seeds; None before the annotation, and where
    something that counts is not known."""
    basis: StudyIdentity
    """All that the results depend on."""
    dropped: tuple[tuple[str, int], ...]
    """Questions that each rule of the filter took away, in its order."""
    read: int | None
    kept: int | None
    versions: Mapping[str, tuple[str, ...]]
    """Of each library, over all steps."""
    changed_versions: Mapping[str, tuple[str, ...]]
    """Libraries of which not all steps had the same version."""
    finished: tuple[str, ...]
    missing: tuple[str, ...]
    cost: StudyCost
    runtimes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of annotation, P(True) and trainings: `device`, `dtype` and `attention`, as far as their manifests say."""


def read_provenance(manifests: Mapping[str, Manifest]) -> Provenance:
    """Read the manifests of the finished steps and runs.

    Args:
        manifests: by step, and by `runs/RUN_ID`.
    """
    runs = [manifest for name, manifest in manifests.items() if name.startswith("runs/")]
    annotate, questions = manifests.get("annotate"), manifests.get("questions")
    steps = [name for name in STEPS if name != "world" or "world" in manifests]
    depends_on, versions = study_identity(manifests), _versions(manifests.values())
    return Provenance(
        model=_model(manifests),
        model_mark=annotate.inputs.get("model") if annotate else None,
        questions_mark=questions.fingerprint if questions else None,
        matcher=annotate.settings.get("matcher") if annotate else None,
        seeds=_seeds(manifests, runs),
        recipe=fingerprint(depends_on.settings) if annotate and not depends_on.unknown else None,
        basis=depends_on,
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


def _versions(manifests: Iterable[Manifest]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for library, version in manifest.versions.items():
            found.setdefault(library, {})[version] = None
    return {library: tuple(versions) for library, versions in found.items()}


def _model(manifests: Mapping[str, Manifest]) -> str:
    world, annotate = manifests.get("world"), manifests.get("annotate")
    if annotate is not None and annotate.settings.get("model"):
        return public_name(str(annotate.settings["model"]))
    if world is None:
        return "not known yet"
    parameters = world.counts.get("training", {}).get("parameters")
    return f"planted world, {parameters:,} parameters" if parameters else "planted world"


def _seeds(manifests: Mapping[str, Manifest], runs: Iterable[Manifest]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in ("world", "annotate", "variants"):
        if name in manifests and isinstance(manifests[name].settings.get("seed"), int):
            found[name] = (manifests[name].settings["seed"],)
    sampling = manifests["annotate"].settings.get("sampling") if "annotate" in manifests else None
    if sampling:
        found["samples"] = (sampling["seed"],)
    trained = sorted({manifest.settings["seed"] for manifest in runs if "seed" in manifest.settings})
    return found | ({"trainings": tuple(trained)} if trained else {})


def _dropped(questions: Manifest | None) -> tuple[tuple[str, int], ...]:
    if questions is None:
        return ()
    counts = questions.counts
    taken = [(rule, _sum_nested(by_relation)) for rule, by_relation in counts.get("dropped", {}).items()]
    others = [("bad rows", counts.get("rejected", 0)), ("over the limit a relation", counts.get("over_limit", 0))]
    return (*taken, *((name, num) for name, num in others if num))


def _cost(manifests: Mapping[str, Manifest], runs: list[Manifest]) -> StudyCost:
    asked: Mapping[str, Any] = manifests["annotate"].counts if "annotate" in manifests else {}
    devices = sorted({device for run in runs for device in _devices(run)})
    asking = sorted(_devices(manifests["annotate"])) if "annotate" in manifests else []
    return StudyCost(
        **{
            name: asked.get(name)
            for name in (
                *("questions", "generations", "answer_tokens", "decoded_tokens"),
                *("prompt_tokens", "prefilled_tokens", "engine_seconds"),
            )
        },
        trainings=len(runs),
        epochs=sum(int(run.counts.get("epochs", 0)) for run in runs),
        train_tokens=_sum_over_runs(runs, "tokens_now"),
        training_seconds=_sum_over_runs(runs, "training_seconds"),
        evaluation_seconds=_sum_over_runs(runs, "evaluation_seconds"),
        device=" and ".join(devices) or None,
        engine_device=" and ".join(asking) or None,
        at_least=any(run.counts.get("epochs_now", 0) < run.counts.get("epochs", 0) for run in runs),
        step_seconds={name: manifests[name].seconds for name in STEPS if name in manifests},
    )


def _devices(manifest: Manifest) -> set[str]:
    """The kinds of device that a step ran on, `cpu` or `cuda`; a torch that knows no GPU says it as well."""
    if "device" in manifest.counts:
        return {re.split(r"[:\s]", name)[0] for name in str(manifest.counts["device"]).split(" and ")}
    return {"cpu"} if manifest.versions.get("torch", "").endswith("+cpu") else set()


def _runtimes(manifests: Mapping[str, Manifest], runs: list[Manifest]) -> dict[str, dict[str, str]]:
    """What each part of the work ran on. Older manifests hold less: the dtype among the settings, the device."""
    parts = {
        "annotation": [manifests[name] for name in ("annotate",) if name in manifests],
        "P(True)": [manifests[name] for name in ("annotate/p_true",) if name in manifests],
        "trainings": runs,
    }
    known = {
        part: merge_runtimes(
            {"device": " and ".join(sorted(_devices(one))), "dtype": one.settings.get("dtype"), **one.counts}
            for one in some
        )
        for part, some in parts.items()
    }
    return {part: found for part, found in known.items() if found}


def _sum_over_runs(runs: list[Manifest], name: str) -> Any:
    """The sum over all runs; None if one does not say."""
    values = [run.counts.get(name) for run in runs]
    whole = [value for value in values if value is not None]
    return sum(whole) if whole and len(whole) == len(values) else None


def _sum_nested(nested: Mapping[str, Mapping[str, int]]) -> int:
    return sum(num for of_relation in nested.values() for num in of_relation.values())


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
