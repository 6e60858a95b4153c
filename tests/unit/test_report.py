"""The report step on finished and unfinished study folders."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from slick.errors import SettingsError, StudyError
from slick.report import ReportConfig, make_report
from slick.report.loading import load_study
from slick.report.measurements import CONVERGENCE, round1
from slick.storage import Folder
from tests.unit.report_study import (
    SHARES,
    question_rows,
    write_annotation,
    write_run,
    write_study,
    write_variants,
    write_world,
)


class Page(HTMLParser):
    """External resources, ids, links, and the text of each section of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: dict[str, str] = {}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("section", "header", "nav"):
            self._section = dict(attrs).get("id") or tag
        if tag == "a":
            self.links.append(dict(attrs).get("href") or "")
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "srcset", "data") or (key in ("href", "xlink:href") and tag in ("link", "image", "use")):
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts[self._section] = self.texts.get(self._section, "") + " " + data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = write_study(tmp_path_factory.mktemp("study"))
    make_report(folder, ReportConfig(title="A <b>title</b>"))
    return folder


def test_report_of_a_finished_study_has_all_figures_tables_and_findings(study: Folder) -> None:
    report = study.child("report")
    names = {
        "accuracy_by_share",
        "known_ablation",
        "fit_curves",
        "category_curves",
        "early_stop_state",
        "p_true_early_stop",
        "p_true_convergence",
    }
    names |= {"ood_accuracy_by_share", "response_surface"}
    figures = set(report.child("figures").names())
    assert {f"{name}.svg" for name in names} <= figures
    assert figures == {f"{name[:-4]}{end}" for name in figures for end in (".svg", ".png")}
    tables = set(report.child("tables").names(".csv"))
    assert {
        "outcomes.csv",
        "curves.csv",
        "linear_model.csv",
        "idk.csv",
        "policies.csv",
        "stopping.csv",
        "decision.csv",
        "idk_by_category.csv",
        "not_converged.csv",
        "which_point.csv",
        "which_point_numbers.csv",
        "axis_effects.csv",
        "response_surface.csv",
        "categories_id_train.csv",
    } <= tables
    outcomes = report.read_json("outcomes.json")
    assert [outcome["id"] for outcome in outcomes] == [f"E{i}" for i in range(1, 26)]
    assert all(
        set(outcome) >= {"id", "claim", "holds", "own", "paper", "why", "verdict", "power", "false_alarm"}
        for outcome in outcomes
    )
    assert {o["id"] for o in outcomes if o["verdict"] == "not testable"} == {"E1", "E20", "E24"}
    assert {o["holds"] for o in outcomes if o["verdict"] == "undecided"} == {None}
    assert all(o["needed"] for o in outcomes if o["verdict"] == "undecided")
    holding = {o["id"] for o in outcomes if o["holds"]}
    assert {"E2", "E3", "E5", "E9", "E10", "E11", "E23"} <= holding
    page = Page(report.read_bytes("index.html").decode())
    names = {"choice", "share", "fitting", "categories", "linear", "ood", "idk", "p_true"}
    names |= {"fit_times", "retention", "stability"}
    assert not [name for name in names if "Not shown" in page.texts[name]]


def test_page_is_self_contained_and_escapes_text(study: Folder) -> None:
    text = study.child("report").read_bytes("index.html").decode()
    page = Page(text)
    assert [load for load in page.loads if not load.startswith("#")] == []
    assert "script" not in page.tags
    assert "&lt;script&gt;alert(1)" in text
    assert "A &lt;b&gt;title" in text
    assert len(page.ids) == len(set(page.ids)), "ids of inlined figures collide"
    assert not re.search(r"@import|url\(\s*['\"]?http", text)


def test_svg_figures_have_text_elements_and_are_self_contained(study: Folder) -> None:
    figures = study.child("report", "figures")
    svg = figures.read_bytes("accuracy_by_share.svg").decode()
    assert "Unknown rows in D (%)" in svg
    assert "Test accuracy (%)" in svg
    assert "xmlns" in svg
    assert figures.read_bytes("accuracy_by_share.png").startswith(b"\x89PNG")


