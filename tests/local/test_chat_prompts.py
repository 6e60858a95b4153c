"""Chat prompts equal the tokens of the tokenizer's own `apply_chat_template`, for templates of five kinds."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from slick.annotation.prompting import PromptBuilder, draw_spares, exemplar_texts, read_context, write_context
from slick.errors import DataError, ModelError
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.inference.tokens import PromptTokenizer
from slick.prompt_formats import ChatFormat, QaFormat, make_prompt_format
from slick.types import Message
from tests.local.tiny import tiny_model, tiny_tokenizer
from tuning.data import QuestionRow, chat_rows
from tuning.evaluate import EvalSettings, encode_rows, evaluate_rows

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "default system message": "{% if messages[0].role != 'system' %}{{ '<|start|>system\nBe kind.<|end|>\n' }}"
    "{% endif %}" + CHATML,
    "no system role, alternating": "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}",
    "thinking switch": CHATML.replace(
        "assistant\n' }}{% endif %}",
        "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}"
        "{% endif %}{% endif %}",
    ),
    "system message in the last turn": "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}"
    "{{ '[INST] ' + (ns.system if loop.last else '') + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}",
}
SYSTEM_ROLE = {name for name in TEMPLATES if not name.startswith("no system")}
SHOTS = {
    "d1": ("Where was Ada born?", "London"),
    "d2": ("Where was Eva born?", "Lima"),
    "d3": ("Where was Bo born? ", "Oslo"),
}
EXEMPLARS = {"P19": [["d1", "d2"], ["d2", "d1"], ["d1", "d3"]]}


def chat_tokenizer(template: str) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer())  # which is shared
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def messages(context: Sequence[Message], ids: Sequence[str], question: str) -> list[dict[str, str]]:
    shots = [
        Message(role=role, content=text)
        for i in ids
        for role, text in zip(("user", "assistant"), SHOTS[i], strict=True)
    ]
    system = [m for m in context if m.role == "system"]
    rest = [m for m in context if m.role != "system"]
    return [
        {"role": m.role, "content": m.content} for m in [*system, *shots, *rest, Message(role="user", content=question)]
    ]


def questions_table(rows: Sequence[tuple[str, str, Sequence[Message]]]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {"question_id": i, "relation": "P19", "question": question, "context": write_context(context)}
            for i, question, context in rows
        ]
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_equal_apply_chat_template(name: str) -> None:
    tokenizer = chat_tokenizer(TEMPLATES[name])
    system = [Message(role="system", content="Answer briefly.")] if name in SYSTEM_ROLE else []
    turns = [Message(role="user", content="Hi é"), Message(role="assistant", content="Hello")]
    rows = [
        ("a", "Where was Cy born?", []),
        ("b", "Two\nlines, and “quotes”?", []),
        ("c", "Where?", system),
        ("d", " Where\tis it? ", [*system, *turns]),
    ]
    chat = ChatFormat(tokenizer)
    builder = PromptBuilder(EXEMPLARS, SHOTS, chat)
    table = builder.add_prompts(questions_table(rows)).to_pylist()
    model = tiny_model("llama")
    prompt_tokenizer = PromptTokenizer(_resized(model, tokenizer), tokenizer)
    contexts = {row[0]: row[2] for row in rows}
    for row in table:
        prefixes = builder.prefixes[row["prompt_group"]]
        batch = PromptBatch(prefixes=prefixes, question_ids=["x"], suffixes=[row["suffix"]], style=chat.style)
        _, prompts = prompt_tokenizer.prompts(batch)
        arguments = {"enable_thinking": False} if name == "thinking switch" else {}
        for ids, (prompt,) in zip(EXEMPLARS["P19"], prompts, strict=True):
            conversation = messages(contexts[row["question_id"]], ids, row["question"])
            expected = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=False, **arguments
            )
            assert prompt == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_with_a_started_answer_equal_apply_chat_template(name: str) -> None:
    """The text before a claim follows the generation prompt, and exemplars end with the same sentence."""
    tokenizer = chat_tokenizer(TEMPLATES[name])
    lives = {i: f"{question[10:13]} was born in {place}." for i, (question, place) in SHOTS.items()}
    starts = {"d1": "", "d2": f"{lives['d2']}\n\n", "d3": f"{lives['d3']} “Hé.”  "}
    table = questions_table([(i, SHOTS[i][0], []) for i in SHOTS])
    table = table.append_column("answer_start", [list(starts.values())])
    table = table.append_column("answers", [[["She died."]] * 3])
    chat = ChatFormat(tokenizer)
    builder = PromptBuilder({"P19": [["d1"], ["d2"]]}, exemplar_texts(table, {}, ""), chat, substitute=True)
    prompt_tokenizer = PromptTokenizer(_resized(tiny_model("llama"), tokenizer), tokenizer)
    arguments = {"enable_thinking": False} if name == "thinking switch" else {}
    for row in builder.add_prompts(table).to_pylist():
        i = row["question_id"]
        shot = "d2" if i == "d1" else "d1"  # the exemplars of a claim do not include its own target
        conversation = [
            {"role": "user", "content": SHOTS[shot][0]},
            {"role": "assistant", "content": f"{starts[shot]}She died."},
            {"role": "user", "content": SHOTS[i][0]},
        ]
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False, **arguments)
        expected = tokenizer(text + starts[i].rstrip(" "), add_special_tokens=False)["input_ids"]
        prefixes = builder.prefixes[row["prompt_group"]][:1]
        batch = PromptBatch(prefixes=prefixes, question_ids=["x"], suffixes=[row["suffix"]], style=chat.style)
        _, ((prompt,),) = prompt_tokenizer.prompts(batch)
        assert prompt == expected
    with pytest.raises(DataError, match=r"contains '<\|end\|>', a special token"):
        chat.answer_start("He was.<|end|>")


def _resized(model: Any, tokenizer: Any) -> Any:
    model.resize_token_embeddings(len(tokenizer))
    return model


def test_questions_with_the_same_exemplars_share_a_prefix() -> None:
    builder = PromptBuilder(EXEMPLARS, SHOTS, ChatFormat(chat_tokenizer(CHATML)))
    system = [Message(role="system", content="S")]
    rows = [("a", "Who?", []), ("b", "Why?", []), ("c", "How?", system), ("d", "When?", system)]
    groups = builder.add_prompts(questions_table(rows))["prompt_group"].to_pylist()
    assert groups[0] == groups[1] == "P19"
    assert groups[2] == groups[3] != "P19"
    assert all("London" in prefix and "Who" not in prefix for prefix in builder.prefixes["P19"])


@pytest.mark.parametrize("chat", [True, False])
def test_prompt_about_an_exemplar_never_contains_it(chat: bool) -> None:
    prompt_format = ChatFormat(chat_tokenizer(CHATML)) if chat else QaFormat()
    builder = PromptBuilder(EXEMPLARS, SHOTS, prompt_format, substitute=True)
    table = builder.add_prompts(questions_table([(i, SHOTS[i][0], []) for i in SHOTS] + [("t", "Where?", [])]))
    for row in table.to_pylist():
        prefixes = builder.prefixes[row["prompt_group"]]
        assert len(prefixes) == 3
        if row["question_id"] != "t":
            assert not any(SHOTS[row["question_id"]][0].strip() in prefix for prefix in prefixes)
            assert all(prefix.count("born?") == 2 for prefix in prefixes)
    d2 = next(row for row in table.to_pylist() if row["question_id"] == "d2")
    assert builder.prefixes[d2["prompt_group"]][2] == builder.prefixes["P19"][2]  # a set without it stays


def test_spare_needs_an_exemplar_outside_the_set() -> None:
    with pytest.raises(DataError, match=r"relation P19 have the same 2 questions.*lower --num-shots"):
        draw_spares({"P19": [["a", "b"], ["b", "a"]]}, 0)


def test_thinking_is_off_by_default() -> None:
    tokenizer = chat_tokenizer(TEMPLATES["thinking switch"])
    off, on = ChatFormat(tokenizer), ChatFormat(tokenizer, template_arguments={"enable_thinking": True})
    suffixes = [f.suffix(f.prefix([], []), [], [], "Who?") for f in (off, on)]
    assert suffixes[0].endswith("<think>\n\n</think>\n\n")
    assert suffixes[1].endswith("assistant\n")


def test_invalid_chat_settings_are_one_message() -> None:
    with pytest.raises(ModelError, match=r"no chat template.*--prompt-format qa"):
        ChatFormat(tiny_tokenizer())
    with pytest.raises(ModelError, match=r"cannot be used: the chat template refuses 2 messages.*'nothing'"):
        ChatFormat(chat_tokenizer("{{ nothing.here }}"))
    chat = ChatFormat(chat_tokenizer(TEMPLATES["no system role, alternating"]))
    system = [Message(role="system", content="S")]
    with pytest.raises(DataError, match=r"refuses 2 messages \(system, system, user\): roles must alternate"):
        chat.suffix(chat.prefix([], []), [], system, "Who?")
    with pytest.raises(DataError, match=r"contains '<\|end\|>', a special token"):
        chat.suffix(chat.prefix([], []), [], [], "Who?<|end|>")
    with pytest.raises(DataError, match=r"contains '<\|start\|>', a special token"):
        chat.prefix([], [("Who?", "Ada<|start|>")])


def test_auto_format_is_chat_if_there_is_a_template() -> None:
    assert isinstance(make_prompt_format("auto", tiny_tokenizer()), QaFormat)
    assert isinstance(make_prompt_format("auto", chat_tokenizer(CHATML)), ChatFormat)


def test_answers_end_at_the_end_of_the_turn() -> None:
    tokenizer = chat_tokenizer(CHATML)
    line, turn = (ChatFormat(tokenizer, answer_end=end).style for end in ("line", "turn"))
    assert line.end_texts == ("<|end|>",)
    prompt_tokenizer = PromptTokenizer(_resized(tiny_model("llama"), tokenizer), tokenizer)
    end, newline = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<|end|>", "\n"))
    assert prompt_tokenizer.stop_tokens(line).stops_V[[*end, *newline]].all()
    assert prompt_tokenizer.stop_tokens(turn).stops_V[[*end, *newline]].tolist() == [True, False]
    tokens = np.array([*tokenizer("One\ntwo", add_special_tokens=False)["input_ids"], *end])
    assert prompt_tokenizer.text(tokens, line) == "One"
    assert prompt_tokenizer.text(tokens, turn) == "One\ntwo"


def test_answers_to_chat_prompts_equal_generate() -> None:
    """Greedy answers of the packed engine equal those of transformers to `apply_chat_template`."""
    import torch

    tokenizer = chat_tokenizer(CHATML)
    model = _resized(tiny_model("llama"), tokenizer)
    chat = ChatFormat(tokenizer, answer_end="turn")
    builder = PromptBuilder(EXEMPLARS, SHOTS, chat)
    rows = [(str(i), f"Where was {name} born?", []) for i, name in enumerate(("Cy", "Di", "Ed"))]
    table = builder.add_prompts(questions_table(rows))
    batch = PromptBatch(
        prefixes=builder.prefixes["P19"],
        question_ids=table["question_id"].to_pylist(),
        suffixes=table["suffix"].to_pylist(),
        style=chat.style,
    )
    answers = TransformersEngine(model, tokenizer).generate(batch, SamplingConfig(num_samples=0, max_new_tokens=12))
    end_ids = [tokenizer.eos_token_id, *tokenizer("<|end|>", add_special_tokens=False)["input_ids"]]
    for (_, question, context), by_set in zip(rows, answers, strict=True):
        for ids, answer in zip(EXEMPLARS["P19"], by_set, strict=True):
            conversation = messages(context, ids, question)
            prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
            output = model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=end_ids, pad_token_id=0
            )
            assert answer.greedy_text == tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_rows_equal_apply_chat_template(name: str) -> None:
    """Prompt, target and end of turn are the tokens of the whole conversation, up to white space after the end."""
    tokenizer = chat_tokenizer(TEMPLATES[name])
    system = [Message(role="system", content="Answer briefly.")] if name in SYSTEM_ROLE else []
    rows = [
        QuestionRow(
            question_id=str(i),
            split="train",
            category=None,
            suffix="",
            target="Paris",
            accepted=("Paris",),
            question=question,
            context=write_context(context),
        )
        for i, (question, context) in enumerate([("Where was Cy born?", []), ("Where?", system)])
    ]
    chats = chat_rows(rows, ChatFormat(tokenizer))
    arguments = {"enable_thinking": False} if name == "thinking switch" else {}
    for row, example in zip(chats, encode_rows(chats, tokenizer), strict=True):
        conversation = messages(read_context(row.context), [], row.question)
        prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False, **arguments)
        assert list(example.prompt_ids) == prompt
        # Of finished turns, some templates leave out the empty thoughts, or the system message.
        if name != "thinking switch" and not (row.context and name == "system message in the last turn"):
            whole = tokenizer.apply_chat_template(
                [*conversation, {"role": "assistant", "content": "Paris"}], return_dict=False
            )
            answer = list(example.answer_ids)
            assert whole[len(prompt) : len(prompt) + len(answer)] == answer
            assert not tokenizer.decode(whole[len(prompt) + len(answer) :]).strip()


def test_evaluation_uses_chat_prompts() -> None:
    tokenizer = chat_tokenizer(CHATML)
    row = QuestionRow(
        question_id="a", split="test", category=None, suffix="", target="x", accepted=("x",), question="Who is Bo?"
    )
    (chat,) = chat_rows([row], ChatFormat(tokenizer))
    model = _resized(tiny_model("llama"), tokenizer)
    settings = EvalSettings(matcher="exact", max_new_tokens=8)
    (prediction,) = evaluate_rows(model, None, tokenizer, [chat], encode_rows([chat], tokenizer), settings)
    batch = PromptBatch(prefixes=[chat.prompt], question_ids=["a"], suffixes=[""], style=chat.style)
    ((answer,),) = TransformersEngine(model, tokenizer).generate(batch, SamplingConfig(num_samples=0, max_new_tokens=8))
    assert prediction.text == answer.greedy_text
