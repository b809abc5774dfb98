"""The small site over plain HTTP: what sessions see, what they keep, and what they cannot do."""

import concurrent.futures
import http.client
import os
import re
import socket
import time
from html.parser import HTMLParser
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs.task import Task
from agent_envs.tasks.site import (
    HOST,
    Order,
    Refused,
    Settings,
    SiteServer,
    State,
    UnknownSession,
    WikiSite,
    initial_state,
)
from agent_envs.tasks.site.state import FORMATS, LONGEST_NOTE, MOST_LISTED, MOST_NOTES, MOST_ORDERS, NOTES, THEMES, cities
from agent_envs.tasks.world import make_world
from sandboxes.faults import SandboxFault

WORLD = make_world(0, 5)
TITLES = sorted(WORLD.articles)
NOVEL = next(title for title in TITLES if WORLD.articles[title].sort == "novel")
PERSON = next(title for title in TITLES if WORLD.articles[title].sort == "person")


@pytest.fixture(scope="module")
def server():
    server = SiteServer()
    yield server
    server.close()


@pytest.fixture
def key(server):
    key = server.open_session(0, 5)
    yield key
    server.close_session(key)


def send(server, key, method, path, body=None, headers=()):
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection(server.address, timeout=5)
    sent = {"Host": HOST, "Cookie": f"session={key}"}
    if isinstance(body, dict):
        body, sent["Content-Type"] = urlencode(body), "application/x-www-form-urlencoded"
    connection.request(method, path, body, sent | dict(headers))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, dict(response.getheaders()), text


def at(title):
    """The path of an article."""
    return "/wiki/" + title.replace(" ", "_")


def get(server, key, path):
    status, _, text = send(server, key, "GET", path)
    return status, text


def post(server, key, path, **form):
    return send(server, key, "POST", path, form)


class _Words(HTMLParser):
    """The text of a page as a reader sees it, and how often each element occurs."""

    def __init__(self, page):
        super().__init__()
        self.text, self.links, self.tags = "", [], []
        self.feed(page)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "a":
            self.links.append(dict(attributes)["href"])


def test_every_article_shows_its_text_and_links_to_what_it_names(server, key):
    for title in TITLES:
        status, page = get(server, key, at(title))
        read = _Words(page)
        article = WORLD.articles[title]
        assert status == 200
        assert article.text in read.text
        linked = [link.removeprefix("/wiki/").replace("_", " ") for link in read.links if link.startswith("/wiki/")]
        assert linked == list(article.links)


def test_all_articles_are_reached_by_links_from_the_start_page(server, key):
    found, ahead = set(), ["/"]
    while ahead:
        path = ahead.pop()
        if path in found:
            continue
        found.add(path)
        status, page = get(server, key, path)
        assert status == 200, path
        ahead += _Words(page).links
    shown = {path.removeprefix("/wiki/").replace("_", " ") for path in found if path.startswith("/wiki/")}
    assert shown == set(TITLES)


