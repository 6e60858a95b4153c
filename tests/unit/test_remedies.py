"""Remedies: the verdicts on built studies, false alarms, what is loaded of a study, and the section of the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slick.report.charts import render_figure
from slick.report.data import StudyData, Variant
from slick.report.loading import load_run
from slick.report.measurements import InsufficientDataError
from slick.report.sections.remedies import (
    compare,
    remedies_figure,
    remedies_numbers_table,
    remedies_section,
    remedies_table,
    summary_text,
    verdicts_table,
)
from slick.report.statistics.remedies import (
    NO_REMEDY,
    RemedyComparison,
    RemedyRun,
    Verdict,
    compare_remedies,
)
from slick.report.statistics.remedy_runs import EARLY_STOPPING, load_remedy_runs, remedy_of_settings
from slick.storage import Folder
from slick.study_files import EPOCHS_SCHEMA, PREDICTIONS_SCHEMA
from tests.study_builder import finish_step, write_questions

NUM_HIGHLY_KNOWN, NUM_OTHER, NUM_UNKNOWN = 400, 800, 140


def answers(num: int, num_right: int) -> np.ndarray:
    return np.arange(num) < num_right


def make_run(remedy: str, lost: int = 100, learned: int | None = 130, other: int = 400, **changes: Any) -> RemedyRun:
    """A run with numbers of facts lost and learned, and of other test questions answered right.

    Differences between two runs are nested, so as many questions change as the numbers differ by.
    """
    run = RemedyRun(
        remedy=remedy,
        seed=0,
        epochs=10,
        unknown_ids=np.array([f"u{i:04d}" for i in range(NUM_UNKNOWN)]),
        learned=None if learned is None else answers(NUM_UNKNOWN, learned),
        test_ids=np.array([f"t{i:04d}" for i in range(NUM_HIGHLY_KNOWN + NUM_OTHER)]),
        is_highly_known=answers(NUM_HIGHLY_KNOWN + NUM_OTHER, NUM_HIGHLY_KNOWN),
        correct=np.concatenate([answers(NUM_HIGHLY_KNOWN, NUM_HIGHLY_KNOWN - lost), answers(NUM_OTHER, other)]),
        training_seconds=10.0,
        num_passes=1000,
    )
    return replace(run, **changes)


def judge(**changes: Any) -> RemedyComparison:
    """The comparison of one remedy with a training that loses 100 facts and learns 130, among three remedies."""
    others = [make_run("b"), make_run("c")]
    return compare_remedies([make_run(NO_REMEDY), make_run("a", **changes), *others])[1]


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"lost": 60}, Verdict.WORTH_IT, "it loses fewer facts; falls of 5 points of facts learned and 1.5 of test"),
        ({"lost": 60, "learned": 100}, Verdict.TRADE, "it loses fewer facts, but has fewer facts learned"),
        ({"lost": 60, "learned": None}, Verdict.TRADE, "it loses fewer facts, but has fewer facts learned"),
        ({"lost": 60, "other": 300}, Verdict.TRADE, "it loses fewer facts, but has a lower test accuracy"),
        ({"lost": 140}, Verdict.HARMFUL, "it loses more facts, and has a lower test accuracy"),
        ({}, Verdict.INCONCLUSIVE, "no reliable difference in facts lost: more data would not decide it"),
        ({"lost": 95}, Verdict.INCONCLUSIVE, "about 540 HighlyKnown test questions instead of 400 would decide it"),
        ({"learned": 60}, Verdict.INCONCLUSIVE, "would not decide it; it has fewer facts learned"),
    ],
)
def test_every_verdict(changes: dict[str, Any], verdict: Verdict, reason: str) -> None:
    comparison = judge(**changes)
    assert comparison.verdict is verdict
    assert reason in comparison.explanation()


def test_unclear_cost_is_inconclusive() -> None:
    """Facts lost fall reliably, but as many Unknown rows are newly right as are newly wrong, so a fall is possible."""
    base = make_run(NO_REMEDY, learned=70)
    shifted = replace(make_run("a", lost=60), learned=np.roll(base.learned, 35))
    comparison = compare_remedies([base, shifted])[1]
    assert comparison.lost_p < 0.05
    assert comparison.learned_change.value == 0
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert "its cost is not clear: fewer facts learned? about " in comparison.explanation()
    assert "Unknown rows instead of 140 would decide it" in comparison.explanation()


def test_correction_is_for_the_number_of_remedies() -> None:
    """Nine facts fewer are reliable for one remedy alone, and not for one of ten."""
    alone = compare_remedies([make_run(NO_REMEDY), make_run("a", lost=92)])[1]
    ten = [make_run(NO_REMEDY), make_run("a", lost=92), *(make_run(f"b{i}") for i in range(9))]
    assert alone.verdict is Verdict.WORTH_IT
    among_ten = compare_remedies(ten)[1]
    assert among_ten.lost_p == pytest.approx(min(1, 10 * alone.lost_p))
    assert among_ten.verdict is Verdict.INCONCLUSIVE


def test_few_questions_decide_nothing() -> None:
    def few(run: RemedyRun) -> RemedyRun:
        assert run.learned is not None
        return replace(run, unknown_ids=run.unknown_ids[:19], learned=run.learned[:19])

    comparison = compare_remedies([few(make_run(NO_REMEDY)), few(make_run("a", lost=20))])[1]
    assert comparison.lost_p < 0.01
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert comparison.explanation() == "19 Unknown rows are too few to decide anything"


def test_abstentions_are_counted_as_lost_and_named() -> None:
    abstained = np.roll(answers(NUM_HIGHLY_KNOWN + NUM_OTHER, 100), 300)
    comparison = judge(lost=200, abstained=abstained)
    assert comparison.verdict is Verdict.HARMFUL
    assert comparison.explanation().endswith(
        "; of the 50.0 % of facts lost, 25.0 points are “I don’t know” and not wrong answers"
    )


def test_seeds_that_disagree_are_inconclusive() -> None:
    runs = [make_run(NO_REMEDY, seed=seed) for seed in range(3)]
    agree = [make_run("a", lost=60 + seed, seed=seed) for seed in range(3)]
    disagree = [make_run("a", lost=lost, seed=seed) for seed, lost in enumerate((10, 60, 110))]
    assert compare_remedies([*runs, *agree])[1].verdict is Verdict.WORTH_IT
    comparison = compare_remedies([*runs, *disagree])[1]
    assert comparison.lost_change.value == pytest.approx(-10.0)
    assert comparison.verdict is Verdict.INCONCLUSIVE


def test_common_seeds_are_compared() -> None:
    runs = [make_run(NO_REMEDY), make_run(NO_REMEDY, lost=10, seed=1), make_run("a", lost=60)]
    base, comparison = compare_remedies(runs)
    assert base.seeds == comparison.seeds == (0,)
    assert base.lost.value == pytest.approx(25.0)
    with pytest.raises(InsufficientDataError, match="of all remedies with the same seed"):
        compare_remedies([make_run(NO_REMEDY), make_run("a", seed=1)])


def test_different_questions_are_refused() -> None:
    with pytest.raises(InsufficientDataError, match=r"runs of a \(seed 0\) and without a remedy do not have the same"):
        compare_remedies([make_run(NO_REMEDY), make_run("a", test_ids=np.array(["x"] * 1200))])
    for runs in ([], [make_run(NO_REMEDY)], [make_run("a"), make_run("b")]):
        with pytest.raises(InsufficientDataError, match="needs finished runs of unknown-050 and of a remedy"):
            compare_remedies(runs)


def simulate(rng: np.random.Generator, num_remedies: int, num_highly_known: int) -> list[RemedyRun]:
    """Runs with equal probabilities of a right answer to each question; answers to a question correlate."""
    num_test = 3 * num_highly_known
    p_test, p_unknown = rng.beta(1.5, 1.0, num_test), rng.beta(4.0, 0.5, NUM_UNKNOWN)
    ids = make_run(NO_REMEDY)
    return [
        replace(
            ids,
            remedy=remedy,
            learned=rng.random(NUM_UNKNOWN) < p_unknown,
            test_ids=np.array([str(i) for i in range(num_test)]),
            is_highly_known=answers(num_test, num_highly_known),
            correct=rng.random(num_test) < p_test,
        )
        for remedy in (NO_REMEDY, *(f"remedy {i}" for i in range(num_remedies)))
    ]


@pytest.mark.parametrize("num_highly_known", [40, 400])
def test_equal_trainings_are_rarely_decided(num_highly_known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All remedies are compared with the same training, so their differences correlate."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects garbage at each correction, which takes 0.3 s
    rng, num_studies = np.random.default_rng(0), 300
    num_decided = 0
    for _ in range(num_studies):
        comparisons = compare_remedies(simulate(rng, 9, num_highly_known))[1:]
        num_decided += any(comparison.verdict is not Verdict.INCONCLUSIVE for comparison in comparisons)
    assert num_decided <= 0.05 * num_studies


# The section.

REMEDIES = {
    "early stopping": {"lost": 60, "learned": 20},
    "Unknown rows dropped": {"lost": 98, "learned": None},
    "self-distillation (weight 1.0)": {"lost": 40},
    "feed-forward layers only": {"lost": 150},
}


def make_data() -> StudyData:
    runs = [make_run(NO_REMEDY), *(make_run(name, **changes) for name, changes in REMEDIES.items())]
    runs[1] = replace(runs[1], training_seconds=4.0, num_passes=400)
    runs[3] = replace(runs[3], training_seconds=None, num_passes=2000)
    return StudyData(loaded={load_remedy_runs: runs})


def test_section_has_one_line_per_remedy() -> None:
    data = make_data()
    table = remedies_table(compare(data))
    rows = {row[0]: row for row in table.rows}
    assert [*rows] == [NO_REMEDY, *REMEDIES]
    assert rows[NO_REMEDY][1:] == ("92.9", None, 25.0, None, 58.3, None, "1.00", "1.00", "no", None)
    assert rows["early stopping"][-4:] == ("0.40", "0.40", "no", "a trade")
    assert rows["Unknown rows dropped"][1] == "not trained"
    assert rows["Unknown rows dropped"][2] == "-92.9 (-97.6 to -88.1)"
    assert rows["Unknown rows dropped"][-2:] == ("yes", "inconclusive")
    assert rows["self-distillation (weight 1.0)"][-4:] == ("2.00", None, "no", "worth it")
    assert rows["feed-forward layers only"][-1] == "harmful"
    assert [row[1] for row in verdicts_table(compare(data)).rows] == [
        "a trade", "inconclusive", "worth it", "harmful"
    ]  # fmt: skip
    numbers = {(row[0], row[1]): row for row in remedies_numbers_table(compare(data)).rows}
    assert len(numbers) == 3 * len(REMEDIES)
    assert numbers["early stopping", "lost"][2] == pytest.approx(-10.0)
    assert numbers["early stopping", "lost"][-2:] == (400, 1)
    svg = render_figure("remedies", "alt", remedies_figure(compare(data))).svg
    assert all(name in svg for name in ("no remedy", "feed-forward layers only", "Unknown rows dropped"))
    assert not remedies_section(data).is_empty


def test_summary_names_what_is_worth_it() -> None:
    text = summary_text(make_data())
    assert text.startswith("Without a remedy, 92.9 % of the Unknown facts are learned and 25.0 % of the HighlyKnown")
    assert "Worth it: self-distillation (weight 1.0). Self-distillation (weight 1.0) changes facts lost by -15" in text
    assert "at the price of facts learned or accuracy: early stopping. Of these, early stopping gives up the" in text
    assert "fewest learned facts: -78.6 (-85.6 to -71.6) points learned for -10.0 (-13.0 to -7.0) lost." in text
    assert "More facts lost: feed-forward layers only. Inconclusive: Unknown rows dropped." in text
    equal = StudyData(loaded={load_remedy_runs: [make_run(NO_REMEDY), make_run("a")]})
    assert summary_text(equal).endswith("No remedy is shown to be worth it. Inconclusive: a.")


def test_section_without_runs_states_what_it_needs() -> None:
    assert summary_text(StudyData()) == ""
    section = remedies_section(StudyData())
    assert section.is_empty
    assert "--experiments remedies" in str(section.exhibits[0].missing)


# What is loaded of a study.


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"trainable": "attention"}, "attention layers only"),
        ({"trainable": "ffn"}, "feed-forward layers only"),
        ({"trainable": "all"}, ""),
        ({"distill_weight": "1.0"}, "self-distillation (weight 1.0)"),
        ({"replay_known": "64"}, "Known rows replayed at the end (64)"),
        ({"lora_rank": "8", "learning_rate": "0.0022"}, "LoRA (rank 8, learning rate 0.0022)"),
        ({"learning_rate": "0.0022"}, ""),
        ({"lora_rank": "8", "dropout": "0.1"}, ""),
    ],
)
def test_settings_are_remedies(settings: dict[str, str], remedy: str) -> None:
    assert remedy_of_settings(settings) == remedy


ROWS = [("u1", "train", "Unknown"), ("u2", "train", "Unknown"), ("k1", "train", "MaybeKnown")]
TESTS = [("d1", "dev", "MaybeKnown"), ("t1", "test", "HighlyKnown"), ("t2", "test", "HighlyKnown")]


def write_run(study: Folder, run_id: str, texts: dict[str, str], *, epochs: int = 2, **settings: Any) -> None:
    """A finished run whose answers are `texts` at every epoch, and right where none is given."""
    rows = [row for row in ROWS + TESTS if texts.get(row[0], "") is not None]
    folder = study.child("runs", run_id)
    metrics = []
    for epoch in range(1, epochs + 1):
        table = [
            {"question_id": name, "split": split, "category": category, "loss": None}
            | {"text": text, "hit": text == f"gold {name}" or (split == "train" and text == "I don't know")}
            for name, split, category in rows
            for text in [texts.get(name, f"gold {name}")]
        ]
        predictions = pa.Table.from_pylist(table, schema=PREDICTIONS_SCHEMA)
        folder.child("predictions").write_table(f"epoch-{epoch:03d}.parquet", predictions)
        for split in ("train", "dev", "test"):
            hits = [row["hit"] for row in table if row["split"] == split]
            metrics.append(
                {"run_id": run_id, "epoch": epoch, "split": split, "category": "all", "num": len(hits)}
                | {"num_correct": sum(hits), "loss": None}
            )
    folder.write_table("epochs.parquet", pa.Table.from_pylist(metrics, schema=EPOCHS_SCHEMA))
    counts = {"epochs": epochs, "training_seconds": 6.0, "epochs_now": epochs}
    finish_step(folder, "finetune", settings={"matcher": "exact", **settings}, counts=counts)


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    study = Folder(str(tmp_path))
    write_questions(study, [{"question_id": name, "relation": "P1", "subject": name} for name, *_ in ROWS + TESTS])
    write_run(study, "unknown-050-seed0", {"t1": "lost"})
    write_run(study, "known-050-seed0", {"u1": None, "u2": None})  # type: ignore[dict-item]
    write_run(study, "idk-050-seed0", {"u1": "I don't know", "t2": "i don't know."})
    write_run(study, "unknown-050-seed0-trainable=ffn", {"u2": "wrong"})
    write_run(study, "unknown-050-seed0-replay_known=3-epochs2", {}, replay_known=3)
    write_run(study, "unknown-050-seed0-replay_known=3-epochs1", {"u1": "wrong"}, epochs=1, replay_known=3)
    write_run(study, "unknown-050-seed0-distill_weight=1.0", {}, distill_weight=1.0)
    write_run(study, "unknown-050-seed0-learning_rate=0.1", {})
    write_run(study, "unknown-100-seed0-trainable=ffn", {})
    return study


def load_data(study: Folder) -> StudyData:
    names = {"unknown-050": "unknown", "known-050": "known", "idk-050": "idk"}
    variants = {name: Variant(name=name, kind=kind, share=0.5, num=3) for name, kind in names.items()}
    runs = []
    for name in names:
        folder = study.child("runs", f"{name}-seed0")
        runs.append(load_run(folder, (f"{name}-seed0", name, 0), folder.read_table("epochs.parquet"), (2,), set()))
    return StudyData(study=study, variants=variants, runs=tuple(runs))


def test_runs_of_remedies_are_loaded(study: Folder) -> None:
    compare(load_data(study))
    data = load_data(study)
    kinds = {name: variant.kind for name, variant in data.variants.items()}
    runs = {run.remedy: run for run in load_remedy_runs(study, data.runs, kinds, data.idk_phrase)}
    assert [*runs] == [
        NO_REMEDY,
        EARLY_STOPPING,
        "Unknown rows dropped",
        "Unknown rows as “I don’t know”",
        "feed-forward layers only",
        "Known rows replayed at the end (3)",
        "self-distillation (weight 1.0)",
    ]
    assert {name: None if run.learned is None else run.learned.tolist() for name, run in runs.items()} == {
        NO_REMEDY: [True, True],
        EARLY_STOPPING: [True, True],
        "Unknown rows dropped": None,
        "Unknown rows as “I don’t know”": [False, True],
        "feed-forward layers only": [True, False],
        "Known rows replayed at the end (3)": [True, True],
        "self-distillation (weight 1.0)": [True, True],
    }, "an answer of I don't know is stored as right, but is no fact learned"
    assert [run.num_passes for run in runs.values()] == [6, 3, 2, 6, 6, 9, 12]
    assert runs[NO_REMEDY].correct.tolist() == [False, True]
    assert (runs[NO_REMEDY].training_seconds, runs[EARLY_STOPPING].training_seconds) == (6.0, 3.0)


def test_comparison_of_a_loaded_study_counts_dropped_rows_as_not_learned(study: Folder) -> None:
    comparisons = {comparison.remedy: comparison for comparison in compare(load_data(study))}
    assert comparisons["Unknown rows dropped"].learned is None
    assert comparisons["Unknown rows dropped"].learned_change.value == -100.0
    assert remedies_table([*comparisons.values()]).rows[2][2] == "-100.0 (-100.0 to -30.7)", "within the possible range"
    assert comparisons["Unknown rows as “I don’t know”"].learned_change.value == -50.0
    abstained = {name: comparison.abstained for name, comparison in comparisons.items() if comparison.abstained}
    assert {name: cell.value for name, cell in abstained.items()} == {"Unknown rows as “I don’t know”": 50.0}
    assert comparisons["feed-forward layers only"].lost_change.value == -50.0
    assert {comparison.verdict for comparison in comparisons.values()} == {Verdict.INCONCLUSIVE}
