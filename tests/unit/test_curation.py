"""Which rows of a fine-tuning file are labelled, with which exemplars, and how rows are edited by their category."""

from pathlib import Path
from typing import Any

import pytest

from slick.curation.actions import RowLabel, count_actions, num_copies, row_edits
from slick.curation.card import card_text, write_card
from slick.curation.claims import NO_NAME, skip_without_names
from slick.curation.config import CurateConfig
from slick.curation.exemplars import OTHER_GROUP, POOL_SIZE, draw_own_exemplars, exemplar_pool, relation_names
from slick.curation.files import open_data
from slick.curation.formats import ColumnNames, detect_format
from slick.curation.plan import _ambiguity_note, plan_curation
from slick.curation.selection import (
    CODE,
    CONTEXT,
    EXCLUDED,
    TOO_LONG,
    Candidate,
    Decision,
    Skipped,
    candidates_of,
    choose_matcher,
    count_reasons,
    read_decisions,
    skip_long_targets,
)
from slick.curation.step import curate_file
from slick.errors import DataError, SettingsError
from slick.matching import is_hit
from slick.storage import Folder
from slick.study import Manifest
from slick.types import Category

MESSAGES = detect_format(["messages"], [], name="messages", names=ColumnNames())


def chat(*texts: str, **columns: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"messages": messages, **columns}


def decide(*rows: dict[str, Any], **settings: Any) -> list[Decision]:
    places = ((f"rows.jsonl, line {i}", row) for i, row in enumerate(rows, 1))
    return read_decisions(places, MESSAGES, CurateConfig(**settings))


def reasons(*rows: dict[str, Any], **settings: Any) -> list[str | None]:
    return [decision.reason if isinstance(decision, Skipped) else None for decision in decide(*rows, **settings)]


def test_rows_that_do_not_test_knowledge_are_skipped() -> None:
    rows = {
        "fact": chat("Who wrote Hamlet?", "William Shakespeare"),
        "code": chat("Print hello.", "```python\nprint('hello')\n```"),
        "function": chat("Add two numbers.", "def add(a, b):\n    return a + b"),
        "long prompt": chat("word " * 61 + "?", "Answer"),
        "answer in the prompt": chat("Is Paris or Rome the capital of France?", "Paris"),
        "answer in an earlier turn": chat("My name is Ada.", "Hello!", "What is my name?", "Ada"),
        "no answer": chat("Who?"),
    }
    assert dict(zip(rows, reasons(*rows.values()), strict=True)) == {
        "fact": None,
        "code": CODE,
        "function": CODE,
        "long prompt": CONTEXT,
        "answer in the prompt": CONTEXT,
        "answer in an earlier turn": CONTEXT,
        "no answer": "not readable: no assistant turn",
    }


def test_prompt_contains_the_answer_only_as_whole_words() -> None:
    assert reasons(chat("What is the capital of Parisia?", "Paris")) == [None]


def test_rows_are_chosen_by_column() -> None:
    rows = [chat("Who?", "Ada", kind=kind, n=n) for kind, n in (("fact", 1), ("story", 2), ("fact", 3))]
    assert reasons(*rows, ask=("kind=fact",)) == [None, EXCLUDED, None]
    assert reasons(*rows, skip=("n=3", "kind=story")) == [None, EXCLUDED, EXCLUDED]
    with pytest.raises(SettingsError, match="--ask is COLUMN=VALUE, got 'kind'"):
        CurateConfig(ask=("kind",))


def test_last_turn_or_all_turns_are_labelled() -> None:
    row = chat("Who wrote Hamlet?", "Shakespeare", "And where was he born?", "Stratford")
    (last,) = candidates_of(decide(row))
    assert (last.question, last.turn, len(last.context)) == ("And where was he born?", 1, 2)
    first, second = candidates_of(decide(row, turns="all"))
    assert (first.question, first.context, first.target) == ("Who wrote Hamlet?", (), "Shakespeare")
    assert first.question_id != second.question_id


def test_only_equal_rows_share_an_id() -> None:
    one, same, context, answer = candidates_of(
        decide(chat("Who?", "Ada"), chat("Who?", "Ada"), chat("Hi", "Hello", "Who?", "Ada"), chat("Who?", "Eva"))
    )
    assert one.question_id == same.question_id
    assert len({one.question_id, context.question_id, answer.question_id}) == 3


def test_ids_of_the_file_must_be_unique() -> None:
    rows = [chat("Who?", "Ada", key=1), chat("Why?", "Eva", key=1), chat("How?", "Bo")]
    with pytest.raises(DataError, match=r"line 2: its key '1' is also that of rows.jsonl, line 1.*--id-column"):
        decide(*rows, id_column="key")
    assert [c.question_id for c in candidates_of(decide(rows[0], id_column="key"))] == ["1"]
    assert reasons(rows[2], id_column="key") == ["not readable: no key"]


