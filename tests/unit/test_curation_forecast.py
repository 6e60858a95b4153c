"""Flags and arithmetic of `slick curate --dry-run` and `--probe-rows`."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.curate import main
from slick.annotation import AnnotateConfig
from slick.annotation.judge_client import JudgeConfig
from slick.curation.forecast import Forecast, forecast_lines
from slick.curation.probe import (
    BatchTime,
    JudgeTime,
    Probe,
    draw_questions,
    extrapolate,
    probe_lines,
    run_probe,
    temporary_folder,
)
from slick.errors import SettingsError
from slick.storage import Folder
from slick.types import Category
from tests.unit.curated_study import CODE_ROW, CuratedStudy, fact, write_curated_study


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dry-run", "--probe-rows", "5"], r"--dry-run and --probe-rows are exclusive; give one"),
        (["--probe-rows", "5", "--to", "copy.jsonl"], r"keeps no labels, so it cannot write --to copy.jsonl"),
        (["--price", "2"], r"--price is for --probe-rows"),
        (["--probe-rows", "5", "--price", "-1"], r"--price must be 0 or more, got -1"),
        (["--probe-rows", "many"], r"probe-rows"),
        (["--dry-run", "--unknwon", "drop"], r"no flag --unknwon"),
        (["--dryrun"], r"needs --out DIR"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        main(["rows.jsonl", "--model", "m", *flags])


@pytest.fixture
def curated(tmp_path: Path) -> CuratedStudy:
    return write_curated_study(tmp_path, [fact(1), fact(1), fact(2), CODE_ROW], [Category.UNKNOWN] * 2)


FORECAST = Forecast(
    num_rows=4,
    num_labelled=3,
    reasons={"code": 1},
    num_questions=200,
    num_too_long=1,
    context=512,
    num_sets=10,
    num_samples=16,
    max_new_tokens=12,
    mean_tokens=70.25,
    max_tokens=90,
    num_tokenized=200,
    max_set_aside_share=0.01,
    example_id="q1",
    example="Q: Who?\nA:",
)


def test_forecast_prints_the_workload(curated: CuratedStudy) -> None:
    text = "\n".join(forecast_lines(curated.plan, FORECAST))
    assert "199 questions x 10 exemplar sets x (1 greedy + 16 samples) = 33,830, of at most 12 tokens" in text
    assert "Tokens per prompt: 70.2 on average, 90 at most." in text
    assert "  not labelled: 1 x code" in text
    assert "1 of 200 questions (0.5 %), which are set aside." in text
    assert "Q: Who?\nA:" in text
    assert "would stop" not in text


def test_forecast_warns_if_too_many_prompts_are_too_long(curated: CuratedStudy) -> None:
    text = "\n".join(forecast_lines(curated.plan, replace(FORECAST, num_too_long=3, num_tokenized=100)))
    assert "more than --annotate.max-set-aside-share 0.01, so the command would stop" in text
    assert "(in a sample of 100 questions)" in text


def test_time_is_extrapolated_separately_for_each_kind_of_question() -> None:
    others = [BatchTime(20, 20.0), BatchTime(20, 20.0), BatchTime(1, 50.0)]
    exemplars = [BatchTime(1, 4.0), BatchTime(1, 6.0)]
    seconds, low, high = extrapolate([1_000, 10], [others, exemplars])
    assert seconds == pytest.approx(1_000 * 90 / 41 + 10 * 5)
    assert (low, high) == (1_040.0, seconds)  # the slowest batch has 1 of 41 questions: it is above the 90 % quantile
    assert extrapolate([100, 10], [[BatchTime(10, 5.0)], []]) == (55.0, 55.0, 55.0)


def test_probe_draws_few_relations_rather_than_few_questions_of_each() -> None:
    relations = {f"q{i}": f"r{i % 40}" for i in range(4_000)}
    drawn = draw_questions(relations, 50, seed=0)
    assert len(drawn) == len(set(drawn)) == 50
    assert set(Counter(relations[i] for i in drawn).values()) == {10}
    assert draw_questions(relations, 50, seed=0) == drawn != draw_questions(relations, 50, seed=1)
    two = draw_questions({f"q{i}": "large" if i < 90 else "small" for i in range(100)}, 50, seed=0)
    assert len(two) == 50
    assert sum(int(name[1:]) < 90 for name in two) == 45


def test_probe_prints_hours_and_price_with_a_range(curated: CuratedStudy) -> None:
    batches = [BatchTime(25, 10.0), BatchTime(25, 15.0)]
    probe = Probe(num_questions=7_200, batches=batches, wall_seconds=30, seconds=3_600, low=2_880, high=4_320)
    text = "\n".join(probe_lines(curated.plan, probe, price=2.5))
    assert "Probe: 50 of 7,200 questions in 2 batches; 25 s of one actor to answer, 30 s with the start." in text
    assert "Whole file: 1.00 hours of one actor = 1 h 0 min (48 min 0 s to 1 h 12 min" in text
    assert "Price: 2.50 (2.00 to 3.00) at 2.5 an hour." in text
    assert "not kept" in text
    single = "\n".join(probe_lines(curated.plan, replace(probe, batches=batches[:1])))
    assert "a single batch: no range" in single
    assert "Price" not in single
    annotation = AnnotateConfig(matcher="judge", judge=JudgeConfig(model="grader"), repeats_per_relation=4)
    judged = "\n".join(
        probe_lines(replace(curated.plan, annotation=annotation), replace(probe, judge=JudgeTime(20, 5.0)))
    )
    assert "The judge graded 20 distinct answers in 5 s, with its start" in judged
    assert "the whole file has about 2,880, which take at most 12 min 0 s more." in judged
    assert "Not included: repeats." in judged


def test_probe_needs_rows(curated: CuratedStudy) -> None:
    with pytest.raises(SettingsError, match="--probe-rows must be at least 1, got 0"):
        run_probe(curated.plan, 0)


def test_probe_on_a_cluster_needs_a_shared_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(SettingsError, match="--probe-rows needs --out DIR on a cluster"), temporary_folder(None):
        pass


def test_temporary_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    used, new = tmp_path / "used", tmp_path / "new"
    used.mkdir()
    (used / "manifest.json").write_text("{}")
    for path in (used, new):
        with suppress(KeyboardInterrupt), temporary_folder(Folder(str(path))) as folder:
            folder.write_json("answers.json", {})
            raise KeyboardInterrupt
    assert [path.name for path in used.iterdir()] == ["manifest.json"]
    assert not new.exists()
