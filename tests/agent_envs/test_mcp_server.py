"""An environment served over the Model Context Protocol: the episode, the protocol around it, and the process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra agent-envs[mcp] is not installed")

import gymnasium as gym
from gymnasium.wrappers import TimeLimit
from mcp import Client, MCPError, StdioServerParameters
from parts import Broken, Dice, Riddles, SameString, divide, shout
from process_parts import alive, descendants, wait_until

import agent_envs.mcp.__main__ as command
from agent_envs import EnvironmentFault, ToolEnv
from agent_envs.mcp.episode import Episode, Reply, UsageError
from agent_envs.mcp.server import Stage, make_server
from agent_envs.tool import Tool, ToolResult, tool
from agent_envs.tools.mcp import mcp_tools

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-m", "agent_envs.mcp", "--env"]
MATH = [*SERVE, "MathTool-v0", "--task-id", "arithmetic:0:6*7"]


def environment(*tools: Tool, **settings: Any) -> ToolEnv:
    return ToolEnv(tasks=Riddles(), verifier=SameString(), tools=tools or (shout, divide), **settings)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / "result.jsonl"


# --- the episode


def test_an_episode_is_played_by_calls(result: Path) -> None:
    episode = Episode(environment(max_turns=4, system_prompt="Be brief."), task_id="riddles:0", result=result)
    assert episode.question == "Capital of France?"
    assert episode.instructions.startswith("Be brief.\n\nCapital of France?\n\n")
    assert "4 calls" in episode.instructions
    assert [offer.name for offer in episode.tools] == ["shout", "divide", "answer"]
    assert episode.call("shout", {"text": "paris"}) == Reply("PARIS")
    assert episode.call("divide", {"a": 7}) == Reply("3")
    assert results(result) == []
    assert "over" in episode.call("answer", {"text": "Paris"}).text
    assert episode.call("shout", {"text": "more"}) == Reply("the episode is over: an answer was given", refused=True)
    episode.close()
    episode.close()
    (line,) = results(result)
    assert line["reward"] == sum(line["score"].values())
    assert line["score"]["accuracy"] == 1.0
    del line["reward"], line["score"]
    assert line == {
        "environment": "ToolEnv",
        "task_id": "riddles:0",
        "success": True,
        "turns": 3,
        "tool_calls": 2,
        "environment_fault": "",
    }


def test_what_a_client_reads_does_not_tell_whether_it_was_right() -> None:
    replies = set()
    for answer in ("Paris", "Rome"):
        episode = Episode(environment(), task_id="riddles:0")
        replies.add(episode.call("answer", {"text": answer}))
    assert len(replies) == 1


def test_calls_go_wrong_as_they_do_in_the_environment() -> None:
    episode = Episode(environment(max_turns=9), task_id="riddles:0")
    assert episode.call("divide", {"a": 1, "b": 0}) == Reply("cannot divide by zero", refused=True)
    wrong = episode.call("divide", {"a": "one"})
    assert wrong.refused
    assert "'a' must be integer, found 'one'" in wrong.text
    with pytest.raises(LookupError, match=r"no tool 'walk'; there are \['shout', 'divide', 'answer'\]"):
        episode.call("walk", {})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("shout", {"text": "</shout>"}, "no action of this format means"),
        ("shout", {"word": "a"}, "shout takes text: string; there is no 'word'"),
        ("answer", {"text": "}"}, "no action of this format means"),
        ("answer", {"text": 42}, "answer takes text: string"),
        ("answer", {"text": "42", "why": "so"}, "answer takes text: string; found text, why"),
    ],
)
def test_what_the_format_cannot_express_costs_no_turn(name: str, arguments: dict[str, Any], message: str) -> None:
    episode = Episode(environment(max_turns=1), task_id="riddles:0")
    reply = episode.call(name, arguments)
    assert reply.refused
    assert message in reply.text
    assert episode.call("shout", {"text": "a"}).text.startswith("A\n")  # the only turn is still there


def test_the_last_turn_ends_it(result: Path) -> None:
    episode = Episode(environment(max_turns=2), task_id="riddles:0", result=result)
    episode.call("shout", {"text": "a"})
    assert episode.call("shout", {"text": "b"}) == Reply("B\n\nThat was the last turn; the episode is over.")
    assert episode.call("answer", {"text": "Paris"}).refused
    (line,) = results(result)
    assert (line["success"], line["score"]["accuracy"], line["turns"]) == (False, 0.0, 2)


def test_an_episode_that_is_cut_off_or_left_has_no_score(result: Path) -> None:
    cut = Episode(TimeLimit(environment(), 1), task_id="riddles:0", result=result)
    assert cut.call("shout", {"text": "a"}).text.endswith("the episode is over.")
    left = Episode(environment(), task_id="riddles:1", result=result)
    left.call("shout", {"text": "a"})
    left.close()
    untouched = Episode(environment(), task_id="riddles:2", result=result)
    untouched.close()
    assert [(line["task_id"], line["score"], line["success"]) for line in results(result)] == [
        ("riddles:0", None, None),
        ("riddles:1", None, None),
    ]


def test_an_environment_fault_is_never_a_score(result: Path) -> None:
    episode = Episode(environment(Broken(RuntimeError("smoke"))), task_id="riddles:0", result=result)
    with pytest.raises(EnvironmentFault, match="smoke"):
        episode.call("broken", {})
    assert episode.call("answer", {"text": "Paris"}) == Reply("the episode is over: the environment broke", refused=True)
    (line,) = results(result)
    assert line["environment_fault"] == "broken raised RuntimeError: smoke"
    assert (line["reward"], line["score"], line["success"]) == (None, None, None)


def test_an_episode_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"only environments of tools .* found CartPoleEnv"):
        Episode(gym.make("CartPole-v1"))
    with pytest.raises(UsageError, match="no riddle 'riddles:9'"):
        Episode(environment(), task_id="riddles:9")
    with pytest.raises(UsageError, match=r"cannot be written into .*: No such file"):
        Episode(environment(), result=tmp_path / "nowhere" / "result.jsonl")


# --- the protocol


@tool
def broken() -> str:
    """Breaks."""
    raise RuntimeError("smoke")


@pytest.fixture
def run_with_client() -> Callable[..., None]:
    """Plays against a served episode within this process, by the SDK's own client."""

    def run(env: ToolEnv, play: Callable[[Client], Any]) -> None:
        async def main() -> None:
            async with Stage(lambda: Episode(env, task_id="riddles:0")) as stage, Client(make_server(stage)) as client:
                await asyncio.wait_for(play(client), 30)

        asyncio.run(main())

    return run


