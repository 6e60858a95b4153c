"""The compare step: comparable studies, differences, spread over seeds, provenance, and unfinished studies."""

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
from slick.report.sections.choice import policy_table
from slick.report.sections.error_kinds import collect_error_kinds
from slick.storage import Folder
from slick.study import Manifest
from tests.unit.report_study import write_study


def manifest(step: str, **values: object) -> Manifest:
    empty = {"settings": {}, "inputs": {}, "counts": {}, "seconds": 2.0, "versions": {"torch": "2.13.0+cpu"}}
    return Manifest(**{"step": step, "fingerprint": f"{step}-mark", **empty, **values})


def manifests_of(seed: int = 0, **annotate: object) -> dict[str, Manifest]:
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


def test_provenance_is_read_from_manifests() -> None:
    provenance = read_provenance(manifests_of(seed=4))
    assert (provenance.model, provenance.model_mark, provenance.matcher) == ("org/model", "weights", "exact")
    assert provenance.seeds == {"annotate": (4,), "samples": (4,), "trainings": (4,)}
    assert provenance.dropped == (("several answers", 2), ("subject in test", 2), ("bad rows", 1))
    assert (provenance.read, provenance.kept) == (12, 7)
    assert provenance.missing == ("variants", "sweep"), "a study of a model of one's own has no world"
    assert (provenance.cost.generations, provenance.cost.epochs, provenance.cost.train_tokens) == (1190, 3, 500)
    assert (provenance.cost.device, provenance.cost.at_least) == ("cpu", False)
    assert provenance.cost.answer_tokens is None, "a value that a manifest lacks is not 0"


def test_provenance_has_the_runtime_of_each_part() -> None:
    manifests, on_gpu = manifests_of(), {"device": "cuda (NVIDIA L4)", "dtype": "bfloat16", "attention": "sdpa"}
    run = manifests["runs/a-seed0"]
    runtime_manifest = replace(manifests["annotate"], counts={**manifests["annotate"].counts, **on_gpu})
    more = {
        "annotate": runtime_manifest,
        "annotate/p_true": runtime_manifest,
        "runs/b-seed0": replace(run, counts={**run.counts, **on_gpu}),
    }
    provenance = read_provenance({**manifests, **more})
    assert provenance.runtimes["annotation"] == provenance.runtimes["P(True)"] == on_gpu
    assert provenance.runtimes["trainings"]["device"] == "cpu and cuda (NVIDIA L4)"
    assert (provenance.cost.device, provenance.cost.engine_device) == ("cpu and cuda", "cuda")
    assert read_provenance(manifests).runtimes["trainings"] == {"device": "cpu"}, "older manifests say less"
    shown = {row[0]: row[1] for row in study_identity_table(provenance).rows}
    assert shown["annotation ran with"] == "device cuda (NVIDIA L4), dtype bfloat16, attention sdpa"
    assert {"P(True) ran with", "trainings ran with"} <= shown.keys()


def test_cost_of_an_interrupted_training_is_a_lower_bound() -> None:
    manifests = manifests_of()
    run = manifests["runs/a-seed0"]
    half = replace(run, counts={**run.counts, "epochs_now": 1}, versions={"torch": "2.12.0"})
    provenance = read_provenance({**manifests, "runs/a-seed0": half})
    assert provenance.cost.at_least
    assert provenance.changed_versions == {"torch": ("2.13.0+cpu", "2.12.0")}
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
def test_studies_that_differ_only_in_seeds_have_the_same_settings_fingerprint(change: dict, same: bool) -> None:
    assert (read_provenance(manifests_of(**change)).recipe == read_provenance(manifests_of()).recipe) is same


def test_worlds_with_different_seeds_have_the_same_settings_fingerprint() -> None:
    def world(seed: int, facts: int) -> dict[str, Manifest]:
        manifests = manifests_of(model="")
        annotate = replace(manifests["annotate"], inputs={"model": f"weights-{seed}", "questions": f"q{seed}"})
        return {**manifests, "world": manifest("world", settings={"seed": seed, "facts": facts}), "annotate": annotate}

    assert read_provenance(world(0, 5)).recipe == read_provenance(world(1, 5)).recipe
    assert read_provenance(world(0, 5)).recipe != read_provenance(world(0, 6)).recipe
    assert read_provenance(world(0, 5)).model == "planted world"


