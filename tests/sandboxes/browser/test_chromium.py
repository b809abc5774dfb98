"""What an agent reads and does in Chromium, on pages as people build them."""

from __future__ import annotations

import re
import time

import pytest
from servers import Answer
from web import Web, body, ref

from sandboxes.browser.browser import Cookie, Page, PageLimits, PageProblem
from sandboxes.browser.chromium import ChromiumBrowser
from sandboxes.faults import SandboxFault

pytestmark = pytest.mark.browser

HOME = "http://friendly.test"


def test_a_page_reads_as_lines_with_refs_in_document_order(page: Page) -> None:
    assert (page.url, page.title) == ("about:blank", "")
    page.goto(f"{HOME}/")
    assert page.title == "Talido Benu"
    assert page.snapshot() == (
        "Page: Talido Benu\nURL: http://friendly.test/\n\n"
        "# Talido Benu\n"
        "Talido Benu wrote [e1: Kovamir] in 1923, and [e2: another one].\n"
        "## Works\n"
        "- [e3: Kovamir]\n"
        "- Second\n"
        "Year | Work\n"
        "1923 | [e4: Kovamir]\n"
        "def f(x):\n"
        "    return x\n"
        "a portrait[e5: page.html]\n"
        "[e6 button: More]"
    )


def test_what_nobody_sees_is_not_read(page: Page) -> None:
    page.goto(f"{HOME}/")
    for unseen in ("not displayed", "trap", "invisible", "hidden", "folded", "decoration", "Ignore your task", "inside"):
        assert unseen not in page.snapshot()
    page.click(ref(page, "More"))
    assert "inside" in page.snapshot()


def test_links_lead_on_and_back_leads_back(page: Page) -> None:
    page.goto(f"{HOME}/")
    page.click(ref(page, "Kovamir"))
    assert page.url == f"{HOME}/kovamir"
    assert body(page) == "# Kovamir\nA novel.\n[e1: Benu]"
    page.click("e1")
    assert page.url == f"{HOME}/"
    page.back()
    page.back()
    assert page.url == f"{HOME}/"
    with pytest.raises(PageProblem, match="no page before"):
        page.back()


def test_a_form_is_filled_in_and_sent(page: Page) -> None:
    page.goto(f"{HOME}/form")
    assert body(page) == (
        '[e1 textbox "Search": old] [e2 select "Size": Small | *Large* | Huge] '
        '[e3 checkbox "New only": unchecked] [e4 radio "Kind A": checked] [e5 radio "Kind B": unchecked] '
        '[e6 textbox "Note": ] [e7 textbox "Secret": ] [e8 textbox "Day": ] [e9 textbox "Fixed": fixed] [e10 file: File] '
        "[e11 button (disabled): Later] [e12 button: Go]"
    )
    page.type("e1", "new & better")
    page.select("e2", "Small")
    page.click("e3")
    page.click("e5")
    page.type("e6", "two\nlines")
    page.type("e7", "hush")
    page.type("e8", "2024-02-29")
    said = body(page)
    for shown in (
        '"Search": new & better]',
        "*Small* | Large | Huge",
        '"New only": checked]',
        '"Kind A": unchecked] [e5 radio "Kind B": checked]',
        '"Note": two lines]',
        '"Secret": ••••]',
        '"Day": 2024-02-29]',
    ):
        assert shown in said
    assert "hush" not in said
    page.click(ref(page, "Go"))
    assert page.url.startswith(f"{HOME}/echo?q=new+%26+better&size=s&new=yes&kind=b&note=two%0D%0Alines&secret=hush")


def test_enter_sends_a_form(page: Page) -> None:
    page.goto(f"{HOME}/form")
    page.type(ref(page, "Search"), "words")
    page.press("Enter")
    assert "/echo?q=words" in page.url


def test_keys_go_to_what_was_acted_on(page: Page) -> None:
    page.goto(f"{HOME}/form")
    page.click(ref(page, "Search"))
    page.press("End")
    page.press("x")
    page.press("Shift+Tab")
    assert '"Search": oldx]' in page.snapshot()
    page.click(ref(page, "New only"))
    page.press("Space")
    page.press("Space")
    assert '"New only": checked]' in page.snapshot()


