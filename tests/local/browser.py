"""Load a page in a real browser and inspect its requests, console errors and layout over the DevTools protocol."""

import asyncio
import base64
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.waiting import TIMEOUT_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
MIN_TEXT_PX = 9.0
"""Pixels: smaller text in a figure cannot be read."""
MIN_SHADE = 25.0
"""Levels of grey, of 255, by which the shadow at the edge of a cut table is darker than the table."""
_WINDOW = {"height": 900, "deviceScaleFactor": 1}
PRINTED_WIDTH = 688
"""CSS pixels of an A4 page between the margins of the style sheet, 182 mm."""

_INSPECT_SCRIPT = """
(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (node) => { for (; node; node = node.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(node).overflowX)) return true; return false; };
  const name = (node) => node.tagName.toLowerCase() + (node.id ? '#' + node.id : '') + ' "' +
    node.textContent.trim().replace(/\\s+/g, ' ').slice(0, 50) + '"';
  const shown = [...document.body.querySelectorAll('*')].filter((node) => node.getClientRects().length &&
    !node.closest('svg *'));
  const plots = [...document.querySelectorAll('.plot')].map((plot) => {
    const svg = plot.querySelector('svg'); const box = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
    const inner = svg && svg.getBBox ? svg.getBBox() : {width: 0, height: 0};
    const sizes = svg ? [...svg.querySelectorAll('text')].map((text) => {
      const scale = text.getScreenCTM();
      return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(scale.a, scale.b);
    }) : [];
    const boxes = svg ? [...svg.querySelectorAll('text')].map((text) => [text, text.getBoundingClientRect()]) : [];
    const over = boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
      Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
      Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 0.35 * Math.min(p.height, q.height))
      .map(([b]) => `"${a.textContent.trim()}" and "${b.textContent.trim()}"`));
    const out = boxes.filter(([text, p]) => p.left < box.left - 1 || p.right > box.right + 1 || p.top < box.top - 1 ||
      p.bottom > box.bottom + 1).map(([text]) => text.textContent.trim());
    return {over, out, name: (svg && svg.getAttribute('aria-label')) || name(plot.parentElement), width: box.width,
      height: box.height, inner: Math.min(inner.width, inner.height), text: sizes.length ? Math.min(...sizes) : 0};
  });
  return {
    width, scrollWidth: document.documentElement.scrollWidth, plots,
    height: document.documentElement.scrollHeight,
    bottoms: Object.fromEntries(['.subject', '.known', '.decision .headline', '.tally'].map((one) => [one,
      document.querySelector(one) ? document.querySelector(one).getBoundingClientRect().bottom + scrollY : -1])),
    cut: [...document.querySelectorAll('.scroll')].filter((box) => box.checkVisibility() &&
      box.scrollWidth > box.clientWidth + 1).map((box) => { const r = box.getBoundingClientRect();
        return {name: name(box), x: r.left + scrollX, y: r.top + scrollY, width: r.width, height: r.height}; }),
    wide: shown.filter((node) => node.getBoundingClientRect().right > width + 1 &&
      (PRINTED || !scrolls(node.parentElement)) && getComputedStyle(node).position !== 'absolute').map(name),
    clipped: [...document.querySelectorAll('.scroll')].filter((box) => box.getClientRects().length &&
      box.scrollWidth > box.clientWidth + 1).map(name),
    dead: [...document.querySelectorAll('a[href^="#"]')].map((a) => a.getAttribute('href').slice(1))
      .filter((id) => !document.getElementById(id)),
    sections: [...document.querySelectorAll('section[id]')].map((section) => section.id),
    listed: [...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href').slice(1)),
  };
})()
"""


_COVERED_SCRIPT = """
(() => {
  const covered = [];
  const clips = (node) => { const boxes = [];
    for (let one = node; one; one = one.parentElement)
      if (getComputedStyle(one).overflowX !== 'visible' && one !== document.documentElement && one !== document.body)
        boxes.push(one.getBoundingClientRect());
    return boxes; };
  const texts = []; const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.textContent.trim() && !node.parentElement.closest('svg')) texts.push(node);
  }
  for (let top = 0; top < document.documentElement.scrollHeight; top += innerHeight) {
    scrollTo({top, behavior: 'instant'});
    for (const node of texts) {
      const range = document.createRange(); range.selectNodeContents(node);
      for (const box of range.getClientRects()) {
        const x = box.left + box.width / 2, y = box.top + box.height / 2;
        if (box.width < 2 || x < 0 || y < 0 || x >= innerWidth || y >= innerHeight) continue;
        if (clips(node.parentElement).some((c) => x < c.left || x > c.right || y < c.top || y > c.bottom)) continue;
        const above = document.elementFromPoint(x, y);
        if (above && !above.contains(node.parentElement) && !node.parentElement.contains(above))
          covered.push('"' + node.textContent.trim().slice(0, 40) + '" by ' + above.tagName.toLowerCase() +
            (above.className ? '.' + above.className : ''));
      }
    }
  }
  scrollTo({top: 0, behavior: 'instant'});
  return [...new Set(covered)];
})()
"""
_OPEN_ALL_SCRIPT = "document.querySelectorAll('details').forEach((one) => { one.open = OPENED; })"


