"""The grading sheet of wrong answers, grades, and the agreement of exact match with F1."""

import csv
import io
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare, pearsonr

from slick.errors import DataError, SettingsError, StudyError
from slick.report import ReportConfig, make_report
from slick.report.answers import collected
from slick.report.config import AuditPlan
from slick.report.data import StudyData
from slick.report.grading import apply_grades, grade_shares, parse_grading_sheet
from slick.report.measurements import InsufficientDataError
from slick.report.sections import error_audit
from slick.report.sections.error_audit import collect_error_audit
from slick.report.statistics.error_audit import AuditCollector, ErrorAudit, matcher_agreement, suggest_grade
from slick.report.tables import Table, escape_cell, to_csv, unescape_cell
from slick.storage import Folder
from tests.study_builder import AnsweredQuestion, write_answered_study

TEMPERATURES = {"greedy": 0.0, "sampled": 0.5}


def make_questions(num: int = 30) -> list[AnsweredQuestion]:
    """Questions with 4 greedy and 4 x 2 sampled answers; every third one is mostly answered correctly."""
    rng = np.random.default_rng(3)
    questions = []
    for i in range(num):
        gold = f"Town {i}"
        p_correct = 0.8 if i % 3 == 0 else 0.1

        def draw_answer(gold: str = gold, p_correct: float = p_correct) -> str:
            return (
                gold
                if rng.random() < p_correct
                else str(rng.choice(["Oslo", f"{gold} Hill", "Town", "Bergen Old Town"]))
            )

        greedy = tuple(draw_answer() for _ in range(4))
        sampled = tuple(tuple(draw_answer() for _ in range(2)) for _ in range(4))
        category = "HighlyKnown" if i % 3 == 0 else "WeaklyKnown"
        questions.append(
            AnsweredQuestion(question_id=f"q{i:03d}", gold=(gold,), greedy=greedy, sampled=sampled, category=category)
        )
    return questions


def collect_audit(questions: list[AnsweredQuestion], **plan: float) -> ErrorAudit:
    collector = AuditCollector(AuditPlan(**plan), TEMPERATURES)  # type: ignore[arg-type]
    for item in questions:
        collector.add(item.row)
    return collector.result()


def load_audit(study: Folder, config: ReportConfig | None = None) -> ErrorAudit:
    audit = collected(StudyData(study=study, config=config or ReportConfig()), collect_error_audit)
    assert audit is not None
    return audit


def fill_in_grades(audit: ErrorAudit, grades: list[str]) -> bytes:
    """The sheet with these grades filled in."""
    rows = list(csv.DictReader(io.StringIO(to_csv(error_audit.sheet_table(audit)).decode())))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({**row, "grade": grade} for row, grade in zip(rows, grades, strict=True))
    return text.getvalue().encode()


def test_sheet_does_not_depend_on_answer_files(tmp_path: Path) -> None:
    questions, plan = make_questions(), ReportConfig(audit_greedy=10, audit_sampled=15, seed=4)
    one_file = load_audit(write_answered_study(tmp_path / "a", questions), plan)
    several_files = load_audit(write_answered_study(tmp_path / "b", questions[::-1], per_file=7), plan)
    assert one_file.rows == several_files.rows
    assert one_file.sheet_id == several_files.sheet_id
    assert Counter(row.decoding for row in one_file.rows) == {"greedy": 10, "sampled": 15}
    other = load_audit(
        write_answered_study(tmp_path / "c", questions), ReportConfig(audit_greedy=10, audit_sampled=15, seed=5)
    )
    assert other.sheet_id != one_file.sheet_id


def test_rows_are_wrong_stored_answers_with_matching_ids() -> None:
    questions = make_questions()
    by_id = {item.question_id: item for item in questions}
    audit = collect_audit(questions, num_greedy=1000, num_sampled=1000)
    for row in audit.rows:
        question_id, decoding, *indices = row.answer_id.split("/")
        item = by_id[question_id]
        text = item.greedy[int(indices[0])] if decoding == "greedy" else item.sampled[int(indices[0])][int(indices[1])]
        assert text == row.answer != item.gold[0]
        assert (row.gold, row.category, row.relation) == (item.gold, item.category, item.relation)
    wrong = {"greedy": 0, "sampled": 0}
    for item in questions:
        wrong["greedy"] += sum(text != item.gold[0] for text in item.greedy)
        wrong["sampled"] += sum(text != item.gold[0] for texts in item.sampled for text in texts)
    assert audit.num_wrong == wrong
    assert Counter(row.decoding for row in audit.rows) == wrong, "with fewer misses than the sample size, all are drawn"
    assert len({row.answer_id for row in audit.rows}) == len(audit.rows)


