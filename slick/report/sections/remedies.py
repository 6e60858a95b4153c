"""Remedies against forgetting: Unknown facts learned against HighlyKnown facts lost, and which remedy is worth it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from slick.matching import is_hit
from slick.report.charts import BLUE, GREEN, INK, MUTED, VERMILLION, separate_values
from slick.report.data import Run, StudyData
from slick.report.loading import finished_runs, parse_run_id
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    PAIRING_NOTE,
    Z_95,
    Measurement,
    format_change,
    interval_ends,
    round1,
    rounded_with_interval,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.remedies import (
    ACCURACY_MARGIN,
    LEARNED_MARGIN,
    NO_REMEDY,
    RemedyComparison,
    RemedyRun,
    Verdict,
    compare_remedies,
)
from slick.report.tables import CellValue, Row, Table
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_epochs, read_predictions, read_question_rows
from slick.types import Category

SHARE = 0.5
EARLY_STOPPING = "early stopping"
_SETS = {"known": "Unknown rows dropped", "idk": "Unknown rows as “I don’t know”", "p-correct": "weights by P_Correct"}
"""Kinds of the fine-tuning sets that are remedies, with their names."""
_LABELS_NEEDED = (*_SETS.values(), "Known rows replayed")
"""Remedies that need the categories of the training rows; all others need no annotation."""
_VERDICT_STYLES = {
    Verdict.WORTH_IT: (GREEN, "o"),
    Verdict.TRADE: (BLUE, "s"),
    Verdict.HARMFUL: (VERMILLION, "X"),
    Verdict.INCONCLUSIVE: (MUTED, "D"),
}
_OTHER_VERDICTS = {
    Verdict.TRADE: "Fewer facts lost at the price of facts learned or accuracy",
    Verdict.HARMFUL: "More facts lost",
    Verdict.INCONCLUSIVE: "Inconclusive",
}


@section("remedies", title="Remedies", group=GROUP_EXTENSIONS, order=147, experiment="remedies")
def remedies_section(data: StudyData) -> SectionBody:
    """Facts learned and lost, test accuracy and cost of each remedy, and the verdict on it."""
    return SectionBody(
        result=summary_text(data),
        text="All trainings are on D with 50 % Unknown rows and, but for early stopping, to the last epoch. Learned: "
        "Unknown rows of D that are answered with a gold answer. Lost: HighlyKnown test questions that are answered "
        "wrongly, which includes “I don’t know”; before fine-tuning, all are answered right under every prompt. A "
        "training without the Unknown rows is not asked them, and counts as one that learns none. The verdict follows "
        "a rule that was fixed before any result. Worth it: reliably fewer facts lost (p < 0.05 with Holm's "
        "correction for the number of remedies), and the 95 % intervals exclude a fall of "
        f"{LEARNED_MARGIN:g} points of facts learned and of {ACCURACY_MARGIN:g} points of test accuracy. A trade: "
        "reliably fewer facts lost, and reliably fewer facts learned or a lower test accuracy; it pays if the Unknown "
        "facts matter less. Harmful: reliably more facts lost. Inconclusive: all else. Remedies are compared with no "
        f"remedy, not with each other. {PAIRING_NOTE}",
        exhibits=(
            figure_exhibit(
                "Unknown facts learned and HighlyKnown facts lost, in percent, with 95 % intervals; best is the lower "
                "right. Open: not trained on the Unknown rows.",
                "remedies",
                "Unknown facts learned against HighlyKnown facts lost, one point for each remedy",
                lambda: remedies_figure(compare(data)),
            ),
            table_exhibit(
                "Percentages, and differences from no remedy in points with 95 % intervals. Passes: forward passes of "
                "training rows, relative to no remedy. Time: of training without evaluation, relative to no remedy, as "
                "measured, so it also depends on what else the machine ran. Labels: whether the remedy needs "
                "annotated training rows.",
                lambda: remedies_table(compare(data)),
            ),
            table_exhibit("The reason of each verdict.", lambda: verdicts_table(compare(data))),
            collapsed_table_exhibit("The differences as numbers.", lambda: remedies_numbers_table(compare(data))),
        ),
    )


def summary_text(data: StudyData) -> str:
    """Which remedies are worth it, and the numbers of the one with the fewest facts lost; empty without data."""
    comparisons, _ = value_or_reason(compare, data)
    if not comparisons:
        return ""
    base, *remedies = comparisons
    by_verdict = {verdict: [c for c in remedies if c.verdict is verdict] for verdict in Verdict}
    sentences = [
        f"Without a remedy, {_format_measurement(base.learned)} % of the Unknown facts are learned and "
        f"{_format_measurement(base.lost)} % of the HighlyKnown facts lost."
    ]
    worth_it = by_verdict[Verdict.WORTH_IT]
    if worth_it:
        best = min(worth_it, key=lambda c: c.lost_change.value)
        sentences.append(
            f"Worth it: {_names(worth_it)}. {best.remedy[0].upper()}{best.remedy[1:]} changes facts lost by "
            f"{_format_change(best.lost_change)} points, facts learned by {_format_change(best.learned_change)} "
            f"and test accuracy by {_format_change(best.accuracy_change)}."
        )
    else:
        sentences.append("No remedy is shown to be worth it.")
    for verdict, label in _OTHER_VERDICTS.items():
        if by_verdict[verdict]:
            sentences.append(f"{label}: {_names(by_verdict[verdict])}.")
        if verdict is Verdict.TRADE and by_verdict[verdict]:
            sentences.append(_trade_sentence(by_verdict[verdict]))
    return " ".join(sentences)


def _trade_sentence(trades: Sequence[RemedyComparison]) -> str:
    """The trade that gives up the fewest learned facts."""
    best = max(trades, key=lambda comparison: comparison.learned_change.value)
    return (
        f"Of these, {best.remedy} gives up the fewest learned facts: {_format_change(best.learned_change)} points "
        f"learned for {_format_change(best.lost_change)} lost."
    )


def _names(comparisons: Sequence[RemedyComparison]) -> str:
    return ", ".join(comparison.remedy for comparison in comparisons)


def _format_measurement(cell: Measurement | None) -> str:
    return "–" if cell is None else f"{round1(cell.value):.1f}"


def _format_change(change: Measurement) -> str:
    """A difference of percentages with its 95 % interval, which ends at -100 and 100.

    >>> _format_change(Measurement(-99.0, 1.0, 1))
    '-99.0 (-100.0 to -97.0)'
    """
    low, high = interval_ends(change)
    return format_change(change.value, max(low, -100.0), min(high, 100.0))


def remedies_figure(comparisons: Sequence[RemedyComparison]) -> Callable[[Any], None]:
    """Facts learned (x) against facts lost (y), with intervals; thin lines lead to the names."""

    def plot(axes: Any) -> None:
        points = []
        for comparison in comparisons:
            learned = comparison.learned or Measurement(0.0, 0.0, 1)
            is_base = comparison.remedy == NO_REMEDY
            colour, marker = (INK, "*") if is_base else _VERDICT_STYLES[comparison.verdict]
            axes.errorbar(
                learned.value,
                comparison.lost.value,
                xerr=Z_95 * learned.se,
                yerr=Z_95 * comparison.lost.se,
                fmt=marker,
                color=colour,
                elinewidth=0.8,
                markersize=11 if is_base else 6,
                markerfacecolor=colour if comparison.learned else "white",
            )
            name = "no remedy" if is_base else comparison.remedy.partition(" (")[0]
            points.append((comparison.lost.value, learned.value, name, colour))
        _name_points(axes, sorted(points))
        axes.set_xlim(-4, 220)
        axes.grid(visible=False, axis="y")
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.spines["bottom"].set_bounds(-4, 104)
        axes.set_xlabel("Unknown facts learned (%)", loc="left")
        axes.set_ylabel("HighlyKnown facts lost (%)")

    return plot


def _name_points(axes: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Name points right of the plot, in the order of their heights.

    Args:
        axes: of the points.
        points: y, x, name and colour of each, by ascending y.
    """
    low, high = axes.get_ylim()
    heights = separate_values([y for y, *_ in points], 0.085 * (high - low))
    for height, (y, x, name, colour) in zip(heights, points, strict=True):
        axes.plot([x, 108], [y, height], color=colour, linewidth=0.5, alpha=0.6, zorder=0.5)
        axes.text(110, height, name, va="center", color=colour, fontsize=10)
    axes.set_ylim(min(low, heights[0] - 1), max(high, heights[-1] + 1))