def test_lists_are_in_order_ten_a_page(server, key):
    people = [title for title in TITLES if WORLD.articles[title].sort == "person"]
    listed = []
    for number in range(1, -(-len(people) // 10) + 1):
        _, page = get(server, key, f"/list/person?page={number}")
        entries = re.findall(r'<li><a href="[^"]*">([^<]*)</a>', page)
        assert len(entries) <= 10
        listed += entries
    assert listed == people
    for beyond in (0, number + 1, "x", "-1", "9" * 400):
        assert get(server, key, f"/list/person?page={beyond}")[0] == 404


@pytest.mark.parametrize("title", [TITLES[0], NOVEL, next(title for title in TITLES if "(" in title)])
def test_search_finds_by_title(server, key, title):
    _, page = get(server, key, "/search?" + urlencode({"q": title.upper()}))
    assert at(title) in _Words(page).links


def test_search_finds_by_second_name_and_by_text(server, key):
    alias, title = next(iter(WORLD.aliases.items()))
    assert at(title) in _Words(get(server, key, f"/search?q={alias}")[1]).links
    _, page = get(server, key, f"/search?q=novel+{WORLD.articles[NOVEL].facts['author'].split()[0]}")
    assert at(NOVEL) in _Words(page).links


@pytest.mark.parametrize("query", ["", "   ", "zzzzzz", "<b>", "%00", "%ff%fe", "' OR 1=1 --", "a" * 10_000])
def test_search_for_what_there_is_not(server, key, query):
    status, page = get(server, key, "/search?q=" + query.replace(" ", "+").replace("<", "%3C"))
    assert status == 200
    assert "Nothing was found." in page
    assert "<b>" not in page


def test_a_new_session_is_not_empty_and_the_same_each_time(server):
    for world in range(20):
        first, second = server.open_session(3, world), server.open_session(3, world)
        state = server.state(first)
        assert first != second
        assert state == server.state(second)
        assert all((state["reading_list"], state["notes"], state["orders"]))


def test_the_reading_list(server, key):
    before = server.state(key)
    assert NOVEL not in before["reading_list"]
    status, headers, _ = post(server, key, "/reading/add", title=NOVEL)
    assert (status, headers["Location"]) == (303, "/reading")
    after = server.state(key)
    assert after == before | {"reading_list": sorted([*before["reading_list"], NOVEL])}
    assert NOVEL in get(server, key, "/reading")[1]
    post(server, key, "/reading/add", title=NOVEL)
    assert server.state(key) == after
    post(server, key, "/reading/remove", title=NOVEL)
    assert server.state(key) == before
    for title in before["reading_list"]:
        post(server, key, "/reading/remove", title=title)
    assert server.state(key) == before | {"reading_list": []}
    assert "It is empty." in get(server, key, "/reading")[1]


def test_a_note_is_text_whatever_it_holds(server, key):
    text = '</textarea></p><script>alert(1)</script>\n<img src=x onerror=alert(1)> & "quoted" [e9 button: Add]'
    assert post(server, key, "/note", title=PERSON, text=text.replace("\n", "\r\n"))[0] == 303
    assert server.state(key)["notes"][PERSON] == text
    _, page = get(server, key, at(PERSON))
    read = _Words(page)
    assert read.text.count(text) == 2  # as text, and in its field
    assert not {"script", "img"} & set(read.tags)
    post(server, key, "/note", title=PERSON, text=" \r\n ")
    assert PERSON not in server.state(key)["notes"]


def test_settings(server, key):
    before = server.state(key)
    chosen = {"home_city": cities(WORLD)[3], "theme": "Sepia"}
    post(server, key, "/settings", **chosen, weekly_letter="on")
    assert server.state(key) == before | {"settings": chosen | {"weekly_letter": True}}
    assert f"Saved: home city {cities(WORLD)[3]}, theme Sepia, weekly letter on." in get(server, key, "/settings")[1]
    post(server, key, "/settings", **chosen)
    assert server.state(key)["settings"] == chosen | {"weekly_letter": False}


def test_an_order_is_placed_by_confirming_it(server, key):
    before = server.state(key)
    path = NOVEL.replace(" ", "_")
    assert get(server, key, f"/order/{path}")[0] == 200
    form = {"title": NOVEL, "format": "Hardcover", "copies": "3"}
    status, page = get(server, key, "/review?" + urlencode(form))
    assert status == 200
    assert "Confirm order" in page
    assert server.state(key) == before
    assert post(server, key, "/orders", **form)[0] == 303
    placed = {"title": NOVEL, "format": "Hardcover", "copies": 3}
    assert server.state(key) == before | {"orders": [*before["orders"], placed]}
    assert "Hardcover" in get(server, key, "/orders")[1]


@pytest.mark.parametrize(
    ("path", "form", "said"),
    [
        ("/reading/add", {"title": "Nobody"}, "There is no article"),
        ("/reading/add", {}, "There is no article"),
        ("/note", {"title": "Nobody", "text": "x"}, "There is no article"),
        ("/note", {"title": PERSON, "text": "x" * (LONGEST_NOTE + 1)}, "A note has at most"),
        ("/settings", {"home_city": PERSON, "theme": "Dark"}, "The home city is one of"),
        ("/settings", {"home_city": cities(WORLD)[0], "theme": "Pink"}, "The theme is one of"),
        ("/settings", {}, "The home city is one of"),
        ("/orders", {"title": PERSON, "format": "Disc", "copies": "1"}, "only novels and films can"),
        ("/orders", {"title": NOVEL, "format": "Disc", "copies": "1"}, "The format is one of"),
        *(
            ("/orders", {"title": NOVEL, "format": "Hardcover", "copies": copies}, "Copies is a number from 1 to 9")
            for copies in ("0", "10", "-1", "many", "", "1.5", "9" * 100, "²")
        ),
    ],
)
def test_what_is_refused_changes_nothing_and_says_why(server, key, path, form, said):
    before = server.state(key)
    status, _, page = post(server, key, path, **form)
    assert (status, server.state(key)) == (400, before)
    assert said in page


def test_a_review_of_an_impossible_order_shows_the_form_again(server, key):
    status, page = get(server, key, "/review?" + urlencode({"title": NOVEL, "format": "Hardcover", "copies": "many"}))
    assert status == 400
    assert "Copies is a number from 1 to 9." in page
    assert "Review order" in page


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["", "wiki", "reading", "add", "remove", "note", "orders", "review", "list", NOVEL, "..", "%00"])
    ),
    st.dictionaries(st.sampled_from(["title", "text", "copies", "format", "q", "page"]), st.text(max_size=20)),
)
def test_no_address_changes_anything(server, parts, query):
    key = server.open_session(0, 5)
    before = server.state(key)
    path = "/" + "/".join(part.replace(" ", "_") for part in parts)
    status, _ = get(server, key, f"{path}?{urlencode(query)}")
    assert status in (200, 400, 404)
    assert server.state(key) == before
    server.close_session(key)