def test_answers_are_sampled_uniformly() -> None:
    questions = make_questions(12)
    drawn = Counter(
        row.answer_id
        for seed in range(400)
        for row in collect_audit(questions, num_greedy=0, num_sampled=6, seed=seed).rows
    )
    all_ids = [row.answer_id for row in collect_audit(questions, num_greedy=0, num_sampled=1000).rows]
    # The seeds are fixed; a uniform draw fails for one of a million choices of them.
    assert chisquare([drawn[item] for item in all_ids]).pvalue > 1e-6


def test_exact_match_overrides_the_stored_hits_of_another_matcher() -> None:
    questions = [
        AnsweredQuestion(question_id="q", gold=("The Hague",), greedy=("hague!", "Delft"), sampled=(("Hague",),))
    ]
    audit = collect_audit(questions)
    assert [row.answer for row in audit.rows] == ["Delft"]


@pytest.mark.parametrize(
    ("answer", "gold", "grade"),
    [
        ("Paris, France", ("Paris",), "finer?"),
        ("Hague", ("The Hague City",), "coarser?"),
        ("Newyork", ("New York",), "paraphrase?"),
        ("John Ronald Tolkien", ("John Reuel Tolkien",), "paraphrase?"),
        ("Jane Smith", ("John Smith",), "wrong"),
        ("Parish", ("Paris",), "paraphrase?"),
        ("in", ("Berlin",), "wrong"),
        ("Rome", ("Oslo", "City of Rome"), "coarser?"),
        ("", ("Oslo",), "wrong"),
        ("the", ("Oslo",), "wrong"),
        ("Oslo", ("!!!",), "wrong"),
    ],
)
def test_suggested_grades(answer: str, gold: tuple[str, ...], grade: str) -> None:
    assert suggest_grade(answer, gold) == grade


def test_agreement_is_the_correlation_over_all_answers() -> None:
    questions = make_questions()
    audit = collect_audit(questions)
    for decodings in (("greedy", "sampled"), ("greedy",), ("sampled",)):
        match_results = [
            item.row.match_results[text]
            for item in questions
            for decoding in decodings
            for text in item.row.texts[decoding]
            if text is not None
        ]
        exact, f1 = [j.exact for j in match_results], [j.f1 for j in match_results]
        result = matcher_agreement(audit, decodings)  # type: ignore[arg-type]
        assert result.r == pytest.approx(pearsonr(exact, f1).statistic)
        assert result.low is not None
        assert result.high is not None
        assert result.low < result.r < result.high < 1
        assert (result.num_answers, result.num_questions) == (len(match_results), len(questions))
        misses = [j.f1 for j in match_results if not j.exact]
        assert result.mean_f1_of_misses == pytest.approx(np.mean(misses))


def test_undefined_agreement_is_refused() -> None:
    wrong = [
        AnsweredQuestion(question_id=f"q{i}", gold=("Oslo",), greedy=("Rome",), sampled=(("Rome",),)) for i in range(20)
    ]
    with pytest.raises(InsufficientDataError, match="all answers hit or all miss"):
        matcher_agreement(collect_audit(wrong))
    with pytest.raises(InsufficientDataError, match="all answers hit or all miss"):
        matcher_agreement(collect_audit([]))
    few = matcher_agreement(collect_audit(make_questions(4)))
    assert few.low is few.high is None


def test_labels_mode_excludes_sampled_answers(tmp_path: Path) -> None:
    questions = make_questions(6)
    questions[2] = AnsweredQuestion(
        question_id="q002", gold=("Oslo",), greedy=("Rome",) * 4, sampled=(("Rome", None), *[("Bergen", None)] * 3)
    )
    audit = load_audit(write_answered_study(tmp_path, questions, mode="labels"))
    assert {row.decoding for row in audit.rows} == {"greedy"}
    text = error_audit.error_audit_section(StudyData(loaded={collect_error_audit: audit})).text
    assert "The sheet has no sampled answers: 4 samples" in text
    assert [row[0] for row in error_audit.presorted_table(audit).rows] == ["greedy"]


def test_missing_answers_are_reported(tmp_path: Path) -> None:
    study = write_answered_study(tmp_path, make_questions(4))
    study.child("annotate", "generations").delete()
    assert collected(StudyData(study=study), collect_error_audit) is None
    error_audit_section = error_audit.error_audit_section(StudyData())
    assert error_audit_section.is_empty
    assert all("--estimator sampled" in str(exhibit.missing) for exhibit in error_audit_section.exhibits)


