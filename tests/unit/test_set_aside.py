"""Which questions and rows are too long for a model, from token counts alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slick.annotation import AnnotateConfig
from slick.annotation.selection import labelled_questions
from slick.annotation.set_aside import (
    SET_ASIDE_SCHEMA,
    TOO_LONG,
    check_set_aside_share,
    count_set_aside_by_store,
    drop_questions,
    find_too_long,
    max_prompt_tokens,
    read_set_aside,
)
from slick.annotation.worker import AnswerSetSpec
from slick.errors import DataError, ModelError, SettingsError
from slick.inference.base import SamplingConfig
from slick.models import UNLIMITED_POSITIONS, context_length
from slick.prompts import few_shot_suffix
from slick.report.provenance import provenance_section, set_aside_table
from slick.storage import Folder
from slick.study import Manifest
from tests.local.tiny import tiny_tokenizer
from tuning.config import TrainConfig
from tuning.data import QuestionRow
from tuning.evaluate import encode_rows, filter_long_rows

ANSWER = 10


def make_answer_set(*prefixes: str) -> AnswerSetSpec:
    return AnswerSetSpec(prefixes={"P1": list(prefixes)}, sampling=SamplingConfig(max_new_tokens=ANSWER))


def questions(*texts: str, relation: str = "P1") -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "question_id": f"{relation}-{i}",
                "relation": relation,
                "domain": "id",
                "split": "train" if i % 2 else "test",
                "subject": "",
                "question": text,
                "answers": ["yes"],
                "prompt_group": relation,
                "suffix": few_shot_suffix(text),
            }
            for i, text in enumerate(texts)
        ]
    )


def count_words(texts: Any) -> list[int]:
    return [len(text.split()) for text in texts]


def too_long_ids(table: pa.Table, answer_set: AnswerSetSpec, context: int) -> list[str]:
    return find_too_long(table, answer_set, context, count_words)["question_id"].to_pylist()


def test_longest_prompt_and_answer_must_fit() -> None:
    """A prompt is a prefix, `Q:`, the question and `A:`."""
    texts = ("a " * 5, "a " * 40, "a " * 41, "a " * 400)
    answer_set = make_answer_set("one two three\n", "one\n")
    context = 3 + 2 + 40 + ANSWER
    table = find_too_long(questions(*texts), answer_set, context, count_words)
    assert table.schema == SET_ASIDE_SCHEMA
    assert [(row["question_id"], row["num_tokens"]) for row in table.to_pylist()] == [
        ("P1-2", context + 1),
        ("P1-3", context + 360),
    ]
    assert table.slice(0, 1).to_pylist() == [
        {
            "question_id": "P1-2",
            "relation": "P1",
            "domain": "id",
            "split": "test",
            "reason": TOO_LONG,
            "num_tokens": context + 1,
            "limit": context,
        }
    ]
    assert too_long_ids(questions(*texts), answer_set, context + 1) == ["P1-3"]


def test_short_texts_are_not_tokenized() -> None:
    def fail(texts: Any) -> list[int]:
        raise AssertionError(texts)

    table = questions("short", "as short")
    assert find_too_long(table, make_answer_set("Q: x\nA: y\n"), 512, fail).num_rows == 0
    assert max_prompt_tokens(table, make_answer_set("Q: x\nA: y\n")) <= 512


def test_token_bound_holds_for_byte_level_tokenizers() -> None:
    table, answer_set = questions("wörter \u4f60\u597d \U0001f600" * 9, "x"), make_answer_set("Q: é\nA: ü\n")
    prompt = answer_set.prefixes["P1"][0] + table["suffix"][0].as_py()
    assert len(tiny_tokenizer()(prompt)["input_ids"]) + ANSWER <= max_prompt_tokens(table, answer_set)


def test_too_long_exemplars_are_refused() -> None:
    answer_set = make_answer_set("short\n", "word " * 90)
    with pytest.raises(DataError, match=r"exemplars of relation P1 leave no room.*set 2 of 2 has 90 tokens.*holds 99"):
        find_too_long(questions("a", "b"), answer_set, 99, count_words)


def long_questions(num: int, context: int = 50) -> pa.Table:
    return find_too_long(questions(*["a " * 90] * num), make_answer_set("x\n"), context, count_words)


def test_too_many_long_questions_are_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    check_set_aside_share(long_questions(1), 100, 0.01, folder, "generations")
    check_set_aside_share(SET_ASIDE_SCHEMA.empty_table(), 100, 0.0, folder, "generations")
    with pytest.raises(DataError) as raised:
        check_set_aside_share(long_questions(5), 100, 0.01, folder, "generations")
    message = str(raised.value)
    for part in ("5 of 100 questions (5 %)", "50 tokens", "103 tokens", "at most 1 %", "P1-0 (103 tokens)", ", ..."):
        assert part in message
    with pytest.raises(DataError, match="no question is left to annotate"):
        check_set_aside_share(long_questions(5), 5, 1.0, folder, "generations")


def test_counts_are_by_store_reason_relation_and_split() -> None:
    assert count_set_aside_by_store({"generations": long_questions(3), "repeats": SET_ASIDE_SCHEMA.empty_table()}) == {
        "generations": {TOO_LONG: {"P1": {"test": 2, "train": 1}}}
    }


def test_labelled_questions_are_not_set_aside(tmp_path: Path) -> None:
    table = questions(*"abcdefgh")
    set_aside = SET_ASIDE_SCHEMA.empty_table()
    columns = {"relation": "P1", "domain": "id", "split": "test", "reason": TOO_LONG, "num_tokens": 9, "limit": 8}
    set_aside = pa.Table.from_pylist([{"question_id": f"P1-{i}", **columns} for i in (1, 3, 4, 5)], set_aside.schema)
    assert drop_questions(table, set_aside)["question_id"].to_pylist() == ["P1-0", "P1-2", "P1-6", "P1-7"]
    folder = Folder(str(tmp_path))
    assert labelled_questions(folder, table).equals(table)
    folder.child("set_aside").write_table("gold.parquet", set_aside)
    assert read_set_aside(folder, "gold").equals(set_aside)
    assert labelled_questions(folder, table).num_rows == 4


def test_share_is_not_part_of_the_identity() -> None:
    for config in (AnnotateConfig(), TrainConfig()):
        assert replace(config, max_set_aside_share=0.5).identity() == config.identity()
    for config_class in (AnnotateConfig, TrainConfig):
        with pytest.raises(SettingsError, match=r"max_set_aside_share is a share in \[0, 1\], got"):
            config_class(max_set_aside_share=1.5)


def test_context_length_is_read_from_the_config(tmp_path: Path) -> None:
    def read_context(text: str) -> int:
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        return context_length(str(tmp_path))

    assert read_context('{"max_position_embeddings": 512}') == 512
    assert read_context('{"model_type": "gpt2", "n_positions": 64}') == 64
    assert read_context('{"text_config": {"max_position_embeddings": 128}, "max_position_embeddings": 5}') == 128
    assert read_context('{"model_type": "llama"}') == 2048, "the default of the architecture"
    assert read_context('{"model_type": "mamba"}') == UNLIMITED_POSITIONS
    with pytest.raises(ModelError, match=r"config\.json is not UTF-8 JSON"):
        read_context("{")


def row(question_id: str, split: str, words: int, target: str = "yes") -> QuestionRow:
    text = "a " * words
    return QuestionRow(
        question_id=question_id, split=split, category=None, suffix=text, target=target, accepted=(target,)
    )


TRAINING = TrainConfig(max_new_tokens=8, max_set_aside_share=0.5)


def test_too_long_rows_are_set_aside_with_their_tokens() -> None:
    rows = [row("a", "train", 4), row("b", "train", 4, "no " * 90), row("c", "dev", 4), row("d", "test", 300)]
    fitting = filter_long_rows(rows, tiny_tokenizer(), 128, TRAINING)
    assert [fitting_row.question_id for fitting_row in fitting.rows] == ["a", "c"]
    assert fitting.examples == encode_rows([rows[0], rows[2]], tiny_tokenizer())
    assert fitting.train_examples == fitting.examples[:1]
    long = {long_row["question_id"]: long_row for long_row in fitting.set_aside.to_pylist()}
    assert {name: long_row["split"] for name, long_row in long.items()} == {"b": "train", "d": "test"}
    (example,) = encode_rows([rows[1]], tiny_tokenizer())
    assert long["b"]["num_tokens"] == example.num_tokens > 128 == long["b"]["limit"]
    (example,) = encode_rows([rows[3]], tiny_tokenizer())
    assert long["d"]["num_tokens"] == len(example.prompt_ids) + TRAINING.max_new_tokens
    assert [
        len(filter_long_rows(rows[2:], tiny_tokenizer(), long["d"]["num_tokens"] - i, TRAINING).rows) for i in (0, 1)
    ] == [2, 1]


def test_rows_longer_than_the_setting_are_set_aside() -> None:
    """`max_length` limits prompt and target; the model's context must also hold the longest answer."""
    rows = [row("a", "train", 4), row("b", "train", 4, "no " * 9), row("c", "dev", 4), row("d", "test", 60)]
    lengths = [example.num_tokens for example in encode_rows(rows, tiny_tokenizer())]
    config = replace(TRAINING, max_length=lengths[0])
    filtered = filter_long_rows(rows, tiny_tokenizer(), 512, config)
    assert [kept.question_id for kept in filtered.rows] == ["a", "c"]
    assert [(part["num_tokens"], part["limit"]) for part in filtered.set_aside.to_pylist()] == [
        (lengths[1], lengths[0]),
        (lengths[3], lengths[0]),
    ]
    assert filtered.num_truncated == 0
    with pytest.raises(DataError, match=r"2 of 4 rows .* do not fit --max-length of .*; .* raise --max-length"):
        filter_long_rows(rows, tiny_tokenizer(), 512, replace(config, max_set_aside_share=0.1))
    assert config.identity() == TRAINING.identity() | {"max_length": lengths[0]}


