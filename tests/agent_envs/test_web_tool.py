"""The web tool on the small site and on another one: what the policy reads, and whose doing a failure is."""

import contextlib
import copy
import http.server
import pickle
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_parts import ENGINES, answer, browse, elements, engine_or_skip, ref_of, web_env

from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault, ForkError
from agent_envs.task import Task
from agent_envs.tasks.site import WikiSite
from agent_envs.tasks.world import make_world
from agent_envs.tools.web import WebTool
from sandboxes import shared
from sandboxes.browser.browser import PageLimits
from sandboxes.faults import SandboxFault

WORLD = make_world(0, 5)
TASK = Task("t", "q", (), {"seed": 0, "world": 5})
TITLE = next(title for title in sorted(WORLD.articles) if WORLD.articles[title].sort == "novel")
HOME = "http://wiki.test/"
ARTICLE = HOME + "wiki/" + TITLE.replace(" ", "_")


def open_tool(backend="reader", task=TASK):
    tool = WebTool(backend, WikiSite())
    tool.reset(task, np.random.default_rng(0))
    return tool


@pytest.fixture
def tool():
    tool = open_tool()
    yield tool
    tool.close()


@pytest.fixture
def other_site():
    """A site that nobody here knows, with an address and without state."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<title>Elsewhere</title><p>Hello from <a href='/more'>here</a>.</p>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("backend", ENGINES)
def test_every_action_says_what_came_of_it_and_shows_the_page(backend):
    tool = open_tool(engine_or_skip(backend))
    with contextlib.closing(tool):

        def run(**arguments):
            result = tool.run(**arguments)
            assert result.fault == "", result.text
            said, page = result.text.split("\n", 1)
            assert page.startswith("Page: ")
            return said, page

        said, page = run(action="read")
        assert (said, page.split("\n")[:2]) == ("This is the page.", ["Page: Start", f"URL: {HOME}"])
        said, page = run(action="click", ref=(ref := ref_of("Settings", page)))
        assert (said, page.split("\n")[0]) == (f"Clicked {ref}.", "Page: Settings")
        said, page = run(action="select", ref=(ref := ref_of("Theme", page)), text="Sepia")
        assert said == f"Selected in {ref}."
        assert "*Sepia*" in page
        said, page = run(action="click", ref=ref_of("Save settings", page))
        assert ", theme Sepia, " in page
        said, page = run(action="type", ref=(ref := ref_of("Search", page)), text=TITLE)
        assert said == f"Typed into {ref}."
        assert f"{ref} textbox" in page
        said, page = run(action="press", text="Enter")
        assert (said, page.split("\n")[0]) == ("Pressed the key.", "Page: Search results")
        said, page = run(action="goto", text=ARTICLE)
        assert (said, page.split("\n")[0]) == ("Opened the address.", f"Page: {TITLE}")
        said, page = run(action="back")
        assert (said, page.split("\n")[0]) == ("Went back.", "Page: Search results")
        said, page = run(action="scroll", text="down")
        assert said == "Scrolled down."
        assert tool.state()["settings"]["theme"] == "Sepia"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"action": "click"}, "click takes ref; found none"),
        ({"action": "click", "text": "e1"}, "click takes ref; found text"),
        ({"action": "click", "ref": "e1", "text": "x"}, "click takes ref; found ref and text"),
        ({"action": "type", "ref": "e1"}, "type takes ref and text; found ref"),
        ({"action": "goto"}, "goto takes text; found none"),
        ({"action": "back", "ref": "e1"}, "back takes nothing else; found ref"),
        ({"action": "scroll", "text": "left"}, "the text of scroll is up or down"),
    ],
)
def test_an_action_says_which_arguments_it_takes(tool, arguments, said):
    result = tool.run(**arguments)
    assert (result.text, result.fault) == (said, "bad_arguments")


@pytest.mark.parametrize(
    "body", ["", "{}", "[]", "e7", '{"action": "fly"}', '{"action": "click", "ref": 7}', '{"do": "read"}', "{"]
)
def test_a_body_that_is_no_call_is_a_policy_fault(body):
    env = web_env()
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(f"<browse>{body}</browse>")
    assert info["policy_fault"] == "bad_arguments"
    assert observation.startswith("browse")
    assert (reward, terminated) == (0.0, False)
    env.close()


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"action": "click", "ref": "e999"},
        {"action": "click", "ref": ""},
        {"action": "click", "ref": "button >> nth=0"},
        {"action": "type", "ref": "e1", "text": "into a link"},
        {"action": "select", "ref": "e5", "text": "into a text field"},
        {"action": "back"},
        {"action": "press", "text": "NoSuchKey"},
        {"action": "goto", "text": ""},
        {"action": "goto", "text": "file:///etc/passwd"},
        {"action": "goto", "text": "http://example.org/"},
        {"action": "goto", "text": "http://127.0.0.1:9/"},
        {"action": "goto", "text": "javascript:alert(1)"},
    ],
)
def test_what_cannot_be_done_is_an_error_and_the_page_stays(backend, arguments):
    tool = open_tool(engine_or_skip(backend))
    with contextlib.closing(tool):
        tool.run(action="read")
        result = tool.run(**arguments)
        assert result.fault == "error"
        assert not result.text.startswith("Page:")
        assert "Page: Start" in result.text
        assert tool.run(action="read").fault == ""


@pytest.mark.parametrize("text", ["\ud800", "\0", "\x1b[31m", "x" * 40_000, "\u202e", "\r\n\r\n", "%", "é" * 600])
def test_any_text_can_be_typed_and_sent(tool, text):
    page = tool.run(action="read").text
    result = tool.run(action="type", ref=ref_of("Search", page), text=text)
    assert result.fault in ("", "error")
    assert tool.run(action="press", text="Enter").fault in ("", "error")
    assert tool.run(action="goto", text=HOME + text).fault in ("", "error")
    assert tool.run(action="read").fault == ""


@pytest.mark.parametrize("backend", ENGINES)
def test_a_note_with_markup_is_shown_as_text(backend):
    text = "<script>document.title = 'Owned'</script><b>bold</b> </textarea><button>Confirm</button>"
    tool = open_tool(engine_or_skip(backend))
    with contextlib.closing(tool):
        page = tool.run(action="goto", text=ARTICLE).text
        buttons = [label for _, role, label, _ in elements(page) if role == "button"]
        tool.run(action="type", ref=ref_of("Note", page), text=text)
        page = tool.run(action="click", ref=ref_of("Save note", page)).text
        assert f"Page: {TITLE}\n" in page
        assert f"\n{text}\n" in page
        assert [label for _, role, label, _ in elements(page) if role == "button"] == buttons
        assert tool.state()["notes"][TITLE] == text


def site_threads():
    return [thread for thread in threading.enumerate() if thread.name == "site"]


def test_nothing_opens_before_the_first_call_and_nothing_stays_after_close():
    tool = open_tool()
    assert not site_threads()
    tool.run(action="read")
    assert len(site_threads()) == 1
    tool.close()
    tool.close()
    assert not site_threads()
    assert tool.run(action="read").fault == ""
    tool.close()


def test_the_state_of_an_episode_without_a_call_is_the_initial_one(tool):
    untouched = tool.state()
    tool.run(action="read")
    assert tool.state() == untouched
    page = tool.run(action="goto", text=ARTICLE).text
    tool.run(action="click", ref=ref_of("Add to reading list", page))
    assert TITLE in tool.state()["reading_list"]
    assert TITLE not in untouched["reading_list"]


def test_a_new_episode_finds_a_new_page_and_a_new_session(tool):
    untouched = tool.state()
    page = tool.run(action="goto", text=ARTICLE).text
    tool.run(action="click", ref=ref_of("Add to reading list", page))
    changed, opened, key = tool.state(), tool._opened, tool._session
    tool.reset(TASK, np.random.default_rng(0))
    assert tool.state() == untouched != changed
    with pytest.raises(SandboxFault):
        opened.state(key)  # sessions do not pile up
    result = tool.run(action="back")
    assert result.fault == "error"
    assert "Page: Start" in result.text
    tool.reset(Task("t", "q", (), {"seed": 0, "world": 6}), np.random.default_rng(0))
    assert "Page: Not found" in tool.run(action="goto", text=ARTICLE).text


@pytest.mark.parametrize("backend", ENGINES)
def test_two_episodes_at_once_do_not_see_each_other(backend):
    first, second = open_tool(engine_or_skip(backend)), open_tool(backend)
    with contextlib.closing(first), contextlib.closing(second):
        pages = [tool.run(action="goto", text=ARTICLE).text for tool in (first, second)]
        assert pages[0] == pages[1]
        first.run(action="click", ref=ref_of("Add to reading list", pages[0]))
        assert TITLE in first.state()["reading_list"]
        assert TITLE not in second.state()["reading_list"]
        second.run(action="click", ref=ref_of("Reading list", pages[1]))
        assert TITLE not in second.run(action="read").text


def test_no_snapshot_shows_key_or_port(tool):
    tool.run(action="read")
    key, port = tool._session, next(iter(tool._opened.hosts.values())).partition(":")[2]
    for path in ("", "reading", "orders", "settings", "nothing", "list/city"):
        text = tool.run(action="goto", text=HOME + path).text
        assert key not in text
        assert port not in text


ADDRESSES = (ARTICLE, HOME + "settings", HOME + "nothing", "http://example.org/", "mailto:")
STEPS = st.one_of(
    st.tuples(st.just("click"), st.integers(0, 30)),
    st.tuples(st.just("type"), st.integers(0, 30), st.sampled_from(["read again", TITLE, "3", "<b>"])),
    st.tuples(st.just("select"), st.integers(0, 30), st.sampled_from(["Dark", "Hardcover", "Nothing"])),
    st.tuples(st.just("press"), st.just("Enter")),
    st.tuples(st.just("scroll"), st.sampled_from(["up", "down", "left"])),
    st.tuples(st.just("back")),
    st.tuples(st.just("goto"), st.sampled_from(ADDRESSES)),
)


def written(step):
    action, *rest = step
    if rest and isinstance(rest[0], int):
        rest = [{"ref": f"e{rest[0]}"}, *({"text": text} for text in rest[1:])]
    else:
        rest = [{"text": text} for text in rest]
    return browse(action=action, **{name: value for given in rest for name, value in given.items()})


def check_fork(backend, before, after):
    env = web_env(backend, max_turns=40)
    env.reset(seed=0, options={"task_id": "tiny_web:0:5:settings:0:" + _home() + "::- -"})
    for step in before:
        env.step(written(step))
    untouched = env.tools[0].state()
    twin = copy.deepcopy(env)
    assert twin.tools[0].state() == untouched
    ours = [env.step(written(step)) for step in after]
    assert twin.tools[0].state() == untouched  # what the original does, the copy does not see
    theirs = [twin.step(written(step)) for step in after]
    assert ours == theirs
    assert env.tools[0].state() == twin.tools[0].state()
    env.close()
    assert twin.step(browse(action="read"))[4]["policy_fault"] == ""
    twin.close()


def _home():
    taken = open_tool()
    with contextlib.closing(taken):
        home = taken.state()["settings"]["home_city"]
    return next(title for title in sorted(WORLD.articles) if WORLD.articles[title].sort == "city" and title != home)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=8), st.lists(STEPS, min_size=1, max_size=6))
def test_a_fork_does_what_its_original_would_have_done(before, after):
    check_fork("reader", before, after)


@pytest.mark.browser
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=5), st.lists(STEPS, min_size=1, max_size=4))
def test_a_fork_in_chromium_does_what_its_original_would_have_done(before, after):
    check_fork(engine_or_skip("chromium"), before, after)


@pytest.mark.parametrize("backend", ENGINES)
def test_any_other_site_can_be_browsed_but_not_copied(backend, other_site):
    tool = WebTool(engine_or_skip(backend), start_url=f"http://{other_site}/", allow=[other_site])
    tasks = web_env().tasks
    env = ToolEnv(tasks=tasks, tools=[tool], verifier=tasks.verifier())
    env.reset(seed=0)
    observation, *_ = env.step(browse(action="read"))
    assert "Hello from" in observation
    observation, *_, info = env.step(browse(action="goto", text=HOME))
    assert info["policy_fault"] == "error"
    with pytest.raises(ForkError):
        copy.deepcopy(env)
    with pytest.raises(ForkError, match="the site's state cannot be copied"):
        tool.fork()
    assert env.step(browse(action="read"))[4]["policy_fault"] == ""  # the episode goes on unharmed
    with pytest.raises(SandboxFault, match="cannot be read"):
        tool.state()
    env.close()


def test_a_start_page_that_does_not_open_is_no_doing_of_the_agent(other_site):
    tool = WebTool("reader", start_url="http://nowhere.test/", allow=[other_site])
    tool.reset(TASK, np.random.default_rng(0))
    with pytest.raises(SandboxFault, match=r"the start page http://nowhere\.test/ did not open"):
        tool.run(action="read")
    tool.close()


@pytest.mark.parametrize("move", [browse(action="goto", text=ARTICLE), answer("done")])
def test_a_site_that_ends_in_an_episode_is_an_environment_fault(move):
    env = web_env(kinds=["add"])
    env.reset(seed=0)
    env.step(browse(action="read"))
    env.tools[0]._opened._lease.engine.close()
    with pytest.raises(EnvironmentFault, match="reset") as caught:
        env.step(move)
    assert caught.value.retryable
    env.reset(seed=0)
    assert env.step(browse(action="read"))[4]["policy_fault"] == ""
    expert = env.oracle()
    observation, terminated, info = env.task.question, False, {}
    while not terminated:
        observation, _, terminated, _, info = env.step(expert(observation))
    assert info["success"]
    env.close()


def test_it_pickles_while_nothing_is_open(tool):
    twin = pickle.loads(pickle.dumps(WebTool("reader", WikiSite(), limits={"timeout": 3})))
    assert (twin.site, twin.limits, twin.fidelity) == (WikiSite(), PageLimits(timeout=3), "replay")
    tool.run(action="read")
    with pytest.raises(TypeError, match="close it first"):
        pickle.dumps(tool)
    tool.close()
    pickle.dumps(tool)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "a site, or a start_url"),
        ({"backend": "firefox", "start_url": HOME}, "backend must be"),
        ({"start_url": HOME, "limits": {"speed": 3}}, "limits takes the fields"),
        ({"start_url": HOME, "limits": {"timeout": 0}}, "must be above 0"),
        ({"start_url": HOME, "allow": "wiki.test"}, "allow is a list"),
        ({"start_url": HOME, "allow": ["http://wiki.test/"]}, "wiki.test"),
        ({"start_url": HOME, "options": {"hosts": {}}}, "options may be"),
    ],
)
def test_arguments_that_it_cannot_have(arguments, said):
    with pytest.raises(ValueError, match=said):
        WebTool(**arguments)


def test_close_idle_leaves_no_thread_behind(tool):
    tool.run(action="read")
    tool.close()
    shared.close_idle()
    assert not site_threads()