def remedies_table(comparisons: Sequence[RemedyComparison]) -> Table:
    """One row per remedy; no remedy comes first."""
    rows: list[Row] = []
    for comparison in comparisons:
        is_base = comparison.remedy == NO_REMEDY
        changes: list[CellValue] = [
            None if is_base else _format_change(change)
            for change in (comparison.learned_change, comparison.lost_change, comparison.accuracy_change)
        ]
        time = comparison.relative_time
        rows.append(
            (
                comparison.remedy,
                "not trained" if comparison.learned is None else f"{round1(comparison.learned.value):.1f}",
                changes[0],
                round1(comparison.lost.value),
                changes[1],
                round1(comparison.accuracy.value),
                changes[2],
                f"{comparison.relative_passes:.2f}",
                None if time is None else f"{time:.2f}",
                "yes" if comparison.remedy.startswith(_LABELS_NEEDED) else "no",
                None if is_base else str(comparison.verdict),
            )
        )
    columns = ("remedy", "learned", "learned - none", "lost", "lost - none", "test", "test - none")
    return Table(name="remedies", columns=(*columns, "passes", "time", "labels", "verdict"), rows=tuple(rows))


def verdicts_table(comparisons: Sequence[RemedyComparison]) -> Table:
    """The verdict on each remedy, with its reason."""
    rows: tuple[Row, ...] = tuple(
        (comparison.remedy, str(comparison.verdict), comparison.explanation())
        for comparison in comparisons
        if comparison.remedy != NO_REMEDY
    )
    return Table(name="remedies_verdicts", columns=("remedy", "verdict", "reason"), rows=rows)