def test_the_question_is_instructions_prompt_and_resource(run_with_client: Callable[..., None]) -> None:
    async def play(client: Client) -> None:
        assert "Capital of France?" in (client.instructions or "")
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["question"]
        (message,) = (await client.get_prompt("question")).messages
        assert message.content.text == client.instructions
        (resource,) = (await client.list_resources()).resources
        (contents,) = (await client.read_resource(str(resource.uri))).contents
        assert (str(resource.uri), contents.text) == ("task://question", "Capital of France?")
        for wrong in (client.get_prompt("answer"), client.read_resource("task://answer")):
            with pytest.raises(MCPError, match="there is no"):
                await wrong

    run_with_client(environment(), play)


def test_tools_schemas_and_calls(run_with_client: Callable[..., None]) -> None:
    async def play(client: Client) -> None:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert listed["divide"].input_schema == divide.parameters
        assert listed["divide"].description == "Divides two numbers."
        assert listed["answer"].input_schema["required"] == ["text"]
        done = await client.call_tool("shout", {"text": "hello"})
        assert (done.content[0].text, done.is_error) == ("HELLO", False)
        done = await client.call_tool("divide", {"a": 1, "b": 0})
        assert (done.content[0].text, done.is_error) == ("cannot divide by zero", True)
        with pytest.raises(MCPError) as refused:
            await client.call_tool("walk", {})
        assert refused.value.code == -32602
        # Two calls at once are two turns, one after the other.
        both = await asyncio.gather(*(client.call_tool("shout", {"text": word}) for word in ("one", "two")))
        assert [reply.content[0].text for reply in both] == ["ONE", "TWO"]
        assert not (await client.call_tool("answer", {"text": "Rome"})).is_error
        assert (await client.call_tool("answer", {"text": "Paris"})).is_error

    run_with_client(environment(max_turns=9), play)


