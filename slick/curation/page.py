"""The page of a curated file: what the model knows, recommended actions, and all rows with the model's answers.

One HTML file without network access. Texts of the file are escaped in the template, and inserted as text by the script.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from slick.annotation.set_aside import TOO_LONG as PROMPT_TOO_LONG
from slick.annotation.set_aside import UNDECIDED
from slick.curation.actions import RowLabel, count_actions
from slick.curation.claims import FEW_EXEMPLARS, NO_CLAIM, NO_NAME
from slick.curation.commands import curate_command
from slick.curation.config import CurateConfig
from slick.curation.page_figures import by_group, by_length, percent
from slick.curation.page_rows import MAX_ROWS, NOT_LABELLED, PageRow, page_rows, reason_of, sample_decisions
from slick.curation.plan import SEVERAL_LINES, CurationPlan
from slick.curation.selection import (
    CODE,
    CONTEXT,
    EXCLUDED,
    NOT_READABLE,
    PROMPT_REFUSED,
    TOO_LONG,
    Decision,
    max_target_words,
)
from slick.formatting import format_percent
from slick.report.measurements import round1
from slick.report.page import render_page
from slick.report.sections.stability import LabelStability, load_stability, stability_sentences
from slick.report.tables import Row, Table
from slick.storage import Folder
from slick.study_files import read_knowledge
from slick.types import Category

PAGE = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Recommended actions, each with its reason."""

    headline: str
    written: str
    """A summary of the copy; empty if this run wrote none."""
    reasons: tuple[str, ...]
    commands: tuple[str, ...]
    """Commands that write a cleaned copy; none for rows in memory."""
    call: str
    """For rows in memory: how to get a cleaned copy."""
    open_question: str
    """The limits of labels, and how to measure the effect on a training."""
    test_commands: tuple[str, ...]
    """Commands that measure it."""


def write_page(study: Folder, plan: CurationPlan, labels: Sequence[RowLabel], config: CurateConfig) -> str:
    """Write curate/index.html.

    Args:
        study: with finished labels.
        plan: the decisions and settings of this run.
        labels: one per row of the file.
        config: the settings.

    Returns:
        Its path.

    Raises:
        DataError: the file changed meanwhile.
        StudyError: a file of the study is damaged.
    """
    folder = study.child("curate")
    folder.write_bytes(PAGE, page_html(study, plan, labels, config).encode())
    return f"{folder}/{PAGE}"