@pytest.mark.parametrize("key", ["Control+T", "F12", "Enter Enter", "", "\n", "Meta"])
def test_keys_that_are_not_an_agents_are_refused(page: Page, key: str) -> None:
    page.goto(f"{HOME}/form")
    with pytest.raises(PageProblem, match=r"no key .* press one character, or one of Enter, Tab"):
        page.press(key)


def test_an_option_is_chosen_by_label_value_or_another_case(page: Page) -> None:
    page.goto(f"{HOME}/form")
    for option, chosen in (("s", "*Small*"), ("Large", "*Large*"), (" small ", "*Small*")):
        page.select(ref(page, "Size"), option)
        assert chosen in page.snapshot()
    with pytest.raises(PageProblem, match=r'has no option "Medium": its options are Small \| Large \| Huge'):
        page.select(ref(page, "Size"), "Medium")
    with pytest.raises(PageProblem, match="e2 has that option, but it is disabled"):
        page.select(ref(page, "Size"), "Huge")


def test_what_cannot_be_done_says_what_to_do(page: Page) -> None:
    with pytest.raises(PageProblem, match="take one first"):
        page.click("e1")
    page.goto(f"{HOME}/form")
    with pytest.raises(PageProblem, match="take one first"):
        page.click("e1")
    page.snapshot()
    with pytest.raises(PageProblem, match=r"no element 'e13' in the latest snapshot: its refs are e1 to e12"):
        page.click("e13")
    for nonsense in ("", "e0", "7", "e-1", "button", "e1 e2", "e²"):
        with pytest.raises(PageProblem, match="there is no element"):
            page.click(nonsense)
    with pytest.raises(PageProblem, match="e11 is disabled"):
        page.click("e11")
    with pytest.raises(PageProblem, match="e9 is read-only"):
        page.type("e9", "other")
    with pytest.raises(PageProblem, match="e12 is no text field"):
        page.type("e12", "text")
    with pytest.raises(PageProblem, match="e1 is no select"):
        page.select("e1", "text")
    with pytest.raises(PageProblem, match="e2 is a select: use select"):
        page.click("e2")
    with pytest.raises(PageProblem, match='e8 is a field for a date: "soon" is none'):
        page.type("e8", "soon")
    with pytest.raises(PageProblem, match="e10 takes a file"):
        page.click("e10")
    page.goto(f"{HOME}/kovamir")
    with pytest.raises(PageProblem, match="changed since the latest snapshot: take a new one"):
        page.click("e1")


def test_what_a_script_makes_clickable_has_a_ref(page: Page) -> None:
    page.goto(f"{HOME}/shop")
    said = body(page)
    assert "[e2 clickable: a row with text]" in said
    assert "[e3 button: an aria button]" in said
    assert '[e4 checkbox "fancy box": unchecked]' in said
    for one in ("e1", "e2", "e3"):
        page.click(one)
    assert "31 in the cart" in page.snapshot()
    page.click(ref(page, "fancy box"))
    assert '"fancy box": checked]' in page.snapshot()


def test_a_covered_element_is_not_clicked_through_its_cover(page: Page) -> None:
    page.goto(f"{HOME}/shop")
    with pytest.raises(PageProblem, match=r"is covered by another element \(div: a cover\)"):
        page.click(ref(page, "Below"))
    assert "0 in the cart" in page.snapshot()


def test_an_element_that_went_away_is_not_clicked(page: Page, web: Web) -> None:
    web.friendly.answers["/away"] = Answer("<button onclick='other.remove()'>one</button><button id='other'>other</button>")
    page.goto(f"{HOME}/away")
    other = ref(page, "other")
    page.click(ref(page, "one"))
    page.goto(f"{HOME}/away")
    page.snapshot()
    page.click("e1")
    with pytest.raises(PageProblem, match=f"{other} is no longer on the page: take a new snapshot"):
        page.click(other)


def test_shadow_roots_are_read_and_acted_on(page: Page) -> None:
    page.goto(f"{HOME}/shop")
    assert re.search(r"in the shadow \[e\d+ button: Shady\]\s*slotted", body(page))
    page.click(ref(page, "Shady"))
    assert "1000 in the cart" in page.snapshot()