def test_too_long_training_targets_are_truncated_and_counted() -> None:
    rows = [row("a", "train", 4), row("b", "train", 4, "no " * 9), row("c", "dev", 4, "no " * 9), row("d", "dev", 4)]
    rows += [row("e", "train", 90)]
    plain = encode_rows(rows, tiny_tokenizer())
    config = replace(TRAINING, max_length=plain[0].num_tokens + 2, long_rows="truncate")
    filtered = filter_long_rows(rows, tiny_tokenizer(), 512, config)
    assert [kept.question_id for kept in filtered.rows] == ["a", "b", "d"], "questions are not changed, only targets"
    cut = filtered.examples[1]
    assert (filtered.num_truncated, cut.num_tokens, cut.is_truncated) == (1, config.max_length, True)
    assert cut.answer_ids == plain[1].answer_ids[: len(cut.answer_ids)]
    assert filtered.examples[0] == plain[0]
    assert config.identity() != replace(config, long_rows="set-aside").identity()


def test_too_many_long_rows_stop_a_training() -> None:
    rows = [row("a", "train", 4), row("c", "dev", 4), row("d", "test", 300), row("e", "ood", 4)]
    with pytest.raises(
        DataError, match=r"1 of 4 rows of variant unknown-050 do not fit.*question d \(test\).*20 % may"
    ):
        filter_long_rows(rows, tiny_tokenizer(), 128, replace(TRAINING, max_set_aside_share=0.2))
    with pytest.raises(DataError, match="no dev row is left"):
        filter_long_rows([row("a", "train", 4), row("c", "dev", 300)], tiny_tokenizer(), 128, TRAINING)