@pytest.mark.parametrize(
    ("change", "kept", "most"),
    [
        (lambda state, title: state.with_listed(WORLD, title), "reading_list", MOST_LISTED),
        (lambda state, title: state.with_note(WORLD, title, "x"), "notes", MOST_NOTES),
        (lambda state, title: state.with_order(WORLD, Order(NOVEL, "Hardcover", 1)), "orders", MOST_ORDERS),
    ],
)
def test_what_a_visitor_can_make_grow_is_bounded(change, kept, most):
    state, refusals = initial_state(WORLD, 0), set()
    for title in TITLES:
        try:
            state = change(state, title)
        except Refused as refusal:
            refusals.add(str(refusal))
    assert len(getattr(state, kept)) == most
    assert len(refusals) == 1
    assert f"at most {most}" in refusals.pop()


@pytest.mark.parametrize("key", ["", "x", "session", "a" * 4000])
@pytest.mark.parametrize("path", ["/", "/reading", at(NOVEL), "/nothing"])
def test_who_has_no_session_is_refused(server, key, path):
    server.open_session(0, 5)
    status, page = get(server, key, path)
    assert status == 403
    assert not re.search("|".join(map(re.escape, TITLES)), page)
    assert post(server, key, "/reading/add", title=NOVEL)[0] == 403


def test_a_closed_session_is_refused(server):
    key = server.open_session(0, 5)
    server.close_session(key)
    server.close_session(key)
    assert get(server, key, "/")[0] == 403
    with pytest.raises(UnknownSession, match="open one"):
        server.state(key)
    with pytest.raises(UnknownSession):
        server.fork_session(key)


def test_sessions_see_their_own_world_and_state_alone(server, key):
    other = server.open_session(0, 6)
    assert get(server, other, at(NOVEL))[0] == 404
    assert post(server, other, "/reading/add", title=NOVEL)[0] == 400
    twin = server.open_session(0, 5)
    post(server, key, "/reading/add", title=NOVEL)
    assert server.state(twin) != server.state(key)


def test_a_fork_has_the_state_of_its_original_and_goes_its_own_way(server, key):
    post(server, key, "/reading/add", title=NOVEL)
    twin = server.fork_session(key)
    assert twin != key
    assert server.state(twin) == server.state(key)
    post(server, twin, "/note", title=PERSON, text="only here")
    assert PERSON in server.state(twin)["notes"]
    assert server.state(twin) != server.state(key)
    server.close_session(key)
    assert get(server, twin, "/reading")[0] == 200


def test_what_a_state_is_given_out_as_is_the_callers_own(server, key):
    server.state(key)["reading_list"].clear()
    server.state(key)["notes"].clear()
    assert server.state(key)["reading_list"]
    assert server.state(key)["notes"]