def test_provenance_tables_show_dropped_questions_and_cost() -> None:
    manifests = manifests_of()
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
    """The same questions, with trainings of another seed."""
    return write_study(Path(first.local_path).parents[0] / "second", num_test=120, num_epochs=4, seeds=(1,))


def compared(folder: Folder, label: str, mark: str | None = "questions", **changes: object) -> ComparedStudy:
    data = load_study(folder)
    known: Provenance = replace(read_provenance(read_manifests(folder)), questions_mark=mark, **changes)
    return ComparedStudy(label=label, name=label, data=data, outcomes=tuple(evaluate_findings(data)), provenance=known)


def test_differences_are_paired_by_question_if_the_questions_are_equal(first: Folder, second: Folder) -> None:
    a, b = compared(first, "A"), compared(second, "B")
    differences = {(difference.share, difference.checkpoint): difference for difference in accuracy_differences(a, b)}
    assert len(differences) == 14
    difference = differences[1.0, CONVERGENCE]
    rows = [s.data.mean_correct("unknown-100", CONVERGENCE, "test") for s in (a, b)]
    gaps = 100 * (rows[1] - rows[0])
    assert difference.paired
    assert difference.value == pytest.approx(gaps.mean())
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    twin = accuracy_differences(a, replace(a, label="B"))
    assert {(gap.value, gap.low, gap.high) for gap in twin} == {(0.0, 0.0, 0.0)}
    table = differences_table(a, b)
    assert [row[0] for row in table.rows] == ["0 %", "10 %", "25 %", "50 %", "75 %", "90 %", "100 %"]
    assert {row[-1] for row in table.rows} == {"question by question"}


def test_studies_with_different_questions_or_matchers_are_not_comparable(first: Folder, second: Folder) -> None:
    a = compared(first, "A", matcher="exact")
    assert incomparability_reason(a, compared(second, "B", "others")) == "different questions"
    assert incomparability_reason(a, compared(second, "B", matcher="f1")) == "different matchers: exact and f1"
    assert incomparability_reason(a, compared(second, "B", None)) == "B has no questions yet"
    with pytest.raises(InsufficientDataError, match="A and B are not comparable: different questions"):
        accuracy_differences(a, compared(second, "B", "others"))