def candidate(i: int, target: str = "Ada", group: str = "rows", question: str | None = None) -> Candidate:
    return Candidate(
        row=i,
        where=f"line {i}",
        turn=0,
        question_id=f"q{i:03d}",
        group=group,
        context=(),
        question=question or f"Who is {i}?",
        accepted=(target,),
    )


def test_matcher_follows_the_length_of_targets() -> None:
    short, sentence = candidate(0, "Ada Lovelace"), candidate(1, "Hamlet was written by William Shakespeare.")
    reason = "9 of 10 targets have at most 5 words"
    most_are_short, fewer = [short] * 9 + [sentence], [short] * 8 + [sentence] * 2
    assert choose_matcher(most_are_short, CurateConfig(), is_chat=False) == ("exact", reason)
    assert choose_matcher(most_are_short, CurateConfig(), is_chat=True) == (
        "contains",
        f"{reason}, and chat models answer in sentences",
    )
    for is_chat in (True, False):
        assert choose_matcher(fewer, CurateConfig(), is_chat=is_chat)[0] == "names"
        given = CurateConfig(matcher="canonical")
        assert choose_matcher([sentence], given, is_chat=is_chat) == ("canonical", "given by --matcher")


def test_targets_too_long_for_the_matcher_are_skipped() -> None:
    rows = [candidate(i, "word " * num) for i, num in enumerate((10, 11, 40, 41))]
    for matcher, settings, num_labelled in (("exact", {}, 1), ("names", {}, 3), ("exact", {"max_target_words": 40}, 3)):
        decisions = skip_long_targets(rows, matcher, CurateConfig(**settings))
        assert len(candidates_of(decisions)) == num_labelled
        assert count_reasons(decisions) == {TOO_LONG: 4 - num_labelled}


def test_exemplars_have_the_shortest_targets() -> None:
    rows = [candidate(i, "one") for i in range(30)] + [candidate(i, "one two") for i in range(30, 60)]
    pool = exemplar_pool(rows)
    assert len(pool) == POOL_SIZE
    assert set(pool) >= {f"q{i:03d}" for i in range(30)}
    assert pool == exemplar_pool(rows[::-1])
    sets = draw_own_exemplars({"rows": rows}, num_sets=10, num_shots=4, seed=0)["rows"]
    assert [len(set(ids)) for ids in sets] == [4] * 10
    assert sets != draw_own_exemplars({"rows": rows}, num_sets=10, num_shots=4, seed=1)["rows"]


def test_small_groups_share_their_exemplars() -> None:
    rows = [candidate(i, group="big" if i < 6 else f"small {i % 2}") for i in range(12)]
    assert relation_names(rows, min_rows=6) == {
        ("big", None): "big",
        ("small 0", None): OTHER_GROUP,
        ("small 1", None): OTHER_GROUP,
    }
    with pytest.raises(DataError, match=r"5 of the rows could serve as exemplars.*--exemplars FILE"):
        draw_own_exemplars({"rows": rows[:5]}, num_sets=10, num_shots=4, seed=0)


LABELS = [
    RowLabel(category=Category.HIGHLY_KNOWN, p_correct=1.0, p_sampled=0.9, turns=((0, Category.HIGHLY_KNOWN),)),
    RowLabel(category=Category.WEAKLY_KNOWN, p_correct=0.0, p_sampled=0.1, turns=((0, Category.WEAKLY_KNOWN),)),
    RowLabel(
        category=Category.UNKNOWN,
        p_correct=0.0,
        p_sampled=0.0,
        turns=((0, Category.HIGHLY_KNOWN), (1, Category.UNKNOWN)),
    ),
    RowLabel(reason=CODE),
]
ROWS = [chat("a", "A"), chat("b", "B"), chat("c", "C", "d", "D"), chat("e", "E")]


def edited(**settings: Any) -> list[dict[str, Any]]:
    from slick.curation.actions import new_columns
    from slick.curation.data import MemoryData

    config, data = CurateConfig(**settings), open_data(ROWS)
    assert isinstance(data, MemoryData)
    rows: list[dict[str, Any]] = data.edited(row_edits(data, MESSAGES, LABELS, config), new_columns(config))
    return rows


def test_rows_are_unchanged_without_an_action() -> None:
    rows = edited()
    assert [row["messages"] for row in rows] == [row["messages"] for row in ROWS]
    assert rows[1] == ROWS[1] | {
        "slick_category": "WeaklyKnown",
        "slick_p_correct": 0.0,
        "slick_p_sampled": 0.1,
        "slick_reason": None,
    }
    assert (rows[3]["slick_category"], rows[3]["slick_reason"]) == (None, CODE)


