"""The playground of a server in a browser: asked, watched, stopped, compared."""

import re

import pytest

import inward
from inward.viz.page import playground_html, playground_policy

QUESTIONS = {
    "sudoku6": "5........3..14...62...1.....62.6....",
    "stories-draft": "Once upon a time",
}
KEY = "a-key-of-tests"


@pytest.fixture(scope="module")
def thinkers():
    return {name: inward.open(name) for name in QUESTIONS}


@pytest.fixture(scope="module")
def server(browser, thinkers):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from tests.serve.live import live

    with live(thinkers, keys=(KEY,), playground=(playground_html(), playground_policy())) as found:
        yield found


@pytest.fixture
def shown(browser, server):
    """The playground with its key given, and what the browser complained of and asked for."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    policy = page.goto(server.url + "/").headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
    page.locator(".said-now", has_text="key").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").blur()
    page.locator("select[aria-label=Model] option").nth(1).wait_for(state="attached")
    yield page
    assert errors == [] and all(url.startswith((server.url, "blob:", "data:")) for url in requests)
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    context.close()


def ask(page, model, question, effort="", beside=""):
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Second model").select_option(beside)
    page.get_by_label("Effort").fill(effort)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Think").click()


def wait(page):
    page.locator("button.go:enabled").wait_for(timeout=60_000)


def test_a_puzzle_is_drawn_as_the_thinker_answers_it(shown, thinkers):
    ask(shown, "sudoku6", QUESTIONS["sudoku6"])
    wait(shown)
    digits = shown.locator(".stage .digit").all_text_contents()
    assert "".join(digits) == "".join(thinkers["sudoku6"].ask(QUESTIONS["sudoku6"]).text.split())


def test_a_story_is_said_as_the_thinker_says_it(shown, thinkers):
    ask(shown, "stories-draft", QUESTIONS["stories-draft"])
    wait(shown)
    said = shown.locator(".said-now").text_content()
    whole = thinkers["stories-draft"].ask(QUESTIONS["stories-draft"], max_new_tokens=512).text
    assert len(said) > 40 and said == whole


def test_stop_ends_the_answer_and_keeps_what_was_said(shown, server, thinkers):
    ask(shown, "stories-draft", QUESTIONS["stories-draft"])
    shown.locator(".said-now", has_text=re.compile(".{6}", re.S)).wait_for()
    with shown.expect_response("**/control") as answered:
        shown.get_by_role("button", name="Stop").click()
    assert answered.value.ok
    wait(shown)
    server.wait_until_idle()
    said = shown.locator(".said-now").text_content()
    whole = thinkers["stories-draft"].ask(QUESTIONS["stories-draft"], max_new_tokens=512).text
    assert len(said) > 5 and whole.startswith(said) and len(said) < len(whole)


def test_an_effort_that_cannot_be_kept_is_told(shown):
    ask(shown, "stories-draft", QUESTIONS["stories-draft"], effort="high")
    wait(shown)
    assert "change no word" in shown.locator(".said-now").text_content()
