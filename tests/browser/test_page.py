"""The page in a browser whose network is off: keys, links, phones, exports, and what axe finds."""

import json

import pytest

from inward.viz.page import document
from tests.browser.conftest import AXE
from tests.viz.test_page import EVIL, grid_trace

VIEWS = {
    "huginn": "#trace=0",
    "maze": "#trace=3&step=3",
    "coconut": "#trace=4&step=8",
    "tidar": "#trace=5&step=6",
    "sudoku": "#trace=7&step=5&on=c40",
    "side": "#trace=7&view=side&step=120",
}


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_loaded_nothing_breaks_and_a_phone_need_not_scroll_aside(opened, demo, view):
    one = opened(demo, VIEWS[view])
    for width in (1200, 390, 320):
        one.page.set_viewport_size({"width": width, "height": 800})
        one.page.wait_for_timeout(60)
        assert one.page.locator(".picture").count() == 1
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    assert one.errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in one.requests)


def test_the_policy_stops_what_would_be_loaded(opened, demo):
    one = opened(demo)
    stopped = one.page.evaluate(
        "fetch('https://example.org/').then(() => 'loaded', error => 'stopped')"
    )
    assert stopped == "stopped" and any("Content Security Policy" in e for e in one.errors)


def test_texts_are_texts(opened, tmp_path):
    trace = grid_trace(note=EVIL, question=EVIL)
    trace.pieces[2], trace.model = EVIL, EVIL
    path = tmp_path / "evil.html"
    path.write_text(document([trace], title=EVIL), encoding="utf-8")
    one = opened(path)
    assert one.errors == [] and one.page.locator("img").count() == 0
    assert one.page.locator("script").count() == 2


def test_the_slider_play_and_the_keyboard_move_it(opened, demo):
    one = opened(demo, "#trace=7&step=0")
    slider, page = one.page.locator("input[type=range]"), one.page
    assert slider.input_value() == "0" and "question" in one.text(".caption")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1" and one.text(".caption").startswith("Step 1")
    assert "step=1" in page.url
    page.locator("body").click(position={"x": 2, "y": 2})
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "2"
    page.keyboard.press(" ")
    for _ in range(40):
        page.wait_for_timeout(100)
        if int(slider.input_value()) > 2:
            break
    assert int(slider.input_value()) > 2
    page.keyboard.press(" ")
    assert page.locator(".play").get_attribute("aria-label") == "Play"


