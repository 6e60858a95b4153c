"""The page of a curated file in a real browser: layout, search, filters, sorting; skipped without a Chromium."""

import json
from pathlib import Path
from typing import Any

import pytest

from slick.curation.page import write_page
from slick.types import Category
from tests.local.browser import NAMES, capture_page, evaluate_on_page, find_browser, page_problems
from tests.unit.curated_study import CODE_ROW, fact, write_curated_study
from tests.unit.test_curation_page import HOSTILE

LONG = "A question with many words. " * 40
NUM_FACTS = 120


@pytest.fixture(scope="module")
def browser() -> str:
    path = find_browser()
    if path is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(NAMES)}); set SLICK_CHROMIUM to the path of one")
    return path


@pytest.fixture(scope="module")
def page(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 120 facts, a row of code, one with a long prompt, and one with markup in all texts."""
    rows = [fact(i, kind="novel" if i % 2 else "play") for i in range(NUM_FACTS)]
    rows += [CODE_ROW, {"prompt": LONG, "completion": "x", "kind": "long"}]
    rows += [{"prompt": HOSTILE, "completion": "Ada", "kind": HOSTILE}]
    categories = [list(Category)[i % 4] for i in range(NUM_FACTS + 1)]
    curated = write_curated_study(tmp_path_factory.mktemp("study"), rows, categories, wrong=HOSTILE, group_by="kind")
    return Path(write_page(curated.study, curated.plan, curated.labels, curated.config))


@pytest.mark.parametrize(("width", "mobile"), [(1280, False), (390, True)], ids=["desktop", "phone"])
def test_page_has_no_problems(page: Path, browser: str, width: int, mobile: bool) -> None:
    snapshot = capture_page(page, width, browser, mobile=mobile)
    assert page_problems(snapshot, num_figures=2) == []


SHOWN = "[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[0].textContent)"
STATUS = "document.getElementById('status').textContent"


def change(control: str, value: str) -> str:
    """Type into the search box, or choose in a list."""
    return f"""(() => {{
      const control = document.getElementById({json.dumps(control)});
      control.value = {json.dumps(value)};
      control.dispatchEvent(new Event(control.tagName === 'INPUT' ? 'input' : 'change'));
    }})()"""


def evaluate(page: Path, browser: str, *expressions: str) -> list[Any]:
    return [value for value in evaluate_on_page(page, 1280, browser, expressions) if value is not None]


def test_search_and_filters_select_rows(page: Path, browser: str) -> None:
    total = NUM_FACTS + 3
    first, by_text, by_words, none, unknown, both, reason, by_answer = evaluate(
        page,
        browser,
        STATUS,
        *(change("search", "BOOK 117?"), SHOWN),
        *(change("search", "117 who"), SHOWN),
        *(change("search", "no such text"), SHOWN),
        *(change("search", ""), change("category", "Unknown"), STATUS),
        *(change("search", "author 107"), SHOWN),
        *(change("search", ""), change("category", ""), change("reason", "code"), SHOWN),
        *(change("reason", ""), change("search", "onerror"), STATUS),
    )
    assert first == f"50 of {total} rows shown."
    assert by_text == ["118"]
    assert by_words == ["117", "118"]
    assert none == []
    assert unknown == f"30 of 30 matching rows shown, of {total}."
    assert both == ["108"]
    assert reason == ["121"]
    assert by_answer == f"50 of 121 matching rows shown, of {total}."  # of the labelled rows


def test_rows_are_sorted_and_shown_in_steps(page: Path, browser: str) -> None:
    click = "document.querySelectorAll('#table th button')[{}].click()"
    order = "document.querySelectorAll('#table th')[{}].getAttribute('aria-sort')"
    more, all_shown, hidden, descending, label, by_share = evaluate(
        page,
        browser,
        *("document.getElementById('more').click()", f"{SHOWN}.length"),
        *("document.getElementById('more').click()", f"{SHOWN}.length"),
        "document.getElementById('more').hidden",
        *(click.format(0), f"{SHOWN}[0]", order.format(0)),
        *(click.format(4), click.format(4), f"{SHOWN}[0]"),
    )
    assert (more, all_shown, hidden) == (100, NUM_FACTS + 3, True)
    assert (descending, label) == ("123", "descending")
    assert by_share == "1"  # the first HighlyKnown row


def test_texts_are_shown_in_full_and_as_text(page: Path, browser: str) -> None:
    cell = "document.querySelector('#table tbody tr').cells[1]"
    button = f"{cell}.querySelector('button')"
    cut, expanded, text, prompt, images, scripts = evaluate(
        page,
        browser,
        change("search", "many words"),
        f"{cell}.textContent.length",
        f"{button}.focus(); document.activeElement.click(); {button}.getAttribute('aria-expanded')",
        f"{cell}.textContent",
        *(change("search", "onerror 123"), f"{cell}.firstChild.textContent"),
        "document.images.length",
        "document.scripts.length",
    )
    assert cut < 200
    assert expanded == "true"
    assert text.startswith(LONG)
    assert prompt == HOSTILE
    assert (images, scripts) == (0, 2)
