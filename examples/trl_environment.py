"""An environment of ours inside TRL's GRPO trainer, which lets the model call tools in its own way. Needs ``trl`` 1.16.

    python -m examples.trl_environment --env agent_envs/MathTool-v0 --model Qwen/Qwen3-0.6B

TRL makes one object a rollout by its ``environment_factory``, shows the model the object's public methods as tools, runs
the calls, and asks ``get_reward`` at the end. `environment_class` makes such a class out of any id of a ``ToolEnv``: a
method for each tool, and ``answer``. A row of the dataset holds a seed, so that the rollouts of a group are of one task.
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
import weakref
from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any, Literal

import gymnasium as gym
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

from agent_envs import Answer, Call, EnvironmentFault, Move, Tool, ToolEnv


class Rollout:
    """One rollout of TRL's. Its public methods are what the model can call; `environment_class` adds one for each tool."""

    _make: Callable[[], gym.Env[str, str]]

    def __init__(self) -> None:
        self._env = self._make()
        self._reward, self._over = 0.0, False
        self._fault: EnvironmentFault | None = None
        weakref.finalize(self, self._env.close)  # TRL does not say when it is done

    def reset(self, **row: Any) -> str:
        """Begins the episode that a row of the dataset stands for.

        Args:
            row: Its columns; ``seed`` names the task.

        Returns:
            The question, which TRL puts at the end of the prompt.
        """
        question, _ = self._env.reset(seed=row["seed"])
        self._reward, self._over, self._fault = 0.0, False, None
        return question

    def answer(self, text: str) -> str:
        """Gives the final answer, which ends the task.

        Args:
            text: The answer itself, such as a number or a name.
        """
        self._act(Answer(text))
        return "Thank you. There is nothing more to do."

    def get_reward(self) -> float:
        """What the environment has paid; nothing where the model never gave an answer.

        Raises:
            EnvironmentFault: The environment broke in this rollout. TRL shows the model whatever a tool raises and goes on;
                but what is not the model's doing must not become a reward.
        """
        if self._fault is not None:
            raise self._fault
        return self._reward

    def _act(self, move: Move) -> str:
        if self._over:
            raise ValueError("the task is over: there is nothing more to do")
        inner = _tool_env(self._env)
        try:
            observation, reward, self._over, _, _ = self._env.step(inner.format.write(move, inner.tools))
        except EnvironmentFault as fault:
            self._fault, self._over = fault, True
            raise
        self._reward += float(reward)
        return observation


def environment_class(env_id: str, **settings: Any) -> type[Rollout]:
    """What to give to TRL as its ``environment_factory``.

    Args:
        env_id: Id of a ``ToolEnv``.
        settings: Its arguments.

    Returns:
        A class, named after the environment, that makes rollouts.

    Raises:
        TypeError: The environment is no ``ToolEnv``.
        ValueError: A tool has the name of a method that TRL or `Rollout` gives a meaning to.
    """

    def make() -> gym.Env[str, str]:
        return gym.make(env_id, **settings)

    probe = make()
    tools = _tool_env(probe).tools
    probe.close()
    taken = {tool.name for tool in tools} & set(vars(Rollout))
    if taken:
        raise ValueError(f"tools here may not be called {sorted(taken)}, which are methods of a rollout")
    methods = {tool.name: _method(tool) for tool in tools}
    return type(re.split("[/:]", env_id)[-1].replace("-", "_"), (Rollout,), {**methods, "_make": staticmethod(make)})


def _tool_env(env: gym.Env[str, str]) -> ToolEnv:
    if not isinstance(env.unwrapped, ToolEnv):
        raise TypeError(f"expected a ToolEnv, whose tools become methods; found {type(env.unwrapped).__name__}")
    return env.unwrapped


def _method(tool: Tool) -> Callable[..., str]:
    """The tool as TRL wants it: a method that says by its annotations and docstring what it takes."""

    def method(self: Rollout, **arguments: Any) -> str:
        return self._act(Call(tool.name, arguments))

    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    hints = {name: _hint(schema) for name, schema in properties.items()}
    required = tool.parameters.get("required", ())
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hint,
            default=inspect.Parameter.empty if name in required else None,
        )
        for name, hint in hints.items()
    ]
    notes = [f"    {name}: {schema.get('description', name)}" for name, schema in properties.items()]
    method.__name__ = tool.name
    method.__doc__ = "\n".join([tool.description, "", *(["Args:", *notes] if notes else [])])
    method.__annotations__ = {**hints, "return": str}
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = inspect.Signature([own, *parameters], return_annotation=str)  # type: ignore[attr-defined]
    return method


_HINTS: Mapping[str, Any] = types.MappingProxyType(
    {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict, "null": type(None)}
)


def _hint(schema: Mapping[str, Any]) -> Any:
    """The annotation that stands for a schema; what TRL has none for may be anything."""
    if "enum" in schema:
        return Literal.__getitem__(tuple(schema["enum"]))
    if "anyOf" in schema:
        return reduce(or_, map(_hint, schema["anyOf"]))
    if schema.get("type") == "array" and "items" in schema:
        return list[_hint(schema["items"])]  # type: ignore[misc]
    return _HINTS.get(str(schema.get("type")), Any)


def rows(count: int, first_seed: int = 0) -> Dataset:
    """A data set for it: seeds, each with the conversation to which the question of that seed is added."""
    told = "Solve the task with the tools. Give the final answer by calling the tool answer."
    prompt = [{"role": "system", "content": told}, {"role": "user", "content": ""}]
    return Dataset.from_list([{"prompt": prompt, "seed": first_seed + number} for number in range(count)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", default="agent_envs/MathTool-v0")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="Hugging Face id or folder of a model that calls tools")
    parser.add_argument("--output", default="runs/trl")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(arguments)

    trainer = GRPOTrainer(
        model=options.model,
        args=GRPOConfig(output_dir=options.output, max_steps=options.steps, max_completion_length=1024, report_to="none"),
        train_dataset=rows(1000),
        environment_factory=environment_class(options.env),
    )
    trainer.train()


if __name__ == "__main__":
    main()
