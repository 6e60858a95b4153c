"""A page in a real browser: what it loads, complains of and shows, asked through Chromium's DevTools protocol."""

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.waiting import TIMEOUT_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
MIN_TEXT_PX = 9.0
"""Pixels: smaller text in a figure cannot be read."""
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
    wide: shown.filter((node) => node.getBoundingClientRect().right > width + 1 &&
      (PRINTED || !scrolls(node.parentElement)) && getComputedStyle(node).position !== 'absolute').map(name),
    clipped: [...document.querySelectorAll('.scroll')].filter((box) => box.getClientRects().length &&
      box.scrollWidth > box.clientWidth + 1).map(name),
    dead: [...document.querySelectorAll('a[href^="#"]')].map((a) => a.getAttribute('href').slice(1))
      .filter((id) => !document.getElementById(id)),
    sections: [...document.querySelectorAll('section[id]')].map((one) => one.id),
    listed: [...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href').slice(1)),
  };
})()
"""


def find_browser() -> str | None:
    """Path of a Chromium: $SLICK_CHROMIUM, or the first of `NAMES` that is installed."""
    named = os.environ.get("SLICK_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class PageSnapshot:
    """What a browser saw of one page at one width."""

    complaints: list[str] = field(default_factory=list)
    """Console errors and exceptions."""
    requests: list[str] = field(default_factory=list)
    """Every address that was asked for but the page's own."""
    look: dict[str, Any] = field(default_factory=dict)
    printed: dict[str, Any] = field(default_factory=dict)
    """The same as laid out for print."""
    num_pages: int = 0


def page_problems(seen: PageSnapshot, num_figures: int) -> list[str]:
    """Everything wrong with a page; empty for a good one."""
    look, printed = seen.look, seen.printed
    found = [f"complains: {one}" for one in seen.complaints] + [f"asks for {one}" for one in seen.requests]
    if look["scrollWidth"] > look["width"]:
        found.append(f"scrolls sideways: {look['scrollWidth']} px in {look['width']}")
    found += [f"too wide: {one}" for one in look["wide"]]
    found += [f"leads nowhere: #{one}" for one in look["dead"]]
    found += [f"not in the contents: {one}" for one in look["sections"] if one not in look["listed"]]
    if len(look["plots"]) != num_figures:
        found.append(f"shows {len(look['plots'])} figures of {num_figures}")
    for plot in look["plots"]:
        if min(plot["width"], plot["height"], plot["inner"]) < 50:
            found.append(f"empty figure: {plot['name']}")
        elif plot["text"] < MIN_TEXT_PX:
            found.append(f"text of {plot['text']:.1f} px in figure: {plot['name']}")
        found += [f"text over text, {one}, in figure: {plot['name']}" for one in plot["over"]]
        found += [f"text cut off, {one!r}, in figure: {plot['name']}" for one in plot["out"]]
    found += [f"clipped in print: {one}" for one in (*printed["clipped"], *printed["wide"])]
    if seen.num_pages < 2:
        found.append(f"prints {seen.num_pages} pages")
    return found


def capture_page(page: Path, width: int, browser: str, *, mobile: bool = False) -> PageSnapshot:
    """Open a page, look at it, and print it; the network is cut off, and what the page asks of it is written down."""
    return asyncio.run(_capture_page(page, width, browser, mobile))


async def _capture_page(page: Path, width: int, browser: str, mobile: bool) -> PageSnapshot:
    seen = PageSnapshot()
    async with _session(browser) as send:
        for domain in ("Runtime", "Log", "Network", "Page"):
            await send(f"{domain}.enable")
        await send("Network.setBlockedURLs", urls=["http://*", "https://*", "ws://*", "wss://*"])
        size = {"height": 900, "deviceScaleFactor": 1}
        await send("Emulation.setDeviceMetricsOverride", width=width, mobile=mobile, **size)
        loaded = send.waiter("Page.loadEventFired")
        await send("Page.navigate", url=page.as_uri())
        await asyncio.wait_for(loaded, TIMEOUT_S)
        seen.look = await _inspect_page(send, "false")
        await send("Emulation.setEmulatedMedia", media="print")
        await send("Emulation.setDeviceMetricsOverride", width=PRINTED_WIDTH, mobile=False, **size)
        seen.printed = await _inspect_page(send, "true")
        await send("Emulation.setEmulatedMedia", media="")
        pdf = base64.b64decode((await send("Page.printToPDF", preferCSSPageSize=True))["data"])
        seen.num_pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf))
        _collect_events(send.events, page, seen)
    return seen


async def _inspect_page(send: "_Sender", printed: str) -> dict[str, Any]:
    answer = await send("Runtime.evaluate", expression=_INSPECT_SCRIPT.replace("PRINTED", printed), returnByValue=True)
    assert "exceptionDetails" not in answer, answer
    return dict(answer["result"]["value"])


def _collect_events(events: list[dict[str, Any]], page: Path, seen: PageSnapshot) -> None:
    for event in events:
        method, values = event["method"], event["params"]
        if method == "Network.requestWillBeSent" and values["request"]["url"].partition("#")[0] != page.as_uri():
            seen.requests.append(values["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            seen.complaints.append(str(values["exceptionDetails"].get("exception", {}).get("description", values)))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert", "warning"):
            seen.complaints.append(" ".join(str(one.get("value")) for one in values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            seen.complaints.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")


class _Sender:
    """Commands to one page, and the events that come back."""

    def __init__(self, socket: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._reader = asyncio.create_task(self._read())

    def waiter(self, method: str) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((method, future))
        return future

    async def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(self._answers[number], TIMEOUT_S)

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                answer = self._answers.pop(value["id"])
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
        # A session of its own, so that the browser's helpers end with it.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port = await _port(Path(profile, "DevToolsActivePort"), process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [one for one in await answer.json() if one["type"] == "page"]
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
            raise RuntimeError(f"the browser ended with status {process.returncode} before it could be asked")
        await asyncio.sleep(0.1)
    raise RuntimeError("the browser did not open its DevTools port")
