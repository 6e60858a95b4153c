"""Where the numbers of a study come from and what they cost, read off the manifests of its steps. Pure.

What a manifest does not hold is None, never 0: manifests of older versions hold less.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slick.analysis.setting_differences import StudyIdentity, study_identity
from slick.precision import merge_runtimes
from slick.study import Manifest, fingerprint
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
