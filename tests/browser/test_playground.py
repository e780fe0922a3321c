"""The playground of a server in a browser: asked, watched, stopped, compared."""

import json
import re

import pytest

import inward
from inward.viz.page import playground_html, playground_policy
from tests.browser.conftest import AXE

HOPS = "d>b a>d c>a b>f e>j f>e g>h h>i i>c j>g | a . . . . . . . ."
GRAPH = "7_15 0_7 7_8 14_5 14_11 6_11 8_4 2_1 10_0 1_14 1_4 1_6 13_3 14_13 [Q] 12 5 [R] 2"
QUESTIONS = {
    "huginn-hops": HOPS,
    "prosqa": GRAPH,
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
    page.get_by_label("Effort", exact=True).fill(effort)
    page.get_by_label("Question", exact=True).fill(question)
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


@pytest.mark.parametrize("model", ["huginn-hops", "prosqa"])
def test_depth_and_thoughts_are_drawn_as_they_are_thought(shown, thinkers, model):
    ask(shown, model, QUESTIONS[model])
    wait(shown)
    answer = thinkers[model].ask(QUESTIONS[model])
    assert shown.locator(".said-now").text_content() == answer.text
    picture = shown.locator(".stage svg").first
    picture.wait_for()
    marks = {"huginn-hops": ".stage [class*=depth-]", "prosqa": ".stage .silence"}[model]
    assert shown.locator(marks).count() > 0
    # the last step of the slider is the whole answer
    slider = shown.locator(".controls input[type=range]").first
    assert slider.get_attribute("max") == slider.input_value() != "0"


def test_answer_now_ends_the_thinking_and_the_answer_comes(shown, server):
    """Options cannot be set here, so a puzzle without a right answer thinks to its last step."""
    shown.route("**/v1/inward/events", _thinking_long)
    ask(shown, "sudoku6", QUESTIONS["sudoku6"])
    button = shown.get_by_role("button", name="Answer now")
    shown.locator(".stage .digit").first.wait_for()
    assert button.is_enabled()
    with shown.expect_response("**/control") as answered:
        button.click()
    # (the page does not read the body, so there is none to be had of it)
    assert answered.value.ok and answered.value.request.post_data_json["action"] == "reasoning_end"
    wait(shown)
    assert button.is_disabled()
    said = shown.locator(".said-now").text_content()
    assert re.fullmatch("[1-6.]{36}", said)
    server.wait_until_idle()


def _thinking_long(route):
    """Of a puzzle that halts by itself too soon for anybody to press a button."""
    body = route.request.post_data_json
    own = {"options": {"halt": "never", "max_steps": 256}}
    route.continue_(post_data=json.dumps(body | {"inward": own}))


def test_a_model_that_does_not_think_has_nothing_to_cut_short(shown):
    ask(shown, "stories-draft", QUESTIONS["stories-draft"])
    shown.locator(".said-now", has_text=re.compile(".{6}", re.S)).wait_for()
    assert shown.get_by_role("button", name="Answer now").is_disabled()
    shown.get_by_role("button", name="Stop").click()
    wait(shown)


def test_two_models_are_told_apart(shown, thinkers):
    ask(shown, "huginn-hops", HOPS, beside="stories-draft")
    shown.get_by_role("button", name="Stop").wait_for()
    wait(shown)
    lines = shown.locator(".said-now p")
    assert lines.count() == 2
    assert lines.nth(0).text_content() == "huginn-hops" + thinkers["huginn-hops"].ask(HOPS).text
    other = thinkers["stories-draft"].ask(HOPS, max_new_tokens=512).text
    assert lines.nth(1).text_content() == "stories-draft" + other
    ask(shown, "prosqa", GRAPH, beside="huginn-hops")  # which reads no such thing
    wait(shown)
    assert lines.nth(0).text_content() == "prosqa" + thinkers["prosqa"].ask(GRAPH).text
    assert len(lines.nth(1).text_content()) > len("huginn-hops") + 10


def test_what_is_wrong_with_a_puzzle_is_told(shown):
    for puzzle, told in (
        ("12345." + "." * 11 + "6" + "." * 18, "no solution"),
        ("." * 36, "more than one answer"),
    ):
        ask(shown, "sudoku6", puzzle)
        wait(shown)
        assert told in shown.locator(".said-now").text_content()


def test_axe_finds_nothing_in_the_playground(shown):
    if not AXE.exists():
        pytest.skip("axe-core is not there; make test-browser fetches it")
    shown.evaluate(AXE.read_text(encoding="utf-8"))
    for model, beside in ((None, ""), ("sudoku6", ""), ("prosqa", "huginn-hops")):
        if model is not None:
            ask(shown, model, QUESTIONS[model], beside=beside)
            wait(shown)
        for scheme in ("light", "dark"):
            shown.emulate_media(color_scheme=scheme)
            found = shown.evaluate("axe.run(document, {resultTypes: ['violations']})")
            wrong = {
                row["id"]: [n["html"][:160] for n in row["nodes"][:4]]
                for row in found["violations"]
            }
            assert not wrong, json.dumps(wrong, indent=1)


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