def remedies_numbers_table(comparisons: Sequence[RemedyComparison]) -> Table:
    """The differences from no remedy and their intervals as numbers."""
    rows: list[Row] = []
    for comparison in comparisons[1:]:
        for name, change, num in (
            ("learned", comparison.learned_change, comparison.num_unknown),
            ("lost", comparison.lost_change, comparison.num_highly_known),
            ("test_accuracy", comparison.accuracy_change, comparison.num_test),
        ):
            p_value = round(comparison.lost_p, 5) if name == "lost" else None
            rows.append((comparison.remedy, name, *rounded_with_interval(change), p_value, num, len(comparison.seeds)))
    columns = ("remedy", "quantity", "difference_points", "low", "high", "holm_p", "questions", "seeds")
    return Table(name="remedies_numbers", columns=columns, rows=tuple(rows))


def compare(data: StudyData) -> list[RemedyComparison]:
    """The remedies of the study, no remedy first; see `compare_remedies`.

    Raises:
        InsufficientDataError: see `compare_remedies`.
    """
    names = {variant.kind: name for name, variant in data.variants.items() if variant.share == SHARE}
    runs = [run for run in data.runs if run.variant in names.values()]
    kinds = {name: kind for kind, name in names.items()}
    return compare_remedies(data.load_cached(load_remedy_runs, [], runs, kinds))


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    remedy: str
    run_id: str
    seed: int
    epoch: int


def load_remedy_runs(study: Folder, runs: Sequence[Run], kinds: Mapping[str, str]) -> list[RemedyRun]:
    """Load the answers of every remedy that was trained as long as `unknown-050`, in the order of the tables.

    Args:
        study: the study.
        runs: its runs with the default settings, of the variants in `kinds`.
        kinds: name of each variant at the share of the remedies -> its kind.
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
    gold = _gold_answers(study) if checkpoints else {}
    unknown_ids = _unknown_ids(study, checkpoints[0]) if checkpoints else None
    return [loaded for checkpoint in checkpoints if (loaded := _load_run(study, checkpoint, unknown_ids, gold))]


def remedy_of_settings(settings: Mapping[str, str]) -> str:
    """The remedy that training settings are, in words; empty if they are none.

    >>> remedy_of_settings({"lora_rank": "8", "learning_rate": "0.002"})
    'LoRA (rank 8, learning rate 0.002)'
    >>> remedy_of_settings({"replay_known": "64"}), remedy_of_settings({"learning_rate": "0.002"})
    ('Known rows replayed at the end (64)', '')
    """
    names = set(settings)
    if names == {"replay_known"}:
        return f"Known rows replayed at the end ({settings['replay_known']})"
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
    study: Folder, checkpoint: _Checkpoint, unknown_ids: Any, gold: Mapping[str, Sequence[str]]
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
    learned = {
        question_id: is_hit(text, gold[question_id], matcher)
        for question_id, category, text in zip(train["question_id"], train["category"], train["text"], strict=True)
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
        num_passes=_num_passes(len(train["question_id"]), epochs, manifest.settings),
    )


def _num_passes(num_rows: int, epochs: int, settings: Mapping[str, Any]) -> int:
    """Forward passes of one row: every row once an epoch, twice if a frozen model distils, and the replayed rows."""
    num = num_rows * epochs + int(settings.get("replay_known") or 0)
    return 2 * num if settings.get("distill_weight") else num
