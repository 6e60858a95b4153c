"""Several studies on one page: what may be compared, differences, spread, provenance; folders of every degree."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.compare import main
from slick.errors import SettingsError, StudyError
from slick.report import compare_studies
from slick.report.answers import collected
from slick.report.compare import shortest_unique_names
from slick.report.comparison import (
    ComparedStudy,
    accuracy_differences,
    count_findings,
    group_by_settings,
    incomparability_reason,
    seed_spreads,
)
from slick.report.comparison_tables import (
    differences_table,
    findings_table,
    policies_table,
    spread_table,
    studies_table,
)
from slick.report.data import StudyData
from slick.report.findings.base import evaluate_findings
from slick.report.loading import load_study
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.provenance import (
    Provenance,
    filter_table,
    read_manifests,
    read_provenance,
    steps_table,
    study_identity_table,
)
from slick.report.sections.error_kinds import collect_error_kinds
from slick.report.sections.stopping import policy_table
from slick.storage import Folder
from slick.study import Manifest
from tests.unit.report_study import write_study


def manifest(step: str, **values: object) -> Manifest:
    empty = {"settings": {}, "inputs": {}, "counts": {}, "seconds": 2.0, "versions": {"torch": "2.13.0+cpu"}}
    return Manifest(**{"step": step, "fingerprint": f"{step}-mark", **empty, **values})


def whole(seed: int = 0, **annotate: object) -> dict[str, Manifest]:
    settings = {"model": "org/model", "seed": seed, "matcher": "exact", "sampling": {"num_samples": 16, "seed": seed}}
    training = {"epochs": 3, "epochs_now": 3, "tokens_now": 500, "training_seconds": 4.0, "evaluation_seconds": 5.0}
    return {
        "questions": manifest(
            "questions",
            counts={
                "rows": 12,
                "rejected": 1,
                "read": {"P1": {"train": 6, "test": 5}},
                "dropped": {
                    "several answers": {"P1": {"train": 2}},
                    "subject in test": {"P1": {"train": 1, "test": 1}},
                },
                "kept": {"P1": {"train": 3, "test": 4}},
            },
        ),
        "annotate": manifest(
            "annotate",
            settings=settings | annotate,
            inputs={"model": "weights", "questions": "questions-mark"},
            counts={"questions": 7, "generations": 1190, "engine_seconds": 3.5},
        ),
        f"runs/a-seed{seed}": manifest("finetune", settings={"seed": seed, "epochs": 3}, counts=training),
    }


def test_the_origin_is_read_off_the_manifests() -> None:
    found = read_provenance(whole(seed=4))
    assert (found.model, found.model_mark, found.matcher) == ("org/model", "weights", "exact")
    assert found.seeds == {"annotate": (4,), "samples": (4,), "trainings": (4,)}
    assert found.dropped == (("several answers", 2), ("subject in test", 2), ("bad rows", 1))
    assert (found.read, found.kept) == (12, 7)
    assert found.missing == ("variants", "sweep"), "a study of a model of one's own has no world"
    assert (found.cost.generations, found.cost.epochs, found.cost.train_tokens) == (1190, 3, 500)
    assert (found.cost.device, found.cost.at_least) == ("cpu", False)
    assert found.cost.answer_tokens is None, "what a manifest does not say is not 0"


def test_the_origin_says_what_each_part_ran_on() -> None:
    manifests, on_gpu = whole(), {"device": "cuda (NVIDIA L4)", "dtype": "bfloat16", "attention": "sdpa"}
    run = manifests["runs/a-seed0"]
    told = replace(manifests["annotate"], counts={**manifests["annotate"].counts, **on_gpu})
    more = {"annotate": told, "annotate/p_true": told, "runs/b-seed0": replace(run, counts={**run.counts, **on_gpu})}
    found = read_provenance({**manifests, **more})
    assert found.runtimes["annotation"] == found.runtimes["P(True)"] == on_gpu
    assert found.runtimes["trainings"]["device"] == "cpu and cuda (NVIDIA L4)"
    assert (found.cost.device, found.cost.engine_device) == ("cpu and cuda", "cuda")
    assert read_provenance(manifests).runtimes["trainings"] == {"device": "cpu"}, "older manifests say less"
    shown = {row[0]: row[1] for row in study_identity_table(found).rows}
    assert shown["annotation ran with"] == "device cuda (NVIDIA L4), dtype bfloat16, attention sdpa"
    assert {"P(True) ran with", "trainings ran with"} <= shown.keys()


def test_what_an_interrupted_training_spent_before_is_not_known() -> None:
    manifests = whole()
    run = manifests["runs/a-seed0"]
    half = replace(run, counts={**run.counts, "epochs_now": 1}, versions={"torch": "2.12.0"})
    found = read_provenance({**manifests, "runs/a-seed0": half})
    assert found.cost.at_least
    assert found.changed_versions == {"torch": ("2.13.0+cpu", "2.12.0")}
    without = read_provenance({**manifests, "runs/b-seed0": replace(run, counts={"epochs": 3})})
    assert without.cost.train_tokens is None


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 9, "sampling": {"num_samples": 16, "seed": 9}}, True),
        ({"matcher": "f1"}, False),
        ({"num_shots": 2}, False),
    ],
)
def test_studies_that_differ_in_seeds_alone_share_a_recipe(change: dict, same: bool) -> None:
    assert (read_provenance(whole(**change)).recipe == read_provenance(whole()).recipe) is same


def test_a_world_of_another_seed_is_the_same_recipe_though_another_model() -> None:
    def world(seed: int, facts: int) -> dict[str, Manifest]:
        found = whole(model="")
        asked = replace(found["annotate"], inputs={"model": f"weights-{seed}", "questions": f"q{seed}"})
        return {**found, "world": manifest("world", settings={"seed": seed, "facts": facts}), "annotate": asked}

    assert read_provenance(world(0, 5)).recipe == read_provenance(world(1, 5)).recipe
    assert read_provenance(world(0, 5)).recipe != read_provenance(world(0, 6)).recipe
    assert read_provenance(world(0, 5)).model == "planted world"


def test_provenance_tables_show_what_was_dropped_and_spent() -> None:
    manifests = whole()
    rows = {row[0]: row[1:] for row in filter_table(manifests).rows}
    assert rows["read"] == (6, 0, 5, 11)
    assert rows["dropped: subject in test"] == (-1, 0, -1, -2)
    assert rows["kept"] == (3, 0, 4, 7)
    steps = {row[0]: row for row in steps_table(manifests, read_provenance(manifests)).rows}
    assert "1,190 generations" in steps["annotate"][3]
    assert "worker time on CPU 4 s" in steps["annotate"][3]
    assert "3 epochs, 500 tokens" in steps["1 fine-tuning runs"][3]
    about = dict(study_identity_table(read_provenance(manifests), ("idk", "counts")).rows)
    assert about["requested experiments"] == "idk, counts"
    assert about["steps not finished"] == "variants, sweep"
    with pytest.raises(InsufficientDataError, match="has no counts"):
        filter_table({})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_study(tmp_path_factory.mktemp("one") / "first", num_test=120, num_epochs=4)


@pytest.fixture(scope="module")
def second(first: Folder) -> Folder:
    """The same questions, and trainings of another seed."""
    return write_study(Path(first.local_path).parents[0] / "second", num_test=120, num_epochs=4, seeds=(1,))


def side(folder: Folder, label: str, mark: str | None = "questions", **changes: object) -> ComparedStudy:
    data = load_study(folder)
    known: Provenance = replace(read_provenance(read_manifests(folder)), questions_mark=mark, **changes)
    return ComparedStudy(label=label, name=label, data=data, outcomes=tuple(evaluate_findings(data)), provenance=known)


def test_differences_are_taken_row_by_row_where_questions_are_the_same(first: Folder, second: Folder) -> None:
    a, b = side(first, "A"), side(second, "B")
    found = {(one.share, one.checkpoint): one for one in accuracy_differences(a, b)}
    assert len(found) == 14
    one = found[1.0, CONVERGENCE]
    rows = [s.data.mean_correct("unknown-100", CONVERGENCE, "test") for s in (a, b)]
    gaps = 100 * (rows[1] - rows[0])
    assert one.paired
    assert one.value == pytest.approx(gaps.mean())
    assert one.high - one.low == pytest.approx(2 * 1.96 * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    twin = accuracy_differences(a, replace(a, label="B"))
    assert {(gap.value, gap.low, gap.high) for gap in twin} == {(0.0, 0.0, 0.0)}
    table = differences_table(a, b)
    assert [row[0] for row in table.rows] == ["0 %", "10 %", "25 %", "50 %", "75 %", "90 %", "100 %"]
    assert {row[-1] for row in table.rows} == {"question by question"}


def test_other_questions_or_another_matcher_give_no_difference(first: Folder, second: Folder) -> None:
    a = side(first, "A", matcher="exact")
    assert incomparability_reason(a, side(second, "B", "others")) == "different questions"
    assert incomparability_reason(a, side(second, "B", matcher="f1")) == "different matchers: exact and f1"
    assert incomparability_reason(a, side(second, "B", None)) == "B has no questions yet"
    with pytest.raises(InsufficientDataError, match="A and B are not comparable: different questions"):
        accuracy_differences(a, side(second, "B", "others"))


def test_spread_is_over_studies_of_one_recipe(first: Folder, second: Folder) -> None:
    a, b = side(first, "A", recipe="r"), side(second, "B", recipe="r")
    assert group_by_settings([a, b, side(first, "C", recipe="other"), side(first, "D", recipe=None)]) == [(a, b)]
    one = next(one for one in seed_spreads([a, b]) if (one.share, one.checkpoint) == (0.5, EARLY_STOP))
    values = [s.data.accuracy("unknown-050", EARLY_STOP).value for s in (a, b)]
    assert (one.mean, one.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert spread_table([a, b], 1).rows[3][-1] == 2


def test_findings_are_counted_over_the_studies_that_could_test_them(first: Folder, second: Folder) -> None:
    sides = [side(first, "A"), side(second, "B")]
    counts = count_findings(sides)
    assert counts["E1"] == (0, 0)
    assert counts["E3"] == (2, 2)
    rows = {row[0]: row for row in findings_table(sides).rows}
    assert rows["E1"][2:] == ("–", "–", "–")
    assert rows["E3"][2:] == ("holds", "holds", "2 of 2")


def test_folders_of_every_degree_give_a_page(first: Folder, second: Folder, tmp_path: Path) -> None:
    half = Folder(str(tmp_path / "half"))
    shutil.copytree(first.child("annotate").local_path, half.child("annotate").local_path)
    bare = Folder(str(tmp_path / "bare"))
    bare.child("questions").write_json("started.json", {})
    out = Folder(str(tmp_path / "out"))
    found = compare_studies([first, second, half, bare], out)
    text = out.read_bytes("index.html").decode()
    assert "Comparison of 4 studies" in text
    assert "Not finished yet:" in text
    assert "D (questions, annotate, variants, sweep)" in text
    assert "<script" not in text
    assert not {"http://", "https://"} & set(text.replace("http://www.w3.org", "").split('"'))
    assert found["studies"]["D"]["missing"] == ("questions", "annotate", "variants", "sweep")
    assert found["findings"]["E3"]["A"] == "holds"
    assert found["findings"]["E3"]["C"] == "not testable"
    assert json.loads(out.read_bytes("comparison.json"))["findings"] == found["findings"]
    assert {
        "step": "annotate",
        "setting": "",
        "A": "finished",
        "B": "finished",
        "C": "finished",
        "D": "not finished",
    } in (found["differences"])
    assert {"studies.csv", "settings.csv", "compare_findings.csv", "compare_accuracy.csv", "compare_costs.csv"} <= set(
        out.child("tables").names()
    )
    assert "compare_accuracy.svg" in out.child("figures").names()
    compare_studies([first, second], out)
    assert "Comparison of 2 studies" in out.read_bytes("index.html").decode(), "an earlier comparison is replaced"
    for path in out.sizes():  # what is shared says nothing of where a study lies
        *folders, file = path.split("/")
        assert str(tmp_path.parent).encode() not in out.child(*folders).read_bytes(file), path


def test_names_are_as_long_as_it_takes() -> None:
    assert shortest_unique_names(["/a/x", "s3://b/y"]) == ["x", "y"]
    assert shortest_unique_names(["/a/run/x", "/b/run/x"]) == ["a/run/x", "b/run/x"]


def test_what_cannot_be_compared_is_one_message(first: Folder, second: Folder, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for words, error, said in (
        ([first.uri, *out], SettingsError, "needs two or more study folders, got 1"),
        ([first.uri, first.uri, *out], SettingsError, "named more than once"),
        ([first.uri, str(tmp_path / "nowhere"), *out], StudyError, "does not exist"),
        ([first.uri, str(tmp_path), *out], StudyError, "is not a study folder"),
        ([first.uri, second.uri, "--out", second.uri], SettingsError, "is a study folder; choose another"),
        (
            [first.uri, second.uri, "--num-chunk", "3", *out],
            SettingsError,
            r"has no flag --num-chunk \(did you mean --num-chunks\?\)",
        ),
        ([first.uri, second.uri, "--seed", "x", *out], SettingsError, "invalid int value"),
        ([first.uri, second.uri, "--num-chunks", "1", *out], SettingsError, "must be 2 or more"),
    ):
        with pytest.raises(error, match=said):
            main(words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def worldly(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study with all that the analysis can read, texts of answers among it."""
    return write_study(tmp_path_factory.mktemp("worldly") / "whole", num_test=60, num_epochs=3, world=True)


