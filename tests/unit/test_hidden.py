"""What lies behind Unknown: candidates and distractors, ranks with ties, the split, its verdicts, and the section."""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from slick.annotation import AnnotateConfig
from slick.annotation.candidates import (
    DISTRACTOR_NEIGHBORS,
    AnswerCounts,
    Candidate,
    RankedQuestion,
    candidates_of,
    count_answers,
    distractor_pairs,
)
from slick.annotation.hidden import hidden_settings
from slick.errors import SettingsError
from slick.matching import make_matcher, normalize
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.sections.hidden import hidden_section, summary_sentences
from slick.report.sections.hidden_tables import split_table, unknown_table
from slick.report.sections.planted import load_planted
from slick.report.statistics.answer_spread import agreement, entropy_bits, spread_of, value_interval
from slick.report.statistics.hidden import (
    CONFIRMED,
    CONTRADICTED,
    HIDDEN,
    INCONCLUSIVE,
    LOG_PROBABILITY,
    NONE,
    P_TRUE,
    PER_TOKEN,
    Rankings,
    hidden_share,
    mean_interval,
    pair_share,
    rank_answers,
    validate_above_half,
    validate_half,
)
from slick.report.statistics.hidden_answers import HiddenData, load_hidden
from slick.report.statistics.intervals import RankStatistic

NUM_DISTRACTORS = 2 * DISTRACTOR_NEIGHBORS


def question(name: str, gold: str, category: str = "Unknown", relation: str = "P19") -> RankedQuestion:
    return RankedQuestion(
        question_id=name,
        relation=relation,
        category=category,
        gold=gold,
        is_right=make_matcher([gold], "exact").is_hit,
    )


def answers_of(greedy: list[str], sampled: list[list[str]], gold: str) -> AnswerCounts:
    is_hit = make_matcher([gold], "exact").is_hit
    return count_answers(
        {
            "greedy_text": greedy,
            "greedy_hit": [is_hit(text) for text in greedy],
            "sampled_text": sampled,
            "sampled_hit": [[is_hit(text) for text in texts] for texts in sampled],
        }
    )


def test_answers_are_counted_by_normalized_text() -> None:
    counts = answers_of(["Rome", "rome."], [["Rome", "Lima"], ["the Lima", "Oslo"]], gold="Oslo")
    assert counts.wrong == {"rome": 3, "lima": 2}
    assert counts.right == {"oslo": 1}
    assert counts.texts == {"rome": "Rome", "lima": "Lima", "oslo": "Oslo"}, "the most frequent spelling"


def test_answers_without_an_outcome_are_neither_right_nor_wrong() -> None:
    row = {"greedy_text": ["Rome", "Lima"], "greedy_hit": [None, False], "sampled_text": None, "sampled_hit": None}
    counts = count_answers(row)
    assert (counts.right, counts.wrong, counts.num_undecided) == ({}, {"lima": 1}, 1)


def test_candidates_are_gold_frequent_answers_and_distractors() -> None:
    counts = AnswerCounts(
        right={"oslo": 2},
        wrong={"rome": 5, "lima": 2, "cairo": 2, "paris": 1, "": 9},
        texts={name: name.title() for name in ("oslo", "rome", "lima", "cairo", "paris", "")},
    )
    candidates = candidates_of(question("q", "Oslo"), counts, [question("r", "Bern"), question("s", "Rome")], 2)
    assert candidates == [
        Candidate(answer="Oslo", is_right=True, is_gold=True, count=2),
        Candidate(answer="Rome", is_right=False, num_distractors=1, count=5),
        Candidate(answer="Cairo", is_right=False, count=2),
        Candidate(answer="Bern", is_right=False, num_distractors=1),
    ], "ties by alphabet, empty answers left out, and a generated distractor once"