def test_cells_are_walked_by_arrows_and_opened_by_enter(opened, demo):
    one = opened(demo, "#trace=7&step=5")
    page = one.page
    # one of all cells is a stop of the tab key, the others are reached from it
    assert page.locator(".stage [tabindex='0']").count() == 1
    page.locator(".stage [tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused.startswith("row 2, column 2")
    page.keyboard.press("Enter")
    assert "Row 2, column 2" in one.text(".detail")
    assert page.evaluate("document.activeElement.getAttribute('data-key')") == "c10"
    assert "on=c10" in page.url


def test_tab_reaches_everything_that_acts(opened, demo):
    one = opened(demo, "#trace=5&step=6")
    seen = set()
    for _ in range(40):
        one.page.keyboard.press("Tab")
        seen.add(
            one.page.evaluate(
                "(e => e.getAttribute('aria-label') || e.textContent)(document.activeElement)"
            )
        )
    wanted = {"Play", "One step back", "One step on", "Step", "Speed", "Guess first", "Copy link"}
    wanted |= {"Save the picture as SVG", "Save the picture as PNG", "Side by side", "sudoku9"}
    assert wanted <= seen


def test_a_link_opens_the_same_view(opened, demo):
    one = opened(demo, "#trace=4&step=8&on=h3")
    again = opened(demo, one.page.url.partition(".html")[2])
    for selector in (".caption", ".detail", ".stage", ".where"):
        assert one.text(selector) == again.text(selector)
    odd = opened(demo, "#trace=99&step=abc&on=<img>&unit=euros&view=side")
    assert odd.errors == [] and odd.page.locator(".picture").count() == 1


def test_the_answer_is_hidden_until_it_is_guessed(opened, demo):
    one = opened(demo, "#trace=7")
    page = one.page
    page.get_by_role("button", name="Guess first").click()
    assert page.locator("input[type=range]").is_disabled() and "Guess first" in one.text(".detail")
    assert page.locator(".options button").count() == 9
    page.locator(".options button").first.click()
    assert "The model:" in one.text(".guess")
    assert "You: 1" in one.text(".guess")
    page.get_by_role("button", name="Guess first").click()
    assert page.locator(".guess").is_hidden()


@pytest.mark.parametrize("view", VIEWS)
def test_pictures_leave_as_svg_and_png(opened, demo, view, tmp_path):
    one = opened(demo, VIEWS[view])
    for name, head in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with one.page.expect_download() as waiting:
            one.page.get_by_role("button", name=f"Save the picture as {name}").click()
        path = tmp_path / f"picture.{name}"
        waiting.value.save_as(path)
        whole = path.read_bytes()
        assert whole.startswith(head) and len(whole) > 2000
        if name == "SVG":  # opened by itself it needs no style sheet, and has nothing to press
            assert b"class=" not in whole and b"var(--" not in whole and b"button" not in whole
    assert one.errors == []


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(opened, demo, view):
    if not AXE.exists():
        pytest.skip("axe-core is not there; make test-browser fetches it")
    one = opened(demo, VIEWS[view])
    # from outside: a script of the page's own would not be allowed to run
    one.page.evaluate(AXE.read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        one.page.emulate_media(color_scheme=scheme)
        found = one.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        wrong = {
            row["id"]: [n["html"][:160] for n in row["nodes"][:4]] for row in found["violations"]
        }
        assert not wrong, json.dumps(wrong, indent=1)


def test_states_differ_without_colour(opened, demo):
    """Every state of a drafted token has a shape of its own."""
    one = opened(demo, "#trace=5&step=6")
    shapes = one.page.evaluate(
        """() => Object.fromEntries(['accepted', 'corrected', 'rejected', 'drafted'].map((kind) => {
             const made = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
             made.setAttribute('class', 'draft ' + kind);
             document.querySelector('.stage svg').append(made);
             const style = getComputedStyle(made);
             return [kind, style.strokeDasharray + ' ' + style.strokeWidth];
           }))"""
    )
    assert len(set(shapes.values())) == 4, shapes


def test_print_shows_the_picture_and_not_the_buttons(opened, demo):
    one = opened(demo, "#trace=7&step=5", scheme="dark")
    one.page.emulate_media(media="print")
    assert one.page.locator(".controls").is_hidden() and one.page.locator(".picture").is_visible()
    paper = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"


def test_events_one_at_a_time_draw_what_a_trace_draws(opened, demo):
    """The playground's way in: the same steps as events, and the same picture at the end."""
    one = opened(demo, "#trace=7")
    same = one.page.evaluate(
        """() => {
             const whole = JSON.parse(document.getElementById('inward-data').textContent).traces[7];
             const growing = new inward.Growing({ method: 'trm', model: whole.model,
               question: whole.question, pieces: whole.pieces, meta: whole.meta });
             for (const step of whole.steps)
               growing.feed({ kind: 'rewrite', step: step.index, tokens: step.view.grid.ids,
                 text: '', scores: step.scores });
             const root = document.createElement('div');
             document.body.append(root);
             const player = inward.mount(root, { title: 'live' });
             player.grow(0, growing.trace);
             const digits = (r) => r.querySelectorAll('.stage .digit');
             const drawn = (r) => [...digits(r)].map((digit) => digit.textContent);
             return [drawn(root).join(), drawn(document.getElementById('inward')).join()];
           }"""
    )
    assert same[0] == same[1] and len(same[0]) > 80 and one.errors == []