def manifest(**counts: Any) -> Manifest:
    return Manifest(step="x", fingerprint="f", settings={}, inputs={}, counts=counts, seconds=1.0, versions={})


def test_report_lists_set_aside_questions() -> None:
    manifests = {
        "annotate": manifest(set_aside={"generations": {TOO_LONG: {"P1": {"train": 3, "test": 1}}}}),
        "annotate/p_true": manifest(set_aside={"p_true": {TOO_LONG: {"P1": {"test": 2}}}}),
        "runs/a-seed0": manifest(set_aside={TOO_LONG: {"test": 1}}),
        "runs/b-seed0": manifest(set_aside={TOO_LONG: {"test": 1, "train": 4}}),
        "runs/c-seed0": manifest(),
    }
    rows = set_aside_table(manifests).rows
    assert rows == (
        ("labels", TOO_LONG, "P1", "train", 3, "annotate/set_aside/generations.parquet"),
        ("labels", TOO_LONG, "P1", "test", 1, "annotate/set_aside/generations.parquet"),
        ("P(True)", TOO_LONG, "P1", "test", 2, "annotate/set_aside/p_true.parquet"),
        ("fine-tuning, most of a run", TOO_LONG, None, "test", 1, "runs/b-seed0/set_aside.parquet"),
        ("fine-tuning, most of a run", TOO_LONG, None, "train", 4, "runs/b-seed0/set_aside.parquet"),
    )
    captions = [exhibit.caption for exhibit in provenance_section(manifests, None).exhibits]
    assert any("Questions set aside" in caption for caption in captions)
    without_rows = {"annotate": manifest(set_aside={}), "runs/c-seed0": manifest()}
    assert not any("set aside" in exhibit.caption for exhibit in provenance_section(without_rows, None).exhibits)
