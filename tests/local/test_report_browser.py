"""The report in a real browser, on a desktop, on a phone and on paper; skipped where no Chromium is installed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from slick.report import ReportConfig, make_report
from tests.local.browser import NAMES, capture_page, find_browser, page_problems
from tests.unit.report_study import write_study

DESKTOP, PHONE = (1280, False), (390, True)


@pytest.fixture(scope="module")
def browser() -> str:
    path = find_browser()
    if path is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(NAMES)}); set SLICK_CHROMIUM to the path of one")
    return path


@pytest.fixture(scope="module")
def report(browser: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The report page of a complete study of a world, and its number of figures; skipped without a browser."""
    study = write_study(tmp_path_factory.mktemp("study"), num_test=80, num_epochs=4, world=True)
    counts = make_report(study, ReportConfig()).counts
    return Path(study.child("report").local_path, "index.html"), counts["figures"]


@pytest.mark.parametrize(("width", "mobile"), [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_has_no_problems(report: tuple[Path, int], browser: str, width: int, mobile: bool) -> None:
    page, num_figures = report
    snapshot = capture_page(page, width, browser, mobile=mobile)
    assert page_problems(snapshot, num_figures) == []
    assert snapshot.layout["width"] == width
    assert len(snapshot.layout["sections"]) > 10


def test_page_has_at_most_12_screens_and_starts_with_the_decision(report: tuple[Path, int], browser: str) -> None:
    delivered = capture_page(report[0], DESKTOP[0], browser).delivered
    assert delivered["height"] <= 12 * 1000
    bottoms = [delivered["bottoms"][name] for name in (".subject", ".known", ".decision .headline", ".tally")]
    assert bottoms == sorted(bottoms)
    assert bottoms[-1] < 1000


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "figure missing": (lambda text: re.sub(r"<svg.*?</svg>", "", text, count=1, flags=re.DOTALL), "empty figure"),
    "figure empty": (
        lambda text: re.sub(r"(<svg[^>]*>).*?</svg>", r"\1</svg>", text, count=1, flags=re.DOTALL),
        "empty figure",
    ),
    "figure left out": (
        lambda text: re.sub(r'<div class="plot">.*?</svg>\s*</div>', "", text, count=1, flags=re.DOTALL),
        "figures of",
    ),
    "figure with small print": (
        lambda text: text.replace("</style>", ".plot svg text { font-size: 3px !important }</style>"),
        "px in figure",
    ),
    "overlapping text": (
        lambda text: text.replace("</style>", ".plot svg text { transform: none !important }</style>"),
        "overlapping text",
    ),
    "text cut off": (
        lambda text: text.replace("</style>", ".plot svg text { font-size: 70px !important }</style>"),
        "text cut off",
    ),
    "console error": (lambda text: text.replace("</body>", "<script>console.error('lost')</script></body>"), "lost"),
    "exception": (lambda text: text.replace("</body>", "<script>nothing.here()</script></body>"), "nothing is not"),
    "remote image": (
        lambda text: text.replace("<main", '<img src="http://images.invalid/a.png" alt=""><main'),
        "requests http://images.invalid/a.png",
    ),
    "remote style": (
        lambda text: text.replace("<style>", "<style>@import url('https://fonts.invalid/a.css');"),
        "requests https://fonts.invalid/a.css",
    ),
    "file beside it": (
        lambda text: text.replace("<main", '<img src="figures/fit_curves.png" alt=""><main'),
        "figures/fit_curves.png",
    ),
    "too wide": (lambda text: text.replace("<main", '<p style="width: 2000px">wide</p><main'), "too wide: p"),
    "table that does not scroll": (
        lambda text: text.replace("</style>", ".scroll { overflow: visible } td { min-width: 400px }</style>"),
        "too wide: t",
    ),
    "dead link": (lambda text: text.replace('href="#findings"', 'href="#gone"'), "dead link: #gone"),
    "section not listed": (lambda text: text.replace('<section id="findings"', '<section id="x"'), "contents: x"),
    "text under a floating button": (
        lambda text: text.replace("<main", '<a style="position: fixed; right: 30px; bottom: 9px">To the top</a><main'),
        "by a",
    ),
    "table cut without a cue": (
        lambda text: text.replace(
            "</style>", ".scroll { background: var(--card) !important; max-width: 300px }</style>"
        ),
        "cut without a cue",
    ),
    "table clipped in print": (
        lambda text: text.replace("</style>", "@media print { td { min-width: 300px } }</style>"),
        "clipped in print",
    ),
    "nothing printed": (
        lambda text: text.replace("</style>", "@media print { main, nav { display: none } }</style>"),
        "prints 1 pages",
    ),
}


QUICK = ("too wide", "console error")
"""Defects that `make test` checks, of the page and its code; `make test-all` checks all."""


@pytest.mark.parametrize(
    "broken", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BROKEN]
)
def test_defect_of_a_page_is_detected(report: tuple[Path, int], browser: str, broken: str, tmp_path: Path) -> None:
    change, expected = BROKEN[broken]
    page, num_figures = report
    original = page.read_text(encoding="utf-8")
    changed = change(original)
    assert changed != original
    copy = tmp_path / "index.html"
    copy.write_text(changed, encoding="utf-8")
    problems = page_problems(capture_page(copy, *DESKTOP[:1], browser), num_figures)
    assert any(expected in problem for problem in problems), f"{broken} was not detected; problems: {problems}"
