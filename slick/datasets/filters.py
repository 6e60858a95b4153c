"""Filters of question sets: the paper's, a stricter one, or none; and counts of the rows read, dropped and kept. Pure.

`paper` is the filter of Gekhman et al. 2024 (arXiv:2405.05904, appendix A), as reconstructed from their counts: (1) it
keeps only questions with one answer; (2) it drops train questions whose subject is also the subject of a test question
of any relation, including dropped relations and questions with several answers. Subjects are compared as written.
Overlaps of objects stay, although the paper's text says otherwise: only this reproduces every total of its tables 3 to
5. `strict` also removes every subject, object and reversed pair that train, dev and test share. It drops many questions
of relations with few objects, such as countries.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from slick.datasets.columns import SPLITS
from slick.datasets.relations import load_relations
from slick.datasets.validate import ValidationResult
from slick.formatting import format_table
from slick.matching import nfc
from slick.types import Question

FilterName = Literal["paper", "strict", "none"]

MIN_DEV = 5
"""Fewer dev questions do not suffice for several exemplar sets of four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterStep:
    """The questions that one rule dropped."""

    rule: str
    dropped: Counter[tuple[str, str]]
    """Number of questions by (relation, split)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """The questions that are kept, and those that each rule dropped, in the order of the rules."""

    kept: list[Question]
    steps: list[FilterStep]


def apply_filter(questions: Sequence[Question], name: FilterName) -> FilterResult:
    """Filter a whole question set.

    Every filter drops the dropped relations, and the train questions of out-of-distribution relations.

    Args:
        questions: all, including dropped relations, because the paper's rule compares their subjects.
        name: `paper`, `strict` or `none`.

    Returns:
        The questions that are kept, in the order of `questions`.
    """
    test_subjects = {subject_key(q) for q in questions if q.split == "test"}
    kept, steps = list(questions), list[FilterStep]()

    def drop(rule: str, condition: Callable[[Question], bool]) -> None:
        nonlocal kept
        matches = [condition(q) for q in kept]
        steps.append(
            FilterStep(
                rule=rule,
                dropped=Counter((q.relation, q.split) for q, match in zip(kept, matches, strict=True) if match),
            )
        )
        kept = [q for q, match in zip(kept, matches, strict=True) if not match]

    drop("not used", lambda q: q.domain == "dropped" or (q.domain == "ood" and q.split == "train"))
    if name == "none":
        return FilterResult(kept=kept, steps=steps)
    drop("several answers", lambda q: len(q.answers) > 1)
    drop("subject in test", lambda q: q.split == "train" and subject_key(q) in test_subjects)
    if name == "strict":
        drop("repeated row", _is_duplicate())
        normalized = {_normalize(subject) for subject in test_subjects}
        for split, other in (("dev", "test"), ("train", "test"), ("train", "dev")):
            facts = _FactIndex((q for q in kept if q.split == other), normalized if other == "test" else set())
            drop(f"{split}: subject in {other}", _in_split(split, facts.has_subject))
            drop(f"{split}: object in {other}", _in_split(split, facts.has_object))
            drop(f"{split}: reversed in {other}", _in_split(split, facts.has_reverse))
    return FilterResult(kept=kept, steps=steps)


def subject_key(question: Question) -> str:
    """The text that is compared for overlaps, in NFC: the subject, or the whole question if no subject is known."""
    return nfc(question.question if question.subject is None else question.subject)


class _FactIndex:
    """Subjects, objects and (subject, object) pairs of questions; case, white space and Unicode form are ignored."""

    def __init__(self, questions: Iterable[Question], more_subjects: set[str]) -> None:
        self._subjects = set(more_subjects)
        self._objects: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        for question in questions:
            subject = _normalize(subject_key(question))
            self._subjects.add(subject)
            for answer in question.answers:
                self._objects.add(_normalize(answer))
                self._pairs.add((subject, _normalize(answer)))

    def has_subject(self, question: Question) -> bool:
        return _normalize(subject_key(question)) in self._subjects

    def has_object(self, question: Question) -> bool:
        return any(_normalize(answer) in self._objects for answer in question.answers)

    def has_reverse(self, question: Question) -> bool:
        subject = _normalize(subject_key(question))
        return any((_normalize(answer), subject) in self._pairs for answer in question.answers)


def _in_split(split: str, test: Callable[[Question], bool]) -> Callable[[Question], bool]:
    return lambda question: question.split == split and test(question)


def _is_duplicate() -> Callable[[Question], bool]:
    seen: set[tuple[str, str, str, tuple[str, ...]]] = set()

    def is_repeated(question: Question) -> bool:
        key = (question.relation, question.split, nfc(question.question), tuple(map(nfc, question.answers)))
        is_seen = key in seen
        seen.add(key)
        return is_seen

    return is_repeated


def _normalize(text: str) -> str:
    return " ".join(nfc(text).casefold().split())


def count_questions(checked: ValidationResult, filtered: FilterResult, kept: Sequence[Question]) -> dict[str, Any]:
    """The counts of the manifest.

    Args:
        checked: the validated rows.
        filtered: the questions after the filter.
        kept: the questions that are written, after the limit per relation.
    """
    return {
        "rows": len(checked.questions) + checked.reasons.total(),
        "rejected": checked.reasons.total(),
        "reasons": dict(checked.reasons.most_common()),
        "repeated_rows": checked.repeats,
        "splits_assigned": checked.splits["share"].total(),
        "splits_from": {origin: dict(splits) for origin, splits in checked.splits.items()},
        "without_subject": sum(q.subject is None for q in kept),
        "with_popularity": sum(q.popularity is not None for q in kept),
        "read": _group_by_relation(count_by_split(checked.questions)),
        "dropped": {step.rule: _group_by_relation(step.dropped) for step in filtered.steps},
        "over_limit": len(filtered.kept) - len(kept),
        "kept": _group_by_relation(count_by_split(kept)),
        "domains": _domains(kept),
        "totals": split_totals(kept),
    }


def count_by_split(questions: Iterable[Question]) -> Counter[tuple[str, str]]:
    """Number of questions by (relation, split)."""
    return Counter((q.relation, q.split) for q in questions)


def split_totals(questions: Iterable[Question]) -> dict[str, int]:
    """Number of in-distribution questions in train, dev and test, and of out-of-distribution ones in test (`ood`)."""
    counts = Counter(q.split if q.domain == "id" else f"ood_{q.split}" for q in questions)
    return {"train": counts["train"], "dev": counts["dev"], "test": counts["test"], "ood": counts["ood_test"]}


def is_entity_questions(questions: Iterable[Question]) -> bool:
    """True if all 24 relations of EntityQuestions have a question."""
    return published_relations() <= {q.relation for q in questions}


def published_relations() -> set[str]:
    """The 24 relations of EntityQuestions; P30 has a template but was never published."""
    return set(load_relations()) - {"P30"}


def paper_audit(questions: Sequence[Question], source: str) -> dict[str, Any]:
    """Totals of EntityQuestions under the `paper` filter and the shipped relations, to compare with tables 3 to 5.

    Args:
        questions: all questions of the 24 relations. Their domains are ignored.
        source: name of the question set.

    Returns:
        `train`, `test` and `ood`, each a number of questions by relation; `totals` of the three; `source`.
    """
    relations = load_relations()
    shipped = [replace(q, domain=relations[q.relation].domain) for q in questions if q.relation in relations]
    kept = apply_filter(shipped, "paper").kept
    tables = {
        "train": Counter(q.relation for q in kept if q.domain == "id" and q.split == "train"),
        "test": Counter(q.relation for q in kept if q.domain == "id" and q.split == "test"),
        "ood": Counter(q.relation for q in kept if q.domain == "ood" and q.split == "test"),
    }
    return {
        **{name: {r: counts[r] for r in relations if counts[r]} for name, counts in tables.items()},
        "totals": {name: counts.total() for name, counts in tables.items()},
        "source": source,
    }


def format_summary(counts: Mapping[str, Any]) -> str:
    """The counts as a table for the terminal; each cell is train/dev/test."""
    read, kept = counts["read"], counts["kept"]
    rules = {rule: dropped for rule, dropped in counts["dropped"].items() if rule != "not used" and dropped}
    rows = [["relation", "domain", "read", *(f"({n})" for n in range(1, len(rules) + 1)), "kept"]]
    for relation in read:
        if relation in kept or any(relation in dropped for dropped in rules.values()):
            cells = [read[relation], *(dropped.get(relation, {}) for dropped in rules.values()), kept.get(relation, {})]
            rows.append([relation, counts["domains"].get(relation, "-"), *map(_cell, cells)])
    unused = sum(sum(c.values()) for c in counts["dropped"]["not used"].values())
    notes = [
        f"Cells are train/dev/test. {_format_dropped(counts)}",
        f"Not used: {unused:,} (dropped relations, and train questions of ood relations).",
        f"Splits: {_split_origins(counts)}.",
        *([f"Over the limit: {counts['over_limit']:,}."] if counts["over_limit"] else []),
        *([f"Popularity of the subject known: {counts['with_popularity']:,}."] if counts["with_popularity"] else []),
        *([f"Rows set aside: {counts['rejected']:,} ({_reasons(counts)})."] if counts["rejected"] else []),
        *([f"Rows that repeat another one, read: {counts['repeated_rows']:,}."] if counts["repeated_rows"] else []),
        *_warnings(counts),
        "Kept: " + ", ".join(f"{num:,} {name}" for name, num in counts["totals"].items()) + ".",
    ]
    return "\n".join([*format_table(rows), *notes])


def _format_dropped(counts: Mapping[str, Any]) -> str:
    """The questions that each rule of the filter dropped; the numbers are those of the columns of the table."""
    sums = {
        rule: sum(sum(splits.values()) for splits in dropped.values())
        for rule, dropped in counts["dropped"].items()
        if rule != "not used"
    }
    if not sums:
        return "No filter."
    dropping, idle = [rule for rule in sums if sums[rule]], [rule for rule in sums if not sums[rule]]
    texts = []
    if dropping:
        numbered = (f"({number}) {rule}: {sums[rule]:,}" for number, rule in enumerate(dropping, 1))
        texts.append(f"Dropped by the filter: {'; '.join(numbered)}.")
    if idle:
        texts.append(f"Nothing dropped for: {'; '.join(idle)}.")
    return " ".join(texts)


def _split_origins(counts: Mapping[str, Any]) -> str:
    """The origins of the splits, with rows per split."""
    origins = {
        "column": "from the column split",
        "file name": "from the names of the files",
        "share": "by --dev-share and --test-share",
    }
    return "; ".join(
        f"{sum(splits.values()):,} rows {origins[origin]} "
        f"({', '.join(f'{splits[split]:,} {split}' for split in SPLITS if splits.get(split))})"
        for origin, splits in counts["splits_from"].items()
        if splits
    )


def _warnings(counts: Mapping[str, Any]) -> list[str]:
    kept, domains = counts["kept"], counts["domains"]
    few_dev = [f"{name} ({kept[name].get('dev', 0)})" for name in kept if kept[name].get("dev", 0) < MIN_DEV]
    no_train = [name for name in kept if domains[name] != "ood" and not kept[name].get("train")]
    filtered = {name for rule, dropped in counts["dropped"].items() if rule != "not used" for name in dropped}
    empty = [name for name in counts["read"] if name not in kept and name in filtered]
    warnings = []
    if few_dev:
        warnings.append(f"Warning: too few dev questions for exemplar sets of four: {', '.join(few_dev)}.")
    if no_train:
        warnings.append(f"Warning: no train questions left: {', '.join(no_train)}.")
    if empty:
        warnings.append(f"Warning: no questions left: {', '.join(empty)}.")
    if num := counts["without_subject"]:
        warnings.append(f"Warning: {num:,} questions have no known subject; the filter compared their whole text.")
    return warnings


def _reasons(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{num:,} {kind}" for kind, num in counts["reasons"].items())


def _cell(counts: Mapping[str, int]) -> str:
    return "/".join(str(counts.get(split, 0)) for split in SPLITS) if any(counts.values()) else "-"


def _group_by_relation(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for relation, split in sorted(counts, key=lambda key: (key[0], SPLITS.index(key[1]))):
        nested.setdefault(relation, {})[split] = counts[relation, split]
    return nested


def _domains(questions: Iterable[Question]) -> dict[str, str]:
    domains: dict[str, set[str]] = {}
    for question in questions:
        domains.setdefault(question.relation, set()).add(question.domain)
    return {relation: "+".join(sorted(domains[relation])) for relation in sorted(domains)}
