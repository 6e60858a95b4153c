"""Relations: the shipped ones, subjects and templates, and relations files."""

import json
from pathlib import Path

import pytest

from slick.datasets.relations import extract_subject, load_relations, split_template
from slick.errors import DataError
from slick.report.findings.paper import paper_category_counts, paper_relation_totals

PAPER_TABLES = json.loads((Path(__file__).parents[2] / "slick" / "data" / "paper_counts.json").read_text())


def test_shipped_relations_are_divided_12_7_5_and_p30():
    by_domain = {}
    for name, relation in load_relations().items():
        by_domain.setdefault(relation.domain, set()).add(name)
    assert {domain: len(names) for domain, names in by_domain.items()} == {"id": 12, "ood": 7, "dropped": 6}
    assert by_domain["dropped"] == {"P276", "P20", "P106", "P413", "P159", "P30"}


def test_paper_counts_cover_the_shipped_relations_and_add_up():
    counts, relations = paper_category_counts(), load_relations()
    totals = {name: {relation: row["total"] for relation, row in rows.items()} for name, rows in PAPER_TABLES.items()}
    assert paper_relation_totals() == totals
    assert [sum(table.values()) for table in totals.values()] == [81_700, 10_481, 5_848]
    for table, domain in (("train", "id"), ("test", "id"), ("ood", "ood")):
        assert set(counts[table]) == {name for name, relation in relations.items() if relation.domain == domain}
    # |D| of the paper: the smallest category of each relation, summed
    assert sum(min(row.values()) for row in counts["train"].values()) == 6142


@pytest.mark.parametrize("relation", load_relations().values(), ids=lambda relation: relation.relation)
def test_subject_is_extracted_from_its_question(relation):
    for subject in ("Paris", "a's?", "?", "Who is X", "Ægir ö"):
        assert relation.subject(relation.question(subject)) == subject


def test_no_subject_if_the_question_does_not_follow_the_template():
    assert extract_subject("Who is [X]'s child?", "Who is 's child?") is None
    assert extract_subject("aa[X]aa", "aaa") is None
    assert extract_subject("Where is [E]?", "Where is Rome?") == "Rome"


@pytest.mark.parametrize("template", ["no place", "[X] and [X]", "[X] and [E]"])
def test_template_has_exactly_one_placeholder(template):
    with pytest.raises(ValueError, match="exactly one"):
        split_template(template)


def test_relations_file_replaces_the_shipped_one(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"born": {"template": None, "domain": "ood"}}).encode())
    assert [(r.relation, r.template, r.domain) for r in load_relations(str(path)).values()] == [("born", None, "ood")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not UTF-8 JSON"),
        ("[]", "holds nothing; expected"),
        ("[1]", "holds list"),
        ('{"P1": {"template": "x", "domain": "id"}}', "exactly one"),
        ('{"P1": {"template": "x [X]", "domain": "in"}}', "domain is 'in'; expected one of id, ood, dropped"),
        ('{"P1": {"template": 3, "domain": "id"}}', "template is 3"),
        ('{"P1": {"templat": "x [X]", "domain": "id"}}', "relation 'P1': found"),
        ('{"P1": "id"}', "relation 'P1': found"),
    ],
)
def test_invalid_relations_file_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"mine\.json") as caught:
        load_relations(str(path))
    assert message in str(caught.value)


def test_missing_relations_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json does not exist"):
        load_relations(str(tmp_path / "nowhere.json"))
