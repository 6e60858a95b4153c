"""Markup in texts of users and models is shown on pages as text: questions, answers, names and messages."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import slick
from slick.curation.page import page_html
from slick.report import ReportConfig, make_report
from slick.report.compare import compare_studies
from slick.report.loading import load_study
from slick.report.page import Exhibit, Section, render_page
from slick.report.tables import Table
from slick.storage import Folder
from slick.study import MANIFEST
from slick.types import Category
from tests.unit.curated_study import fact, write_curated_study
from tests.unit.report_study import (
    question_rows,
    write_annotation,
    write_points,
    write_run,
    write_variants,
    write_world,
)

MARKUP = "</td></script><img src=x onerror=alert(2)><script>alert(1)</script> & \"q\" 'a' `code` $\\frac{"
TEXT_COLUMNS = {"subject", "question", "answers", "greedy_text", "sampled_text", "text", "target", "prompt"}
TEXT_COLUMNS |= {"relation", "answer", "rival"}


class Elements(HTMLParser):
    """The elements of a page and their attributes, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def check_no_markup(page: str, *, num_scripts: int = 0) -> Elements:
    elements = Elements(page)
    assert "img" not in elements.tags
    assert elements.tags.count("script") == num_scripts
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert not [value for _, value in elements.attributes if value.strip().lower().startswith(("javascript:", "data:"))]
    return elements


def add_markup(value: Any) -> Any:
    if isinstance(value, list):
        return [add_markup(item) for item in value]
    return value + MARKUP if isinstance(value, str) else value


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A finished study with a world, whose questions, answers and names have markup."""
    root = tmp_path_factory.mktemp("markup") / f"study {MARKUP.replace('/', '|')}"
    study, rows = Folder(str(root)), question_rows(60)
    write_annotation(study, rows)
    write_world(study, rows)
    entries = write_variants(study, 50)
    for name in ("unknown-000", "unknown-050"):
        write_run(study, name, entries[name], 0, rows, 3)
    write_points(study, load_study(study))
    for path in root.rglob("*.parquet"):
        table = pq.read_table(path)
        if TEXT_COLUMNS & set(table.column_names):
            rows = [
                {name: add_markup(value) if name in TEXT_COLUMNS else value for name, value in row.items()}
                for row in table.to_pylist()
            ]
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    exemplars = study.child("annotate").read_json("exemplars.json")
    study.child("annotate").write_json("exemplars.json", {add_markup(name): ids for name, ids in exemplars.items()})
    for path in root.rglob(MANIFEST):
        manifest = json.loads(path.read_text())
        manifest["settings"] |= {"model": f"org/{MARKUP}", "questions": MARKUP, "track": [MARKUP]}
        path.write_text(json.dumps(manifest))
    make_report(study, ReportConfig(title=f"Report {MARKUP}"))
    return study


@pytest.mark.slow
def test_report_shows_markup_as_text(study: Folder) -> None:
    elements = check_no_markup(study.child("report").read_bytes("index.html").decode())
    for text in (f"Report {MARKUP}", f"What of q000005?{MARKUP}", f"P17{MARKUP}"):
        assert text in elements.text, text
    assert f"org/{MARKUP}".rpartition("/")[2] in elements.text, "the model's name"


@pytest.mark.slow
def test_figures_are_xml_with_markup_as_text(study: Folder) -> None:
    figures = study.child("report", "figures")
    texts = []
    for name in figures.names(".svg"):
        root = ElementTree.fromstring(figures.read_bytes(name))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "img", "foreignObject"}, name
        texts += [text for element in root.iter() if (text := "".join(element.itertext()))]
    assert any(f"P17{MARKUP}"[:23] in text for text in texts), "a figure has the names of relations"


@pytest.mark.slow
def test_comparison_shows_names_of_studies_as_text(study: Folder, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path / f"copy {MARKUP.replace('/', '|')}"))
    shutil.copytree(study.local_path, copy.local_path)
    out = Folder(str(tmp_path / "out"))
    compare_studies([study, copy], out)
    elements = check_no_markup(out.read_bytes("index.html").decode())
    assert copy.name in elements.text


def test_curation_page_shows_names_of_the_user_as_text(tmp_path: Path) -> None:
    """The rows of the file are tested in test_curation_page.py."""
    names = {"model": f"org {MARKUP}", "data": MARKUP, "idk_phrase": MARKUP, "to": f"{MARKUP}.jsonl"}
    curated = write_curated_study(tmp_path, [fact(0), fact(1)], [Category.UNKNOWN, Category.HIGHLY_KNOWN], **names)
    page = page_html(curated.study, curated.plan, curated.labels, curated.config)
    check_no_markup(page, num_scripts=2)


def test_messages_and_captions_are_escaped() -> None:
    """Reasons of missing exhibits may have any text of a study."""
    table = Table(name="a", columns=("text", MARKUP), rows=[(MARKUP, 1)])
    exhibits = (Exhibit(caption=MARKUP, missing=MARKUP), Exhibit(caption=MARKUP, table=table, fold=True))
    section = Section(name="a", title=MARKUP, text=MARKUP, exhibits=exhibits, result=MARKUP, note=MARKUP)
    page = render_page("compare.html", title=MARKUP, headline=MARKUP, sentences=[MARKUP], sections=[section])
    elements = check_no_markup(page)
    assert elements.text.count("<script>alert(1)</script>") == 12


def test_only_styles_scripts_and_figures_of_slick_are_inserted_unescaped() -> None:
    package = Path(slick.__file__).parent
    uses = {
        path.relative_to(package).as_posix(): len(re.findall(r"\bMarkup\(|\|\s*safe\b|autoescape (false|off)", text))
        for path in [*package.rglob("*.py"), *package.rglob("*.html")]
        if "Markup(" in (text := path.read_text()) or path.suffix == ".html"
    }
    assert {name: num for name, num in uses.items() if num} == {"report/page.py": 3, "curation/page.py": 2}