def test_frames_are_read_in_place_and_acted_on(page: Page) -> None:
    page.goto(f"{HOME}/frames")
    inner = "inner text [e{} button: press]\nand [e{}: on]\n"
    first, second = inner.format(2, 3), inner.format(4, 5)
    assert body(page) == f"before [e1 button: first]\n{first}between\n{second}after [e6 button: last]"
    page.click("e2")
    for _ in range(3):  # of another site, in a process of its own, and far below what is in view
        page.click("e4")
        if body(page).count("button: pressed]") == 2:
            break
        time.sleep(0.5)  # where the machine is busy, a click may come before the frame is drawn where it is now
    assert body(page).count("button: pressed]") == 2
    page.click("e5")
    assert "second inner text" in page.snapshot()
    assert page.url == f"{HOME}/frames"


@pytest.mark.parametrize(
    ("element", "outcome"),
    [("fetch", "the data"), ("timers", "step 0"), ("leave", "slow page"), ("soon", "A novel.")],
)
def test_an_action_waits_for_what_it_leads_to(page: Page, element: str, outcome: str) -> None:
    page.goto(f"{HOME}/late")
    page.click(ref(page, f"button: {element}"))
    assert outcome in page.snapshot()


def test_choosing_an_option_waits_for_what_it_leads_to(page: Page) -> None:
    page.goto(f"{HOME}/late")
    page.select(ref(page, "Jump"), "there")
    assert "slow page" in page.snapshot()


@pytest.mark.parametrize("element", ["no content", "download", "mail", "restless"])
def test_an_action_that_leads_nowhere_does_not_wait_until_the_end(page: Page, element: str) -> None:
    page.goto(f"{HOME}/late")
    page.click(ref(page, element))
    assert page.url == f"{HOME}/late"
    assert "button: fetch]" in page.snapshot()


@pytest.mark.parametrize("path", ["/none", "/download"])
def test_an_address_without_a_page_says_so(page: Page, path: str) -> None:
    page.goto(f"{HOME}/kovamir")
    with pytest.raises(PageProblem, match="no page at that address"):
        page.goto(f"{HOME}{path}")
    assert "A novel." in page.snapshot()


def test_a_snapshot_keeps_to_its_budget_and_scrolling_shows_the_rest(page: Page) -> None:
    page.goto(f"{HOME}/long")
    numbers: list[int] = []
    for _ in range(100):
        said = page.snapshot(2_000)
        assert len(said) <= 2_000
        numbers += [int(number) for number in re.findall(r"paragraph (\d+) ", page.snapshot())]
        if "below are left out" not in page.snapshot():
            break
        page.scroll("down")
    assert set(numbers) == set(range(1, 401))
    page.scroll("down")
    assert "paragraph 400 " in page.snapshot()
    for _ in range(10):
        page.scroll("up")
    assert "paragraph 1 " in page.snapshot()
    assert "above are left out" not in page.snapshot()
    with pytest.raises(PageProblem, match="'up' or 'down'"):
        page.scroll("sideways")  # type: ignore[arg-type]


def test_another_page_is_shown_from_its_top(page: Page) -> None:
    page.goto(f"{HOME}/long")
    page.snapshot()
    page.scroll("down")
    assert "above are left out" in page.snapshot()
    page.goto(f"{HOME}/long?again")
    assert "above are left out" not in page.snapshot()


def test_scrolling_loads_what_a_page_loads_late(page: Page) -> None:
    page.goto(f"{HOME}/lazy")
    assert "item 50 " in page.snapshot()
    assert "item 51 " not in page.snapshot()
    for _ in range(8):
        page.scroll("down")
        page.snapshot()
    assert "item 200 " in page.snapshot()