def test_an_environment_fault_is_an_error_of_the_protocol(run_with_client: Callable[..., None]) -> None:
    async def play(client: Client) -> None:
        with pytest.raises(MCPError, match=r"the environment broke: .*smoke") as found:
            await client.call_tool("broken", {})
        assert found.value.code == -32603
        assert (await client.call_tool("answer", {"text": "Paris"})).is_error

    run_with_client(environment(broken), play)


def test_a_tools_thread_is_always_the_same(run_with_client: Callable[..., None]) -> None:
    class Threads(Dice):
        def run(self, *, sides: int) -> ToolResult:
            return ToolResult(threading.current_thread().name)

    async def play(client: Client) -> None:
        replies = [await client.call_tool("dice", {"sides": 6}) for _ in range(3)]
        assert len({reply.content[0].text for reply in replies}) == 1

    run_with_client(environment(Threads()), play)


# --- the process


def play_math(tools: dict[str, Tool]) -> None:
    """The same episode, whoever brings the calls."""
    assert tools["python"].run(code="x = 6 * 7\nprint('once')") == ToolResult("once")
    assert tools["python"].run(code="x") == ToolResult("42")
    assert "ZeroDivisionError" in tools["python"].run(code="1/0").text
    assert tools["answer"].run(text="42").fault == ""
    over = tools["python"].run(code="x")
    assert (over.text, over.fault) == ("the episode is over: an answer was given", "error")


def test_round_trip_over_standard_input(result: Path) -> None:
    command = [*MATH, "--result", str(result)]
    tools = {tool.name: tool for tool in mcp_tools(command, env={"PYTHONPATH": str(ROOT)})}
    before = descendants(os.getpid())
    play_math(tools)
    started = descendants(os.getpid()) - before
    assert started
    tools["answer"].close()
    assert wait_until(lambda: not any(map(alive, started)))
    (line,) = results(result)
    assert (line["environment"], line["task_id"], line["success"]) == ("agent_envs/MathTool-v0", "arithmetic:0:6*7", True)
    assert (line["turns"], line["tool_calls"]) == (4, 3)