def find_browser() -> str | None:
    """Path of a Chromium: $SLICK_CHROMIUM, or the first of `NAMES` that is installed."""
    configured = os.environ.get("SLICK_CHROMIUM")
    return configured or next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class PageSnapshot:
    """A page as rendered at one width."""

    errors: list[str] = field(default_factory=list)
    """Console errors and exceptions."""
    requests: list[str] = field(default_factory=list)
    """URLs requested, except that of the page itself."""
    delivered: dict[str, Any] = field(default_factory=dict)
    """The result of `_INSPECT_SCRIPT` for the page as it is delivered, with folded parts."""
    layout: dict[str, Any] = field(default_factory=dict)
    """The same with all parts unfolded."""
    covered: list[str] = field(default_factory=list)
    """Texts under another element, with all parts unfolded."""
    without_cue: list[str] = field(default_factory=list)
    """Tables of the delivered page that overflow to the right without a visible cue."""
    printed: dict[str, Any] = field(default_factory=dict)
    """The same for print media."""
    num_pages: int = 0


def page_problems(snapshot: PageSnapshot, num_figures: int) -> list[str]:
    """Descriptions of all defects of a page; empty if it has none."""
    layout, printed = snapshot.layout, snapshot.printed
    problems = [f"console error: {error}" for error in snapshot.errors] + [
        f"requests {url}" for url in snapshot.requests
    ]
    if layout["scrollWidth"] > layout["width"]:
        problems.append(f"scrolls sideways: {layout['scrollWidth']} px in {layout['width']}")
    problems += [f"too wide: {name}" for name in layout["wide"]]
    problems += [f"dead link: #{target}" for target in layout["dead"]]
    problems += [f"not in the contents: {section}" for section in layout["sections"] if section not in layout["listed"]]
    if len(layout["plots"]) != num_figures:
        problems.append(f"shows {len(layout['plots'])} figures of {num_figures}")
    problems += [f"covered text: {text}" for text in snapshot.covered]
    problems += [f"cut without a cue: {name}" for name in snapshot.without_cue]
    for plot in layout["plots"]:
        if min(plot["width"], plot["height"], plot["inner"]) < 50:
            problems.append(f"empty figure: {plot['name']}")
        elif plot["text"] < MIN_TEXT_PX:
            problems.append(f"text of {plot['text']:.1f} px in figure: {plot['name']}")
        problems += [f"overlapping text, {texts}, in figure: {plot['name']}" for texts in plot["over"]]
        problems += [f"text cut off, {text!r}, in figure: {plot['name']}" for text in plot["out"]]
    problems += [f"clipped in print: {name}" for name in (*printed["clipped"], *printed["wide"])]
    if snapshot.num_pages < 2:
        problems.append(f"prints {snapshot.num_pages} pages")
    return problems


def capture_page(page: Path, width: int, browser: str, *, mobile: bool = False) -> PageSnapshot:
    """Load, inspect and print a page with the network blocked; requests are recorded."""
    return asyncio.run(_capture_page(page, width, browser, mobile))


def evaluate_on_page(page: Path, width: int, browser: str, expressions: Sequence[str]) -> list[Any]:
    """Load a page and evaluate JavaScript expressions in it, one after another; returns their values.

    Raises:
        AssertionError: an expression or the page throws.
    """
    return asyncio.run(_evaluate_on_page(page, width, browser, expressions))


async def _evaluate_on_page(page: Path, width: int, browser: str, expressions: Sequence[str]) -> list[Any]:
    snapshot, values = PageSnapshot(), []
    async with _session(browser) as send:
        await _load(send, page, width, mobile=False)
        for expression in expressions:
            response = await send("Runtime.evaluate", expression=expression, returnByValue=True)
            assert "exceptionDetails" not in response, response
            values.append(response["result"].get("value"))
        _collect_events(send.events, page, snapshot)
    assert not snapshot.errors, snapshot.errors
    return values


async def _load(send: "_Sender", page: Path, width: int, *, mobile: bool) -> None:
    for domain in ("Runtime", "Log", "Network", "Page"):
        await send(f"{domain}.enable")
    await send("Network.setBlockedURLs", urls=["http://*", "https://*", "ws://*", "wss://*"])
    await send("Emulation.setDeviceMetricsOverride", width=width, mobile=mobile, **_WINDOW)
    loaded = send.waiter("Page.loadEventFired")
    await send("Page.navigate", url=page.as_uri())
    await asyncio.wait_for(loaded, TIMEOUT_S)


