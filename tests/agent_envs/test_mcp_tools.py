"""Tools of Model Context Protocol servers: what the policy reads, whose doing a failure is, that nothing stays behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("mcp", reason="the extra agent-envs[mcp] is not installed")

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from parts import Riddles, SameString
from process_parts import alive, wait_until

from agent_envs import EnvironmentFault, ForkError, ToolEnv
from agent_envs.moves import Call
from agent_envs.tool import Tool, ToolResult
from agent_envs.tools.mcp import mcp_tools

PEER = [sys.executable, str(Path(__file__).with_name("mcp_peer.py"))]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """The file in which the peers of a test have their process ids."""
    path = tmp_path / "pids"
    path.touch()
    return path


def running(pids: Path) -> list[int]:
    return [pid for pid in map(int, pids.read_text().split()) if alive(pid)]


def peer(pids: Path, kind: str = "", **settings: Any) -> dict[str, Tool]:
    command = [*PEER, kind] if kind else PEER
    return {tool.name: tool for tool in mcp_tools(command, env={"PEER_PIDS": str(pids)}, **{"timeout": 10.0, **settings})}


@contextlib.contextmanager
def environment(tools: dict[str, Tool], *names: str) -> Iterator[ToolEnv]:
    env = ToolEnv(tasks=Riddles(), verifier=SameString(), tools=[tools[name] for name in names], max_turns=20)
    env.reset(seed=0)
    try:
        yield env
    finally:
        env.close()


def act(env: ToolEnv, name: str, **arguments: Any) -> tuple[str, str]:
    """The observation of a call, and its fault."""
    observation, _, _, _, info = env.step(env.format.write(Call(name, arguments), env.tools))
    return observation, info["policy_fault"]


def test_tools_are_what_the_server_lists(pids: Path) -> None:
    tools = peer(pids)
    assert list(tools)[:3] == ["note", "recall_all", "chance"]
    assert len(tools) == 13  # of three pages
    assert tools["note"].parameters["required"] == ["word"]
    assert tools["recall_all"].description == "All words, in the order in which they were noted. A second paragraph."
    assert wait_until(lambda: not running(pids))


def test_some_of_the_tools_under_other_names(pids: Path) -> None:
    assert list(peer(pids, only=["sleep", "note"], prefix="a.b ")) == ["a_b_sleep", "a_b_note"]
    with pytest.raises(ValueError, match=r"has the tools \['break', .*\], not \['walk'\]"):
        peer(pids, only=["walk"])
    assert wait_until(lambda: not running(pids))


def test_names_that_become_alike_are_told_apart() -> None:
    server = MCPServer("names")
    for name in ("a.b", "a-b", "a_b", "7"):
        server.add_tool(lambda: "", name=name, description="One of them.")
    with serving(server) as (url, _):
        assert [tool.name for tool in mcp_tools(url=url)] == ["a_b", "a_b_2", "a_b_3", "_7"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("picture", ToolResult("before\n[image image/png]\nafter\n[resource file:///more]\ninner text")),
        ("facts", ToolResult('{"height":3,"name":"Ö"}')),
        ("nothing", ToolResult("(no output)")),
        ("fail", ToolResult("no such thing", "error")),
        ("refuse", ToolResult("the word must be shorter", "bad_arguments")),
    ],
)
def test_what_the_policy_reads(pids: Path, name: str, expected: ToolResult) -> None:
    tools = peer(pids)
    try:
        assert tools[name].run() == expected
    finally:
        tools[name].close()


def test_the_tools_of_an_episode_share_a_session_and_the_next_finds_nothing_of_it(pids: Path) -> None:
    with environment(peer(pids), "note", "recall_all") as env:
        act(env, "note", word="one")
        act(env, "note", word="two")
        assert act(env, "recall_all") == ("one two", "")
        assert len(running(pids)) == 1
        env.reset(seed=1)
        assert act(env, "recall_all")[0] == "(no output)"
        assert len(running(pids)) == 1
    assert wait_until(lambda: not running(pids))


def test_what_no_connection_takes_is_replaced(pids: Path) -> None:
    with environment(peer(pids), "note", "recall_all") as env:
        assert act(env, "note", word="high \ud800 half") == ("1 noted", "")
        assert env.step(r"<note>low</note>")[0] == "2 noted"
        assert act(env, "recall_all")[0] == "high \ufffd half low"


def test_each_worker_of_a_vector_environment_has_its_own(pids: Path) -> None:
    def make() -> ToolEnv:
        tools = peer(pids, only=["note", "recall-all"])
        return ToolEnv(tasks=Riddles(), verifier=SameString(), tools=list(tools.values()))

    envs = gym.vector.AsyncVectorEnv([make, make])
    try:
        envs.reset(seed=0)
        envs.step(("<note>left</note>", "<note>right</note>"))
        assert tuple(envs.step(("<recall_all></recall_all>",) * 2)[0]) == ("left", "right")
        assert len(running(pids)) == 2
    finally:
        envs.close()
    assert wait_until(lambda: not running(pids))


def test_a_session_can_be_kept_over_resets(pids: Path) -> None:
    with environment(peer(pids, session="environment"), "note", "recall_all") as env:
        act(env, "note", word="one")
        env.reset(seed=1)
        assert act(env, "recall_all")[0] == "one"
    assert wait_until(lambda: not running(pids))


def test_a_call_that_takes_too_long_is_the_policys_doing(pids: Path) -> None:
    with environment(peer(pids, timeout=2.0), "sleep", "note") as env:
        begun = time.monotonic()
        assert act(env, "sleep", seconds=2.5) == ("timed out after 2 s", "timeout")
        assert 2 <= time.monotonic() - begun < 10
        time.sleep(1.0)
        assert act(env, "note", word="awake") == ("1 noted", "")
    assert wait_until(lambda: not running(pids))


def test_a_server_that_dies_is_an_environment_fault_and_a_reset_starts_another(pids: Path) -> None:
    with environment(peer(pids), "die", "note") as env:
        act(env, "note", word="one")
        with pytest.raises(
            EnvironmentFault, match=r"'die' was called \(it has ended\); it said last: .*my last words"
        ) as found:
            act(env, "die")
        assert found.value.component == "die"
        assert found.value.retryable
        env.reset(seed=0)
        assert act(env, "note", word="again") == ("1 noted", "")
    assert wait_until(lambda: not running(pids))


@pytest.mark.parametrize(
    ("name", "message"), [("break", "error -32603: out of order"), ("lie", "Invalid structured content .*'string'")]
)
def test_a_server_that_breaks_is_an_environment_fault(pids: Path, name: str, message: str) -> None:
    with environment(peer(pids), name) as env, pytest.raises(EnvironmentFault, match=message):
        act(env, name)


@pytest.mark.parametrize(
    ("settings", "message", "retryable"),
    [
        ({"command": ["/there/is/no/such/program"]}, "cannot be opened .*No such file", False),
        ({"command": [*PEER, "dumb"]}, r"cannot be opened \(it has ended\); it said last: I speak no protocol", True),
        ({"command": [*PEER, "mute"], "timeout": 0.5}, r"cannot be opened \(no answer within 0.5 s\)", True),
        ({"url": "http://127.0.0.1:1/mcp"}, "http://127.0.0.1:1/mcp cannot be opened .*attempts failed", True),
    ],
)
def test_a_server_that_cannot_be_opened(settings: dict[str, Any], message: str, retryable: bool) -> None:
    before = set(threading.enumerate())
    with pytest.raises(EnvironmentFault, match=message) as found:
        mcp_tools(**settings)
    assert found.value.retryable is retryable
    assert wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of them"),
        ({"command": ["a"], "url": "http://a"}, "one of them"),
        ({"command": "program"}, "a list such as"),
        ({"url": "host:8000"}, "such as 'http://localhost:8000/mcp'"),
        ({"command": ["a"], "headers": {"A": "b"}}, "headers are for one that has a url"),
        ({"command": ["a"], "timeout": 0}, "above 0"),
        ({"command": ["a"], "session": "turn"}, "'episode' or 'environment'"),
        ({"command": ["a"], "session": "environment", "replay": True}, "replay needs session='episode'"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mcp_tools(**settings)


def test_a_server_that_does_not_leave_is_ended(pids: Path) -> None:
    before = set(threading.enumerate())
    tools = peer(pids)
    tools["stay"].run()
    begun = time.monotonic()
    tools["stay"].close()
    assert not running(pids)
    assert time.monotonic() - begun < 14
    assert set(threading.enumerate()) <= before


def test_tools_without_a_session_pickle_and_still_share_one(pids: Path) -> None:
    tools = peer(pids)
    env = ToolEnv(tasks=Riddles(), verifier=SameString(), tools=[tools["note"], tools["recall_all"]])
    twin = pickle.loads(pickle.dumps(env))
    twin.reset(seed=0)
    act(twin, "note", word="one")
    assert act(twin, "recall_all")[0] == "one"
    with pytest.raises(TypeError, match="close them first"):
        pickle.dumps(twin.tools)
    twin.close()
    assert isinstance(pickle.loads(pickle.dumps(twin)), ToolEnv)


def test_an_episode_is_not_copied_unless_calls_can_be_made_again(pids: Path) -> None:
    with environment(peer(pids), "note", "recall_all") as env:
        act(env, "note", word="one")
        with pytest.raises(ForkError, match=r"say so by mcp_tools\(\.\.\., replay=True\)"):
            env.fork()
        assert act(env, "recall_all")[0] == "one"


def test_a_copy_has_made_the_calls_of_all_tools_in_their_order(pids: Path) -> None:
    with environment(peer(pids, replay=True), "recall_all", "fail", "note") as env:
        for word in ("one", "two"):
            act(env, "note", word=word)
            act(env, "recall_all")
            act(env, "fail")
        twin, other = copy.deepcopy(env), env.fork()
        assert len(running(pids)) == 3
        act(env, "note", word="mine")
        act(twin, "note", word="yours")
        assert act(twin, "recall_all")[0] == "one two yours"
        assert act(env, "recall_all")[0] == "one two mine"
        grandchild = twin.fork()
        twin.close()
        assert act(grandchild, "recall_all")[0] == "one two yours"
        assert act(other, "recall_all")[0] == "one two"
        grandchild.close()
        other.close()
    assert wait_until(lambda: not running(pids))


def test_a_copy_that_goes_another_way_is_refused(pids: Path) -> None:
    with environment(peer(pids, replay=True), "note", "chance") as env:
        act(env, "note", word="one")
        act(env, "chance")
        with pytest.raises(ForkError, match="call 2 of the session, of 'chance', gave another result"):
            env.fork()
        assert act(env, "note", word="two") == ("2 noted", "")
        assert len(running(pids)) == 1


def test_a_session_that_nobody_closes_ends_with_its_tools(pids: Path) -> None:
    tools = peer(pids)
    tools["note"].run(word="one")
    assert running(pids)
    del tools
    gc.collect()
    assert wait_until(lambda: not running(pids))


def test_a_program_that_closes_nothing_leaves_nothing(pids: Path) -> None:
    lines = f"""