def page_html(study: Folder, plan: CurationPlan, labels: Sequence[RowLabel], config: CurateConfig) -> str:
    """The page as text; arguments as for `write_page`."""
    from markupsafe import Markup

    shown = sample_decisions(plan.decisions, labels, limit=MAX_ROWS, seed=config.seed)
    num_labelled = sum(label.category is not None for label in labels)
    counts = count_categories(labels)
    data, all_turns = plan.data, config.turns == "all"
    groups = by_group(plan.decisions, labels, config.group_by or "") if config.group_by else None
    package = resources.files("slick.curation")
    return render_page(
        package="slick.curation",
        page_css=Markup(package.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(package.joinpath("page.js").read_text(encoding="utf-8")),
        title=f"{Folder(data.name).name or data.name}: what the model knows",
        data_name=Folder(data.name).name or data.name,
        model_name=Folder(config.model).name or config.model,
        notes=plan.notes,
        num_rows=len(labels),
        num_labelled=num_labelled,
        shares=category_shares(counts),
        advice=advise(config, labels, str(study), data.suffix),
        reasons=reason_table(study, plan, labels, config),
        groups=groups,
        lengths=by_length(plan.decisions, labels),
        reliability=reliability_sentences(study, counts),
        evidence=evidence_table(study),
        rows=table_json(page_rows(study, data, plan.row_format, shown, labels, show_turns=all_turns)),
        sample_note=sample_note(len(shown), len(plan.decisions), config.seed),
        unit="sentences" if config.claims != "none" else "turns" if all_turns else "rows",
    )


def count_categories(labels: Sequence[RowLabel]) -> dict[Category, int]:
    """Number of rows by category."""
    return {category: sum(label.category == category for label in labels) for category in Category}


def category_shares(counts: Mapping[Category, int]) -> list[dict[str, Any]]:
    """Category, percentage, and share with its interval as text, for the bar at the top."""
    total = sum(counts.values())
    return [
        {"category": str(category), "num": num, "percent": 100 * num / total, "text": percent(num, total)}
        for category, num in counts.items()
        if total
    ]


def advise(config: CurateConfig, labels: Sequence[RowLabel], out: str, suffix: str) -> Advice:
    """Recommended actions for Unknown and WeaklyKnown rows.

    Source: Gekhman et al. 2024, arXiv:2405.05904, sections 4 to 6 and Table 2; the table of D_IDK is in appendix K of
    its second version.

    Args:
        config: the settings of this run.
        labels: one per row.
        out: the study folder.
        suffix: of a copy of the file; empty for folders.
    """
    counts = count_categories(labels)
    unknown, weakly = counts[Category.UNKNOWN], counts[Category.WEAKLY_KNOWN]
    total = max(1, sum(counts.values()))
    reasons = (
        f"Unknown, {unknown:,} rows: in Gekhman et al. 2024 (arXiv:2405.05904, sections 4.1 and 4.2) test accuracy "
        "fell as their share rose, and most of that loss went away when these rows were dropped. It grew with the "
        "length of training; when training stopped at the best dev accuracy, Unknown rows did little harm.",
        "Relabelling them keeps the questions and teaches the model to abstain: its answers became more accurate (61.8 "
        "instead of 38.8 % after 50 epochs), but it answered only 55.6 % of the questions. Choose it if no answer is "
        "better than a wrong one.",
        f"WeaklyKnown, {weakly:,} rows: a set of these alone lost accuracy in long training (39.2 to 35.4 %; section "
        "5, Table 2), but a natural mix with them was as good as the best set when training stopped early. Keep them, "
        "and stop at the best dev accuracy.",
    )
    kept = f"the {weakly:,} WeaklyKnown rows." if weakly else ""
    if unknown:
        headline = (
            f"Drop the {unknown:,} Unknown rows ({format_percent(unknown / total)} of those labelled), or relabel them"
            + (f"; keep {kept}" if kept else ".")
        )
    else:
        headline = "Nothing to drop: no row is Unknown." + (f" Keep {kept}" if kept else "")
    plain = replace(config, unknown="keep", weakly="keep", to=None, overwrite=False)
    has_claims = config.claims != "none"
    actions: tuple[Any, ...] = ("drop", *(["drop-claims"] if has_claims else []), "idk") if unknown else ()
    return Advice(
        headline=headline,
        written=_written(config, labels),
        reasons=(reasons[:2] if unknown else ()) + (reasons[2:] if weakly else ()),
        commands=tuple(
            curate_command(replace(plain, unknown=action, to=_copy_name(config, action, suffix)), out)
            for action in actions
            if config.data
        ),
        call='Call `slick.curate` again with the same `out` and `unknown="drop"` or `unknown="idk"`; no answer is '
        "generated again."
        if unknown and not config.data
        else "",
        open_question="Curate the file without --claims to compare trainings with and without Unknown rows."
        if has_claims
        else "Labels alone do not show how much your own training gains: that depends on its length, its "
        "learning rate and the share of Unknown rows. These commands train on your rows with and without Unknown ones, "
        "and report the difference:",
        test_commands=() if has_claims else tuple(_test_commands(config.model, out)),
    )


def _test_commands(model: str, out: str) -> list[str]:
    sweep = ["sweep", "paper", "--grid.variants", "unknown-050", "known-050", "--train.model", model]
    steps = (["variants", "paper"], sweep, ["report", "paper"])
    return [shlex.join(["slick", *words, "--out", out]) for words in steps]


def _written(config: CurateConfig, labels: Sequence[RowLabel]) -> str:
    if config.to is None:
        return ""
    numbers = count_actions(labels, config)
    shortened = (
        ""
        if config.claims == "none"
        else f" {numbers['removed_claims']:,} sentences were removed from {numbers['shortened']:,} of its rows."
    )
    return (
        f"This run wrote `{config.to}` with {numbers['rows']:,} rows: {numbers['dropped']:,} dropped, "
        f"{numbers['relabelled']:,} relabelled, {numbers['weighted']:,} with a lower weight.{shortened}"
    )


def _copy_name(config: CurateConfig, action: str, suffix: str) -> str:
    if config.to is not None and config.unknown == action:
        return config.to
    return {"drop": "cleaned", "drop-claims": "shortened", "idk": "relabelled"}[action] + suffix


def reason_table(study: Folder, plan: CurationPlan, labels: Sequence[RowLabel], config: CurateConfig) -> Table | None:
    """Why rows have no label, with the number of rows and the first of them; None if all have one."""
    counts: dict[str, int] = {}
    first: dict[str, Decision] = {}
    for decision in plan.decisions:
        label = labels[decision.row]
        if label.category_of(decision) is not None:
            continue
        reason = reason_of(decision, label)
        counts[reason] = counts.get(reason, 0) + 1
        first.setdefault(reason, decision)
    if not counts:
        return None
    ranked = sorted(counts, key=lambda reason: (-counts[reason], reason))[:_MAX_REASONS]
    examples = page_rows(study, plan.data, plan.row_format, [first[r] for r in ranked], labels, show_turns=False)
    rows: list[Row] = [
        (reason, counts[reason], rule_of(reason, plan.annotation.matcher, config), _example(row))
        for reason, row in zip(ranked, examples, strict=True)
    ]
    if others := len(counts) - len(ranked):
        rest = sum(counts.values()) - sum(counts[reason] for reason in ranked)
        rows.append((f"{others:,} other reasons", rest, "see the table of rows", ""))
    columns = ("reason", "rows", "rule", "example")
    return Table(name="reasons", columns=columns, rows=tuple(rows), text_columns=frozenset({2, 3}))


_MAX_REASONS = 20


def rule_of(reason: str, matcher: str, config: CurateConfig) -> str:
    """The rule behind a reason, with the settings that change it."""
    limit = max_target_words(matcher, config)
    rules = {
        CODE: "The prompt or the target has code.",
        CONTEXT: f"The prompt has more than {config.max_prompt_words} words (--max-prompt-words), or it contains the "
        "target.",
        TOO_LONG: f"The target has more than {limit} words, the most for the matcher {matcher} (--max-target-words).",
        EXCLUDED: "--ask or --skip exclude the row.",
        NOT_READABLE: "The row does not follow the format of the file.",
        SEVERAL_LINES: "Prompts without a chat template end an answer at the newline.",
        NO_CLAIM: "A question, a heading, or words such as 'Sure!'.",
        NO_NAME: "All its names are in the text before it, so the matcher names cannot judge it; try --matcher judge.",
        FEW_EXEMPLARS: "Exemplars of a sentence come from targets with as many sentences; too few rows have them.",
        PROMPT_TOO_LONG: "The prompt is longer than the model's context.",
        UNDECIDED: "The label depends on an answer that the judge did not grade.",
        PROMPT_REFUSED: "The chat template cannot express the row; try --prompt-format qa.",
    }
    return next((rule for start, rule in rules.items() if reason.startswith(start)), "")


def _example(row: PageRow) -> str:
    prompt, target = (text if len(text) <= 120 else f"{text[:119]}…" for text in (row.prompt, row.target))
    return f"Row {row.number:,}: {prompt}{f' → {target}' if target else ''}"


def reliability_sentences(study: Folder, counts: Mapping[Category, int]) -> list[str]:
    """How reliable the labels are, most important first."""
    stability = load_stability(study)
    if stability is None:
        return []
    others = stability_sentences(replace(stability, chance_known=None))
    return [*_expected_changes(stability, counts[Category.UNKNOWN]), *others]


def _expected_changes(stability: LabelStability, num_unknown: int) -> list[str]:
    if stability.chance_known is None or not num_unknown:
        return []
    expected = stability.chance_known * num_unknown
    num = f"{round(expected):,}" if expected >= 9.5 else f"{round1(expected):g}"
    return [
        f"If every question were answered as often again, an estimated {num} of the {num_unknown:,} Unknown rows "
        f"({format_percent(stability.chance_known, '.1f')}) would have a correct answer, and become WeaklyKnown."
    ]


def evidence_table(study: Folder) -> Table | None:
    """By category: questions, share of correct answers, and the median of its 95 % interval."""
    names = ["p_correct_greedy", "p_correct_sampled", "p_low", "p_high", "p_upper"]
    table = read_knowledge(study, ["category", *names])
    if not set(names) <= set(table.column_names):
        return None
    category_Q = np.array(table["category"].to_pylist())
    columns = {name: np.array(table[name].to_pylist(), dtype=np.float64) for name in names}
    rows: list[Row] = []
    for category in Category:
        mine = category_Q == str(category)
        if not mine.any():
            continue
        greedy, sampled, low, high, upper = (values[mine] for values in columns.values())
        interval = f"0 to {_percent(upper)}" if category == Category.UNKNOWN else f"{_percent(low)} to {_percent(high)}"
        rows.append((str(category), int(mine.sum()), _percent(greedy, np.mean), _percent(sampled, np.mean), interval))
    return Table(
        name="evidence",
        columns=(
            "category",
            "questions",
            "correct greedy answers (%)",
            "correct samples (%)",
            "median 95 % interval of correct samples (%)",
        ),
        rows=tuple(rows),
    )


def _percent(values: Any, summarize: Any = np.median) -> str:
    kept = values[~np.isnan(values)]
    return f"{round1(100 * float(summarize(kept))):.1f}" if len(kept) else "–"


def table_json(rows: Sequence[PageRow]) -> list[dict[str, Any]]:
    """The rows for the script, without empty fields."""
    return [{name: value for name, value in asdict(row).items() if value not in ("", [], None)} for row in rows]


def sample_note(num_shown: int, num_all: int, seed: int) -> str:
    """The note above a table that shows a sample; empty if it has all rows."""
    if num_shown == num_all:
        return ""
    return (
        f"The table shows a sample of {num_shown:,} of {num_all:,} rows, drawn from each category (and from rows that "
        f"were {NOT_LABELLED}) in proportion to its size, with seed {seed}. `curate/rows.parquet` has all rows."
    )