def test_gold_answer_is_ranked_if_it_was_never_generated() -> None:
    (gold, *rest) = candidates_of(question("q", "Oslo"), AnswerCounts(), [], 10)
    assert gold == Candidate(answer="Oslo", is_right=True, is_gold=True)
    assert not rest


def test_pairs_are_symmetric_and_within_relation_and_group() -> None:
    questions = [question(f"q{i}", f"answer {i}", relation=f"P{i % 2}") for i in range(40)]
    questions += [question(f"k{i}", f"known {i}", "MaybeKnown", relation="P0") for i in range(20)]
    pairs = distractor_pairs(questions, {})
    by_id = {item.question_id: item for item in questions}
    for name, others in pairs.items():
        assert len(others) == NUM_DISTRACTORS
        for other in others:
            assert other.relation == by_id[name].relation
            assert other.question_id[0] == name[0], "Unknown questions are paired with each other only"
            assert by_id[name] in pairs[other.question_id]


def test_few_questions_are_paired_once() -> None:
    pairs = distractor_pairs([question(f"q{i}", f"answer {i}") for i in range(3)], {})
    assert all(len({other.question_id for other in others}) == len(others) == 2 for others in pairs.values())
    assert distractor_pairs([question("q", "answer")], {}) == {"q": []}


def test_pairs_whose_gold_answers_were_generated_or_are_equal_do_not_count() -> None:
    one, two = question("q", "Oslo"), question("r", "Rome")
    assert distractor_pairs([one, two], {})["q"] == [two]
    for name, text in (("q", "Rome"), ("r", "rome."), ("r", "Oslo"), ("q", "Oslo")):
        answers = {name: AnswerCounts(wrong={normalize(text): 1}, texts={normalize(text): text})}
        assert distractor_pairs([one, two], answers) == {"q": [], "r": []}
    known = [replace(item, category="WeaklyKnown") for item in (one, two)]
    assert distractor_pairs(known, answers)["q"], "Known questions are not selected for what was never generated"
    assert not distractor_pairs([one, replace(two, gold="oslo.")], {})["q"]