def test_shares_of_a_graded_sheet_have_wilson_intervals() -> None:
    audit = collect_audit(make_questions(), num_greedy=50, num_sampled=50)
    grades = ["wrong"] * 90 + ["paraphrase"] * 6 + ["finer"] * 2 + ["coarser"] * 2
    graded = apply_grades(audit, parse_grading_sheet(fill_in_grades(audit, grades), "sheet.csv"))
    result = grade_shares(graded, ("greedy", "sampled"))
    assert [(item.grade, item.num, item.paper) for item in result] == [
        ("wrong", 90, 90),
        ("paraphrase", 6, 6),
        ("finer", 2, 2),
        ("coarser", 2, 2),
    ]
    assert (round(result[0].low, 1), round(result[0].high, 1)) == (82.6, 94.5)  # Wilson 1927, as printed in textbooks
    assert result[2].low > 0
    greedy_shares = grade_shares(graded, ("greedy",))
    assert (greedy_shares[0].num, greedy_shares[0].total, greedy_shares[1].num) == (50, 50, 0)
    assert error_audit.grade_shares_table(graded).rows[0][:3] == ("wrong", 90, "90 (82.6 to 94.5)")
    assert error_audit.graded_sentence(graded) == "Of 100 graded answers, 90 % (82.6 to 94.5) are wrong."
    with pytest.raises(InsufficientDataError, match="--graded"):
        grade_shares(audit, ("greedy",))
    waiting = "No answer is graded yet; `tables/error_audit.csv` has 100 to grade."
    assert error_audit.graded_sentence(audit) == waiting


def test_sheet_saved_by_a_spreadsheet_program_is_read() -> None:
    audit = collect_audit(make_questions(), num_greedy=3, num_sampled=3)
    header, *rows = csv.reader(
        io.StringIO(fill_in_grades(audit, ["Wrong ", "wrong", "finer", "wrong", "wrong", "wrong"]).decode())
    )
    text = io.StringIO()
    csv.writer(text, delimiter=";", lineterminator="\r\n").writerows([header, *rows[::-1], [""] * len(header)])
    graded = apply_grades(audit, parse_grading_sheet(b"\xef\xbb\xbf" + text.getvalue().encode(), "sheet.csv"))
    assert [graded.grades[row.answer_id] for row in audit.rows] == [
        "wrong",
        "wrong",
        "finer",
        "wrong",
        "wrong",
        "wrong",
    ]


def test_invalid_sheets_are_refused() -> None:
    audit = collect_audit(make_questions(), num_greedy=3, num_sampled=3)
    complete = fill_in_grades(audit, ["wrong"] * 6)

    def apply_sheet(content: bytes) -> None:
        apply_grades(audit, parse_grading_sheet(content, "sheet.csv"))

    apply_sheet(complete)
    with pytest.raises(DataError, match=r"sheet\.csv has unknown grades: q\d+/greedy/\d \(right\); expected wrong"):
        apply_sheet(fill_in_grades(audit, ["right", *["wrong"] * 5]))
    with pytest.raises(DataError, match="2 of 6 rows have no grade, such as"):
        apply_sheet(fill_in_grades(audit, ["wrong", "", "wrong", " ", "wrong", "wrong"]))
    with pytest.raises(DataError, match="has no column grade"):
        apply_sheet(complete.replace(b",grade", b",remark"))
    with pytest.raises(DataError, match="has no column sheet, answer_id, grade"):
        apply_sheet(b"")
    lines = complete.splitlines(keepends=True)
    with pytest.raises(DataError, match="twice"):
        apply_sheet(b"".join([*lines, lines[1]]))
    with pytest.raises(DataError, match="not UTF-8"):
        apply_sheet(complete + "é".encode("latin-1"))
    with pytest.raises(StudyError, match=r"missing rows: q\d+/"):
        apply_sheet(b"".join(lines[:-1]))
    for other in (
        collect_audit(make_questions(), num_greedy=3, num_sampled=3, seed=1),
        collect_audit(make_questions(29), num_greedy=4),
    ):
        with pytest.raises(StudyError, match="is not the grading sheet of this study"):
            apply_sheet(fill_in_grades(other, ["wrong"] * len(other.rows)))


FORMULAS = (
    '=HYPERLINK("http://x";"y")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "''",
    "Oslo;=1",
    "＝1",
)


def test_escaped_cells_are_not_formulas_and_round_trip() -> None:
    rng = random.Random(7)
    texts = [*FORMULAS, *("".join(rng.choices("=+-@\t\r\n;,'\"| a1＝", k=rng.randint(0, 8))) for _ in range(2000))]
    table = Table(name="t", columns=("question", "answer"), rows=tuple(("=", text) for text in texts))
    for delimiter in ";\t,":  # a program may use another delimiter
        for row in csv.reader(io.StringIO(to_csv(table).decode(), newline=""), delimiter=delimiter):
            for cell in row:
                beginning = cell.lstrip("\r\n")  # the end of a row, if it differs from that of the program
                assert not beginning.startswith(tuple("=+-@\t＝")) or re.fullmatch(r"[-+]\d+", cell), (delimiter, cell)
    read = list(csv.reader(io.StringIO(to_csv(table).decode(), newline="")))[1:]
    assert [unescape_cell(cell) for _, cell in read] == texts


