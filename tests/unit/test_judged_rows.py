"""A judge decides which rows ask for a fact: requests, stored decisions, retries, and judges that are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slick.annotation.config import AnnotateConfig
from slick.annotation.judge_client import JudgeConfig
from slick.annotation.judge_pool import JUDGE_FOLDER
from slick.annotation.rubrics import ANSWER_RUBRIC, ROW_RUBRIC
from slick.curation import plan as plan_module
from slick.curation.config import CurateConfig
from slick.curation.files import open_data
from slick.curation.judged_rows import CONTROL_PROMPTS, NO_FACT, NOT_DECIDED, skip_other_rows
from slick.curation.plan import plan_curation
from slick.curation.selection import Decision, Skipped
from slick.curation.step import _row_filter
from slick.errors import EngineError
from slick.storage import Folder
from tests.judge_server import JudgeServer
from tests.local.tiny import tiny_tokenizer
from tests.unit.curated_study import CODE_ROW, CuratedStudy, fact, write_curated_study

POEM = {"prompt": "Write a poem.", "completion": "Roses are red."}
VAGUE = {"prompt": "Hm?", "completion": "Yes"}
ROWS = [fact(1), POEM, fact(2), fact(1), VAGUE, CODE_ROW]


def by_first_word(prompt: str) -> str:
    return {"Who": "A", "Write": "(B) other"}.get(prompt.split()[0], "I cannot tell.")


def decisions(tmp_path: Path) -> list[Decision]:
    rows: CuratedStudy = write_curated_study(tmp_path / "study", ROWS, ["Unknown"] * 4)  # type: ignore[list-item]
    return list(rows.plan.decisions)


def reasons(result: list[Decision]) -> list[str | None]:
    return [decision.reason if isinstance(decision, Skipped) else None for decision in result]


def settings(server: JudgeServer, **changes: Any) -> AnnotateConfig:
    return AnnotateConfig(matcher="judge", judge=replace(server.config, **changes))


def test_rows_that_ask_for_no_fact_are_skipped(tmp_path: Path, serve: Callable[..., JudgeServer]) -> None:
    server, folder = serve(by_first_word), Folder(str(tmp_path / "curate"))
    result = skip_other_rows(folder, decisions(tmp_path), settings(server, max_retries=1))
    assert reasons(result) == [None, NO_FACT, None, None, NOT_DECIDED, "code"]
    assert sorted(server.answers) == ["Hm?", "Who wrote book 1?", "Who wrote book 2?", "Write a poem."]
    assert max(server.answers.values()) == 1, "equal prompts are judged once"
    text = server.requests[0]["messages"][0]["content"]
    assert text.startswith(ROW_RUBRIC.prefix)
    assert text.endswith("Reply with one letter, A or B, and nothing else.")
    assert "Author" not in "".join(request["messages"][0]["content"] for request in server.requests)
    stored = folder.child(JUDGE_FOLDER).read_tables().to_pylist()
    assert sorted(row["outcome"] for row in stored) == ["fact", "fact", "other", "unparsable"]


def test_stored_decisions_are_used_again(tmp_path: Path, serve: Callable[..., JudgeServer]) -> None:
    server, folder = serve(by_first_word), Folder(str(tmp_path / "curate"))
    first = skip_other_rows(folder, decisions(tmp_path), settings(server, max_retries=0))
    num = len(server.requests)
    assert skip_other_rows(folder, decisions(tmp_path), settings(server, max_retries=0)) == first
    assert len(server.requests) == num
    server.reply = lambda prompt: "A"
    retried = skip_other_rows(folder, decisions(tmp_path), settings(server, max_retries=2))
    assert reasons(retried) == [None, NO_FACT, None, None, None, "code"], "only a prompt without decision is sent again"
    assert len(server.requests) == num + 1


def test_judge_that_knows_no_facts_from_other_prompts_is_refused(
    tmp_path: Path, serve: Callable[..., JudgeServer]
) -> None:
    server, folder = serve(lambda prompt: "A"), Folder(str(tmp_path / "curate"))
    message = r"recognizes 8 of 16 known ones \(50 %\), expected at least 80 %.*--no-judge-rows"
    with pytest.raises(EngineError, match=message):
        skip_other_rows(folder, decisions(tmp_path), settings(server, min_control_accuracy=0.8))
    assert set(server.answers) == set(CONTROL_PROMPTS), "no row is sent to it"


def test_usable_judge_passes_the_check(tmp_path: Path, serve: Callable[..., JudgeServer]) -> None:
    server, folder = serve(lambda prompt: CONTROL_PROMPTS.get(prompt, "fact")), Folder(str(tmp_path / "curate"))
    result = skip_other_rows(folder, decisions(tmp_path), settings(server, min_control_accuracy=1.0))
    assert reasons(result) == [None] * 5 + ["code"]


def test_skipped_rows_are_no_questions(
    tmp_path: Path, serve: Callable[..., JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "load_tokenizer", lambda *_, **__: tiny_tokenizer())
    server, folder = serve(by_first_word), Folder(str(tmp_path / "curate"))
    config = CurateConfig(model="m", matcher="judge", judge=replace(server.config, max_retries=0))
    rows = [fact(number) for number in range(8)] + [POEM, VAGUE]
    plan = plan_curation(open_data(rows), config, _row_filter(folder, config))
    assert sorted(question.question for question in plan.questions) == [f"Who wrote book {i}?" for i in range(8)]
    assert plan_curation(open_data(rows), config).questions[-1].question == "Hm?", "a forecast does not ask the judge"


@pytest.mark.parametrize("changes", [{"judge_rows": False}, {"matcher": "names", "judge": JudgeConfig()}])
def test_judge_can_be_left_out(changes: dict[str, Any]) -> None:
    config = CurateConfig(model="m", matcher="judge", judge=JudgeConfig(model="grader"))
    assert _row_filter(Folder("curate"), config) is not None
    assert _row_filter(Folder("curate"), replace(config, **changes)) is None


def test_replies_name_outcomes_of_their_rubric() -> None:
    assert [ROW_RUBRIC.parse_reply(text) for text in ("A", "Fact.", "(B) other", "C", "A other", "correct")] == [
        "fact",
        "fact",
        "other",
        "unparsable",
        "unparsable",
        "unparsable",
    ]
    assert ANSWER_RUBRIC.parse_reply("<think>B?</think> C) not attempted") == "not attempted"
