"""Overlap of out-of-distribution with in-distribution questions, in EntityQuestions and in a planted world.

Overlap grows with the number of questions, so EntityQuestions is measured twice: all questions, and a sample of the
size of the world, which the world should resemble.

python -m tests.benchmarks.archive_overlap entity_questions.zip
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from slick.datasets.filters import apply_filter
from slick.datasets.relations import load_relations
from slick.datasets.sources import open_source, read_rows
from slick.datasets.validate import ValidationRules, validate_rows
from slick.world import WorldConfig
from slick.world.build import sample_real_rows
from slick.world.facts import SubjectAnswer, synthetic_rows

Rows = Mapping[str, Sequence[SubjectAnswer]]
"""Subjects and answers by relation."""

SHORT_WORDS = 2
"""Words of up to this many letters (`of`, `de`, initials) do not count as shared."""


@dataclass(frozen=True)
class Overlap:
    """Shares, in percent, of the questions of one relation that overlap with the questions of other relations."""

    num_questions: int
    num_answers: int
    answer_is_answer: float
    """Questions whose answer is an answer of another relation."""
    answer_is_subject: float
    """Questions whose answer is a subject of another relation."""
    subject_is_answer: float
    subject_is_subject: float
    answer_shares_word: float
    """Questions whose answer has a word in common with a subject or answer of another relation."""
    subject_shares_word: float


def archive_rows(location: str) -> Rows:
    """The questions of EntityQuestions that the filter `paper` keeps."""
    source, relations = open_source(location), load_relations()
    rules = ValidationRules(relations=relations, templates=source.templates, keep_duplicates=True)
    rows: dict[str, list[SubjectAnswer]] = {}
    for question in apply_filter(validate_rows(read_rows(source), rules).questions, "paper").kept:
        rows.setdefault(question.relation, []).append((question.subject or "", question.answers[0]))
    return rows


def pool_splits(splits: Mapping[str, Mapping[str, Sequence[SubjectAnswer]]]) -> Rows:
    """The rows of all splits, by relation."""
    return {relation: [row for rows in parts.values() for row in rows] for relation, parts in splits.items()}


def words(name: str) -> set[str]:
    """The words of a name that count as shared.

    >>> sorted(words("The House of St. Anne"))
    ['anne', 'house']
    """
    return {word for word in re.findall(r"\w+", name.lower()) if len(word) > SHORT_WORDS} - {"the", "and"}


def all_words(names: Iterable[str]) -> set[str]:
    """The words of all names."""
    return {word for name in names for word in words(name)}


def measure_overlap(rows: Rows, relation: str, others: Sequence[str]) -> Overlap:
    """The overlap of the questions of `relation` with those of the relations `others`."""
    own = rows[relation]
    subjects = {subject for other in others for subject, _ in rows[other]}
    answers = {answer for other in others for _, answer in rows[other]}
    known = all_words(subjects | answers)

    def percent(flags: Iterable[bool]) -> float:
        return 100 * sum(flags) / len(own)

    return Overlap(
        num_questions=len(own),
        num_answers=len({answer for _, answer in own}),
        answer_is_answer=percent(answer in answers for _, answer in own),
        answer_is_subject=percent(answer in subjects for _, answer in own),
        subject_is_answer=percent(subject in answers for subject, _ in own),
        subject_is_subject=percent(subject in subjects for subject, _ in own),
        answer_shares_word=percent(bool(words(answer) & known) for _, answer in own),
        subject_shares_word=percent(bool(words(subject) & known) for subject, _ in own),
    )


def print_table(title: str, rows: Rows, config: WorldConfig) -> None:
    """Print the overlap of each OOD relation with all ID relations, and of each ID relation with the others."""
    print(f"\n{title}")
    print(f"{'':10}{'questions':>10}{'answers':>9}   answer is an ID      subject is an ID     shares a word with ID")
    print(f"{'':29}{'answer':>9}{'subject':>9}{'answer':>11}{'subject':>9}{'answer':>13}{'subject':>9}")
    id_relations = [name for name in config.id_relations if name in rows]
    for group in (config.ood_relations, config.id_relations):
        measured = []
        for relation in group:
            if relation in rows:
                others = [name for name in id_relations if name != relation]
                measured.append((relation, measure_overlap(rows, relation, others)))
        total = sum(overlap.num_questions for _, overlap in measured)
        for relation, overlap in measured:
            print(format_row(relation, list(vars(overlap).values())))
        for label, weights in (("pooled", None), ("mean", 1 / max(len(measured), 1))):
            columns = zip(*(list(vars(overlap).values())[2:] for _, overlap in measured), strict=True)
            sizes = [weights or overlap.num_questions / total for _, overlap in measured]
            shares = [sum(w * value for w, value in zip(sizes, column, strict=True)) for column in columns]
            print(format_row(label, [total, sum(overlap.num_answers for _, overlap in measured), *shares]))


def format_row(label: str, values: Sequence[float]) -> str:
    """One line of the table."""
    widths = (10, 9, 9, 9, 11, 9, 13, 9)
    cells = [f"{value:>{width}.0f}" for value, width in zip(values, widths, strict=True)]
    return f"{label:10}{''.join(cells)}"


def main() -> None:
    """Print the tables of EntityQuestions and of an invented world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", help="EntityQuestions as zip or folder")
    parser.add_argument("--seed", type=int, default=101, help="of the sample and the world")
    arguments = parser.parse_args()
    config = WorldConfig(seed=arguments.seed)
    real = replace(config, questions=arguments.questions)
    print_table("EntityQuestions, filter paper", archive_rows(arguments.questions), config)
    sample = pool_splits(sample_real_rows(real, load_relations()))
    print_table("EntityQuestions, a sample of the size of the world", sample, config)
    print_table("the world with invented facts", pool_splits(synthetic_rows(config)), config)


if __name__ == "__main__":
    main()