def test_numbers_and_ordinary_text_are_not_escaped() -> None:
    for text in (
        "-0.3",
        "+1.2e-5",
        "-4.5 (-7.6 to -1.4)",
        "+0.1 to +2.1",
        "'s-Hertogenbosch",
        "Saint-Denis",
        "a=b",
        "",
    ):
        assert escape_cell(text) == text
    assert to_csv(Table(name="t", columns=("a", "b"), rows=((-1.5, None),))) == b"a,b\n-1.5,\n"


def test_sheet_with_formula_like_answers_is_graded(tmp_path: Path) -> None:
    questions = [
        AnsweredQuestion(
            question_id=f"{text[0].strip()}q{i}", gold=("=Oslo",), greedy=(text,) * 2, sampled=((text,),) * 2
        )
        for i, text in enumerate(FORMULAS)
    ]
    study = write_answered_study(tmp_path / "study", questions)
    make_report(study, ReportConfig())
    audit = load_audit(study)
    sheet = Path(study.child("report", "tables").local_path, "error_audit.csv")
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [unescape_cell(row["answer"]) for row in rows] == [row.answer for row in audit.rows]
    assert {unescape_cell(row["gold"]) for row in rows} == {"=Oslo"}
    assert any(row["answer_id"].startswith("'=q0/") for row in rows)
    complete = fill_in_grades(audit, ["finer"] * len(rows))
    unquoted = complete.replace(b"\n'=q0", b"\n=q0")
    assert unquoted != complete
    for content in (complete, unquoted):  # as written, and as saved by a program that removed the quote
        graded = apply_grades(audit, parse_grading_sheet(content, "sheet.csv"))
        assert graded.grades == {row.answer_id: "finer" for row in audit.rows}


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="got 0 greedy and 0 sampled"):
        ReportConfig(audit_greedy=0, audit_sampled=0)
    with pytest.raises(SettingsError, match="got -1 greedy and 50 sampled"):
        ReportConfig(audit_greedy=-1)
    with pytest.raises(SettingsError, match=r"in \(0, 1\], got 60"):
        ReportConfig(audit_f1=60)


def test_grades_survive_every_report(tmp_path: Path) -> None:
    study = write_answered_study(tmp_path / "study", make_questions())
    plain = ReportConfig(audit_greedy=3, audit_sampled=2)
    before = make_report(study, plain)
    report = study.child("report")
    tables, kept = report.child("tables"), report.child("graded")
    sheet = Path(tables.local_path, "error_audit.csv")
    assert "Not shown: needs grades" in page_text(report)
    assert not kept.names()

    audit = load_audit(study, plain)
    sheet.write_bytes(fill_in_grades(audit, ["wrong", "finer", "", "", ""]))  # partially graded in the report folder
    assert make_report(study, plain) == before, "the content of the page has not changed"
    make_report(study, ReportConfig(audit_greedy=3, audit_sampled=2, title="other"))
    assert [row["grade"] for row in csv.DictReader(sheet.open())] == ["wrong", "finer", "", "", ""]
    assert len(kept.names()) == 1

    sheet.write_bytes(fill_in_grades(audit, ["wrong", "finer", "wrong", "wrong", "nonsense"]))
    with pytest.raises(DataError, match="nonsense"):
        make_report(study, ReportConfig(audit_greedy=3, audit_sampled=2, graded=str(sheet)))
    assert report.exists("manifest.json"), "the existing report must be kept"

    content = fill_in_grades(audit, ["wrong", "finer", "wrong", "wrong", "coarser"])
    sheet.write_bytes(content)
    config = ReportConfig(audit_greedy=3, audit_sampled=2, graded=str(sheet))
    after = make_report(study, config)
    assert after.fingerprint != before.fingerprint
    assert make_report(study, config) == after
    assert "Not shown: needs grades" not in page_text(report)
    assert "60 (23.1 to 88.2)" in tables.read_bytes("error_audit_shares.csv").decode()
    assert content in [kept.read_bytes(name) for name in kept.names()]
    make_report(study, ReportConfig(audit_greedy=4, audit_sampled=2))  # a new sheet; the old one is kept
    assert [row["grade"] for row in csv.DictReader(sheet.open())] == [""] * 6
    assert content in [kept.read_bytes(name) for name in kept.names()]
    with pytest.raises(SettingsError, match=r"nowhere\.csv does not exist; give the table"):
        make_report(study, ReportConfig(graded=str(tmp_path / "nowhere.csv")))


def page_text(report: Folder) -> str:
    return report.read_bytes("index.html").decode()