def test_spread_is_over_studies_that_differ_only_in_seeds(first: Folder, second: Folder) -> None:
    a, b = compared(first, "A", recipe="r"), compared(second, "B", recipe="r")
    assert group_by_settings([a, b, compared(first, "C", recipe="other"), compared(first, "D", recipe=None)]) == [
        (a, b)
    ]
    spread = next(spread for spread in seed_spreads([a, b]) if (spread.share, spread.checkpoint) == (0.5, EARLY_STOP))
    values = [s.data.accuracy("unknown-050", EARLY_STOP).value for s in (a, b)]
    assert (spread.mean, spread.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert spread_table([a, b], 1).rows[3][-1] == 2


def test_findings_are_counted_over_the_studies_in_which_they_are_testable(first: Folder, second: Folder) -> None:
    studies = [compared(first, "A"), compared(second, "B")]
    counts = count_findings(studies)
    assert counts["E1"] == (0, 0)
    assert counts["E3"] == (2, 2)
    rows = {row[0]: row for row in findings_table(studies).rows}
    assert rows["E1"][2:] == ("–", "–", "–")
    assert rows["E3"][2:] == ("holds", "holds", "2 of 2")


def test_unfinished_studies_can_be_compared(first: Folder, second: Folder, tmp_path: Path) -> None:
    half = Folder(str(tmp_path / "half"))
    shutil.copytree(first.child("annotate").local_path, half.child("annotate").local_path)
    bare = Folder(str(tmp_path / "bare"))
    bare.child("questions").write_json("started.json", {})
    out = Folder(str(tmp_path / "out"))
    summary = compare_studies([first, second, half, bare], out)
    text = out.read_bytes("index.html").decode()
    assert "Comparison of 4 studies" in text
    assert "Not finished yet:" in text
    assert "D (questions, annotate, variants, sweep)" in text
    assert "<script" not in text
    assert not {"http://", "https://"} & set(text.replace("http://www.w3.org", "").split('"'))
    assert summary["studies"]["D"]["missing"] == ("questions", "annotate", "variants", "sweep")
    assert summary["findings"]["E3"]["A"] == "holds"
    assert summary["findings"]["E3"]["C"] == "not testable"
    assert json.loads(out.read_bytes("comparison.json"))["findings"] == summary["findings"]
    assert {
        "step": "annotate",
        "setting": "",
        "A": "finished",
        "B": "finished",
        "C": "finished",
        "D": "not finished",
    } in (summary["differences"])
    assert {"studies.csv", "settings.csv", "compare_findings.csv", "compare_accuracy.csv", "compare_costs.csv"} <= set(
        out.child("tables").names()
    )
    assert "compare_accuracy.svg" in out.child("figures").names()
    compare_studies([first, second], out)
    assert "Comparison of 2 studies" in out.read_bytes("index.html").decode(), "an earlier comparison is replaced"
    for path in out.sizes():  # published files do not reveal the location of a study
        *folders, file = path.split("/")
        assert str(tmp_path.parent).encode() not in out.child(*folders).read_bytes(file), path


def test_study_names_are_the_shortest_unique_ends_of_paths() -> None:
    assert shortest_unique_names(["/a/x", "s3://b/y"]) == ["x", "y"]
    assert shortest_unique_names(["/a/run/x", "/b/run/x"]) == ["a/run/x", "b/run/x"]


def test_invalid_arguments_are_refused(first: Folder, second: Folder, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments, error, message in (
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
        with pytest.raises(error, match=message):
            main(arguments)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def with_world(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study with a world and answer texts."""
    return write_study(tmp_path_factory.mktemp("worldly") / "whole", num_test=60, num_epochs=3, world=True)


def test_comparison_does_not_read_answer_texts(with_world: Folder, second: Folder, tmp_path: Path) -> None:
    """Answer texts are most of a study, and a comparison shows none of them."""
    bare = Folder(str(tmp_path / "bare"))
    shutil.copytree(with_world.local_path, bare.local_path)
    generations = bare.child("annotate", "generations")
    for name in generations.names(".parquet"):
        generations.write_table(name, generations.read_table(name, ["question_id", "greedy_hit", "sampled_hit"]))
    with pytest.raises(StudyError, match="greedy_text"):
        collected(load_study(bare), collect_error_kinds)
    outs = [Folder(str(tmp_path / name)) for name in ("a", "b")]
    summaries = [compare_studies([study, second], out) for study, out in zip((with_world, bare), outs, strict=True)]
    assert summaries[0]["findings"] == summaries[1]["findings"]
    assert sum("not testable" not in finding.values() for finding in summaries[0]["findings"].values()) > 5


def test_help_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "usage: slick compare OUT1 OUT2" in capsys.readouterr().out


def test_policies_table_has_a_column_per_study(first: Folder, second: Folder) -> None:
    bare = replace(compared(first, "C"), data=StudyData())
    table = policies_table([compared(first, "A"), compared(second, "B"), bare])
    rows = {row[:2]: row[2:] for row in table.rows}
    of_first = {row[:2]: row[2] for row in policy_table(load_study(first)).rows}
    assert {key: row[0] for key, row in rows.items()} == of_first
    assert {row[2] for row in rows.values()} == {None}
    with pytest.raises(InsufficientDataError, match="none of the studies has a finished sweep"):
        policies_table([bare])


def test_studies_table_has_a_column_per_study(first: Folder) -> None:
    table = studies_table([compared(first, "A"), compared(first, "B")])
    assert table.columns == ("study", "A", "B")
    assert {len(row) for row in table.rows} == {3}
