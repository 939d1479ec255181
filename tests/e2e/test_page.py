"""The web page in a real browser, of a sidecar on real Triton: a surge is seen, understood, and stopped."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from tests.e2e.browser import LOW_CONTRAST, NEEDS_CHROMIUM, UNNAMED, Browser, browsing, playwright
from tests.e2e.conftest import SCREENSHOTS, Launch
from tests.e2e.daemon_setup import ADOPTED, DETECTOR, Sidecar, Traffic, answered, beside, instances, launched, traffic
from themis_triton.adapters.token_file import read_token

pytestmark = [pytest.mark.e2e, NEEDS_CHROMIUM]

SURGE_RPS = 60.0
GROWTH = "#decisions li button:has-text('grow video-')"


async def is_paused(sidecar: Sidecar) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        return bool((await client.get(f"http://{sidecar.status_address}/v1/status")).json()["paused"])


async def see_the_decision(browser: Browser) -> None:
    """The surge is in the table and the list; the decision opens with its evidence and steps, by keyboard, and closes again."""
    page = browser.page
    await browser.text("#servers", "launched")
    growth = page.locator(GROWTH).last
    await growth.focus()
    await page.keyboard.press("Enter")
    await browser.text("#decision-body", "Evidence")
    await browser.text("#decision-body .steps", "grow video-")
    await browser.text("#decision-body .steps", "Done")
    await browser.text("#decision-body", "what came of it")
    assert await page.evaluate("document.activeElement.id") == "decision-title"
    await browser.picture("page-decision")
    await page.keyboard.press("Escape")
    await playwright.expect(page.locator("#decision")).to_be_hidden()


async def ask_what_if(browser: Browser) -> None:
    """The slider asks the solver; beyond what fits the answer says so."""
    slider = browser.page.locator("#whatif-rate")
    await slider.press("Home")
    await browser.text("#whatif-answer", "At 0/s: 1 server")
    await slider.press("ArrowRight")
    await playwright.expect(browser.page.locator("#whatif-answer")).not_to_contain_text("At 0/s")
    await browser.page.locator("#whatif-rate-number").fill("5000")
    await browser.text("#whatif-answer", "At 5,000/s: no plan. At most")
    await browser.page.locator("#whatif-rate-number").fill("20")
    await browser.text("#whatif-answer", "At 20/s: 1 server")
    await browser.text("#whatif-stages", "video-detector")


async def stop_it(browser: Browser, sidecar: Sidecar) -> None:
    """Nothing is changed without the token or with another one; with it the sidecar pauses and resumes."""
    page = browser.page
    await page.click("text=Pause >> visible=true")
    await browser.text("#control-result", "Refused: enter the token first")
    await page.fill("#token", "another-token-0123456789")
    await page.click("#control-buttons button >> nth=0")
    await page.click("#confirm-yes")
    await browser.text("#control-result", "Refused: the token is not that of")
    assert not await is_paused(sidecar)
    browser.complaints.clear()  # the refusal, by the browser itself
    await page.fill("#token", read_token(sidecar.state / "token"))
    await page.click("#control-buttons button >> nth=0")
    await page.click("#confirm-yes")
    await browser.text("#control-result", "Paused: nothing is changed")
    await browser.text("#mode", "Paused")
    await browser.text("#decisions", "paused by")
    assert await is_paused(sidecar)
    await page.click("#control-buttons button:has-text('Resume')")
    await page.click("#confirm-yes")
    await browser.text("#mode", "Active")


async def pin_it(browser: Browser, sidecar: Sidecar) -> None:
    """A pinned model gets its count on every server, and a pipeline its servers, as status and page say."""
    page = browser.page
    await page.fill("#control-by", "alice")
    await page.select_option("#pin-what", f"instances:{DETECTOR}")
    await page.fill("#pin-min", "3")
    await page.fill("#pin-max", "3")
    await page.click("#pin-button")
    await page.click("#confirm-yes")
    await browser.text("#banners", f"{DETECTOR} is pinned at 3 instances a server by alice")
    await sidecar.until("pinned count", lambda status: instances(status, DETECTOR) == 3)
    await page.select_option("#pin-what", "servers:video")
    await page.fill("#pin-max", "4")
    await page.click("#pin-button")
    await page.click("#confirm-yes")
    await browser.text("#control-result", "servers: 3 to 4 is invalid: expected 1 to 2")
    browser.complaints.clear()  # the refusal
    await page.fill("#pin-min", "2")
    await page.fill("#pin-max", "2")
    await page.click("#pin-button")
    await page.click("#confirm-yes")
    await browser.text("#pins", "video is pinned at 2 servers by alice")
    assert sidecar.command("unpin", "video").returncode == 0
    await playwright.expect(page.locator("#pins li")).to_have_count(1)


async def drain_it(browser: Browser, sidecar: Sidecar, load: Traffic) -> None:
    """The adopted server is drained while another one serves: it runs on, and gets no requests any more."""
    page = browser.page
    refused = sidecar.command("drain", "elsewhere")
    assert "server: 'elsewhere' is invalid: expected" in refused.stderr
    await sidecar.until("a launched server that serves", lambda status: bool(launched(status, "serving")), 60.0)
    await page.select_option("#drain-server", ADOPTED)
    await page.check("#drain-force")
    await page.fill("#control-why", "new driver")
    await page.focus("#drain-button")
    for key in ("Enter", "Tab", "Enter"):  # by keyboard alone; the question begins at its cancel button
        await page.keyboard.press(key)
    status = await sidecar.until("drain", lambda status: [drain["left"] for drain in status["overrides"]["drains"]] == [True])
    await browser.text("#drains", f"{ADOPTED} is drained by alice: new driver (it runs on, and gets no new requests)")
    await browser.text("#servers", "Drained")
    assert await page.evaluate(UNNAMED) == []
    assert await page.evaluate(LOW_CONTRAST) == []
    await browser.picture("page-controls", "#controls")
    (server,) = [each for each in status["servers"] if each["name"] == ADOPTED]
    await sidecar.until("routes without it", lambda status: status["routes_unwritten"] is None)
    await load.more(120)  # what was in flight there has ended
    ended = await answered(server)
    await load.more(60)
    assert await answered(server) == ended


async def unpin_it(browser: Browser, sidecar: Sidecar) -> None:
    """The pin ends by a click; the journal has who set it."""
    page = browser.page
    await page.click("#pins button")
    await page.click("#confirm-yes")
    await browser.text("#control-result", "no longer pinned")
    await sidecar.until("end of the pin", lambda status: not status["overrides"]["bounds"])
    pinned = [f"{DETECTOR} is pinned at 3 instances a server by alice", "video is pinned at 2 servers by alice"]
    assert sidecar.journal("select sentence from ticks where reason = 'pinned' order by seq") == [(words,) for words in pinned]


async def fits_everyone(browser: Browser) -> None:
    """Light, dark and narrow: enough contrast, a name for every control, nothing beyond the edge."""
    page = browser.page
    assert await page.evaluate(UNNAMED) == []
    assert await page.evaluate(LOW_CONTRAST) == []
    await browser.picture("page-light")
    await page.click("#theme")
    await page.click("#theme")
    await browser.text("#theme", "dark")
    assert await page.evaluate(LOW_CONTRAST) == []
    await browser.picture("page-dark")
    await page.set_viewport_size({"width": 390, "height": 844})
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    await browser.picture("page-narrow")
    await page.set_viewport_size({"width": 1280, "height": 900})


def record(sidecar: Sidecar, folder: Path) -> None:
    """Keep the status, and the decision that grew the fleet, for the tests and the picture of `themis top`."""
    with httpx.Client(trust_env=False, base_url=f"http://{sidecar.status_address}/v1") as client:
        status = client.get("/status").json()
        growth = next(event for event in status["events"] if "grow video-" in event["sentence"])
        detail = client.get(f"/decisions/{growth['decision_id']}").json()
        rates = {row["name"]: row["rate_rps"] for row in client.get("/history", params={"range_s": 300, "points": 16}).json()["pipelines"]}
    for name, document in (("status-surge", status), ("decision-growth", detail), ("rates-surge", rates)):
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def test_a_surge_is_seen_understood_and_stopped_in_the_browser(launch: Launch, tmp_path: Path) -> None:
    with beside(launch, tmp_path) as sidecar:

        async def scenario() -> None:
            starting = asyncio.create_task(sidecar.start())
            async with browsing() as browser:
                await starting
                await browser.page.goto(f"http://{sidecar.status_address}/")
                await browser.text("#pipelines", "No traffic")
                async with traffic(sidecar, SURGE_RPS) as load:
                    await browser.text("#decisions", "grow video-")
                    if SCREENSHOTS is not None:  # a surge that has been absorbed shows more
                        state = browser.page.locator("#pipelines td[data-id=state]")
                        await playwright.expect(state).to_contain_text("Inside SLO", timeout=120_000)
                        await asyncio.to_thread(record, sidecar, Path(SCREENSHOTS))
                    await ask_what_if(browser)
                    await stop_it(browser, sidecar)
                    await pin_it(browser, sidecar)
                    await fits_everyone(browser)
                    await see_the_decision(browser)
                    await drain_it(browser, sidecar, load)
                    await unpin_it(browser, sidecar)
                    assert (await load.end()).failed == 0
                assert (browser.complaints, browser.hosts) == ([], {sidecar.status_address})
                await sidecar.kill()
                await browser.text("#headline", "The sidecar does not answer")
                await browser.text("#why", "The data on this page are from")
                status = await sidecar.start()
                assert [drain["server"] for drain in status["overrides"]["drains"]] == [ADOPTED], "it survives a restart"
                assert sidecar.command("undrain", ADOPTED).returncode == 0
                await playwright.expect(browser.page.locator("#drains li")).to_have_count(0)

        asyncio.run(scenario())