from agent_envs.tools.mcp import mcp_tools
tools = mcp_tools({PEER!r}, env={{"PEER_PIDS": {str(pids)!r}}}, only=["note"])
print(tools[0].run(word="one").text)
"""
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 noted\n", "")
    assert wait_until(lambda: not running(pids))


def test_a_forked_child_leaves_its_parents_session_alone(pids: Path) -> None:
    tools = peer(pids)
    tools["note"].run(word="one")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            tools["note"].close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert tools["recall_all"].run() == ToolResult("one")
    tools["note"].close()
    assert wait_until(lambda: not running(pids))


# --- servers written with the official SDK


@contextlib.contextmanager
def serving(server: MCPServer) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server over HTTP, in a thread of the test's process: its address, and what ends it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        app = server.streamable_http_app()
        web = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=web.run, args=([listening],))
        thread.start()

        def stop() -> None:
            web.should_exit = True
            thread.join(10)
            assert not thread.is_alive()

        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", stop
        finally:
            stop()


def sums() -> MCPServer:
    server = MCPServer("sums")

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Adds two numbers."""
        return a + b

    @server.tool()
    def who(context: Context) -> str:
        """Who calls."""
        return (context.headers or {})["x-who"]

    return server


def test_a_server_of_the_sdk_over_http() -> None:
    before = set(threading.enumerate())
    with serving(sums()) as (url, stop):
        tools = {tool.name: tool for tool in mcp_tools(url=url, headers={"X-Who": "me"})}
        with environment(tools, "add", "who") as env:
            assert act(env, "who") == ("me", "")
            assert act(env, "add", a=2, b=3) == ("5", "")
            assert act(env, "add", a=2) == ("3", "")
            assert act(env, "add", a="two")[1] == "bad_arguments"  # found by the schema, before the server is asked
            stop()
            with pytest.raises(EnvironmentFault, match=r"the MCP server at http://127\.0\.0\.1:") as found:
                act(env, "add", a=1)
            assert found.value.retryable
    assert wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_server_of_the_sdk_over_standard_input(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(
        "from mcp.server.mcpserver import MCPServer\n"
        "server = MCPServer('double')\n"
        "@server.tool()\n"
        "def double(number: int) -> dict[str, int]:\n"
        "    'Doubles a number.'\n"
        "    return {'doubled': 2 * number}\n"
        "server.run()\n"
    )
    (tool,) = mcp_tools([sys.executable, str(program)])
    try:
        assert tool.description == "Doubles a number."
        assert '"doubled": 8' in tool.run(number=4).text
    finally:
        tool.close()


def test_the_sdk_is_asked_for_only_where_it_is_needed() -> None:
    lines = """
import sys
sys.modules["mcp"] = sys.modules["mcp_types"] = None  # as if it were not installed
import agent_envs, agent_envs.mcp
try:
    import agent_envs.tools.mcp
except ImportError as problem:
    print(problem)
"""
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("pip install 'agent-envs[mcp]'"), done
    served = lines.split("import agent_envs,")[0] + "import runpy; runpy.run_module('agent_envs.mcp', run_name='__main__')"
    command = [sys.executable, "-c", served, "--env", "MathTool-v0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'agent-envs[mcp]'" in done.stderr
