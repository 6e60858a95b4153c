"""Planted facts compared with labels and measures: causes of wrong labels, calibration and rank statistics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.sections.planted import (
    causes_table,
    false_labels_table,
    load_planted,
    planted_section,
    recovery_table,
    strength_table,
)
from slick.report.statistics import planted
from slick.report.statistics.p_true import PTrueScores, load_p_true
from slick.report.statistics.planted import (
    PlantedFacts,
    apply_temperature,
    calibration_bins,
    cause_counts,
    counts_by_strength,
    false_known_rate,
    false_unknown_rates,
    planted_auroc,
    planted_rank_correlation,
)
from slick.storage import Folder
from tests.study_builder import finish_step, write_knowledge, write_questions

GREEDY, SAMPLED = "P_Correct, greedy", "P_Correct, sampled"

# Each fact: strength, mentions of gold and rival, rival, category, the model's answers to each of two prompts (greedy,
# then samples), all of one relation. Capitals are gold answers of the facts so named.
FACTS: dict[str, tuple[str, int, int, str | None, str, list[list[str]]]] = {
    "A": ("firm", 8, 0, None, "HighlyKnown", [["A", "A"], ["A", "A"]]),
    "B": ("firm", 8, 0, None, "Unknown", [["B of Old", "A"], ["A", "A"]]),
    "C": ("contested", 5, 5, "Rival", "Unknown", [["the rival", "Rival"], ["Rival", "A"]]),
    "D": ("contested", 5, 5, "Rival", "Unknown", [["A", "A"], ["A", "Rival"]]),
    "E": ("minority", 3, 6, "Rival", "Unknown", [["mumble", "mumble"], ["mumble", "A"]]),
    "F": ("minority", 3, 6, "Rival", "WeaklyKnown", [["Rival", "F"], ["Rival", "Rival"]]),
    "G": ("never", 0, 0, None, "Unknown", [["H", "H"], ["H", "J"]]),
    "H": ("never", 0, 0, None, "MaybeKnown", [["mumble", "mumble"], ["H", "mumble"]]),
    "J": ("never", 0, 0, None, "WeaklyKnown", [["mumble", "J"], ["mumble", "mumble"]]),
    "K": ("never", 0, 0, None, "WeaklyKnown", [["mumble", "mumble"], ["mumble", "K"]]),
    "L": ("never", 0, 0, None, "WeaklyKnown", [["mumble", "L"], ["mumble", "mumble"]]),
}


def write_world(root: Path, settings: dict | None = None) -> Folder:
    """Write a study with two exemplar sets and one sample each; the first set shows the answer L."""
    study = Folder(str(root))
    facts, questions, known, answers = [], [], [], []
    for name, (strength, gold, rivals, rival, category, texts) in FACTS.items():
        place = {"relation": "P1", "split": "test", "domain": "id"}
        fact = {"subject": name, "question": f"What of {name}?", "answer": name, "strength": strength}
        facts.append({**place, **fact, "num_gold": gold, "num_rival": rivals, "rival": rival})
        questions.append({"question_id": name, **place, "question": f"What of {name}?", "answers": [name]})
        hits = [[text == name for text in item] for item in texts]
        chances = {
            "p_correct_greedy": (hits[0][0] + hits[1][0]) / 2,
            "p_correct_sampled": (hits[0][1] + hits[1][1]) / 2,
        }
        known.append({"question_id": name, **place, "category": category, **chances})
        greedy, sampled = [item[0] for item in texts], [[item[1]] for item in texts]
        marks = {"greedy_hit": [item[0] for item in hits], "sampled_hit": [[item[1]] for item in hits]}
        answers.append({"question_id": name, "greedy_text": greedy, "sampled_text": sampled, **marks})
    questions.append(
        {"question_id": "dev", "relation": "P1", "split": "dev", "domain": "id", "question": "?", "answers": ["L"]}
    )
    study.child("world").write_table("planted.parquet", pa.Table.from_pylist(facts))
    write_questions(study, questions)
    write_knowledge(study, known)
    annotate = study.child("annotate")
    annotate.child("generations").write_table("part-000.parquet", pa.Table.from_pylist(answers))
    annotate.write_json("exemplars.json", {"P1": [["dev"], []]})
    finish_step(study.child("world"), "world")
    stored = {"mode": "full", "sampling": {"temperature": 0.5}, **(settings or {})}
    finish_step(annotate, "annotate", settings=stored)
    return study


def loaded(root: Path, settings: dict | None = None) -> PlantedFacts:
    facts = load_planted(write_world(root, settings))
    assert facts is not None
    return facts


def invented(num: int = 300, seed: int = 0) -> PlantedFacts:
    """Facts of every strength, answered correctly about as often as planted."""
    rng = np.random.default_rng(seed)
    strength = np.array([planted.STRENGTHS[i % 4] for i in range(num)])
    gold = np.array([(8, 5, 3, 0)[i % 4] for i in range(num)])
    rival = np.array([(0, 5, 6, 0)[i % 4] for i in range(num)])
    chance = gold / np.maximum(gold + rival, 1)
    sampled = rng.binomial(160, 0.02 + 0.95 * chance) / 160
    greedy = (rng.random(num) < chance).astype(float)
    category = np.where(sampled > 0, "WeaklyKnown", "Unknown")
    return PlantedFacts(
        question_ids=np.array([f"q{i:04d}" for i in range(num)]),
        strength=strength,
        num_gold=gold,
        num_rival=rival,
        category=category,
        greedy=greedy,
        sampled=sampled,
        cause=np.full(num, ""),
        temperature=0.5,
    )


def test_wrong_labels_have_the_expected_causes(tmp_path: Path) -> None:
    facts = loaded(tmp_path)
    found = dict(zip(facts.question_ids.tolist(), facts.cause.tolist(), strict=True))
    assert found == {
        "A": "",
        "B": planted.REWORDED,
        "C": planted.RIVAL,
        "D": planted.OTHER_FACT_ANSWER,
        "E": planted.UNRELATED_ANSWER,
        "F": "",
        "G": "",
        "H": planted.RARE_GUESS,  # answered three times to four other unplanted questions
        "J": planted.RARE_GUESS,
        "K": planted.UNEXPLAINED,
        "L": planted.COPIED_FROM_PROMPT,
    }
    assert cause_counts(facts, "firm") == {planted.REWORDED: 1}
    assert sum(cause_counts(facts, "never").values()) == false_known_rate(facts).num == 4


def test_answer_to_every_other_question_is_a_frequent_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("J", "K"):
        strength, gold, rivals, rival, category, texts = FACTS[name]
        monkeypatch.setitem(FACTS, name, (strength, gold, rivals, rival, category, [["H", texts[0][1]], texts[1]]))
    facts = loaded(tmp_path)
    assert facts.cause[facts.question_ids == "H"].tolist() == [planted.FREQUENT_GUESS]


def test_counts_and_rates_by_strength(tmp_path: Path) -> None:
    facts = loaded(tmp_path)
    assert counts_by_strength(facts)["firm"] == {"HighlyKnown": 1, "MaybeKnown": 0, "WeaklyKnown": 0, "Unknown": 1}
    missed = false_unknown_rates(facts)
    assert {name: (item.num, item.total) for name, item in missed.items()} == {
        "firm": (1, 2),
        "contested": (2, 2),
        "minority": (1, 2),
    }
    assert false_known_rate(facts)[:2] == (4, 5)
    # Wilson 1927: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) for 1 of 2.
    assert missed["firm"].low == pytest.approx(0.0945, abs=1e-4)
    assert missed["firm"].high == pytest.approx(0.9055, abs=1e-4)
    assert facts.planted_probability.round(3).tolist() == [1, 1, 0.5, 0.5, 0.333, 0.333, 0, 0, 0, 0, 0]
    assert facts.num_unmatched_questions == 0


def planted_text(data: StudyData) -> str:
    section = planted_section(data)
    assert section is not None
    return section.text


def test_questions_that_are_not_facts_are_counted_and_excluded(tmp_path: Path) -> None:
    study = write_world(tmp_path)
    table = study.child("world").read_table("planted.parquet")
    study.child("world").write_table("planted.parquet", table.slice(2))
    facts = load_planted(study)
    assert facts is not None
    assert facts.num_unmatched_questions == 2
    assert "2 annotated questions are not facts of this world" in planted_text(StudyData(loaded={load_planted: facts}))


def test_named_model_has_no_planted_facts(tmp_path: Path) -> None:
    assert load_planted(write_world(tmp_path / "named", {"model": "org/model"})) is None
    study = write_world(tmp_path / "asked")
    study.child("world").delete()
    assert load_planted(study) is None
    assert planted_section(StudyData()) is None


@pytest.mark.parametrize(
    ("settings", "message"), [({"mode": "labels"}, "--mode full"), ({"estimator": "gold"}, "--estimator sampled")]
)
def test_no_causes_without_complete_answers(tmp_path: Path, settings: dict, message: str) -> None:
    facts = loaded(tmp_path, settings)
    assert set(facts.cause.tolist()) == {""}
    with pytest.raises(InsufficientDataError, match=message):
        causes_table(facts)
    assert false_known_rate(facts).num == 4


def test_calibration_bins_of_a_calibrated_measure() -> None:
    facts = invented(4000)
    bins = calibration_bins(facts, facts.sampled)
    assert [round(item.planted_probability, 2) for item in bins] == [0.0, 0.33, 0.5, 1.0]
    assert sum(item.num for item in bins) == 4000
    for item in bins:
        assert item.low <= item.mean <= item.high
        assert item.mean == pytest.approx(0.02 + 0.95 * item.planted_probability, abs=0.01)
    none = calibration_bins(facts, np.zeros(4000))
    assert all(item.mean == item.low == 0 < item.high < 0.01 for item in none)  # agreement is not certainty
    with pytest.raises(InsufficientDataError, match="no planted fact"):
        calibration_bins(facts, np.full(4000, np.nan))


def test_intervals_of_the_mean_have_nominal_coverage() -> None:
    # 400 draws of 50 facts: 95 % +- 1.1 by chance; outside 91.5 to 98.5 % has odds below 1 in 600.
    rng = np.random.default_rng(1)
    facts = replace(invented(50), num_gold=np.ones(50, dtype=int), num_rival=np.ones(50, dtype=int))
    covered = 0
    for _ in range(400):
        (item,) = calibration_bins(facts, rng.beta(2.0, 2.0, size=50))
        covered += item.low <= 0.5 <= item.high
    assert 0.915 <= covered / 400 <= 0.985


def test_auroc_and_rank_correlation_agree_with_pair_counts() -> None:
    facts = invented(120)
    for measure in (facts.sampled, facts.greedy, 1 - facts.greedy):
        area = planted_auroc(facts, measure)
        above, below = (measure[mask] for mask in (facts.strength != "never", facts.strength == "never"))
        pairs = np.sign(above[:, None] - below[None, :])
        assert area.value == pytest.approx(float((pairs + 1).mean() / 2))
        assert 0.0 <= area.low < area.high <= 1.0
        assert area.low <= area.value <= area.high
    exact = planted_rank_correlation(facts, facts.planted_probability)
    assert exact.value == pytest.approx(1.0)
    assert planted_rank_correlation(facts, -facts.planted_probability).value == pytest.approx(-1.0)
    noise = planted_rank_correlation(facts, np.random.default_rng(0).random(120))
    assert noise.low < 0 < noise.high
    few = facts.strength == "minority"
    with pytest.raises(InsufficientDataError, match="the same for all"):
        planted_rank_correlation(facts, facts.sampled, few)
    with pytest.raises(InsufficientDataError, match="10 measured facts"):
        planted_rank_correlation(facts, np.where(np.arange(120) < 5, facts.sampled, np.nan))


def test_low_temperature_sharpens_probabilities() -> None:
    assert apply_temperature(np.array([0.25]), 1.0) == pytest.approx(0.25)
    assert apply_temperature(np.array([0.25, 0.75]), 0.5).tolist() == pytest.approx([0.1, 0.9])


def test_recovery_table_compares_p_true_on_the_same_questions() -> None:
    facts = invented()
    alone = recovery_table(StudyData(loaded={load_planted: facts}), facts)
    assert [row[0] for row in alone.rows] == [SAMPLED, GREEDY, "P(True)"]
    assert alone.rows[-1][1:5] == (None,) * 4
    assert "--p-true" in str(alone.rows[-1][5])
    scored = facts.question_ids[::3]
    scores = PTrueScores(question_ids=scored, p_true=facts.planted_probability[::3])
    rows = {
        row[0]: row for row in recovery_table(StudyData(loaded={load_planted: facts, load_p_true: scores}), facts).rows
    }
    assert str(rows["P(True)"][1]).startswith("1.00")
    assert rows["P(True)"][4] == rows[f"{SAMPLED}, where P(True) was scored"][4] == 100
    assert rows[SAMPLED][4] == 300


def test_section_shows_all_exhibits(tmp_path: Path) -> None:
    data = StudyData(loaded={load_planted: loaded(tmp_path)})
    section = planted_section(data)
    assert section is not None
    assert "Of the facts planted firmly, 1 of 2 (50.0 %, 9.5 to 90.5) are labelled Unknown." in section.result
    assert "Of those never planted, 4 of 5 (80.0 %" in section.result
    assert [exhibit.missing for exhibit in section.exhibits if exhibit.missing] == []
    assert data.loaded[load_planted] is not None
    assert strength_table(data.loaded[load_planted]).rows[0][1:] == (
        "1 (50.0 %)",
        "0 (0.0 %)",
        "0 (0.0 %)",
        "1 (50.0 %)",
        2,
    )
    assert false_labels_table(data.loaded[load_planted]).rows[-1][:4] == ("never planted, labelled Known", 4, 5, 80.0)
    assert sum(int(row[2] or 0) for row in causes_table(data.loaded[load_planted]).rows) == 8


def test_no_false_known_rate_if_every_fact_is_planted() -> None:
    facts = replace(invented(), strength=np.full(300, "firm"))
    with pytest.raises(InsufficientDataError, match="no such fact"):
        false_known_rate(facts)
    assert [row[0] for row in false_labels_table(facts).rows] == ["planted firm, labelled Unknown"]
    with pytest.raises(InsufficientDataError, match="strengths \\['weak'\\]"):
        counts_by_strength(replace(facts, strength=np.full(300, "weak")))
