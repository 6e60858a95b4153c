"""The page of a curated file: numbers, advice, escaping, and the sample of large files."""

import json
import re
import shlex
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from jobs.common import parse_config
from slick.annotation import AnnotateConfig
from slick.curation.actions import RowLabel
from slick.curation.commands import curate_command
from slick.curation.config import CurateConfig
from slick.curation.page import advise, evidence_table, page_html, reason_table, reliability_sentences, write_page
from slick.curation.page_figures import by_group, by_length
from slick.curation.page_rows import MAX_CHARACTERS, category_of, page_rows, reason_of, sample_decisions
from slick.curation.selection import CODE, Candidate, Decision, Skipped
from slick.inference.base import SamplingConfig
from slick.types import Category
from tests.unit.curated_study import CODE_ROW, CuratedStudy, fact, write_curated_study

HIGHLY, MAYBE, WEAKLY, UNKNOWN = Category
HOSTILE = "</script><script>alert(1)</script><!-- \u2028 <img src=x onerror=alert(2)> & \"quoted\" 'text'"


def render(curated: CuratedStudy) -> str:
    return page_html(curated.study, curated.plan, curated.labels, curated.config)


def embedded_rows(page: str) -> list[dict[str, Any]]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    return json.loads(text[1])


def visible_text(page: str) -> str:
    body = re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body))).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> CuratedStudy:
    rows = [*(fact(i, kind="novel" if i % 2 else "play") for i in range(8)), CODE_ROW]
    categories = [HIGHLY, MAYBE, WEAKLY, WEAKLY, WEAKLY, UNKNOWN, UNKNOWN, UNKNOWN]
    return write_curated_study(tmp_path_factory.mktemp("study"), rows, categories, group_by="kind")


@pytest.fixture(scope="module")
def page(curated: CuratedStudy) -> str:
    return render(curated)


def test_page_has_shares_with_intervals(page: str) -> None:
    text = visible_text(page)
    assert "8 of 9 rows test knowledge" in text
    assert "Unknown 3 , 37.5 (13.7 to 69.4) %" in text  # Wilson's interval of 3 of 8
    assert "Drop the 3 Unknown rows (38 % of those labelled), or relabel them; keep the 3 WeaklyKnown rows." in text
    assert "Gekhman et al. 2024" in text
    assert "Matcher exact: all targets are short." in text


def test_page_lists_sentences_with_the_text_before_them(tmp_path: Path) -> None:
    """Sentences have their own categories and answers, and the page leads to `drop-claims`, not to a sweep."""
    rows = [fact(i) | {"completion": f"Sure! Ada {i} wrote it. It sold well in Ur."} for i in range(2)]
    settings = {"data": "x.jsonl", "claims": "sentences", "unknown": "drop-claims", "to": "y.jsonl"}
    curated = write_curated_study(tmp_path, rows, [HIGHLY, UNKNOWN, UNKNOWN, UNKNOWN], **settings)
    page = render(curated)
    asked = [row for row in embedded_rows(page) if row.get("category")]
    assert [(row["number"], row["category"], row["target"]) for row in asked] == [
        (1, "HighlyKnown", "Ada 0 wrote it."),
        (1, "Unknown", "It sold well in Ur."),
        (2, "Unknown", "Ada 1 wrote it."),
        (2, "Unknown", "It sold well in Ur."),
    ]
    assert asked[1]["context"] == "assistant: Sure! Ada 0 wrote it. …"
    assert [row["greedy"][0][2] for row in asked] == [True, False, False, False]
    text = visible_text(page)
    assert (
        "1 rows: 1 dropped, 0 relabelled, 0 with a lower weight. 1 sentences were removed from 1 of its rows." in text
    )
    assert "--claims sentences --unknown drop-claims" in text
    assert "Numbers of sentences" in text
    assert "slick sweep" not in text


def test_page_shows_answers_of_every_row(page: str) -> None:
    rows = embedded_rows(page)
    assert [row["number"] for row in rows] == list(range(1, 10))
    assert rows[1] == {
        "number": 2,
        "category": "MaybeKnown",
        "group": "novel",
        "prompt": "Who wrote book 1?",
        "target": "Author 1",
        "counts": [1, 2, 3, 8],
        "greedy": [["Author 1", 1, True], ["Nobody", 1, False]],
        "sampled": [["Nobody", 5, False], ["Author 1", 3, True]],
    }
    assert rows[8] == {"number": 9, "reason": CODE, "prompt": "Print 1.", "target": "```print(1)```"}


