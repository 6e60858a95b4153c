"""The real EntityQuestions dataset has the counts of the paper."""

import itertools
import json
import zipfile
from collections import Counter

import pytest

from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.datasets.filters import apply_filter
from slick.datasets.relations import load_relations
from slick.datasets.sources import open_source, read_rows
from slick.datasets.validate import ValidationRules, validate_rows
from slick.report.findings.paper import paper_relation_totals
from slick.storage import Folder


@pytest.fixture(scope="module")
def validated(entity_questions):
    source = open_source(entity_questions)
    return validate_rows(read_rows(source), ValidationRules(relations=load_relations(), keep_duplicates=True))


def test_every_row_is_read(validated):
    assert (len(validated.questions), validated.rejected, validated.repeats) == (220_703, [], 374)
    assert Counter(q.split for q in validated.questions) == {"train": 176_560, "dev": 22_068, "test": 22_075}
    assert all(q.subject for q in validated.questions)
    assert len({q.question_id for q in validated.questions}) == 220_703


def test_paper_filter_reproduces_tables_3_to_5(entity_questions, tmp_path):
    study = Folder(str(tmp_path))
    manifest = prepare_questions(study, QuestionsConfig(questions=entity_questions))
    table = read_questions(study, ["relation", "domain", "split"]).to_pylist()
    counts = Counter((row["domain"], row["split"], row["relation"]) for row in table)
    expected = paper_relation_totals()
    for name, domain, split in (("train", "id", "train"), ("test", "id", "test"), ("ood", "ood", "test")):
        assert {r: num for (d, s, r), num in counts.items() if (d, s) == (domain, split)} == expected[name]
        assert manifest.counts["audit"][name] == expected[name]
    assert manifest.counts["totals"] == {"train": 81_700, "dev": 10_461, "test": 10_481, "ood": 5_848}
    assert manifest.counts["audit"]["totals"] == {"train": 81_700, "test": 10_481, "ood": 5_848}
    assert sum(num for (d, s, _), num in counts.items() if (d, s) == ("ood", "dev")) == 5_847


def test_strict_filter_leaves_no_overlap(validated):
    kept = apply_filter(validated.questions, "strict").kept
    facts = {
        split: [(q.subject.casefold(), q.answers[0].casefold()) for q in kept if q.split == split]
        for split in ("train", "dev", "test")
    }
    for first, second in itertools.combinations(facts, 2):
        assert not {s for s, _ in facts[first]} & {s for s, _ in facts[second]}
        assert not {o for _, o in facts[first]} & {o for _, o in facts[second]}
        assert not set(facts[first]) & {(o, s) for s, o in facts[second]}
    assert all(len(q.answers) == 1 for q in kept)
    assert len(facts["train"]) > 25_000


@pytest.mark.slow
def test_folder_equals_the_zip_and_can_be_audited_for_other_questions(entity_questions, tmp_path):
    with zipfile.ZipFile(entity_questions) as archive:
        archive.extractall(tmp_path / "eq")
    assert open_source(str(tmp_path / "eq")).fingerprint == open_source(entity_questions).fingerprint
    rows = [
        {"relation": "P17", "split": s, "question": f"Which country is {s} located in?", "answer": s}
        for s in ("dev", "test")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = QuestionsConfig(questions=str(tmp_path / "a.jsonl"), audit=str(tmp_path / "eq" / "dataset"))
    manifest = prepare_questions(Folder(str(tmp_path / "study")), config)
    assert manifest.counts["audit"]["totals"] == {"train": 81_700, "test": 10_481, "ood": 5_848}
    assert manifest.counts["totals"]["train"] == 0