def test_actions_apply_to_their_category_only() -> None:
    assert [row["slick_category"] for row in edited(unknown="drop")] == ["HighlyKnown", "WeaklyKnown", None]
    relabelled = edited(unknown="idk", weakly="drop", idk_phrase="No idea")
    assert [message["content"] for message in relabelled[1]["messages"]] == ["c", "C", "d", "No idea"]
    assert len(relabelled) == 3
    weighted = edited(unknown="weight", unknown_weight=0.1)
    assert [row["slick_weight"] for row in weighted] == [1.0, 1.0, 0.1, 1.0]
    repeated = edited(unknown="repeat", weakly="repeat", unknown_weight=0.25, weakly_weight=0.5)
    assert [row["messages"][0]["content"] for row in repeated] == [*"aaaa", *"bb", "c", *"eeee"]


def test_counts_of_actions_agree_with_the_rows() -> None:
    config = CurateConfig(unknown="repeat", weakly="drop", unknown_weight=0.5)
    counts = count_actions(LABELS, config)
    assert counts == {"dropped": 1, "relabelled": 0, "weighted": 0, "rows": 5}
    assert counts["rows"] == len(edited(unknown="repeat", weakly="drop", unknown_weight=0.5))
    assert num_copies(LABELS[0], CurateConfig()) == 1


def test_action_without_a_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--unknown drop --weakly keep changes rows.*give --to FILE"):
        curate_file(tmp_path, CurateConfig(data="x.jsonl", model="x", unknown="drop"))
    (tmp_path / "copy.jsonl").write_text("{}")
    with pytest.raises(SettingsError, match=r"copy.jsonl exists.*--overwrite"):
        curate_file(tmp_path, CurateConfig(data="x.jsonl", model="x", to=str(tmp_path / "copy.jsonl")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_by": "kind"}, r"has no column 'kind', which --group-by names; it has messages"),
        ({"ask": ("kind=a",)}, r"has no column 'kind', which --ask names"),
        ({"model": ""}, r"no model is given.*--model"),
        ({"format": "alpaca"}, r"no column instruction, output, which --format alpaca needs"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, SettingsError), match=message):
        plan_curation(open_data(ROWS), CurateConfig(**{"model": "m", **settings}))


def test_card_does_not_replace_a_readme_of_the_user(tmp_path: Path) -> None:
    annotation = Manifest(
        step="annotate", fingerprint="", settings={}, inputs={"model": "abc"}, counts={}, seconds=1.0, versions={}
    )
    config = CurateConfig(data="data.jsonl", model="org/model", unknown="drop")
    counts = {
        "asked": 3,
        "categories": {"Unknown": 1},
        "not_asked": {"a | b": 1},
        "fingerprint": "f",
        "matcher": "exact",
        "prompt_format": "qa",
    }
    copy = Folder(str(tmp_path / "c.jsonl"))
    changes = {"to": copy.uri, "rows": 2, "dropped": 1, "relabelled": 0, "weighted": 0}
    (tmp_path / "c.jsonl").write_text("{}")
    text = card_text(config, counts, changes, annotation, 'load_dataset("json")')
    assert "| Unknown | 1 | 33 % |" in text
    assert "a \\| b" in text
    claims = {"claims": {"asked": 7, "unknown": 2, "rows": 3}}
    shortened = card_text(config, counts | claims, changes | {"removed_claims": 2, "shortened": 1}, annotation, None)
    assert "7 sentences of 3 rows, 2 of them Unknown" in shortened
    assert "removed from rows of this copy: 2, from 1 rows" in shortened
    assert "sentences" not in text
    assert write_card(copy, text).endswith("/README.md")
    assert write_card(copy, text).endswith("/README.md")  # its own is replaced
    (tmp_path / "README.md").write_text("# Mine")
    assert write_card(copy, text).endswith("/c.jsonl.README.md")
    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_prompts_with_several_targets_are_counted() -> None:
    rows = [candidate(0, "Ada", question="Who?"), candidate(1, "ada.", question="Who?"), candidate(2, "Eva")]
    assert _ambiguity_note(rows) == []
    (note,) = _ambiguity_note([*rows, candidate(3, "Bo", question="Who?")])
    assert note.startswith("1 prompts occur with more than one target")


def test_names_matcher_skips_targets_without_a_new_name() -> None:
    """With the matcher `names`, any answer would otherwise be correct that repeats the prompt."""
    rows = [
        chat("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."),
        chat("Who wrote Hamlet?", "Hamlet was written by a poet, I think."),
        chat("What colour is the sky?", "blue"),
    ]
    decisions = decide(*rows)
    assert choose_matcher(candidates_of(decisions), CurateConfig(), is_chat=False)[0] == "names"
    assert [getattr(d, "reason", None) for d in skip_without_names(decisions)] == [None, NO_NAME, None]
    gold = candidates_of(decisions)[0].accepted
    assert not is_hit("Hamlet was written by Christopher Marlowe.", gold, "names")
    assert is_hit("It was William Shakespeare.", gold, "names")
