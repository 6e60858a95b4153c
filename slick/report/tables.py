"""The tables: the same cells for the page and for the CSV files."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from slick.analysis.cells import escape_cell
from slick.analysis.data import StudyData
from slick.analysis.findings.categories import TABLE_2_VARIANTS, VARIANT_LABELS
from slick.analysis.findings.idk import abstention_variant, measure_abstention
from slick.analysis.findings.sweep import half_unknown_variant, training_lengths
from slick.analysis.findings.verdict import FindingResult, checkpoint_label, round1
from slick.analysis.recommendation import points_with_common_settings
from slick.analysis.statistics.significance import paired_p_value, significance_stars
from slick.analysis.terms import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.figures import early_stop_composition
from slick.types import ALL_CATEGORIES, Category

CellValue = str | float | int | None

CATEGORY_COLUMNS = (ALL_CATEGORIES, *map(str, Category))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; numbers are kept as numbers, text cells may carry marks."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    strong: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells to be shown in bold."""
    total_rows: frozenset[int] = frozenset()
    """Rows that are sums or headings."""
    text_columns: frozenset[int] = frozenset()
    """Columns of running text: set from the left, and broken into lines."""


def to_csv(table: Table) -> bytes:
    """UTF-8 CSV with a header line; an absent value is an empty field, and no text is a formula to a spreadsheet."""
    return "".join(_csv_line([_csv_cell(value) for value in row]) for row in (table.columns, *table.rows)).encode()