def test_k_counts_ties_as_half() -> None:
    assert pair_share(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert pair_share(np.array([2.0]), np.array([1.0, 3.0]), np.array([0, 2])) == 0.0


def test_entropy_and_agreement() -> None:
    assert entropy_bits([160]) == 0.0
    assert entropy_bits([80, 80]) == pytest.approx(1.0 + 1 / (320 * np.log(2)))
    assert agreement([120, 40]) == 0.75
    spread = spread_of({"q": Counter(a=3, b=1), "r": Counter()}, {"q": "Unknown"}, {"q": None})
    assert spread.question_ids.tolist() == ["q"], "questions without answers are left out"
    assert spread.agreement.tolist() == [0.75]


def test_miller_correction_reduces_the_bias_of_few_samples() -> None:
    rng = np.random.default_rng(0)
    samples = [np.unique(rng.integers(8, size=40), return_counts=True)[1].tolist() for _ in range(400)]
    plain = [-sum(n / 40 * np.log2(n / 40) for n in counts) for counts in samples]
    corrected = [entropy_bits(counts) for counts in samples]
    assert np.mean(plain) < 2.9, "3 bits in truth"
    assert np.mean(corrected) == pytest.approx(3.0, abs=0.02)


def candidate(name: str, answer: str, score: float, **kind: Any) -> dict[str, Any]:
    return {
        "question_id": name,
        "relation": "P19",
        "answer": answer,
        "is_right": False,
        "is_gold": False,
        "num_distractors": 0,
        "count": 0,
        "log_probability": [score, score],
        "num_tokens": 2,
        "p_a": 0.3,
        "p_b": 0.3,
        "p_true": 0.5,
    } | kind


def test_ranks_of_a_question() -> None:
    rows = [
        candidate("q", "gold", -4.0, is_right=True, is_gold=True, num_tokens=4, p_true=0.6),
        candidate("q", "other spelling", -1.0, is_right=True, count=1),
        candidate("q", "own", -2.0, count=3, p_true=0.6),
        candidate("q", "distractor", -3.0, num_distractors=1),
        candidate("q", "both", -9.0, num_distractors=1, count=1),
    ]
    ranks = rank_answers(rows, {"q": "WeaklyKnown"}, {"q": "Ada"})
    assert ranks.own[LOG_PROBABILITY] == pytest.approx([3 / 4]), "own wrong answers are those with a count"
    assert ranks.against_distractors[LOG_PROBABILITY] == pytest.approx([0.5]), "of the gold answer alone"
    assert ranks.against_distractors[PER_TOKEN] == pytest.approx([1.0]), "-1 per token against -1.5 and -4.5"
    assert ranks.own[P_TRUE] == pytest.approx([(0.5 + 1 + 0 + 0.5) / 4])
    assert ranks.num_distractors.tolist() == [2]
    assert ranks.clusters.tolist() == ["Ada"]
    assert ranks.choice_mass == pytest.approx(0.6)


@cache
def rankings(
    num: int, *, hidden: int = 0, seed: int = 0, mass: float = 0.6, num_distractors: int = NUM_DISTRACTORS
) -> Rankings:
    """Unknown questions: the first `hidden` are ranked first by log-probability, the others at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num):
        scores = rng.normal(size=(2, num_distractors + 1))
        if i < hidden:
            scores[0, 0] = 9.0
        for j in range(num_distractors + 1):
            kind = {"is_right": True, "is_gold": True} if j == 0 else {"num_distractors": 1}
            p_true = float(1 / (1 + np.exp(-scores[1, j])))
            rows.append(
                candidate(f"q{i:05d}", f"a{j}", float(scores[0, j]), p_true=p_true, p_a=mass / 2, p_b=mass / 2, **kind)
            )
        rows.append(candidate(f"q{i:05d}", "own", 10.0, count=20, p_true=0.5, p_a=mass / 2, p_b=mass / 2))
    names = {row["question_id"] for row in rows}
    return rank_answers(rows, dict.fromkeys(names, "Unknown"), dict.fromkeys(names, None))


def test_split_estimates_the_hidden_share() -> None:
    share = hidden_share(rankings(800, hidden=160), LOG_PROBABILITY)
    assert share.low < 0.2 < share.high
    assert share.share == pytest.approx(2 * share.k.value - 1)
    assert share.above_distractors == pytest.approx(0.2 + 0.8 / (NUM_DISTRACTORS + 1), abs=0.02)
    assert (share.verdict, share.above_own) == (HIDDEN, 0.0)


def test_verdicts_come_out_each_way() -> None:
    assert hidden_share(rankings(500, hidden=100), LOG_PROBABILITY).verdict == HIDDEN
    assert hidden_share(rankings(2500), LOG_PROBABILITY).verdict == NONE
    assert hidden_share(rankings(60), LOG_PROBABILITY).verdict == INCONCLUSIVE
    with pytest.raises(InsufficientDataError, match="needs 10 questions of different subjects, there are 9"):
        hidden_share(rankings(9), LOG_PROBABILITY)


def test_verdicts_of_the_check_come_out_each_way() -> None:
    def statistic(low: float, high: float) -> RankStatistic:
        return RankStatistic((low + high) / 2, low, high, 100)

    assert validate_half(statistic(0.47, 0.53)) == CONFIRMED
    assert validate_half(statistic(0.51, 0.54)) == CONFIRMED, "near one half, though not exactly"
    assert validate_half(statistic(0.40, 0.60)) == INCONCLUSIVE
    assert validate_half(statistic(0.52, 0.60)) == INCONCLUSIVE
    assert validate_half(statistic(0.56, 0.70)) == validate_half(statistic(0.1, 0.44)) == CONTRADICTED
    assert validate_above_half(statistic(0.51, 0.9)) == CONFIRMED
    assert validate_above_half(statistic(0.45, 0.9)) == INCONCLUSIVE
    assert validate_above_half(statistic(0.2, 0.49)) == CONTRADICTED


def test_interval_is_wider_for_questions_of_the_same_subject() -> None:
    values = np.repeat(np.random.default_rng(1).random(40), 5)
    names = np.array([f"subject {i // 5}" for i in range(200)])
    alone = mean_interval(values, np.array([f"question {i}" for i in range(200)]))
    grouped = mean_interval(values, names)
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_equal_values_are_not_certain() -> None:
    statistic = mean_interval(np.ones(38), np.array([f"question {i}" for i in range(38)]))
    assert statistic.value == statistic.high == 1.0
    assert 0.85 < statistic.low < 0.95
    assert value_interval(np.arange(20.0), np.arange(20).astype(str)).value == 9.5


def simulated_study(seed: int, num: int = 120, num_known: int = 0) -> Rankings:
    """A model whose scores do not depend on the facts, except for the last `num_known` ones.

    Some answers are frequent guesses: a score is the sum of an effect of the answer, of the question, and noise. The
    model generates its best answers. Facts whose gold answer it generates by luck are Known and left out.
    """
    rng = np.random.default_rng(seed)
    pool = 60
    popularity = rng.normal(0, 2, size=pool)
    scores = popularity + rng.normal(0, 2, size=(num, 1)) + rng.normal(0, 1, size=(num, pool))
    gold = rng.integers(pool, size=num)
    generated = [np.argsort(-scores[i])[: rng.integers(1, 6)] for i in range(num)]
    unknown = [i for i in range(num) if gold[i] not in generated[i]]
    for i in unknown[len(unknown) - num_known :] if num_known else ():
        scores[i, gold[i]] = scores[i][generated[i]].min() - 0.1
    names = [f"q{i:04d}" for i in range(num)]
    questions = {i: question(names[i], f"answer {gold[i]}") for i in unknown}
    answers = {
        names[i]: AnswerCounts(
            wrong={f"answer {j}": 5 for j in generated[i]}, texts={f"answer {j}": f"answer {j}" for j in generated[i]}
        )
        for i in unknown
    }
    pairs = distractor_pairs(list(questions.values()), answers)
    rows = []
    for i, item in questions.items():
        for chosen in candidates_of(item, answers[names[i]], pairs[names[i]], 10):
            score = float(scores[i, int(chosen.answer.split()[1])])
            rows.append(
                candidate(
                    names[i],
                    chosen.answer,
                    score,
                    is_right=chosen.is_right,
                    is_gold=chosen.is_gold,
                    num_distractors=chosen.num_distractors,
                    count=chosen.count,
                    p_true=float(rng.random()),
                )
            )
    ids = [item.question_id for item in questions.values()]
    return rank_answers(rows, dict.fromkeys(ids, "Unknown"), dict.fromkeys(ids, None))


def test_scores_without_knowledge_claim_hidden_knowledge_in_few_studies() -> None:
    """At most 5 % of studies, in spite of frequent guesses and of the selection of Unknown questions; K is one half."""
    claims, ks = 0, []
    for seed in range(100):
        study = simulated_study(seed)
        claims += any(
            hidden_share(study, measure, num_tests=2).verdict == HIDDEN for measure in (LOG_PROBABILITY, P_TRUE)
        )
        ks.append(hidden_share(study, LOG_PROBABILITY).k.value)
        assert np.nanmean(study.own[LOG_PROBABILITY]) < 0.05, "the model prefers its own answers"
    assert claims <= 5
    assert np.mean(ks) == pytest.approx(0.5, abs=0.006)


def test_simulated_hidden_knowledge_is_found() -> None:
    found = [hidden_share(simulated_study(seed, num_known=40), LOG_PROBABILITY).verdict for seed in range(10)]
    assert found.count(HIDDEN) >= 9


def section_data(ranks: Rankings | None, strengths: dict[str, str] | None = None) -> StudyData:
    loaded = HiddenData(spread_missing="no answers", rankings=ranks, rankings_missing="" if ranks else "no scores")
    return StudyData(loaded={load_hidden: loaded, load_planted: None})


def test_section_states_hidden_knowledge_none_and_inconclusive() -> None:
    for ranks, expected, advice in (
        (rankings(500, hidden=200), "are ranked correctly but never generated", "So Unknown does not mean absent"),
        (rankings(2500), "at most negligible", "Unknown can be read as absent"),
        (rankings(60), "hidden knowledge is inconclusive", "More Unknown questions would narrow the interval"),
        (rankings(5), "Inconclusive: needs 10 questions of different subjects, there are 5", ""),
    ):
        result = hidden_section(section_data(ranks)).result
        assert expected in result
        assert advice in result
    assert "By P(True)" in hidden_section(section_data(rankings(500))).result


def test_section_without_scores_states_what_is_missing() -> None:
    body = hidden_section(section_data(None))
    assert body.result == ""
    assert {exhibit.missing for exhibit in body.exhibits} == {"no scores", "no answers"}


def test_p_true_is_not_tested_if_the_model_does_not_answer_its_prompt() -> None:
    result = hidden_section(section_data(rankings(500, mass=0.001))).result
    assert "By P(True)" not in result
    assert "P(True) is not tested" in result
    verdicts = {row[0]: row[-1] for row in split_table(rankings(500, mass=0.001)).rows}
    assert verdicts[P_TRUE] == verdicts[PER_TOKEN] == "not tested"


def test_check_on_planted_facts_is_stated() -> None:
    ranks = rankings(800, hidden=80)
    names = ranks.question_ids.tolist()
    strengths = {name: "minority" if i < 80 else "never" for i, name in enumerate(names)}
    result = " ".join(summary_sentences(HiddenData(rankings=ranks), strengths))
    assert "720 Unknown facts that were never planted" in result
    assert "80 Unknown facts that were planted" in result
    assert result.count("confirmed") == 2
    assert "In truth, 10.0 % of these Unknown facts were planted." in result
    swapped = {name: "never" if i < 80 else "minority" for i, name in enumerate(names)}
    assert "contradicted" in " ".join(summary_sentences(HiddenData(rankings=ranks), swapped))
    few = dict(list(strengths.items())[:85])
    assert "The check on Unknown facts that were never planted is inconclusive" in " ".join(
        summary_sentences(HiddenData(rankings=ranks), few)
    )


def test_unknown_questions_are_listed_by_rank() -> None:
    table = unknown_table(rankings(30, hidden=5))
    assert len(table.rows) == 30
    assert {row[0] for row in table.rows[:5]} >= {"q00000", "q00004"} - {row[0] for row in table.rows[5:]}
    ks = [float(row[5]) for row in table.rows]  # type: ignore[arg-type]
    assert ks == sorted(ks, reverse=True)
    assert all((row[3] == "yes") == (row[5] == 100.0) for row in table.rows)


def test_hidden_scores_and_labels_have_independent_fingerprints() -> None:
    base = AnnotateConfig()
    scored = replace(base, hidden=True, hidden_questions=3, hidden_answers=2, hidden_prefixes=1)
    assert scored.identity() == base.identity()
    assert hidden_settings(replace(base, p_true=True, p_true_of="all", hidden=True)) == hidden_settings(base)
    for changed in ({"hidden_questions": 3}, {"hidden_answers": 2}, {"hidden_prefixes": 1}, {"dtype": "bfloat16"}):
        assert hidden_settings(replace(base, **changed)) != hidden_settings(base)


def test_answers_that_are_not_stored_cannot_be_ranked() -> None:
    for other in ({"mode": "labels"}, {"estimator": "gold"}):
        with pytest.raises(SettingsError, match="needs --mode full and --estimator sampled"):
            AnnotateConfig(hidden=True, **other)
