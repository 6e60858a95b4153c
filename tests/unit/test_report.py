"""The report step on study folders of every degree of completeness, written as the other steps write them."""

import json
import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from slick.analysis.data import Run, StudyData, Variant
from slick.analysis.load import load_study
from slick.analysis.recommendation import recommend
from slick.analysis.terms import LAST
from slick.errors import SettingsError, StudyError
from slick.report import ReportConfig, make_report
from slick.report.pages.choices import axis_table, choice_table, estimates_table, which_point
from slick.report.tables import policy_table
from slick.storage import Folder
from slick.study import begin, fingerprint, finish
from slick.types import Category

CATEGORIES = [str(category) for category in Category]
RELATIONS = ("P17", "P19", "<script>alert(1)</script>")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def write_manifest(folder: Folder, step: str, counts: dict, settings: dict | None = None) -> None:
    identity = fingerprint(step, counts)
    begin(folder, step, identity, settings or {})
    finish(folder, step, identity, settings=settings or {}, inputs={}, counts=counts, started_at=time.monotonic())


def question_rows(num_test: int) -> list[dict]:
    rows = []
    for i in range(3 * num_test):
        domain, split = (("id", "train"), ("id", "test"), ("ood", "test"))[i % 3]
        category = CATEGORIES[(i // 3) % 4]
        rows.append(
            {
                "question_id": f"q{i:06d}",
                "relation": RELATIONS[(i // 12) % 3],
                "domain": domain,
                "split": split,
                "category": category,
            }
        )
    return rows


def write_annotation(study: Folder, rows: list[dict], *, labels_mode: bool = False, seed: int = 0) -> None:
    folder = study.child("annotate")
    folder.write_table("knowledge.parquet", pa.Table.from_pylist(rows))
    rng = np.random.default_rng(seed)
    generations = []
    for row in rows:
        known = {"HighlyKnown": 1.0, "MaybeKnown": 0.4, "WeaklyKnown": 0.0, "Unknown": 0.0}[row["category"]]
        sampled = {"HighlyKnown": 0.9, "MaybeKnown": 0.3, "WeaklyKnown": 0.02, "Unknown": 0.0}[row["category"]]
        greedy = (rng.random(10) < known).tolist()
        hits = [None if labels_mode and any(greedy) else (rng.random(16) < sampled).tolist() for _ in range(10)]
        generations.append(
            {"question_id": row["question_id"], "relation": row["relation"], "greedy_hit": greedy, "sampled_hit": hits}
        )
    folder.child("generations").write_table("part-000.parquet", pa.Table.from_pylist(generations))
    write_manifest(folder, "annotate", {"questions": len(rows), "generations": 170 * len(rows)}, {"mode": "full"})


def write_variants(study: Folder, size: int) -> dict[str, dict]:
    counts: dict[str, dict] = {}
    for share in SHARES:
        name = f"unknown-{round(100 * share):03d}"
        counts[name] = {"kind": "unknown", "num": size, "requested_share": share, "unknown_share": share}
        if 0 < share < 1:
            known = round(size * (1 - share))
            counts["known" + name[7:]] = {"kind": "known", "num": known, "requested_share": share, "unknown_share": 0.0}
    for name in ("highlyknown", "maybeknown", "weaklyknown", "natural"):
        kind = "natural" if name == "natural" else "category"
        counts[name] = {"kind": kind, "num": size, "requested_share": None, "unknown_share": 0.0}
    counts["idk-050"] = {"kind": "idk", "num": size, "requested_share": 0.5, "unknown_share": 0.5}
    rows = [{"question_id": "q0", "category": "Unknown", "prompt": "p", "target": "No idea"}]
    study.child("variants").write_table("idk-050.parquet", pa.Table.from_pylist(rows))
    write_manifest(study.child("variants"), "variants", counts)
    return counts


def harm(name: str, entry: dict) -> float:
    """How much training on hurts, from 0 to 1."""
    if entry["kind"] in ("unknown", "idk"):
        return 0.1 + 0.9 * entry["requested_share"] ** 2
    return {"weaklyknown": 0.35, "natural": 0.2, "highlyknown": 0.05, "maybeknown": 0.0}.get(name, 0.12)


def test_accuracies(name: str, progress: float, hurt: float) -> dict[str, float]:
    """Share right of each category of test question; progress from 0 (first epoch) to 1 (last)."""
    early = {"HighlyKnown": 0.97, "MaybeKnown": 0.66, "WeaklyKnown": 0.12, "Unknown": 0.01}
    early["MaybeKnown"] += {"maybeknown": 0.05, "highlyknown": -0.06}.get(name, 0.0)
    late = {"HighlyKnown": 0.45, "MaybeKnown": 0.3, "WeaklyKnown": -0.03, "Unknown": -0.01}
    fall = hurt * max(progress - 0.2, 0.0) / 0.8
    rise = min(progress / 0.2, 1.0)
    return {
        category: (0.85 + 0.15 * rise) * early[category] - fall * late[category] - 0.06 * hurt for category in early
    }


test_accuracies.__test__ = False  # type: ignore[attr-defined]


def train_mix(name: str, entry: dict) -> dict[str, int]:
    size = entry["num"]
    only = {"highlyknown": "HighlyKnown", "maybeknown": "MaybeKnown", "weaklyknown": "WeaklyKnown"}.get(name)
    if only:
        return {only: size}
    share = 0.25 if name == "natural" else entry["unknown_share"]
    known = (size - round(size * share)) // 3
    mix = {"HighlyKnown": known, "MaybeKnown": known, "WeaklyKnown": size - round(size * share) - 2 * known}
    return {k: v for k, v in {**mix, "Unknown": round(size * share)}.items() if v}


def write_run(study: Folder, name: str, entry: dict, seed: int, rows: list[dict], num_epochs: int) -> None:
    run_id = f"{name}-seed{seed}"
    folder = study.child("runs", run_id)
    luck = {row["question_id"]: u for row, u in zip(rows, np.random.default_rng(7).random(len(rows)), strict=True)}
    rng = np.random.default_rng(fingerprint_seed(run_id))
    epochs = []
    for epoch in range(1, num_epochs + 1):
        progress = (epoch - 1) / (num_epochs - 1)
        chance = test_accuracies(name, progress, harm(name, entry))
        predictions = []
        for row in rows:
            if row["split"] == "train":
                continue
            split = "ood" if row["domain"] == "ood" else "test"
            scale = 0.75 if split == "ood" else 1.0
            hit = bool(luck[row["question_id"]] + rng.normal(0, 0.02) < scale * max(chance[row["category"]], 0))
            text = (
                "right" if hit else "No idea." if entry["kind"] == "idk" and row["category"] == "Unknown" else "wrong"
            )
            predictions.append(
                {
                    "question_id": row["question_id"],
                    "split": split,
                    "category": row["category"],
                    "hit": hit,
                    "text": text,
                }
            )
            if split == "test":
                predictions.append(
                    {**predictions[-1], "question_id": "d" + row["question_id"], "split": "dev", "category": None}
                )
        folder.child("predictions").write_table(f"epoch-{epoch:03d}.parquet", pa.Table.from_pylist(predictions))
        for split in ("dev", "test", "ood"):
            for category in ("all", *(CATEGORIES if split != "dev" else ())):
                found = [p["hit"] for p in predictions if p["split"] == split and category in ("all", p["category"])]
                epochs.append(epoch_row(run_id, epoch, split, category, len(found), sum(found), None))
        rates = {"HighlyKnown": 3.0, "MaybeKnown": 1.2, "WeaklyKnown": 0.5, "Unknown": 0.02 * epoch}
        mix = train_mix(name, entry)
        right = {c: round(num * (1 - np.exp(-rates[c] * epoch * 12 / num_epochs))) for c, num in mix.items()}
        for category, num in {"all": sum(mix.values()), **mix}.items():
            correct = sum(right.values()) if category == "all" else right[category]
            epochs.append(epoch_row(run_id, epoch, "train", category, num, correct, 1.0 / epoch))
    folder.write_table("epochs.parquet", pa.Table.from_pylist(epochs))
    write_manifest(
        folder, "finetune", {"rows": entry["num"], "steps": num_epochs * 10}, {"variant": name, "seed": seed}
    )


def fingerprint_seed(run_id: str) -> int:
    return int(fingerprint(run_id), 16) % 2**32


def epoch_row(run_id: str, epoch: int, split: str, category: str, num: int, correct: int, loss: float | None) -> dict:
    return {
        "run_id": run_id,
        "epoch": epoch,
        "split": split,
        "category": category,
        "num": num,
        "num_correct": correct,
        "loss": loss,
    }


def write_study(root: Path, *, num_test: int = 240, seeds: tuple[int, ...] = (0,), num_epochs: int = 6) -> Folder:
    """A whole study whose numbers move as the paper's do."""
    study = Folder(str(root))
    rows = question_rows(num_test)
    write_annotation(study, rows)
    for name, entry in write_variants(study, 200).items():
        for seed in seeds:
            write_run(study, name, entry, seed, rows, num_epochs)
    write_points(study, load_study(study))
    return study


def write_points(study: Folder, data) -> None:
    points = []
    for run in data.runs:
        last = int(run.epochs[-1])
        for policy, stop in (
            (f"fixed({last // 2})", last // 2),
            (f"fixed({last})", last),
            ("best_dev", run.early_epoch),
        ):
            points.append(
                {
                    "variant": run.variant,
                    "seed": run.seed,
                    "epochs": last,
                    "policy": policy,
                    "stop_epoch": stop,
                    "cost_epochs": last if policy == "best_dev" else stop,
                    "run_id": run.run_id,
                    "dev_all": run.at(stop, "dev") / 100,
                    "test_all": run.at(stop, "test") / 100,
                }
            )
    study.child("sweep").write_table("points.parquet", pa.Table.from_pylist(points))
    write_manifest(study.child("sweep"), "sweep", {"points": len(points)})


class Page(HTMLParser):
    """What a browser would load, and which ids it would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "srcset", "data") or (key in ("href", "xlink:href") and tag in ("link", "image", "use")):
                self.loads.append(value or "")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = write_study(tmp_path_factory.mktemp("study"))
    make_report(folder, ReportConfig(title="A <b>title</b>"))
    return folder


def test_a_whole_study_gives_every_figure_table_and_finding(study: Folder) -> None:
    report = study.child("report")
    names = {
        "accuracy_by_share",
        "known_ablation",
        "fit_curves",
        "category_curves",
        "early_stop_state",
        "exemplar_sets",
    }
    names |= {"ood_accuracy_by_share", "response_surface"}
    assert set(report.child("figures").names()) == {f"{name}{end}" for name in names for end in (".svg", ".png")}
    tables = set(report.child("tables").names(".csv"))
    assert {
        "outcomes.csv",
        "curves.csv",
        "linear_model.csv",
        "idk.csv",
        "policies.csv",
        "which_point.csv",
        "which_point_numbers.csv",
        "axis_effects.csv",
        "response_surface.csv",
        "categories_id_train.csv",
    } <= tables
    outcomes = report.read_json("outcomes.json")
    assert [outcome["id"] for outcome in outcomes] == [f"E{i}" for i in range(1, 26)]
    assert all(set(outcome) == {"id", "claim", "holds", "own", "paper", "why"} for outcome in outcomes)
    assert {o["id"] for o in outcomes if o["holds"] is None} == {"E1", "E20", "E24"}
    holding = {o["id"] for o in outcomes if o["holds"]}
    assert {"E2", "E3", "E5", "E9", "E10", "E11", "E18", "E23"} <= holding
    assert "Not shown" not in report.read_bytes("index.html").decode()


def test_the_page_needs_no_network_and_escapes_what_it_is_given(study: Folder) -> None:
    text = study.child("report").read_bytes("index.html").decode()
    page = Page(text)
    assert [load for load in page.loads if not load.startswith("#")] == []
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in text
    assert "A &lt;b&gt;title" in text
    assert len(page.ids) == len(set(page.ids)), "ids of inlined figures collide"
    assert not re.search(r"@import|url\(\s*['\"]?http", text)


def test_figures_keep_text_as_text_and_stand_alone(study: Folder) -> None:
    figures = study.child("report", "figures")
    svg = figures.read_bytes("accuracy_by_share.svg").decode()
    assert "Unknown rows in D (%)" in svg
    assert "Test accuracy (%)" in svg
    assert "xmlns" in svg
    assert figures.read_bytes("accuracy_by_share.png").startswith(b"\x89PNG")


def test_loading_gives_back_what_was_stored(study: Folder) -> None:
    data = load_study(study)
    run = data.runs_of("unknown-100")[0]
    table = study.child("runs", "unknown-100-seed0").read_table("epochs.parquet").to_pylist()
    last = next(r for r in table if (r["epoch"], r["split"], r["category"]) == (6, "test", "all"))
    assert run.at(LAST, "test") == pytest.approx(100 * last["num_correct"] / last["num"])
    assert run.hits[6, "test"].hit.sum() == last["num_correct"]
    assert data.idk_phrase == "No idea"
    assert data.durations == (3, 6)
    dev = [r["num_correct"] for r in table if (r["split"], r["category"]) == ("dev", "all")]
    assert run.early_epoch == 1 + dev.index(max(dev))


def test_a_finished_report_is_kept_and_a_stale_one_made_anew(study: Folder, tmp_path: Path) -> None:
    import shutil

    copy = Folder(str(tmp_path / "copy"))
    shutil.copytree(study.local_path, copy.local_path)
    config = ReportConfig(title="A <b>title</b>")
    before = make_report(copy, config)
    copy.child("report").write_bytes("stray.txt", b"left over")
    assert make_report(copy, config) == before
    copy.child("runs", "natural-seed0").delete()
    after = make_report(copy, config)
    assert after.fingerprint != before.fingerprint
    assert after.counts["runs"] == before.counts["runs"] - 1
    assert not copy.child("report").exists("stray.txt")
    outcomes = {o["id"]: o for o in copy.child("report").read_json("outcomes.json")}
    assert outcomes["E14"]["holds"] is None
    assert "natural" in outcomes["E14"]["why"]


def test_only_annotated_gives_a_partial_report(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_annotation(study, question_rows(60), labels_mode=True)
    manifest = make_report(study, ReportConfig())
    text = study.child("report").read_bytes("index.html").decode()
    assert "Not shown" in text
    assert "Not shown: needs a finished sweep over variants with a share of Unknown rows" in text
    assert "nothing has been fine-tuned yet" in text
    assert manifest.counts["holds"] == 1  # E2, the categories
    assert manifest.counts["not_testable"] == 24


def test_a_half_written_run_is_not_read(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = question_rows(60)
    write_annotation(study, rows)
    entry = write_variants(study, 50)["unknown-050"]
    write_run(study, "unknown-050", entry, 0, rows, 3)
    study.child("runs", "unknown-050-seed0").delete("manifest.json")
    assert make_report(study, ReportConfig()).counts["runs"] == 0


def test_without_a_knowledge_table_it_says_which_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="slick annotate"):
        make_report(Folder(str(tmp_path)), ReportConfig())


def test_a_missing_file_of_a_finished_run_is_an_error(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = question_rows(60)
    write_annotation(study, rows)
    write_run(study, "unknown-050", write_variants(study, 50)["unknown-050"], 0, rows, 3)
    study.child("runs", "unknown-050-seed0").delete("epochs.parquet")
    with pytest.raises(StudyError, match=r"epochs\.parquet is not there"):
        make_report(study, ReportConfig())
    assert not study.child("report").exists("manifest.json")


def test_runs_with_other_training_settings_are_not_taken_for_seeds(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = question_rows(24)
    write_annotation(study, rows)
    entry = write_variants(study, 20)["unknown-050"]
    for run_id in ("unknown-050-seed3", "unknown-050-seed3-learning_rate=1e-05", "unknown-000-seed0-epochs3"):
        write_run(study, "unknown-050", entry, 0, rows, 3)
        Path(study.local_path, "runs", "unknown-050-seed0").rename(Path(study.local_path, "runs", run_id))
    found = [(run.run_id, run.variant, run.seed) for run in load_study(study).runs]
    assert found == [("unknown-000-seed0-epochs3", "unknown-000", 0), ("unknown-050-seed3", "unknown-050", 3)]
    Path(study.local_path, "runs", "unknown-050-seed3").rename(Path(study.local_path, "runs", "best"))
    with pytest.raises(StudyError, match="runs/best is not named VARIANT-seedN"):
        load_study(study)


def sweep_of(seeds: tuple[int, ...], shares: tuple[float, ...] = (0.0, 0.5, 1.0), settings: str = "") -> StudyData:
    """Half of the accuracy is lost with the Unknown rows, 10 points by the second half of the training."""
    kinds = {f"unknown-{round(100 * share):03d}": ("unknown", share) for share in shares}
    kinds |= {f"known-{round(100 * share):03d}": ("known", share) for share in shares if 0 < share < 1}
    points = []
    for name, (kind, share) in kinds.items():
        for seed in seeds:
            level = 0.6 - (0.3 * share if kind == "unknown" else 0.2 * share) + 0.01 * seed
            for policy, stop, cost, fall in (
                ("fixed(4)", 4, 4, 0.02),
                ("fixed(8)", 8, 8, 0.1),
                ("best_dev", 3, 8, 0.0),
            ):
                right = level - fall - (0.001 * seed if fall else 0.0)
                points.append(
                    {"variant": name, "seed": seed, "epochs": 4 if stop == 4 else 8, "policy": policy}
                    | {"stop_epoch": stop, "cost_epochs": cost, "dev_all": right, "test_all": right}
                    | {"settings": settings}
                )
    variants = {name: Variant(name=name, kind=kind, share=share, num=80) for name, (kind, share) in kinds.items()}
    runs = tuple(
        Run(
            run_id=f"{name}-seed{seed}",
            variant=name,
            seed=seed,
            epochs=np.arange(1, 9),
            accuracy={},
            num={},
            early_epoch=3,
        )
        for name in variants
        for seed in seeds
    )
    return StudyData(variants=variants, runs=runs, points=tuple(points), durations=(4, 8))


def test_the_reader_is_told_first_which_point_to_use_and_how_sure_that_is() -> None:
    text = which_point(sweep_of((0, 1, 2))).text
    assert "use best_dev within 8 epochs: its dev accuracy, 46.0 %, is the best on average over all 3 shares" in text
    assert "keeps epoch 3 of 8 trained." in text
    assert (
        "it takes as long and changes test accuracy by +10.1 (+9.9 to +10.3) points, more than chance explains" in text
    )
    assert "Leaving the Unknown rows out, over the shares where both were run, changes" in text
    assert "+5.0 (+5.0 to +5.0) points at the same point, more than chance explains." in text
    assert "one seed" not in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [((0.1, 0.1, 0.12), "more"), ((-0.1, -0.1, -0.12), "more"), ((-0.1, 0.0, 0.1), "no more"), ((0.0,) * 3, "no more")],
)
def test_a_difference_within_its_interval_is_called_chance(changes: tuple[float, ...], told: str) -> None:
    data = sweep_of((0, 1, 2), shares=(0.5,))
    level = {
        p["seed"]: p["test_all"] for p in data.points if (p["variant"], p["policy"]) == ("unknown-050", "best_dev")
    }
    moved = [
        {**p, "test_all": level[p["seed"]] + changes[p["seed"]]} if p["variant"] == "known-050" else p
        for p in data.points
    ]
    sentence = which_point(replace(data, points=tuple(moved))).text.rsplit(". ", 1)[1]
    assert sentence.startswith("Leaving the Unknown rows out")
    assert sentence.endswith(f"points at the same point, {told} than chance explains.")


def test_one_seed_is_told_without_intervals() -> None:
    section = which_point(sweep_of((0,)))
    assert section.text.endswith("; one seed gives no intervals.")
    assert section.text.count(". ") == 2
    assert not [exhibit.missing for exhibit in section.exhibits if exhibit.missing]
    assert " to " not in str(choice_table(recommend(sweep_of((0,)))).rows)


def test_one_share_is_told_by_its_share_and_has_no_surface() -> None:
    section = which_point(sweep_of((0, 1), shares=(0.5,)))
    assert section.text.startswith("At 50 % Unknown rows use best_dev within 8 epochs")
    missing = [exhibit.missing for exhibit in section.exhibits if exhibit.missing]
    assert len(missing) == 2  # the figure and its numbers
    assert all("two shares of Unknown rows" in str(why) for why in missing)
    assert [row[0] for row in choice_table(recommend(sweep_of((0, 1), shares=(0.5,)))).rows] == ["50 %"]


def test_what_cannot_be_compared_is_absent_with_its_reason_and_never_nought() -> None:
    found = recommend(sweep_of((0, 1)))
    rows = {row[0]: row for row in choice_table(found).rows}
    assert rows["0 %"][-1] is None
    assert rows["100 %"][-1] is None
    assert rows["50 %"][-1] == rows["all"][-1] == "+5.0 (+5.0 to +5.0)"
    reasons = {(row[0], row[4]): row[-1] for row in estimates_table(found).rows if row[5] is None}
    assert reasons == {
        (0.0, "filtering"): "there are no Unknown rows to filter out",
        (100.0, "filtering"): "no row would be left",
    }


def test_training_settings_show_where_a_sweep_varied_them() -> None:
    own, other = sweep_of((0, 1)), sweep_of((0, 1), settings="dropout=0.1")
    assert "settings" not in choice_table(recommend(own)).columns
    assert "settings" not in policy_table(own).columns
    worse = tuple({**point, "dev_all": point["dev_all"] - 0.1} for point in own.points)
    both = replace(own, points=worse + other.points)
    assert "best_dev within 8 epochs with dropout=0.1" in which_point(both).text
    table = choice_table(recommend(both))
    assert {row[table.columns.index("settings")] for row in table.rows} == {"dropout=0.1"}
    policies = policy_table(both)
    assert policies.columns[-1] == "settings"
    assert len(policies.rows) == 2 * len(policy_table(own).rows)


def test_the_axes_are_told_most_first_and_whether_the_grid_is_balanced() -> None:
    whole = sweep_of((0, 1))
    balanced = tuple(point for point in whole.points if point["epochs"] == 8)
    caption = [exhibit.caption for exhibit in which_point(replace(whole, points=balanced)).exhibits]
    assert any("the grid is balanced" in text for text in caption)
    caption = [exhibit.caption for exhibit in which_point(whole).exhibits]
    assert any("the grid is not balanced" in text for text in caption)
    rows = axis_table(replace(whole, points=balanced)).rows
    assert rows[0][0] == "share of Unknown rows"
    assert rows[-1][0] == "how they act together, and chance"
    assert next(row for row in rows if row[0] == "epoch budget")[2:] == (None, None, "it has one level only")


def test_the_heat_map_writes_each_number_in_its_cell(study: Folder) -> None:
    svg = study.child("report", "figures").read_bytes("response_surface.svg").decode()
    table = study.child("report", "tables").read_bytes("response_surface.csv").decode().splitlines()[1:]
    assert len(table) == len(SHARES) * 2
    texts = re.findall(r">(\d+\.\d)</text>", svg)
    assert sorted(texts) == sorted(f"{float(row.split(',')[2]):.1f}" for row in table)
    assert "<image" not in svg
    assert "Epochs trained" in svg


def test_settings_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="num_chunks must be 2 or more"):
        ReportConfig(num_chunks=1)


def test_outcomes_are_plain_json(study: Folder) -> None:
    text = study.child("report").read_bytes("outcomes.json").decode()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_run_that_ended_early_says_nothing_about_convergence(study: Folder, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path / "copy"))
    shutil.copytree(study.local_path, copy.local_path)
    runs = copy.child("runs")
    short = runs.folders()[0]
    table = runs.child(short).read_table("epochs.parquet")
    runs.child(short).write_table("epochs.parquet", table.filter(pc.less(table["epoch"], 3)))
    before, after = load_study(study), load_study(copy)
    assert len(after.runs) == len(before.runs) - 1
    assert after.durations == before.durations