def test_an_address_with_a_fragment_is_shown_from_there(page: Page, web: Web) -> None:
    filling = "".join(f"<p>filling {number}</p>" for number in range(1000))
    web.friendly.answers["/part"] = Answer(f"<a href='#goal'>to it</a>{filling}<h2 id='goal'>The goal</h2>{filling}")
    page.goto(f"{HOME}/part#goal")
    assert body(page).splitlines()[1] == "## The goal"
    page.goto(f"{HOME}/part?top")
    page.click(ref(page, "to it"))
    assert body(page).splitlines()[1] == "## The goal"


def test_a_large_document_is_read_in_part_and_says_so(page: Page) -> None:
    page.goto(f"{HOME}/large")
    said = page.snapshot()
    assert "[this page is longer than what is read of it: the rest is cut off]" in said
    assert len(said) <= PageLimits().snapshot


def test_a_new_tab_is_shown_and_back_returns_to_its_opener(page: Page) -> None:
    for opening in ("new tab", "window"):
        page.goto(f"{HOME}/tabs")
        page.click(ref(page, opening))
        assert page.url == f"{HOME}/kovamir"
        assert "[this is a new tab: back on its first page leads to the one before]" in page.snapshot()
        page.click(ref(page, "Benu"))
        page.back()
        assert page.url == f"{HOME}/kovamir"
        page.back()
        assert page.url == f"{HOME}/tabs"


def test_a_tab_that_closes_itself_gives_way_to_its_opener(page: Page) -> None:
    page.goto(f"{HOME}/tabs")
    page.click(ref(page, "closing"))
    deadline = time.monotonic() + 5
    while page.url != f"{HOME}/tabs" and time.monotonic() < deadline:
        page.snapshot()
    assert "button: window]" in page.snapshot()


def test_pages_share_nothing_and_begin_with_their_cookies(web: Web) -> None:
    cookie = Cookie("episode", "seven", f"{HOME}/")
    with web.browser.new_page([cookie]) as one, web.browser.new_page() as other:
        for page in (one, other):
            page.goto(f"{HOME}/cookie")
        assert body(one) == "cookie: episode=seven"
        assert body(other) == "cookie: none"
        other.goto(f"{HOME}/set-cookie")
        one.goto(f"{HOME}/cookie")
        other.goto(f"{HOME}/cookie")
        assert body(one) == "cookie: episode=seven"
        assert body(other) == "cookie: seen=1"


def test_a_page_sees_the_same_surroundings_everywhere(page: Page) -> None:
    page.goto(f"{HOME}/environment")
    assert body(page) == "1280 720 en-US UTC true"


def test_images_are_loaded_only_where_they_are_asked_for(web: Web) -> None:
    def asked() -> int:
        return sum(one.path == "/pixel" for one in web.friendly.asked)

    before = asked()
    with web.browser.new_page() as page:
        page.goto(f"{HOME}/image")
        assert asked() == before
    with ChromiumBrowser(web.policy, images=True) as browser, browser.new_page() as page:
        page.goto(f"{HOME}/image")
        page.screenshot()
        assert asked() == before + 1


def test_nothing_is_asked_that_the_page_does_not_ask(page: Page, web: Web) -> None:
    web.friendly.answers["/login"] = Answer(
        "<form method='post'><input name='user' autocomplete='username'><input type='password' name='word'>"
        "<input type='email' name='mail'><input name='street'><input name='zip'><button>Sign in</button></form>"
    )
    page.goto(f"{HOME}/login")
    page.type(ref(page, '"user"'), "somebody")
    page.type(ref(page, '"word"'), "secret")
    page.click(ref(page, "Sign in"))
    assert "left out" not in page.snapshot()


def test_a_screenshot_is_a_picture_of_the_viewport(page: Page) -> None:
    page.goto(f"{HOME}/")
    picture = page.screenshot()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")) == (1280, 720)


def test_a_closed_page_and_a_closed_browser_say_so(web: Web) -> None:
    browser = ChromiumBrowser(web.policy)
    page = browser.new_page()
    page.close()
    page.close()
    with pytest.raises(SandboxFault, match="this page is closed"):
        page.snapshot()
    left_open = browser.new_page()
    browser.close()
    browser.close()
    with pytest.raises(SandboxFault, match="this page is closed"):
        left_open.goto("about:blank")
    with pytest.raises(SandboxFault, match="this browser is closed"):
        browser.new_page()
