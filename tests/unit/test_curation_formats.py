"""Formats of fine-tuning rows: detection, parsing, replacement of targets, rows that are refused."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slick.curation.formats import ROW_FORMATS, ColumnNames, Example, Message, RowError, detect_format
from slick.errors import DataError, SettingsError

settings.register_profile("curation", max_examples=25, deadline=None, database=None, derandomize=True)
settings.load_profile("curation")

NAMES = ColumnNames(prompt="ask", target="reply", system="sys")
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda text: text.strip()
)


def row_format(name):
    return ROW_FORMATS.get(name)(NAMES if name == "columns" else ColumnNames())


def user(text):
    return Message(role="user", content=text)


def assistant(text):
    return Message(role="assistant", content=text)


def system(text):
    return Message(role="system", content=text)


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def parts(*contents):
    return [{"type": "text", "text": content} for content in contents]


EXAMPLES = {
    "messages": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *chat("q1", "a1", "q2", "a2")]},
        [
            Example(messages=(system("Be brief."), user("q1")), target="a1", accepted=("a1",), turn=0),
            Example(
                messages=(system("Be brief."), user("q1"), assistant("a1"), user("q2")),
                target="a2",
                accepted=("a2",),
                turn=1,
            ),
        ],
    ),
    "messages with parts": (
        {"messages": [{"role": "user", "content": parts("a", "b")}, {"role": "assistant", "content": parts("c", "d")}]},
        [Example(messages=(user("ab"),), target="cd", accepted=("cd",), turn=0)],
    ),
    "prompt_completion": (
        {"prompt": "Capital of France?", "completion": " Paris"},
        [Example(messages=(user("Capital of France?"),), target=" Paris", accepted=(" Paris",), turn=0)],
    ),
    "prompt_completion of messages": (
        {"prompt": chat("q1", "a1", "q2"), "completion": chat("a2", first="assistant")},
        [Example(messages=(user("q1"), assistant("a1"), user("q2")), target="a2", accepted=("a2",), turn=1)],
    ),
    "alpaca": (
        {"instruction": "Name it.", "input": "France", "output": "Paris", "system": "Be brief."},
        [
            Example(
                messages=(system("Be brief."), user("Name it.\nFrance")), target="Paris", accepted=("Paris",), turn=0
            )
        ],
    ),
    "alpaca with history": (
        {"instruction": "q2", "input": "", "output": "a2", "system": "", "history": [["q1", "a1"]]},
        [
            Example(messages=(user("q1"),), target="a1", accepted=("a1",), turn=0),
            Example(messages=(user("q1"), assistant("a1"), user("q2")), target="a2", accepted=("a2",), turn=1),
        ],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        [Example(messages=(system("s"), user("q")), target="a", accepted=("a",), turn=0)],
    ),
    "sharegpt with roles": (
        {"conversations": [{"role": "system", "content": "s"}, *chat("q", "a")]},
        [Example(messages=(system("s"), user("q")), target="a", accepted=("a",), turn=0)],
    ),
    "qa": (
        {"question": "Capital?", "answers": ["Paris", "City of Light"]},
        [Example(messages=(user("Capital?"),), target="Paris", accepted=("Paris", "City of Light"), turn=0)],
    ),
    "qa with text": (
        {"question": "Capital?", "answer": "Paris"},
        [Example(messages=(user("Capital?"),), target="Paris", accepted=("Paris",), turn=0)],
    ),
    "qa with JSON": (
        {"question": "Capital?", "possible_answers": '["Paris", "paris"]'},
        [Example(messages=(user("Capital?"),), target="Paris", accepted=("Paris", "paris"), turn=0)],
    ),
    "columns": (
        {"ask": "q\n", "reply": " a ", "sys": "s"},
        [Example(messages=(system("s"), user("q\n")), target=" a ", accepted=(" a ",), turn=0)],
    ),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_row_has_one_example_per_assistant_turn(case):
    row, expected = EXAMPLES[case]
    assert row_format(case.split()[0]).parse(row) == expected


@pytest.mark.parametrize("case", EXAMPLES)
def test_formats_are_detected(case):
    row, name = EXAMPLES[case][0], case.split()[0]
    columns = [*row, "slick_category", "source"]
    names = NAMES if name == "columns" else None
    assert detect_format(columns, [row], names=names).name == name
    assert detect_format(columns, [row], names=names, name=name).name == name
    assert detect_format(columns, [], names=names).name == name


@pytest.mark.parametrize("case", EXAMPLES)
@given(new_target=texts)
def test_replacement_changes_only_the_target(case, new_target):
    name = case.split()[0]
    row = {"id": 2**70, **EXAMPLES[case][0], "meta": {"nested": [None, {"a": 1.5}]}, "messages_count": 2}
    before = copy.deepcopy(row)
    for example in row_format(name).parse(row):
        changed = row_format(name).replace_target(row, example.turn, new_target)
        assert row == before, "the input is unchanged"
        assert list(changed) == list(row)
        new = next(other for other in row_format(name).parse(changed) if other.turn == example.turn)
        assert (new.messages, new.target, new.accepted) == (example.messages, new_target, (new_target,))
        restored = row_format(name).replace_target(changed, example.turn, example.target)
        if "parts" not in case and name != "qa":
            assert restored == row


def test_replacement_keeps_other_keys_of_a_message_and_its_list_of_parts():
    row = {
        "messages": [
            {"content": "q", "role": "user", "name": "ada"},
            {"weight": 1, "content": [{"type": "text", "text": "a", "id": 7}], "role": "assistant", "name": None},
        ]
    }
    changed = row_format("messages").replace_target(row, 0, "new")
    assert changed["messages"][0] is row["messages"][0]
    new = {"weight": 1, "content": [{"type": "text", "text": "new", "id": 7}], "role": "assistant", "name": None}
    assert json.dumps(changed["messages"][1]) == json.dumps(new), "keys keep their order"


def test_replaced_answers_keep_their_representation():
    row = {"question": "q", "answers": '["a", "b"]', "answer": "a", "possible_answers": []}
    replace = row_format("qa").replace_target
    assert replace(row, 0, "né") == {**row, "answers": '["né"]', "answer": "né"}
    assert replace(row, 0, "[x")["answer"] == '["[x"]', "an answer that begins like a list is written as one"
    assert row_format("qa").parse(replace(row, 0, "[x"))[0].target == "[x"


@given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    st.one_of(st.none(), texts),
)
def test_texts_are_exactly_those_of_the_row(turns, instruction):
    contents = [text for turn in turns for text in turn]
    start = [] if instruction is None else [{"role": "system", "content": instruction}]
    messages = [*start, *chat(*contents)]
    share = [{"from": message["role"], "value": message["content"]} for message in messages]
    expected = row_format("messages").parse({"messages": messages})
    assert row_format("sharegpt").parse({"conversations": share}) == expected
    assert row_format("prompt_completion").parse({"prompt": messages[:-1], "completion": messages[-1:]}) == [
        expected[-1]
    ]
    assert [example.target for example in expected] == [answer for _, answer in turns]
    assert [message.content for message in expected[-1].messages[bool(start) :]] == contents[:-1]
    history = [list(turn) for turn in turns[:-1]]
    alpaca = {"instruction": turns[-1][0], "output": turns[-1][1], "history": history, "system": instruction}
    assert row_format("alpaca").parse(alpaca) == expected


def test_messages_of_weight_0_are_context_only():
    messages = chat("q1", "a1", "q2", "a2")
    messages[1]["weight"], messages[3]["weight"] = 0, 1
    assert [example.turn for example in row_format("messages").parse({"messages": messages})] == [1]
    messages[3]["weight"] = 0
    with pytest.raises(RowError, match="all assistant messages of messages have weight 0"):
        row_format("messages").parse({"messages": messages})


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
BAD_ROWS = [
    ("messages", {}, "no messages", "no messages, expected it in every row"),
    ("messages", {"prompt": "q", "completion": "a"}, "other format", "found a row of the format prompt_completion"),
    ("messages", {"messages": "text"}, "wrong type", "expected a list of messages"),
    ("messages", {"messages": []}, "wrong type", "expected a list of messages"),
    ("messages", {"messages": ["text"]}, "wrong type", "message 1 of messages is 'text' (string), expected an object"),
    ("messages", {"messages": chat("q")}, "no assistant turn", "has no assistant message"),
    ("messages", {"messages": chat("q", "a", "q")}, "no answer to the last turn", "ends with a user message"),
    ("messages", {"messages": chat("a", first="assistant")}, "roles out of order", "assistant at the beginning"),
    ("messages", {"messages": [*chat("q"), *chat("q", "a")]}, "roles out of order", "user after user"),
    ("messages", {"messages": [*chat("q", "a"), {"role": "system", "content": "s"}]}, "roles out of order", "system"),
    ("messages", {"messages": chat("q", "  ")}, "empty target", "message 2 of messages is empty"),
    ("messages", {"messages": chat("q", None)}, "empty target", "message 2 of messages is empty (None)"),
    ("messages", {"messages": chat("", "a")}, "empty prompt", "message 1 of messages is empty"),
    ("messages", {"messages": chat("q", 7)}, "wrong type", "message 2 of messages is 7 (int), expected a string"),
    ("messages", {"messages": chat("q", "\ud800")}, "wrong encoding", "half a surrogate pair"),
    ("messages", {"messages": chat(IMAGE, "a")}, "not text", "has a part that is not text (image_url)"),
    ("messages", {"messages": [{"role": "alien", "content": "q"}]}, "unknown role", "has the role 'alien'"),
    ("messages", {"messages": [*chat("q"), {"role": "tool", "content": "x"}]}, "tool call", "calls a tool"),
    (
        "messages",
        {"messages": [*chat("q"), {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        "tool call",
        "message 2 of messages calls a tool",
    ),
    ("messages", {"messages": chat("q", "a"), "tools": [{"type": "function"}]}, "tool call", "the row defines tools"),
    ("sharegpt", {"conversations": [{"from": "observation", "value": "x"}]}, "tool call", "calls a tool"),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "s"}], "system": "t"},
        "roles out of order",
        "system after system",
    ),
    ("prompt_completion", {"prompt": "q", "completion": chat("q", "a")}, "wrong type", "prompt is a string"),
    ("prompt_completion", {"prompt": "q", "completion": ""}, "empty target", "completion is empty"),
    ("prompt_completion", {"prompt": "q"}, "no completion", "no completion, expected it in every row"),
    ("prompt_completion", {"prompt": 7, "completion": "a"}, "wrong type", "prompt is 7 (int)"),
    ("prompt_completion", {"prompt": chat("q", "a"), "completion": chat("q", "a")}, "roles out of order", "expected u"),
    ("alpaca", {"instruction": " ", "output": "a"}, "empty prompt", "instruction is empty"),
    ("alpaca", {"instruction": "q", "input": 7, "output": "a"}, "wrong type", "input is 7 (int)"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]}, "wrong type", "history is [['q']]"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["", "a"]]}, "empty prompt", "turn 1 of history"),
    ("qa", {"question": "q", "answers": []}, "no answer", "no answer"),
    ("qa", {"question": "q", "answers": ["a", ""]}, "empty target", "answer is empty"),
    ("qa", {"question": "q", "answers": {"text": ["a"]}}, "wrong type", "expected a list of strings"),
    ("qa", {"question": "q", "answers": "[broken"}, "malformed list", "begins like a list"),
    ("columns", {"ask": "q", "reply": ["a"]}, "wrong type", "reply is ['a'] (list)"),
]


@pytest.mark.parametrize(("name", "row", "kind", "message"), BAD_ROWS)
def test_invalid_rows_are_refused(name, row, kind, message):
    with pytest.raises(RowError) as error:
        row_format(name).parse(row)
    assert error.value.kind == kind
    assert message in str(error.value)
    assert any(sign in str(error.value) for sign in ("; ", ": ")), "it says how to fix the row"


def test_ambiguous_files_need_a_format():
    row = {"messages": chat("q", "a"), "question": "q", "answer": "a"}
    with pytest.raises(DataError, match=r"matches 2 formats: messages \(messages\), qa \(question\).*--format qa"):
        detect_format([*row], [row])
    assert detect_format([*row], [row], name="qa").name == "qa"
    rows = [{"messages": chat("q", "a")}, {"prompt": "q", "completion": "a"}]
    with pytest.raises(DataError, match="matches 2 formats"):
        detect_format(["messages", "prompt", "completion"], rows)


def test_columns_without_values_match_no_format():
    row = {"messages": None, "prompt": "q", "completion": "a"}
    assert detect_format([*row], [row]).name == "prompt_completion"


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["text"], [{"text": "t"}], r"found text \(string\); expected messages.*--prompt-column"),
        (["messages"], [{"messages": "[]"}], r"found messages \(string\)"),
        (["prompt", "chosen"], [{"prompt": "q", "chosen": "a"}], r"found prompt \(string\), chosen \(string\)"),
        ([], [], "found no column"),
        ([f"c{i}" for i in range(30)], [], "c19 and 10 more"),
    ],
)
def test_unknown_formats_are_refused_with_the_columns(columns, rows, message):
    with pytest.raises(DataError, match=message):
        detect_format(columns, rows)


def test_named_columns_are_checked():
    row = {"ask": "q", "reply": "a"}
    with pytest.raises(DataError, match="has no column answer, which --prompt-column ask --target-column answer needs"):
        detect_format([*row], [row], names=ColumnNames(prompt="ask", target="answer"))
    with pytest.raises(DataError, match="has no column output, which --format alpaca needs"):
        detect_format(["instruction"], [], name="alpaca")
    with pytest.raises(SettingsError, match="expected the names of two columns"):
        detect_format([*row], [row], names=ColumnNames(prompt="ask"))
    with pytest.raises(SettingsError, match="expected different columns"):
        detect_format([*row], [row], names=ColumnNames(prompt="ask", target="ask"))
    with pytest.raises(SettingsError, match="has its own columns"):
        detect_format([*row], [row], name="qa", names=ColumnNames(prompt="ask", target="reply"))
    with pytest.raises(SettingsError, match="there is no row format 'chatml'"):
        detect_format([*row], [row], name="chatml")


def test_rows_without_a_system_column_have_no_system_message():
    names = ColumnNames(prompt="ask", target="reply")
    assert ROW_FORMATS.get("columns")(names).parse({"ask": "q", "reply": "a"})[0].messages == (user("q"),)