def test_shares_by_group_and_length(curated: CuratedStudy) -> None:
    groups = by_group(curated.plan.decisions, curated.labels, "kind").table()
    assert groups.columns == ("kind", *map(str, Category), "asked", "Unknown (%)")
    assert groups.rows == (
        ("novel", 0, 1, 1, 2, 4, "50.0 (15.0 to 85.0)"),
        ("play", 1, 0, 2, 1, 4, "25.0 (4.6 to 69.9)"),
    )
    lengths = by_length(curated.plan.decisions, curated.labels).table()
    assert [row[:6] for row in lengths.rows] == [("2", 1, 1, 3, 3, 8)]


def test_small_groups_are_merged_if_there_are_many(tmp_path: Path) -> None:
    rows = [fact(i, kind=f"kind {i:02}") for i in range(20)]
    curated = write_curated_study(tmp_path, rows, [UNKNOWN] * 20, group_by="kind")
    counts = by_group(curated.plan.decisions, curated.labels, "kind").counts
    assert len(counts) == 16
    assert counts["5 other groups"] == {UNKNOWN: 5}


def test_skipped_rows_are_listed_with_rule_and_example(curated: CuratedStudy) -> None:
    table = reason_table(curated.study, curated.plan, curated.labels, curated.config)
    assert table is not None
    assert table.rows == ((CODE, 1, "The prompt or the target has code.", "Row 9: Print 1. → ```print(1)```"),)


def test_reliability_counts_labels_that_more_answers_would_change(curated: CuratedStudy) -> None:
    counts = dict.fromkeys(Category, 0) | {UNKNOWN: 3}
    first, *others = reliability_sentences(curated.study, counts)
    assert first.startswith("If every question were answered as often again, an estimated 0.8 of the 3 Unknown rows")
    assert any("The last exemplar set moves" in sentence for sentence in others)
    table = evidence_table(curated.study)
    assert table is not None
    assert table.rows[2:] == (
        ("WeaklyKnown", 3, "0.0", "12.5", "2.5 to 22.5"),
        ("Unknown", 3, "0.0", "0.0", "0 to 30.0"),
    )


def test_texts_of_the_file_are_escaped(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{HOSTILE} 1?", "completion": f"Ada {HOSTILE}", "kind": HOSTILE},
        {"prompt": HOSTILE, "completion": ""},
    ]
    curated = write_curated_study(tmp_path, rows, [UNKNOWN], wrong=HOSTILE, group_by="kind", data=HOSTILE)
    page = render(curated)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert len(re.findall("</script", page)) == 2
    first, second = embedded_rows(page)
    assert (first["prompt"], first["target"], first["group"]) == (
        f"{HOSTILE} 1?",
        f"Ada {HOSTILE}",
        " ".join(HOSTILE.split()),
    )
    assert first["greedy"] == [[HOSTILE, 2, False]]
    assert HOSTILE in second["prompt"]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    curated = write_curated_study(tmp_path, [fact(1), {"prompt": "word " * 5_000, "completion": "x"}], [UNKNOWN])
    prompt = embedded_rows(render(curated))[1]["prompt"]
    assert prompt.startswith("word ")
    assert prompt.endswith(f"({25_000 - MAX_CHARACTERS:,} more characters in the file)")


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    curated = write_curated_study(tmp_path, [fact(1), {"prompt": "\ud800", "completion": "```x```"}], [UNKNOWN])
    path = write_page(curated.study, curated.plan, curated.labels, curated.config)
    assert path.endswith("curate/index.html")
    assert "?" in embedded_rows(Path(path).read_text())[1]["prompt"]


def decisions_and_labels(sizes: dict[Category | None, int]) -> tuple[list[Decision], list[RowLabel]]:
    categories = [category for category, size in sizes.items() for _ in range(size)]
    decisions: list[Decision] = []
    for row, category in enumerate(categories):
        if category is None:
            decisions.append(Skipped(row=row, where="", turn=None, reason=CODE))
            continue
        texts: Any = {"group": "rows", "context": (), "question": "Who?", "accepted": ("Ada",)}
        decisions.append(Candidate(row=row, where="", turn=0, question_id=str(row), **texts))
    labels = [RowLabel(category=c, turns=((0, c),)) if c else RowLabel(reason=CODE) for c in categories]
    return decisions, labels


def test_large_files_are_sampled_by_category() -> None:
    decisions, labels = decisions_and_labels({HIGHLY: 700, MAYBE: 150, WEAKLY: 100, UNKNOWN: 49, None: 1})
    sample = sample_decisions(decisions, labels, limit=100, seed=0)
    counts = Counter(category_of(decision, labels[decision.row]) for decision in sample)
    assert counts == {HIGHLY: 70, MAYBE: 15, WEAKLY: 10, UNKNOWN: 4, None: 1}
    assert [decision.row for decision in sample] == sorted(decision.row for decision in sample)
    assert sample_decisions(decisions, labels, limit=100, seed=0) == sample
    assert sample_decisions(decisions, labels, limit=100, seed=1) != sample
    assert sample_decisions(decisions, labels, limit=1_000, seed=0) == decisions