def test_load_study_returns_stored_runs(study: Folder) -> None:
    data = load_study(study)
    run = data.runs_for("unknown-100")[0]
    table = study.child("runs", "unknown-100-seed0").read_table("epochs.parquet").to_pylist()
    last = next(r for r in table if (r["epoch"], r["split"], r["category"]) == (6, "test", "all"))
    assert run.accuracy_at(CONVERGENCE, "test") == pytest.approx(100 * last["num_correct"] / last["num"])
    assert run.predictions[6, "test"].hit.sum() == last["num_correct"]
    assert data.idk_phrase == "No idea"
    assert data.durations == (3, 6)
    dev = [r["num_correct"] for r in table if (r["split"], r["category"]) == ("dev", "all")]
    assert run.early_epoch == 1 + dev.index(max(dev))


def test_unchanged_report_is_kept_and_a_stale_one_is_rebuilt(study: Folder, tmp_path: Path) -> None:
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


def test_annotated_study_without_runs_has_a_partial_report(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_annotation(study, question_rows(60), labels_mode=True)
    manifest = make_report(study, ReportConfig())
    text = study.child("report").read_bytes("index.html").decode()
    assert "Not shown" in text
    assert "Not shown: needs a finished sweep over variants with a share of Unknown rows" in text
    assert "When to stop is not known yet: needs runs at 1 or more shares of Unknown rows" in text
    assert manifest.counts["holds"] == 1  # E2, the categories
    assert manifest.counts["not_testable"] == 24


def test_unfinished_run_is_ignored(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = question_rows(60)
    write_annotation(study, rows)
    entry = write_variants(study, 50)["unknown-050"]
    write_run(study, "unknown-050", entry, 0, rows, 3)
    study.child("runs", "unknown-050-seed0").delete("manifest.json")
    assert make_report(study, ReportConfig()).counts["runs"] == 0


def test_without_a_knowledge_table_the_error_names_the_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="slick annotate"):
        make_report(Folder(str(tmp_path)), ReportConfig())


def test_missing_file_of_a_finished_run_is_an_error(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = question_rows(60)
    write_annotation(study, rows)
    write_run(study, "unknown-050", write_variants(study, 50)["unknown-050"], 0, rows, 3)
    study.child("runs", "unknown-050-seed0").delete("epochs.parquet")
    with pytest.raises(StudyError, match=r"epochs\.parquet does not exist"):
        make_report(study, ReportConfig())
    assert not study.child("report").exists("manifest.json")


def test_runs_with_other_training_settings_do_not_count_as_seeds(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = question_rows(24)
    write_annotation(study, rows)
    entry = write_variants(study, 20)["unknown-050"]
    for run_id in ("unknown-050-seed3", "unknown-050-seed3-learning_rate=1e-05", "unknown-000-seed0-epochs3"):
        write_run(study, "unknown-050", entry, 0, rows, 3)
        Path(study.local_path, "runs", "unknown-050-seed0").rename(Path(study.local_path, "runs", run_id))
    runs = [(run.run_id, run.variant, run.seed) for run in load_study(study).runs]
    assert runs == [("unknown-000-seed0-epochs3", "unknown-000", 0), ("unknown-050-seed3", "unknown-050", 3)]
    Path(study.local_path, "runs", "unknown-050-seed3").rename(Path(study.local_path, "runs", "best"))
    with pytest.raises(StudyError, match="runs/best is not a run: expected a name VARIANT-seedN"):
        load_study(study)


def test_heat_map_shows_the_number_of_each_cell(study: Folder) -> None:
    svg = study.child("report", "figures").read_bytes("response_surface.svg").decode()
    table = study.child("report", "tables").read_bytes("response_surface.csv").decode().splitlines()[1:]
    assert len(table) == len(SHARES) * 2
    texts = re.findall(r">(\d+\.\d)</text>", svg)
    assert sorted(texts) == sorted(f"{round1(float(row.split(',')[2])):.1f}" for row in table)
    assert "<image" not in svg
    assert "Epochs trained" in svg


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="num_chunks must be 2 or more"):
        ReportConfig(num_chunks=1)


def test_outcomes_are_plain_json(study: Folder) -> None:
    text = study.child("report").read_bytes("outcomes.json").decode()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_shorter_run_is_not_used_for_convergence(study: Folder, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path / "copy"))
    shutil.copytree(study.local_path, copy.local_path)
    runs = copy.child("runs")
    short = runs.folders()[0]
    table = runs.child(short).read_table("epochs.parquet")
    runs.child(short).write_table("epochs.parquet", table.filter(pc.less(table["epoch"], 3)))
    before, after = load_study(study), load_study(copy)
    assert len(after.runs) == len(before.runs) - 1
    assert after.durations == before.durations


def test_table_of_contents_lists_every_section(study: Folder) -> None:
    page = Page(study.child("report").read_bytes("index.html").decode())
    anchors = [link[1:] for link in page.links if link.startswith("#")]
    assert set(anchors) <= set(page.ids)
    order = [anchor for anchor in page.ids if anchor in anchors and anchor in page.texts and anchor != "contents"]
    assert set(order) >= {"findings", "choice", "share", "provenance"}
    listed = [anchor for anchor in dict.fromkeys(anchors) if anchor in order]
    assert sorted(listed) == sorted(order)
    assert order.index("findings") < order.index("choice") < order.index("share") < order.index("provenance")
    for group in ("What to do", "The paper's experiments", "Findings", "Provenance"):
        assert group in page.texts["contents"]


def test_without_a_world_there_is_no_section_of_planted_facts(study: Folder) -> None:
    page = Page(study.child("report").read_bytes("index.html").decode())
    assert "planted" not in page.texts
    assert "The planted truth" not in page.texts["contents"]


def test_first_screen_has_model_questions_shares_and_findings(tmp_path: Path) -> None:
    study = write_study(tmp_path, num_test=80, num_epochs=4, world=True)
    make_report(study, ReportConfig())
    header = " ".join(Page(study.child("report").read_bytes("index.html").decode()).texts["header"].split())
    header = header.replace("\u00a0", " ")
    assert "planted world · invented facts in the relations of EntityQuestions: 80 training, 80 test, 80" in header
    assert "out-of-distribution test questions · 17 fine-tuning runs, 1 seed" in header
    assert "What the model knows: 80 training questions" in header
    assert "HighlyKnown 25 % MaybeKnown 25 % WeaklyKnown 25 % Unknown 25 %" in header
    assert "The 20 Unknown training rows by question_id (CSV)" in header
    assert "25.0 % of the training questions are Unknown (20 of 80); the nearest share of the sweep is 25 %" in header
    assert re.search(r"The paper's findings in this study \d+ hold \d+ (fail|undecided)", header)
    assert "one seed" not in header


def test_unknown_rows_csv_lists_the_unknown_training_rows(tmp_path: Path) -> None:
    rows = question_rows(12)
    study = Folder(str(tmp_path))
    write_annotation(study, rows)
    write_world(study, rows)
    make_report(study, ReportConfig())
    lines = study.child("report", "tables").read_bytes("unknown_rows.csv").decode().splitlines()
    unknown = [row for row in rows if (row["split"], row["category"]) == ("train", "Unknown")]
    assert len(unknown) == 3
    assert lines[0] == "question_id,relation,question,answer"
    assert sorted(lines[1:]) == sorted(
        f"{row['question_id']},{row['relation']},What of {row['question_id']}?,Answer {row['question_id']}"
        for row in unknown
    )


def test_without_questions_there_is_no_link_to_the_unknown_rows(study: Folder) -> None:
    assert "unknown_rows.csv" not in Page(study.child("report").read_bytes("index.html").decode()).links
    assert not study.child("report", "tables").exists("unknown_rows.csv")


def test_findings_are_listed_by_verdict_before_all_sections(study: Folder) -> None:
    text = study.child("report").read_bytes("index.html").decode()
    outcomes = study.child("report").read_json("outcomes.json")
    section = text[text.index('<section id="findings"') : text.index('<section id="choice"')]
    badges = re.findall(r'<span class="badge [a-z-]+">(\d+) ([a-z ]+)</span>', section)
    holds = sum(outcome["holds"] is True for outcome in outcomes)
    assert badges[0] == (str(holds), "hold")
    assert sum(int(num) for num, _ in badges) == len(outcomes) == section.count('<summary class="claim">')
    assert not re.search(r'<summary class="claim">E\d', section)


def test_sections_beyond_the_paper_are_folded_with_their_result(study: Folder) -> None:
    text = study.child("report").read_bytes("index.html").decode()
    for name in ("fit_times", "retention", "stability", "provenance"):
        section = text[text.index(f'<section id="{name}"') :].partition("</section>")[0]
        summary = re.search(r'<details class="fold"><summary><h2>[^<]+</h2><p class="result">([^<]+)</p>', section)
        assert summary is not None, name
        assert len(summary[1]) > 20
    for name in ("choice", "share", "idk"):
        assert 'class="fold"' not in text[text.index(f'<section id="{name}"') :].partition("</section>")[0]


def test_every_section_has_a_sentence_of_result(study: Folder) -> None:
    text = study.child("report").read_bytes("index.html").decode()
    sections = re.findall(r'<section id="(\w+)"(.*?)</section>', text, re.DOTALL)
    shown = [name for name, content in sections if "<figure" in content and "Not shown" not in content]
    assert len(shown) > 8
    assert [name for name, content in sections if name in shown and '<p class="result">' not in content] == []


def test_visible_text_has_no_code_names(study: Folder) -> None:
    page = Page(study.child("report").read_bytes("index.html").decode())
    texts = " ".join(page.texts[name] for name in page.texts if name not in ("provenance",))
    for name in ("unknown_ratio", "p_true", "D_loses", "best_dev", "fixed(", "patience(", "fall_at", "early_stop"):
        assert name not in texts, name


@pytest.mark.slow
def test_report_that_fails_keeps_the_previous_one(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    make_report(study, ReportConfig())
    report = study.child("report")
    before = {name: report.child(*name.split("/")[:-1]).read_bytes(name.split("/")[-1]) for name in report.sizes()}
    assert before
    annotate = study.child("annotate")
    known = annotate.read_table("knowledge.parquet")
    bad = pa.array(["Known?", *known["category"].to_pylist()[1:]])
    annotate.write_table("knowledge.parquet", known.set_column(known.column_names.index("category"), "category", bad))
    with pytest.raises(StudyError, match="column category holds"):
        make_report(study, ReportConfig(title="new"))
    after = {name: report.child(*name.split("/")[:-1]).read_bytes(name.split("/")[-1]) for name in report.sizes()}
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
def test_report_of_other_code_is_rebuilt_and_keeps_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = write_study(tmp_path)
    before = make_report(study, ReportConfig())
    with caplog.at_level("INFO"):
        assert make_report(study, ReportConfig()).fingerprint == before.fingerprint
    assert "report: unchanged" in caplog.text
    study.child("report", "notes", "mine").write_bytes("a.txt", b"kept")
    study.child("report").write_bytes("stale.html", b"gone")
    monkeypatch.setattr("slick.report.step.report_code_hash", lambda: "of another version")
    assert make_report(study, ReportConfig()).fingerprint != before.fingerprint
    assert study.child("report", "notes", "mine").read_bytes("a.txt") == b"kept"
    assert not study.child("report").exists("stale.html")


@pytest.mark.slow
def test_report_shows_only_the_last_part_of_paths(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    annotate = study.child("annotate")
    manifest = annotate.read_json("manifest.json")
    manifest["settings"] |= {"model": "/home/ada.lovelace/models/llama-8b", "other": ["s3://ada.lovelace/x.zip"]}
    annotate.write_json("manifest.json", manifest)
    make_report(study, ReportConfig())
    report = study.child("report")
    for path in report.sizes():
        *folders, file = path.split("/")
        content = report.child(*folders).read_bytes(file)
        if file != "manifest.json":
            assert b"lovelace" not in content, path
            assert str(tmp_path).encode() not in content, path
    assert b"llama-8b" in report.read_bytes("index.html")
