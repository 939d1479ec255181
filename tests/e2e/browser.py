"""A headless Chromium that looks at the sidecar's page; tests that need it are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import SCREENSHOTS

if TYPE_CHECKING:
    from playwright.async_api import Page

playwright = pytest.importorskip("playwright.async_api", reason="the package playwright is not installed")

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: scripts/install-browser installs it as root on Debian")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
WAIT_MS = 20_000.0

LOW_CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); const scale = text.startsWith("color(") ? 255 : 1;
    return { rgb: n.slice(0, 3).map((v) => v * scale), alpha: n[3] ?? 1 }; };
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const luminance = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.alpha > 0.9) return c.rgb; }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("[aria-hidden=true], .skip, :disabled")) continue;
    const a = luminance(parse(getComputedStyle(element).color).rgb), b = luminance(ground(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName} "${element.textContent.trim().slice(0, 40)}": ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
"""Texts whose contrast is below that of WCAG AA."""

UNNAMED = """() => [...document.querySelectorAll("button, select, input, a, [role=img]")]
  .filter((e) => e.checkVisibility() && !(e.textContent.trim() || e.ariaLabel || e.title || (e.labels && e.labels.length)))
  .map((e) => e.outerHTML.slice(0, 80))"""
"""Controls and pictures that a screen reader could not name."""


@dataclass
class Browser:
    """One page, with what it complained of and whom it asked."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    async def text(self, selector: str, words: str) -> None:
        """Wait until an element's text has these words."""
        await playwright.expect(self.page.locator(selector).first).to_contain_text(words, timeout=WAIT_MS, ignore_case=True)

    async def picture(self, name: str, section: str | None = None) -> None:
        """Save a screenshot of what is visible, or of one section, if they are wanted."""
        if SCREENSHOTS is not None and section is not None:
            await self.page.locator(section).screenshot(path=Path(SCREENSHOTS) / f"{name}.png", animations="disabled")
        elif SCREENSHOTS is not None:
            if await self.page.locator("dialog[open]").count() == 0:
                await self.page.evaluate("new Promise((then) => { scrollTo({top: 0, behavior: 'instant'}); requestAnimationFrame(then); })")
            await self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", animations="disabled")


@asynccontextmanager
async def browsing(*, width: int = 1280, height: int = 900) -> AsyncIterator[Browser]:
    """A browser with one empty page."""
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            page = await chromium.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            browser = Browser(page)
            page.on("console", lambda message: browser.complaints.append(message.text) if message.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: browser.complaints.append(str(error)))
            page.on("request", lambda request: browser.hosts.add(urlsplit(request.url).netloc))
            yield browser
        finally:
            await chromium.close()