def test_page_with_a_sample_of_the_rows_has_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slick.curation.page.MAX_ROWS", 5)
    curated = write_curated_study(tmp_path, [fact(i) for i in range(20)], [HIGHLY] * 10 + [UNKNOWN] * 10, seed=3)
    page = render(curated)
    assert len(embedded_rows(page)) == 5
    assert "a sample of 5 of 20 rows" in visible_text(page)
    assert "with seed 3" in visible_text(page)


def test_every_labelled_turn_has_its_own_row(tmp_path: Path) -> None:
    turns = [("user", "Who wrote A?"), ("assistant", "Ada"), ("user", "And B?"), ("assistant", "Bo")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    curated = write_curated_study(tmp_path, [row], [HIGHLY, UNKNOWN], turns="all")
    rows = page_rows(
        curated.study,
        curated.plan.data,
        curated.plan.row_format,
        curated.plan.decisions,
        curated.labels,
        show_turns=True,
    )
    assert [(row.number, row.turn, row.category, row.target) for row in rows] == [
        (1, 1, "HighlyKnown", "Ada"),
        (1, 2, "Unknown", "Bo"),
    ]
    assert rows[1].context == "user: Who wrote A?\nassistant: Ada"
    assert curated.labels[0].category == UNKNOWN


def test_each_turn_without_a_label_has_a_reason(tmp_path: Path) -> None:
    turns = [("user", "Who wrote A?"), ("assistant", "Ada"), ("user", "And B?"), ("assistant", "Bo")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    curated = write_curated_study(tmp_path, [row], [HIGHLY, UNKNOWN], turns="all")
    first, second = curated.plan.decisions
    label = RowLabel(category=HIGHLY, turns=((0, HIGHLY),), set_aside=((1, "prompt too long"),))
    assert category_of(second, label) is None
    assert reason_of(second, label) == "prompt too long"
    assert category_of(first, label) == HIGHLY


def test_nothing_is_dropped_without_unknown_rows() -> None:
    labels = [RowLabel(category=HIGHLY), RowLabel(category=WEAKLY)]
    advice = advise(CurateConfig(data="x.jsonl", model="m"), labels, "studies/x", ".jsonl")
    assert advice.headline == "Nothing to drop: no row is Unknown. Keep the 1 WeaklyKnown rows."
    assert advice.commands == ()
    none = advise(CurateConfig(data="x.jsonl", model="m"), labels[:1], "studies/x", ".jsonl")
    assert (none.headline, none.reasons) == ("Nothing to drop: no row is Unknown.", ())


def test_advice_describes_the_written_copy() -> None:
    labels = [RowLabel(category=HIGHLY), RowLabel(category=UNKNOWN, turns=((0, UNKNOWN),))]
    config = CurateConfig(data="x.jsonl", model="m", unknown="drop", to="mine.jsonl")
    advice = advise(config, labels, "studies/x", ".jsonl")
    assert advice.written.startswith("This run wrote `mine.jsonl` with 1 rows: 1 dropped, 0 relabelled")
    assert advice.commands == (
        "slick curate x.jsonl --model m --out studies/x --unknown drop --to mine.jsonl",
        "slick curate x.jsonl --model m --out studies/x --unknown idk --to relabelled.jsonl",
    )
    in_memory = advise(CurateConfig(model="m"), labels, "studies/x", ".jsonl")
    assert in_memory.commands == ()
    assert 'unknown="drop"' in in_memory.call


@pytest.mark.parametrize(
    "config",
    [
        CurateConfig(data="my rows.csv", model="m"),
        CurateConfig(data="d", model="m", ask=("a=1", "b=x y"), id_column="", idk_phrase="I don't know", seed=7),
        CurateConfig(data="d", model="m", prompt_column="p", target_column="t", unknown="drop", to="c", overwrite=True),
        CurateConfig(
            data="d",
            model="m",
            annotate=AnnotateConfig(num_shots=2, trust_remote_code=True, sampling=SamplingConfig(temperature=0.7)),
        ),
    ],
)
def test_printed_command_has_the_settings(config: CurateConfig) -> None:
    slick, curate, data, *flags = shlex.split(curate_command(config, "studies/x"))
    assert (slick, curate, data) == ("slick", "curate", config.data)
    at = flags.index("--out")
    assert flags[at + 1] == "studies/x"
    parsed = parse_config(CurateConfig(data=data), [*flags[:at], *flags[at + 2 :]], "slick curate")
    assert parsed == config