def test_a_comparison_reads_no_texts_of_answers(worldly: Folder, second: Folder, tmp_path: Path) -> None:
    """They are most of a study, and nothing of what it shows."""
    bare = Folder(str(tmp_path / "bare"))
    shutil.copytree(worldly.local_path, bare.local_path)
    generations = bare.child("annotate", "generations")
    for name in generations.names(".parquet"):
        generations.write_table(name, generations.read_table(name, ["question_id", "greedy_hit", "sampled_hit"]))
    with pytest.raises(StudyError, match="greedy_text"):
        collected(load_study(bare), collect_error_kinds)
    outs = [Folder(str(tmp_path / name)) for name in ("a", "b")]
    found = [compare_studies([study, second], out) for study, out in zip((worldly, bare), outs, strict=True)]
    assert found[0]["findings"] == found[1]["findings"]
    assert sum(one["tested_in"] == 2 for one in found[0]["findings"].values()) > 10


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "usage: slick compare OUT1 OUT2" in capsys.readouterr().out


def test_policies_stand_side_by_side(first: Folder, second: Folder) -> None:
    bare = replace(side(first, "C"), data=StudyData())
    table = policies_table([side(first, "A"), side(second, "B"), bare])
    rows = {row[:2]: row[2:] for row in table.rows}
    of_first = {row[:2]: row[2] for row in policy_table(load_study(first)).rows}
    assert {key: row[0] for key, row in rows.items()} == of_first
    assert {row[2] for row in rows.values()} == {None}
    with pytest.raises(InsufficientDataError, match="none of the studies has a finished sweep"):
        policies_table([bare])


def test_each_study_is_a_column(first: Folder) -> None:
    table = studies_table([side(first, "A"), side(first, "B")])
    assert table.columns == ("study", "A", "B")
    assert {len(row) for row in table.rows} == {3}