@contextlib.contextmanager
def served(arguments: list[str], **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A server's process, with pipes; killed if it is still there at the end."""
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_round_trip_over_http(result: Path) -> None:
    with served([*MATH, "--transport", "http", "--port", "0", "--result", str(result)]) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving at http://127.0.0.1:"), line
        url = line.split()[-1]
        tools = {tool.name: tool for tool in mcp_tools(url=url)}
        play_math(tools)
        children = descendants(process.pid)
        assert children
        process.send_signal(signal.SIGTERM)  # with our session open
        assert process.wait(20) == 0
        assert wait_until(lambda: not any(map(alive, children)))
        with pytest.raises(EnvironmentFault, match="the MCP server at http://127"):
            tools["python"].run(code="x")
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert [line["success"] for line in results(result)] == [True]


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_sdks_own_client_in_both_ages_of_the_protocol(mode: str) -> None:
    async def main() -> None:
        program, *arguments = MATH
        server = StdioServerParameters(command=program, args=arguments, env={"PYTHONPATH": str(ROOT)})
        async with Client(server, mode=mode) as client:
            assert "What is 6*7?" in (client.instructions or "")
            done = await client.call_tool("python", {"code": "print(6 * 7)"})
            assert done.content[0].text == "42"

    asyncio.run(asyncio.wait_for(main(), 60))


LOUD = """
import os, sys
import gymnasium as gym
from agent_envs import ToolEnv
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.tool import tool
from agent_envs.verifiers.math import MathVerifier
print("the module talks")

@tool
def talk() -> str:
    '''Talks where it must not.'''
    print("the tool talks")
    os.write(1, b"in many ways\\n")
    os.system("echo and so does its child; cat")
    return f"read {sys.stdin.read()!r}"

def make():
    return ToolEnv(tasks=Arithmetic(), verifier=MathVerifier(), tools=[talk])

gym.register("Loud-v0", make)
"""


def ask(process: subprocess.Popen[str], id: int, method: str, **parameters: Any) -> dict[str, Any]:
    """One request by hand, and its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    reply: dict[str, Any] = json.loads(line)
    assert reply["id"] == id
    return reply["result"]


def initialize(process: subprocess.Popen[str]) -> None:
    client = {"name": "by hand", "version": "1"}
    ask(process, 1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
    assert process.stdin is not None
    process.stdin.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')


def test_nothing_but_the_protocol_is_printed(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    with served([*SERVE, "loud:Loud-v0"], env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}) as process:
        initialize(process)
        reply = ask(process, 2, "tools/call", name="talk", arguments={})
        assert reply["content"][0]["text"] == "read ''"
        out, err = process.communicate(timeout=20)  # hangs up
        assert (process.returncode, out) == (0, "")
        for said in ("the module talks", "the tool talks", "in many ways", "and so does its child"):
            assert said in err


@pytest.mark.parametrize("how", ["hang up", "SIGTERM", "SIGINT"])
def test_it_ends_cleanly(how: str, result: Path) -> None:
    with served([*MATH, "--result", str(result)]) as process:
        initialize(process)
        ask(process, 2, "tools/call", name="python", arguments={"code": "1"})
        children = descendants(process.pid)
        assert children
        if how == "hang up":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, how))  # while standard input is open
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert wait_until(lambda: not any(map(alive, children)))
    assert [(line["turns"], line["score"]) for line in results(result)] == [(1, None)]


def test_a_tool_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        LOUD.replace("sys.stdin.read()", "__import__('time').sleep(60)").replace("Loud", "Slow")
    )
    lines = "import sys; from agent_envs.mcp import __main__, server; server._CLOSE_SECONDS = 0.5; sys.exit(__main__.main())"
    command = [sys.executable, "-c", lines, "--env", "slow:Slow-v0"]
    with served(command, env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}) as process:
        initialize(process)
        assert process.stdin is not None
        assert process.stderr is not None
        request = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "talk", "arguments": {}}}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        assert any("so does its child" in line for line in process.stderr)  # the tool is at work
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1
        assert "does not end within 0.5 s" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "MathTol-v0"], "there is no environment 'MathTol-v0' .*ours: DeepSearch-v0, MathTool-v0"),
        (["--env", "no_such_module:A-v0"], "there is no environment 'no_such_module:A-v0'"),
        (["--env", "CartPole-v1"], "only environments of tools"),
        (["--env", "MathTool-v0", "--task-id", "a"], "found 'a'"),
        (["--env", "MathTool-v0", "--split", "tset"], "found split='tset'"),
        (["--env", "MathTool-v0", "--tasks", "no.jsonl"], "there is no such file"),
        (["--env", "MathTool-v0", "--env-args", "[1]"], "--env-args must be a JSON object .* it is no object"),
        (["--env", "MathTool-v0", "--env-args", '{"depth": 1}'], "unexpected keyword argument 'depth'"),
        (["--env", "MathTool-v0", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 0"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--transport", "http", "--port", "0", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