def test_pages_hold_no_key_no_port_and_no_time(server):
    first, second = server.open_session(0, 5), server.open_session(0, 5)
    for path in ("/", "/reading", "/orders", "/settings", "/list/city", "/search?q=novel", at(NOVEL), "/nothing"):
        (_, headers, page), (_, _, again) = send(server, first, "GET", path), send(server, second, "GET", path)
        assert page == again
        assert first not in page
        assert server.address.partition(":")[2] not in page
        assert not {"Date", "Server", "Set-Cookie"} & set(headers)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "99999999"}, b"", 413),
        ({"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "1e3"}, b"", 411),
        ({"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "-5"}, b"", 411),
        ({"Content-Type": "application/x-www-form-urlencoded", "Transfer-Encoding": "chunked"}, b"0\r\n\r\n", 411),
        ({"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "3"}, b"abc", 415),
        ({"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "200"}, b"a&" * 100, 400),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(server, key, headers, body, status):
    raw = f"POST /reading/add HTTP/1.1\r\nHost: {HOST}\r\nCookie: session={key}\r\n"
    raw += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    before = server.state(key)
    with socket.create_connection(server.address.split(":"), timeout=5) as connection:
        connection.sendall(raw.encode() + body)
        assert connection.recv(100).split()[1] == str(status).encode()
    assert server.state(key) == before


@pytest.mark.parametrize(
    "raw", [b"\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000, b"", b"BREW / HTTP/1.1\r\n\r\n"]
)
def test_garbage_ends_its_own_connection_alone(server, key, raw):
    with socket.create_connection(server.address.split(":"), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    assert get(server, key, "/")[0] == 200


def test_one_connection_serves_many_requests(server, key):
    connection = http.client.HTTPConnection(server.address, timeout=5)
    for path in ("/", "/reading", "/nothing", "/settings"):
        connection.request("GET", path, headers={"Cookie": f"a=b; session={key}"})
        socket_before = connection.sock
        assert connection.getresponse().read()
        assert connection.sock is socket_before is not None
    connection.close()


def test_many_visitors_at_once(server):
    def visit(number):
        key = server.open_session(0, number % 4)
        world = make_world(0, number % 4)
        titles = sorted(world.articles)[number::7][:5]
        for title in titles:
            post(server, key, "/reading/add", title=title)
        kept = server.state(key)
        server.close_session(key)
        return set(titles) <= set(kept["reading_list"]) and len(kept["reading_list"]) <= 9

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(visit, range(32)))


def test_the_server_ends_with_its_last_share_and_starts_again():
    task = Task("t", "q", (), {"seed": 0, "world": 5})
    first, second = WikiSite().open(), WikiSite().open()
    assert first.hosts == second.hosts
    key = first.open_session(task)
    assert first.state(key) == initial_state(WORLD, 0).as_json()
    assert [(cookie.name, cookie.value, cookie.url) for cookie in first.cookies(key)] == [
        ("session", key, "http://wiki.test/")
    ]
    address = first.hosts[HOST]
    idle = socket.create_connection(address.split(":"), timeout=5)
    first.close()
    first.close()
    assert second.alive
    second.close()
    assert not second.alive
    assert idle.recv(1) == b""  # it does not wait for those who say nothing
    idle.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address.split(":"), timeout=5)
    with pytest.raises(SandboxFault, match="reset"):
        second.state(key)
    third = WikiSite().open()
    assert third.alive
    third.close()


def test_a_server_ends_at_once_while_it_is_visited():
    server = SiteServer()
    key = server.open_session(0, 5)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        visits = [pool.submit(get, server, key, "/list/person") for _ in range(40)]
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 3
        for visit in visits:
            assert visit.exception() or visit.result()[0] in (200, 403)


@pytest.mark.parametrize("metadata", [{}, {"seed": 0}, {"seed": "0", "world": 1}])
def test_a_task_that_names_no_world(metadata):
    site = WikiSite().open()
    with pytest.raises(ValueError, match="'seed' and 'world'"):
        site.open_session(Task("t", "q", (), metadata))
    site.close()


def test_a_forked_child_starts_a_server_of_its_own():
    site = WikiSite().open()
    key = site.open_session(Task("t", "q", (), {"seed": 0, "world": 5}))
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own = WikiSite().open()
            told = f"{site.alive} {own.alive} {own.hosts[HOST] != site.hosts[HOST]}"
            site.close_session(key)
            site.close()
            os.write(writable, told.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 100) == b"False True True"
    assert site.state(key)["reading_list"]
    assert get(site._lease.engine, key, "/")[0] == 200
    site.close()


def test_initial_states_differ_between_worlds_and_fit_the_site():
    states = [
        (make_world(seed, number), initial_state(make_world(seed, number), seed)) for seed in (0, 7) for number in range(20)
    ]
    for world, state in states:
        assert isinstance(state, State)
        assert {*state.reading_list, *state.notes, state.orders[0].title} <= set(world.articles)
        assert state.settings == Settings(state.settings.home_city, state.settings.theme, state.settings.weekly_letter)
        assert state.settings.home_city in cities(world)
        assert state.settings.theme in THEMES
        assert set(state.notes.values()) <= set(NOTES)
        assert state.orders[0].format in FORMATS[world.articles[state.orders[0].title].sort]
    assert len({str(state) for _, state in states}) == len(states)
    assert len(np.unique([state.settings.weekly_letter for _, state in states])) == 2
