"""Targets are divided into sentences, which are labelled as continuations; rows are labelled by their sentences."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slick.annotation.prompting import PromptBuilder, exemplar_texts
from slick.curation.actions import RowLabel, _row_label, count_actions, count_claims, is_dropped, new_columns, row_edits
from slick.curation.claims import (
    FEW_EXEMPLARS,
    NO_CLAIM,
    NO_NAME,
    ClaimLabel,
    has_claim,
    remove_sentences,
    skip_rare_places,
    skip_without_names,
    split_claims,
    unknown_share,
)
from slick.curation.config import CurateConfig
from slick.curation.data import MemoryData
from slick.curation.exemplars import relation_names
from slick.curation.files import open_data
from slick.curation.formats import ColumnNames, RowFormat, detect_format
from slick.curation.selection import CONTEXT, Candidate, Decision, Skipped, candidates_of, choose_matcher
from slick.datasets.prepare import questions_table, write_questions
from slick.errors import DataError, SettingsError, StudyError
from slick.matching import make_matcher
from slick.prompt_formats import QaFormat
from slick.sentences import first_sentence, split_sentences
from slick.storage import Folder
from slick.study import complete_step
from slick.study_files import ANSWER_START_FIELD, QUESTION_SCHEMA, read_question_rows
from slick.types import Category, Question
from slick.variants import VariantsConfig, draw_variants

CLAIMS = CurateConfig(claims="sentences")
KNOWN, WEAKLY, UNKNOWN = Category.HIGHLY_KNOWN, Category.WEAKLY_KNOWN, Category.UNKNOWN
LIFE = "Ada was born in Ur. She wed Bo in 1835.  She died in Rome."

TEXTS = st.lists(
    st.sampled_from(
        [
            "Ada",
            "ur",
            " ",
            "  ",
            "\n",
            "\n\n",
            ". ",
            ".",
            "! ",
            "? ",
            "… ",
            "Dr",
            "J",
            "1",
            "1.5",
            '"',
            "(",
            ")",
            "“",
            "”",
            "。",
            "é",
        ]
    ),
    max_size=30,
).map("".join)


@given(TEXTS | st.text())
def test_joined_sentences_equal_the_text(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert len(pieces) == 1 or all(piece.strip() for piece in pieces)


@given(TEXTS)
def test_first_sentence_of_a_prefix_is_a_prefix_of_the_first_sentence(text: str) -> None:
    whole = first_sentence(text)
    for end in range(len(text)):
        assert whole.startswith(first_sentence(text[:end]))


@pytest.mark.parametrize(
    "sentences",
    [
        ["Ada was born in Ur.", "She died."],
        ["Dr. J. R. Day met Mr. Poe at 5 p.m. in St. Ives.", "He left."],
        ["It cost 1.5 or 2.75 pounds.", "That was much!", "Was it?", "Yes… Or no."][:3],
        ['"Go home." ', "“Stay. I beg you.” ", "She left (or so. He says)."],
        ["1. Ur\n", "2. Rome\n", "\n- Oslo", "\nThe end"],
        ["She sang in the U.S. and the U.K. for years.", "No. 5 was hers."],
        ["他出生在乌尔。", "他死了。"],
    ],
)
def test_sentences_end_at_punctuation(sentences: list[str]) -> None:
    gap = "" if sentences[0].endswith(("\n", " ", "。")) else " "
    pieces = [piece.strip() for piece in split_sentences(gap.join(sentences))]
    assert pieces == [text.strip() for text in sentences]


@pytest.mark.parametrize("matcher", ["exact", "names", "contains", "f1>=0.6"])
def test_only_the_first_sentence_of_an_answer_is_compared(matcher: str) -> None:
    target = make_matcher(["She wed Bo Day in 1835."], f"first-sentence:{matcher}")
    assert target.is_hit(" She wed Bo Day in 1835. She died in Rome.")
    assert not target.is_hit("She died in Rome. She wed Bo Day in 1835.")
    answer = "She wed Bo Day in 1835. Then more"
    assert all(target.can_still_match(answer[:end]) for end in range(len(answer)))
    with pytest.raises(SettingsError, match="there is no matcher 'fuzzy'"):
        make_matcher(["a"], "first-sentence:fuzzy")


def test_names_matcher_compares_names_and_numbers_only() -> None:
    target = make_matcher(["She was born in New York in 1835."], "names")
    assert target.is_hit("Born 1835, in New York")
    assert not target.is_hit("She was born in New Haven in 1835.")
    assert not target.is_hit("She was born in New York in 1836.")
    assert make_matcher(["She was born in New York in 1835."], "f1>=0.6").is_hit("She was born in New Haven in 1836.")
    assert not make_matcher(["Paris is its capital."], "names").is_hit("Rome is its capital.")
    assert make_matcher(["He was a painter of note."], "names").is_hit("he was a painter")
    assert not make_matcher(["He was a painter of note."], "names").is_hit("he went home")


def row_question(number: int, target: str, **settings: Any) -> Candidate:
    return Candidate(
        row=number,
        where=f"line {number + 1}",
        turn=0,
        question_id=f"q{number}",
        group="rows",
        context=(),
        question=f"Who is person {number}?",
        accepted=(target,),
        **settings,
    )


def test_prompt_of_a_sentence_ends_with_the_text_before_it() -> None:
    claims = split_claims(
        [row_question(0, LIFE), row_question(1, "Ada Day"), Skipped(row=2, where="", turn=0, reason="x")]
    )
    assert [(c.question_id, c.answer_start, c.target) for c in candidates_of(claims)] == [
        ("q0-sentence1", "", "Ada was born in Ur."),
        ("q0-sentence2", "Ada was born in Ur. ", "She wed Bo in 1835."),
        ("q0-sentence3", "Ada was born in Ur. She wed Bo in 1835.  ", "She died in Rome."),
        ("q1", None, "Ada Day"),
    ]
    assert all(LIFE.startswith(c.answer) for c in candidates_of(claims)[:3])
    assert isinstance(claims[-1], Skipped)


def test_sentences_without_a_claim_are_skipped() -> None:
    target = "Sure! Here is her life:\n\nAda met person 0. Was she happy? Nobody knows.\n- Rome"
    decisions = split_claims([row_question(0, target)])
    reasons = [d.reason if isinstance(d, Skipped) else None for d in decisions]
    assert reasons == [NO_CLAIM, NO_CLAIM, None, NO_CLAIM, None, None]
    assert [d.sentence for d in decisions] == [1, 2, 3, 4, 5, 6]
    assert not has_claim("Of course!")
    (given_in_prompt,) = split_claims([row_question(0, "Who is person 0? " * 2)])[:1]
    assert isinstance(given_in_prompt, Skipped)
    assert given_in_prompt.reason == CONTEXT


def test_sentences_without_a_new_name_are_skipped() -> None:
    """The matcher `names` would accept any continuation with the names of the prompt."""
    target = "Person 0 was a poet. Person 0 lived in Ur. Ur was fine. It was 1835. She sang."
    decisions = skip_without_names([*split_claims([row_question(0, target)]), row_question(1, "a poet")])
    reasons = [decision.reason if isinstance(decision, Skipped) else None for decision in decisions]
    assert reasons == [NO_NAME, None, NO_NAME, None, NO_NAME, None]


def test_row_id_equal_to_a_sentence_id_is_refused() -> None:
    rows = [row_question(0, LIFE), Candidate(**{**_fields(row_question(1, "Ada")), "question_id": "q0-sentence2"})]
    with pytest.raises(DataError, match=r"line 2: its id 'q0-sentence2' is that of sentence 2 of line 1"):
        split_claims(rows)


def _fields(candidate: Candidate) -> dict[str, Any]:
    names = ("row", "where", "turn", "question_id", "group", "context", "question", "accepted")
    return {name: getattr(candidate, name) for name in names}


def test_sentences_at_the_same_position_form_a_relation() -> None:
    """Exemplars of a second sentence have two sentences. Places that few targets reach are skipped."""
    rows = [row_question(i, LIFE if i < 7 else f"{LIFE} More. And more of it.") for i in range(8)]
    decisions = skip_rare_places(split_claims(rows), min_exemplars=6)
    asked = candidates_of(decisions)
    assert {c.sentence for c in asked} == {1, 2, 3}
    assert [d.reason for d in decisions if isinstance(d, Skipped)] == [FEW_EXEMPLARS] * 2
    names = relation_names(asked, 6)
    assert names == {("rows", i): f"rows, sentence {i}" for i in (1, 2, 3)}
    assert choose_matcher(asked, CLAIMS, is_chat=True)[0] == "names"


def question(candidate: Candidate) -> Question:
    return Question(
        question_id=candidate.question_id,
        relation=f"rows, sentence {candidate.sentence}",
        domain="id",
        split="train",
        subject=None,
        question=candidate.question,
        answers=candidate.accepted,
        answer_start=candidate.answer_start,
    )


def test_prompts_end_with_the_text_before_the_claim() -> None:
    lives = [f"Person {i} was born in Ur.  They wed. They died." for i in range(4)]
    claims = candidates_of(split_claims([row_question(i, life) for i, life in enumerate(lives)]))
    table = questions_table([question(claim) for claim in claims], ANSWER_START_FIELD)
    exemplars = {f"rows, sentence {place}": [[f"q1-sentence{place}"], [f"q2-sentence{place}"]] for place in (1, 2, 3)}
    builder = PromptBuilder(exemplars, exemplar_texts(table, exemplars, ""), QaFormat(), substitute=True)
    prompts = {
        row["question_id"]: builder.prefixes[row["prompt_group"]][0] + row["suffix"]
        for row in builder.add_prompts(table).to_pylist()
    }
    assert prompts["q0-sentence1"] == ("Q: Who is person 1?\nA: Person 1 was born in Ur.\nQ: Who is person 0?\nA:")
    assert prompts["q0-sentence3"] == (
        "Q: Who is person 1?\nA: Person 1 was born in Ur.  They wed. They died.\n"
        "Q: Who is person 0?\nA: Person 0 was born in Ur.  They wed."
    )
    own = [prompt for name, prompt in prompts.items() if name.startswith("q1")]
    assert all("person 2" in prompt and prompt.count("person 1") == 1 for prompt in own)


def test_questions_without_sentences_have_no_column(tmp_path: Path) -> None:
    whole, claim = (question(row_question(i, "Ada", **s)) for i, s in enumerate(({}, {"answer_start": "A. "})))
    for name, questions in (("whole", [whole]), ("both", [whole, claim])):
        write_questions(Folder(str(tmp_path / name)), questions)
        table = read_question_rows(Folder(str(tmp_path / name)), [*QUESTION_SCHEMA.names, "answer_start"])
        starts = table["answer_start"].to_pylist() if "answer_start" in table.column_names else None
        assert starts == ([None, "A. "] if name == "both" else None)


@given(st.lists(st.sampled_from(["He wed. ", "He died.", "\n\n", "Rome?\n", " "]), min_size=1).map("".join), st.data())
def test_remaining_sentences_of_a_target_are_unchanged(target: str, data: st.DataObject) -> None:
    pieces = split_sentences(target)
    removed = data.draw(st.sets(st.integers(1, len(pieces))))
    rest = remove_sentences(target, removed)
    kept = [piece.rstrip() for i, piece in enumerate(pieces, 1) if i not in removed]
    assert rest.split() == " ".join(kept).split()
    assert remove_sentences(target, set()) == target
    if kept:
        assert rest.rstrip() == rest[: len(rest) - len(target) + len(target.rstrip())]


def label_of(*sentences: Category | str | None) -> RowLabel:
    """The label of a row with these categories, reasons or neither (not labelled) by sentence."""
    decisions: list[Decision] = []
    knowledge: dict[str, Mapping[str, Any]] = {}
    for place, value in enumerate(sentences, 1):
        name = f"q-sentence{place}"
        if isinstance(value, Category):
            knowledge[name] = {"category": str(value), "p_correct_greedy": place / 10, "p_correct_sampled": None}
            claim = Candidate(**{**_fields(row_question(0, "x")), "question_id": name}, sentence=place, answer_start="")
            decisions.append(claim)
        else:
            decisions.append(Skipped(row=0, where="", turn=0, reason=value or CONTEXT, sentence=place))
    return _row_label(decisions, knowledge, {})


def test_row_has_the_category_of_its_least_known_claim() -> None:
    label = label_of(KNOWN, UNKNOWN, NO_CLAIM, WEAKLY)
    assert (label.category, label.turns, label.p_correct) == (UNKNOWN, ((0, UNKNOWN),), 0.1)
    assert unknown_share(label.claims) == pytest.approx(1 / 3)
    assert label_of(NO_CLAIM, CONTEXT).reason == CONTEXT
    assert count_claims([label, label_of(KNOWN), RowLabel(reason="code")]) == {"asked": 4, "unknown": 1, "rows": 2}
    place = Candidate(**_fields(row_question(0, "x")), sentence=2)
    assert label.category_of(place) == UNKNOWN


FORMATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": LIFE}]},
    "alpaca": {"instruction": "Who?", "input": "", "output": LIFE},
    "qa": {"question": "Who?", "answer": LIFE},
}


def edit(name: str, label: RowLabel, **settings: Any) -> list[dict[str, Any]]:
    data = open_data([FORMATS[name] | {"n": 1}])
    config = CurateConfig(claims="sentences", to="x", **settings)
    assert isinstance(data, MemoryData)
    rows: list[dict[str, Any]] = data.edited(row_edits(data, _format(name), [label], config), new_columns(config))
    assert count_actions([label], config)["rows"] == len(rows)
    return rows


def _format(name: str) -> RowFormat:
    return detect_format(list(FORMATS[name]), [FORMATS[name]], name=name, names=ColumnNames())


def target_of(name: str, row: Mapping[str, Any]) -> str:
    return _format(name).parse(row)[-1].target


@pytest.mark.parametrize("name", FORMATS)
def test_drop_claims_removes_unknown_sentences(name: str) -> None:
    (row,) = edit(name, label_of(KNOWN, UNKNOWN, WEAKLY), unknown="drop-claims")
    assert target_of(name, row) == "Ada was born in Ur. She died in Rome."
    assert row["slick_unknown_claims"] == pytest.approx(1 / 3)
    assert (row["slick_category"], row["n"]) == ("Unknown", 1)
    (row,) = edit(name, label_of(KNOWN, UNKNOWN, WEAKLY))
    assert target_of(name, row) == LIFE
    (row,) = edit(name, label_of(KNOWN, KNOWN, WEAKLY), weakly="drop-claims")
    assert target_of(name, row) == "Ada was born in Ur. She wed Bo in 1835."
    (row,) = edit(name, label_of(KNOWN, UNKNOWN, KNOWN), unknown="idk", weakly="drop-claims")
    assert target_of(name, row) == "I don't know."


def test_row_without_a_remaining_claim_is_dropped() -> None:
    """Sentences without a claim do not keep it; skipped sentences do."""
    config = CurateConfig(claims="sentences", unknown="drop-claims", to="x")
    assert edit("qa", label_of(UNKNOWN, UNKNOWN, NO_CLAIM), unknown="drop-claims") == []
    assert len(edit("qa", label_of(UNKNOWN, UNKNOWN, CONTEXT), unknown="drop-claims")) == 1
    assert is_dropped(label_of(UNKNOWN), config)
    labels = [label_of(UNKNOWN), label_of(KNOWN, UNKNOWN, UNKNOWN), label_of(KNOWN)]
    counts = count_actions(labels, config)
    assert counts == {"dropped": 1, "relabelled": 0, "weighted": 0, "rows": 2, "shortened": 1, "removed_claims": 2}


def test_drop_claims_of_a_csv_file(tmp_path: Path) -> None:
    path, copy = tmp_path / "rows.csv", tmp_path / "copy.csv"
    path.write_text(f'question,answer\nWho?,"{LIFE}"\nWhen?,Now\n')
    data = open_data(str(path))
    config = CurateConfig(data=str(path), claims="sentences", unknown="drop-claims", to=str(copy))
    labels = [label_of(UNKNOWN, KNOWN, UNKNOWN), label_of(KNOWN)]
    data.write(str(copy), row_edits(data, _format("qa"), labels, config), new_columns(config), overwrite=False)
    rows = list(csv.DictReader(io.StringIO(copy.read_text())))
    assert [row["answer"] for row in rows] == ["She wed Bo in 1835.", "Now"]


def test_several_turns_have_their_own_sentences() -> None:
    """A turn without a remaining claim drops the whole row, since its question would have no answer."""
    turns = [
        ClaimLabel(turn=0, sentence=1, category=UNKNOWN),
        ClaimLabel(turn=1, sentence=1, category=KNOWN),
        ClaimLabel(turn=1, sentence=2, category=UNKNOWN),
    ]
    config = CurateConfig(claims="sentences", unknown="drop-claims", to="x")
    assert is_dropped(RowLabel(category=UNKNOWN, turns=((0, UNKNOWN), (1, UNKNOWN)), claims=tuple(turns)), config)
    assert not is_dropped(RowLabel(category=UNKNOWN, turns=((1, UNKNOWN),), claims=tuple(turns[1:])), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unknown": "drop-claims"}, r"drop-claims removes sentences.*--claims sentences"),
        ({"claims": "sentences", "exemplars": "x.jsonl"}, r"got --exemplars x.jsonl; leave it out"),
        ({"claims": "words"}, r"claims"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        CurateConfig(**settings)


def test_variants_refuses_labels_of_sentences(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    for step in ("questions", "annotate"):
        folder = study.child(step)
        if step == "questions":
            write_questions(folder, [question(row_question(0, "Ada", answer_start="", sentence=1))])
        inputs = {} if step == "questions" else {"questions": "questions", "model": "m"}
        complete_step(folder, step, step, settings=CLAIMS, inputs=inputs, counts={}, started_at=0.0)
    with pytest.raises(StudyError, match=r"labels the sentences of targets.*without --claims"):
        draw_variants(study, VariantsConfig())
