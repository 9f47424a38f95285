"""The status page in a real browser: headless Chromium, without a network."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from launcher.config.gateway import Member
from launcher.gateway.settings import Key, hashed
from tests.gateway.harness import Fake, gateway, settings

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

ADMIN = "the-admins-own-long-key"
#: of a folder, where the picture in the docs is to be taken anew
PICTURE = os.environ.get("RMLAUNCH_TEST_PICTURE")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("not run here: there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for word in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                     "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
                     "window-size=1240,900", f"user-data-dir={profile}"):  # fmt: skip
            options.add_argument(f"--{word}")
        made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield made
        finally:
            made.quit()


def text(browser: webdriver.Chrome, element: str) -> str:
    return browser.find_element(By.ID, element).text


def until_in(browser: webdriver.Chrome, element: str, words: str) -> None:
    WebDriverWait(browser, 10).until(lambda _: words in text(browser, element))


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What its console says is wrong."""
    said = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in said if entry["level"] == "SEVERE"]


def test_it_shows_what_runs_and_lets_a_model_be_tried(browser: webdriver.Chrome, a: Fake, b: Fake) -> None:
    gone = Member("gone", url="http://127.0.0.1:1/v1")
    with gateway(settings({"chat-main": [a.member, b.member], "chat-old": [gone]}, {"hold_s": 0.0})) as it:
        for _ in range(5):
            it.ask("hi", model="chat-main")
        it.ask("hi", model="chat-old")
        browser.get(it.url)

        until_in(browser, "routes", "chat-main a, b priority 0 0 5 0")
        assert "chat-old gone priority 0 0 1 1" in text(browser, "routes")
        until_in(browser, "deployments", "a REMOTE")
        browser.find_element(By.ID, "send").click()
        until_in(browser, "answer", "012")
        until_in(browser, "routes", "chat-main a, b priority 0 0 6 0")
        if PICTURE:
            browser.save_screenshot(str(Path(PICTURE) / "gateway.png"))
        assert complaints(browser) == []


def test_a_failure_is_shown_and_text_is_never_markup(browser: webdriver.Chrome, a: Fake) -> None:
    with gateway(settings({"m": [a.member]})) as it:
        browser.get(it.url)
        until_in(browser, "routes", "m a priority")
        prompt = browser.find_element(By.ID, "prompt")
        prompt.clear()
        prompt.send_keys("close mid-stream")
        browser.find_element(By.ID, "send").click()

        until_in(browser, "answer", "[a: it closed the connection before its answer was whole]")
        browser.execute_script("document.title = 'x'; fill($('routes'), ['<b>a</b>'], [['<img src=x>']])")
        assert browser.find_elements(By.CSS_SELECTOR, "#routes img") == []
        complaints(browser)


def test_a_key_is_asked_for_and_kept_for_this_visit(browser: webdriver.Chrome, a: Fake) -> None:
    keys = [Key("alice", hashed("alice-has-a-long-key", ""))]
    with gateway(settings({"m": [a.member]}, keys=keys, admin_sha256=hashed(ADMIN, ""))) as it:
        browser.get(it.url)
        until_in(browser, "problem", "the admin key is needed")
        browser.find_element(By.ID, "key").send_keys(ADMIN + "\n")

        until_in(browser, "routes", "m a priority")
        browser.refresh()
        until_in(browser, "routes", "m a priority")
        assert text(browser, "problem") == ""
        complaints(browser)  # each 401 is one
