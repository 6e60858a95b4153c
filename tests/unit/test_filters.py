"""Filters of questions: what each drops, and no overlap between splits."""

import itertools
import random

import pytest

from slick.datasets.filters import apply_filter
from slick.types import Question

NUMBERS = itertools.count()


def question(split, subject, *answers, relation="P1", domain="id"):
    text = f"What is {subject} to {relation}?"
    return Question(
        question_id=f"q{next(NUMBERS)}",
        relation=relation,
        domain=domain,
        split=split,
        subject=subject,
        question=text,
        answers=answers,
    )


def kept(questions, name):
    return {(q.split, q.subject) for q in apply_filter(questions, name).kept}


def dropped(questions, name, rule):
    return next(step.dropped for step in apply_filter(questions, name).steps if step.rule == rule)


def test_every_filter_drops_dropped_relations_and_ood_train_rows():
    rows = [
        question("train", "a", "1"),
        question("train", "b", "2", domain="ood", relation="P2"),
        question("test", "c", "3", domain="ood", relation="P2"),
        question("test", "d", "4", domain="dropped", relation="P3"),
    ]
    for name in ("none", "paper", "strict"):
        assert kept(rows, name) == {("train", "a"), ("test", "c")}
        assert dropped(rows, name, "not used") == {("P2", "train"): 1, ("P3", "test"): 1}


def test_questions_with_several_answers_are_dropped_in_every_split():
    rows = [question(split, split + n, *"12"[: int(n)]) for split in ("train", "dev", "test") for n in "12"]
    assert kept(rows, "paper") == {("train", "train1"), ("dev", "dev1"), ("test", "test1")}
    assert kept(rows, "none") == {(q.split, q.subject) for q in rows}


@pytest.mark.parametrize(
    "test_row",
    [
        question("test", "a", "2"),
        question("test", "a", "2", "3"),  # its subject counts although the row is dropped
        question("test", "a", "2", relation="P9", domain="dropped"),
        question("test", "a", "2", relation="P8", domain="ood"),
    ],
    ids=["same relation", "several answers", "dropped relation", "ood relation"],
)
def test_train_questions_with_a_test_subject_are_dropped(test_row):
    rows = [question("train", "a", "1"), question("train", "A", "1"), question("dev", "a", "1"), test_row]
    assert dropped(rows, "paper", "subject in test") == {("P1", "train"): 1}
    assert {("train", "A"), ("dev", "a")} <= kept(rows, "paper")


def test_only_the_strict_filter_drops_shared_objects_and_reversed_pairs():
    rows = [
        question("train", "a", "x"),  # object x is in test
        question("train", "y", "b"),  # (b, y) is in test
        question("train", "c", "z"),  # object z is in dev
        question("train", "d", "own"),
        question("train", "d", "own"),  # repeat
        question("dev", "e", "z"),
        question("dev", "f", "X"),  # the same object except for case
        question("test", "g", "x"),
        question("test", "b", "y"),
    ]
    assert len(apply_filter(rows, "paper").kept) == len(rows)
    assert kept(rows, "strict") == {("train", "d"), ("dev", "e"), ("test", "g"), ("test", "b")}
    dropped_by_rule = {step.rule: dict(step.dropped) for step in apply_filter(rows, "strict").steps if step.dropped}
    assert dropped_by_rule == {
        "repeated row": {("P1", "train"): 1},
        "dev: object in test": {("P1", "dev"): 1},
        "train: object in test": {("P1", "train"): 1},
        "train: reversed in test": {("P1", "train"): 1},
        "train: object in dev": {("P1", "train"): 1},
    }


def test_whole_question_is_compared_without_a_subject():
    same = Question(
        question_id="1", relation="P1", domain="id", split="train", subject=None, question="Why?", answers=("a",)
    )
    test = Question(
        question_id="2", relation="P1", domain="id", split="test", subject=None, question="Why?", answers=("b",)
    )
    assert apply_filter([same, test], "paper").kept == [test]


def test_strict_filter_leaves_no_overlap_on_random_sets():
    rng = random.Random(0)
    for _ in range(30):
        rows = [
            question(
                rng.choice(["train", "dev", "test"]),
                rng.choice("abcdefABCDEFxyz"),
                rng.choice("uvwxyzabUVW"),
                relation=r,
            )
            for r in ("P1", "P2")
            for _ in range(12)
        ]
        result = apply_filter(rows, "strict")
        facts = {
            s: [(q.subject.lower(), q.answers[0].lower()) for q in result.kept if q.split == s]
            for s in ("train", "dev", "test")
        }
        for first, second in itertools.combinations(facts, 2):
            assert not {s for s, _ in facts[first]} & {s for s, _ in facts[second]}
            assert not {o for _, o in facts[first]} & {o for _, o in facts[second]}
            assert not set(facts[first]) & {(o, s) for s, o in facts[second]}
        assert sum(step.dropped.total() for step in result.steps) == len(rows) - len(result.kept)
