"""The trainings of a study that are remedies against forgetting, with their answers at the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from slick.matching import is_hit, normalize
from slick.report.data import Run
from slick.report.loading import finished_runs, parse_run_id
from slick.report.measurements import CONVERGENCE, EARLY_STOP
from slick.report.statistics.remedies import NO_REMEDY, RemedyRun
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_epochs, read_predictions, read_question_rows
from slick.types import Category

EARLY_STOPPING = "early stopping"
_SETS = {"known": "Unknown rows dropped", "idk": "Unknown rows as “I don’t know”", "p-correct": "weights by P_Correct"}
"""Kinds of the fine-tuning sets that are remedies, with their names."""
_REPLAY = "Known rows replayed at the end"


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    remedy: str
    run_id: str
    seed: int
    epoch: int


def load_remedy_runs(
    study: Folder, runs: Sequence[Run], kinds: Mapping[str, str], idk_phrase: str = ""
) -> list[RemedyRun]:
    """Load the answers of every remedy that was trained as long as `unknown-050`, in the order of the tables.

    Args:
        study: the study.
        runs: its runs with the default settings, of the variants in `kinds`.
        kinds: name of each variant at the share of the remedies -> its kind.
        idk_phrase: target of the relabelled rows.
    """
    base = {run.seed: run for run in runs if kinds[run.variant] == "unknown"}
    checkpoints = [_Checkpoint(NO_REMEDY, run.run_id, run.seed, run.epoch(CONVERGENCE)) for run in base.values()]
    checkpoints += [
        _Checkpoint(EARLY_STOPPING, run.run_id, run.seed, run.epoch(EARLY_STOP))
        for run in base.values()
        if run.early_epoch is not None
    ]
    lengths = {seed: run.epoch(CONVERGENCE) for seed, run in base.items()}
    checkpoints += [
        _Checkpoint(label, run.run_id, run.seed, lengths[run.seed])
        for kind, label in _SETS.items()
        for run in runs
        if kinds[run.variant] == kind and run.epoch(CONVERGENCE) == lengths.get(run.seed)
    ]
    checkpoints += _settings_checkpoints(study, {run.variant for run in base.values()}, lengths)
    if read_manifest(study.child("questions")) is None:  # without gold answers, the relabelled rows cannot be matched
        checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.remedy != _SETS["idk"]]
    is_relabelled = any(checkpoint.remedy == _SETS["idk"] for checkpoint in checkpoints)
    gold = _gold_answers(study) if is_relabelled else {}
    unknown_ids = _unknown_ids(study, checkpoints[0]) if checkpoints else None
    loaded = (_load_run(study, checkpoint, unknown_ids, gold, idk_phrase) for checkpoint in checkpoints)
    return [run for run in loaded if run is not None]


def needs_labels(remedy: str) -> bool:
    """Whether a remedy needs the categories of the training rows; all others need no annotation."""
    return remedy in _SETS.values() or remedy.startswith(_REPLAY)


def remedy_of_settings(settings: Mapping[str, str]) -> str:
    """The remedy that training settings are, in words; empty if they are none.

    >>> remedy_of_settings({"lora_rank": "8", "learning_rate": "0.002"})
    'LoRA (rank 8, learning rate 0.002)'
    >>> remedy_of_settings({"replay_known": "64"}), remedy_of_settings({"learning_rate": "0.002"})
    ('Known rows replayed at the end (64)', '')
    """
    names = set(settings)
    if names == {"replay_known"}:
        return f"{_REPLAY} ({settings['replay_known']})"
    if names == {"trainable"} and settings["trainable"] != "all":
        return {"attention": "attention layers only", "ffn": "feed-forward layers only"}[settings["trainable"]]
    if "distill_weight" in names and names <= {"distill_weight", "distill_temperature"}:
        return f"self-distillation ({_describe(settings)})"
    if "lora_rank" in names and names <= {"lora_rank", "lora_alpha", "learning_rate"}:
        return f"LoRA ({_describe(settings)})"
    return ""


def _describe(settings: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name.removeprefix('lora_').removeprefix('distill_').replace('_', ' ')} {value}"
        for name, value in settings.items()
    )


def _settings_checkpoints(study: Folder, variants: set[str], lengths: Mapping[int, int]) -> list[_Checkpoint]:
    """The last epochs of the trainings of `unknown-050` with other settings that are remedies."""
    checkpoints = []
    for run_id in finished_runs(study):
        variant, seed, text = parse_run_id(run_id)
        remedy = remedy_of_settings(dict(part.split("=", 1) for part in text.split(";"))) if text else ""
        if not remedy or variant not in variants or seed not in lengths:
            continue
        if max(read_epochs(study.child("runs", run_id))["epoch"].to_pylist()) == lengths[seed]:
            checkpoints.append(_Checkpoint(remedy, run_id, seed, lengths[seed]))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.remedy.lower())


def _gold_answers(study: Folder) -> dict[str, list[str]]:
    columns = read_question_rows(study.child("questions"), ["question_id", "answers"]).to_pydict()
    return dict(zip(columns["question_id"], columns["answers"], strict=True))


def _unknown_ids(study: Folder, base: _Checkpoint) -> Any:
    """The question_ids of the Unknown rows that no remedy is trained on, sorted."""
    table = read_predictions(
        study.child("runs", base.run_id), _file_name(base.epoch), ["question_id", "split", "category"]
    )
    mask = pc.and_(pc.equal(table["split"], "train"), pc.equal(table["category"], str(Category.UNKNOWN)))
    return np.array(sorted(table.filter(mask)["question_id"].to_pylist()), dtype=str)


def _file_name(epoch: int) -> str:
    return f"epoch-{epoch:03d}.parquet"


def _load_run(
    study: Folder, checkpoint: _Checkpoint, unknown_ids: Any, gold: Mapping[str, Sequence[str]], idk_phrase: str
) -> RemedyRun | None:
    """The answers of a training at a checkpoint; None if they were not stored."""
    folder = study.child("runs", checkpoint.run_id)
    manifest = read_manifest(folder)
    if manifest is None or not folder.exists(f"predictions/{_file_name(checkpoint.epoch)}"):
        return None
    columns = ["question_id", "split", "category", "hit", "text"]
    table = read_predictions(folder, _file_name(checkpoint.epoch), columns).sort_by("question_id")
    test = table.filter(pc.equal(table["split"], "test")).to_pydict()
    train = table.filter(pc.equal(table["split"], "train")).to_pydict()
    if not test["question_id"]:
        return None
    matcher = str(manifest.settings.get("matcher", "exact"))
    # A row relabelled as "I don't know" is stored as right if that is the answer, so gold answers are matched here.
    is_relabelled = checkpoint.remedy == _SETS["idk"]
    columns = [train[name] for name in ("question_id", "category", "text", "hit")]
    learned = {
        question_id: is_hit(text, gold[question_id], matcher) if is_relabelled else hit
        for question_id, category, text, hit in zip(*columns, strict=True)
        if category == Category.UNKNOWN
    }
    epochs, counts = checkpoint.epoch, manifest.counts
    seconds, num_epochs = counts.get("training_seconds"), counts.get("epochs_now")
    return RemedyRun(
        remedy=checkpoint.remedy,
        seed=checkpoint.seed,
        epochs=epochs,
        unknown_ids=np.array(sorted(learned), dtype=str) if learned else unknown_ids,
        learned=np.array([learned[question_id] for question_id in sorted(learned)]) if learned else None,
        test_ids=np.array(test["question_id"], dtype=str),
        is_highly_known=np.array(test["category"], dtype=object) == str(Category.HIGHLY_KNOWN),
        correct=np.array(test["hit"], dtype=bool),
        training_seconds=float(seconds) * epochs / num_epochs if seconds and num_epochs else None,
        abstained=_abstained(test["text"], idk_phrase) if checkpoint.remedy == _SETS["idk"] else None,
        num_passes=_num_passes(len(train["question_id"]), epochs, manifest.settings),
    )


def _abstained(texts: Sequence[str], idk_phrase: str) -> Any:
    return np.array([normalize(text) == normalize(idk_phrase) for text in texts])


def _num_passes(num_rows: int, epochs: int, settings: Mapping[str, Any]) -> int:
    """Forward passes of one row: every row once an epoch, twice if a frozen model distils, and the replayed rows."""
    num = num_rows * epochs + int(settings.get("replay_known") or 0)
    return 2 * num if settings.get("distill_weight") else num