def _csv_line(cells: Sequence[CellValue]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # by which it knows that both stand in quotes
    return text.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(value: CellValue) -> CellValue:
    if value is None:
        return ""
    return escape_cell(value) if isinstance(value, str) else value


def accuracy_table(data: StudyData, split: str) -> Table:
    """Accuracy of every sweep variant at every training length, with standard errors (figure 3a, 7)."""
    rows: list[tuple[CellValue, ...]] = []
    for share, name in data.sweep_variants("unknown"):
        for checkpoint in training_lengths(data):
            cell = data.accuracy(name, checkpoint, split)
            rows.append(
                (
                    name,
                    round(100 * share, 2),
                    checkpoint_label(checkpoint),
                    round(cell.value, 2),
                    round(cell.se, 2),
                    cell.num_seeds,
                )
            )
    columns = ("variant", "unknown_percent", "stop", "accuracy_percent", "standard_error", "seeds")
    return Table(
        name="accuracy_by_share" if split == "test" else "ood_accuracy_by_share", columns=columns, rows=tuple(rows)
    )


def ablation_table(data: StudyData) -> Table:
    """D beside D_Known (figure 3b)."""
    rows: list[tuple[CellValue, ...]] = []
    for kind in ("unknown", "known"):
        for share, name in data.sweep_variants(kind):
            cells = [data.accuracy(name, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)]
            rows.append((name, round(100 * share, 2), *(round(v, 2) for cell in cells for v in (cell.value, cell.se))))
    columns = ("variant", "unknown_percent", "early_stop", "early_stop_se", "convergence", "convergence_se")
    return Table(name="known_ablation", columns=columns, rows=tuple(rows))


def curves_table(data: StudyData) -> Table:
    """Every run, epoch, split and category (figures 1 and 6)."""
    rows: list[tuple[CellValue, ...]] = []
    for run in data.runs:
        for (split, category), curve in sorted(run.accuracy.items()):
            for epoch, value in zip(run.epochs.tolist(), curve.tolist(), strict=True):
                if not math.isnan(value):
                    rows.append((run.run_id, epoch, split, category, run.num[split, category], round(value, 3)))
    if not rows:
        raise InsufficientDataError("needs a finished run")
    return Table(
        name="curves", columns=("run_id", "epoch", "split", "category", "rows", "accuracy_percent"), rows=tuple(rows)
    )


def early_stop_table(data: StudyData) -> Table:
    """Fitted and unfitted rows at early stop (figure 4)."""
    rows: list[tuple[CellValue, ...]] = [
        (
            name,
            round(100 * share, 2),
            round(data.mean_epoch(name, EARLY_STOP), 1),
            *(round(part, 2) for part in early_stop_composition(data, share, name)),
        )
        for share, name in data.sweep_variants("unknown", min_shares=1)
    ]
    columns = (
        "variant",
        "unknown_percent",
        "epoch",
        "known_fitted",
        "known_not_fitted",
        "unknown_fitted",
        "unknown_not_fitted",
    )
    return Table(name="early_stop_state", columns=columns, rows=tuple(rows))


def category_accuracy_table(data: StudyData, checkpoint: str, num_chunks: int, seed: int) -> Table:
    """Accuracy by category of test question, starred where significantly below the column's best (table 2, 7)."""
    names = [name for name in TABLE_2_VARIANTS if data.has_run(name)]
    if not names:
        raise InsufficientDataError(f"needs a finished run of one of {', '.join(TABLE_2_VARIANTS)}")
    texts: dict[tuple[int, int], str] = {}
    strong = set()
    for column, category in enumerate(CATEGORY_COLUMNS, start=1):
        cells = {
            name: data.accuracy(name, checkpoint, category=category)
            for name in names
            if _has_category(data, name, category)
        }
        best = max(cells, key=lambda name: cells[name].value, default=None)
        for row, name in enumerate(names):
            if name not in cells or best is None:
                continue
            mark = "" if name == best else _significance_marks(data, name, best, checkpoint, category, num_chunks, seed)
            texts[row, column] = f"{round1(cells[name].value):.1f}{mark}"
            if not mark:
                strong.add((row, column))
    rows = tuple((VARIANT_LABELS[name], *(texts.get((row, i)) for i in range(1, 6))) for row, name in enumerate(names))
    return Table(
        name=f"by_category_{checkpoint}",
        columns=("fine-tuned on", "Full", *CATEGORY_COLUMNS[1:]),
        rows=rows,
        strong=frozenset(strong),
    )


def _has_category(data: StudyData, name: str, category: str) -> bool:
    return all(("test", category) in run.accuracy for run in data.runs_for(name))


def _significance_marks(
    data: StudyData, name: str, best: str, checkpoint: str, category: str, num_chunks: int, seed: int
) -> str:
    rows, top = (
        data.mean_correct(name, checkpoint, "test", category),
        data.mean_correct(best, checkpoint, "test", category),
    )
    if rows is None or top is None or len(rows) < 2 or rows.shape != top.shape:
        return " ?"  # no rows were kept, so nothing can be tested
    return significance_stars(paired_p_value(rows, top, num_chunks, seed))


def abstention_table(data: StudyData) -> Table:
    """D beside D_IDK: accuracy on what is answered, share answered, right answers over all (table 8)."""
    name = abstention_variant(data)
    rows: list[tuple[CellValue, ...]] = []
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        try:
            plain: CellValue = round1(data.accuracy(half_unknown_variant(data), checkpoint).value)
        except InsufficientDataError:
            plain = None
        side = measure_abstention(data, name, checkpoint)
        rows.append(("D, 50 % Unknown", checkpoint_label(checkpoint), plain, 100.0, plain))
        rows.append(
            (
                "D_IDK",
                checkpoint_label(checkpoint),
                *(round1(c.value) for c in (side.on_answered, side.answered, side.overall)),
            )
        )
    rows.sort(key=lambda row: row[0] == "D_IDK")
    columns = ("fine-tuned on", "checkpoint", "accuracy on answered", "answered", "right over all")
    return Table(name="idk", columns=columns, rows=tuple(rows))


def policy_table(data: StudyData) -> Table:
    """Every stopping policy and budget, of settings tried at every share: mean accuracy, and epochs spent."""
    sweep = {name: share for share, name in data.sweep_variants("unknown")}
    cells: dict[tuple[str, int, str], list[tuple[float, float, float]]] = {}
    for point in points_with_common_settings(data):
        if point["variant"] in sweep and point.get("test_all") is not None:
            value = (100.0 * point["test_all"], float(point["stop_epoch"]), float(point["cost_epochs"]))
            key = (str(point["policy"]), int(point["epochs"]), point.get("settings") or "")
            cells.setdefault(key, []).append(value)
    if not cells:
        raise InsufficientDataError("needs a finished sweep")
    rows: list[tuple[CellValue, ...]] = []
    varied = any(settings for _, _, settings in cells)
    for (policy, budget, settings), values in cells.items():
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        rows.append((policy, budget, *(round1(mean) for mean in means), len(values), *([settings] * varied)))
    rows.sort(key=lambda row: -float(row[2] or 0))
    return Table(
        name="policies",
        columns=(
            "policy",
            "budget",
            "test accuracy (%)",
            "stops at epoch",
            "epochs spent",
            "runs",
            *["settings"] * varied,
        ),
        rows=tuple(rows),
    )


def outcomes_table(outcomes: list[FindingResult]) -> Table:
    """The 25 findings as CSV."""
    words = {True: "holds", False: "fails", None: "not testable"}
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (
            o.id,
            o.claim,
            words[o.holds],
            *("" if v is None else str(v) for v in (o.own, o.interval)),
            str(o.paper),
            o.why,
        )
        for o in outcomes
    )
    return Table(name="outcomes", columns=("id", "claim", "outcome", "own", "interval", "paper", "why"), rows=rows)