async def _capture_page(page: Path, width: int, browser: str, mobile: bool) -> PageSnapshot:
    snapshot = PageSnapshot()
    async with _session(browser) as send:
        await _load(send, page, width, mobile=mobile)
        snapshot.delivered = await _inspect_page(send, "false")
        snapshot.without_cue = await _tables_without_cue(send, snapshot.delivered["cut"])
        await send("Runtime.evaluate", expression=_OPEN_ALL_SCRIPT.replace("OPENED", "true"))
        snapshot.layout = await _inspect_page(send, "false")
        covered = await send("Runtime.evaluate", expression=_COVERED_SCRIPT, returnByValue=True)
        snapshot.covered = covered["result"]["value"]
        await send("Runtime.evaluate", expression=_OPEN_ALL_SCRIPT.replace("OPENED", "false"))
        await send("Emulation.setEmulatedMedia", media="print")
        await send("Emulation.setDeviceMetricsOverride", width=PRINTED_WIDTH, mobile=False, **_WINDOW)
        snapshot.printed = await _inspect_page(send, "true")
        await send("Emulation.setEmulatedMedia", media="")
        pdf = base64.b64decode((await send("Page.printToPDF", preferCSSPageSize=True))["data"])
        snapshot.num_pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
        _collect_events(send.events, page, snapshot)
    return snapshot


async def _inspect_page(send: "_Sender", printed: str) -> dict[str, Any]:
    response = await send(
        "Runtime.evaluate", expression=_INSPECT_SCRIPT.replace("PRINTED", printed), returnByValue=True
    )
    assert "exceptionDetails" not in response, response
    return dict(response["result"]["value"])


async def _tables_without_cue(send: "_Sender", cut: list[dict[str, Any]]) -> list[str]:
    """Tables whose right edge is not darker than the area beside it; their text is hidden, so only a shadow counts."""
    hidden = await send(
        "Runtime.evaluate",
        expression="document.head.insertAdjacentHTML('beforeend', '<style id=hide>.scroll * "
        "{ color: transparent !important; border-color: transparent !important }</style>')",
    )
    assert "exceptionDetails" not in hidden, hidden
    names = []
    for table in cut:
        clip = {"x": table["x"], "y": table["y"], "width": table["width"], "height": table["height"], "scale": 1}
        shot = await send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("L"), dtype=float)
        edge, beside = grey[8:-8, -6:-2].mean(), grey[8:-8, -60:-50].mean()
        if edge > beside - MIN_SHADE:
            names.append(table["name"])
    await send("Runtime.evaluate", expression="document.getElementById('hide').remove()")
    return names


def _collect_events(events: list[dict[str, Any]], page: Path, snapshot: PageSnapshot) -> None:
    for event in events:
        method, values = event["method"], event["params"]
        if method == "Network.requestWillBeSent" and values["request"]["url"].partition("#")[0] != page.as_uri():
            snapshot.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            snapshot.errors.append(str(values["exceptionDetails"].get("exception", {}).get("description", values)))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert", "warning"):
            snapshot.errors.append(" ".join(str(argument.get("value")) for argument in values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            snapshot.errors.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")


class _Sender:
    """Sends DevTools commands to one page and collects its events."""

    def __init__(self, socket: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket, self._numbers = socket, itertools.count(1)
        self._responses: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._reader = asyncio.create_task(self._read())

    def waiter(self, method: str) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((method, future))
        return future

    async def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._responses[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(self._responses[number], TIMEOUT_S)

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                answer = self._responses.pop(value["id"])
                if "error" in value:
                    answer.set_exception(RuntimeError(str(value["error"])))
                else:
                    answer.set_result(value["result"])
                continue
            self.events.append(value)
            for method, future in self._waiting:
                if method == value["method"] and not future.done():
                    future.set_result(None)


@asynccontextmanager
async def _session(browser: str) -> Any:
    """A fresh browser with one empty page, killed at the end."""
    import aiohttp

    with tempfile.TemporaryDirectory(prefix="slick-browser-", ignore_cleanup_errors=True) as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        # Its own process group, so that the browser's child processes are killed with it.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port = await _port(Path(profile, "DevToolsActivePort"), process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    pages = [target for target in await response.json() if target["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0, heartbeat=None) as socket:
                    yield _Sender(socket)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _port(file: Path, process: "subprocess.Popen[bytes]") -> int:
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended with status {process.returncode} before it opened its DevTools port")
        await asyncio.sleep(0.1)
    raise RuntimeError("the browser did not open its DevTools port")
