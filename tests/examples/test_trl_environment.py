"""Our environments in TRL's own trainer: its schemas, its tool loop, its rewards, a step of its training."""

import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from agent_envs import EnvironmentFault, Tool
from examples.trl_environment import _method, environment_class, rows

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def byte_tokenizer():
    """Bytes, and Qwen3's chat template with its markers."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=qwen3_chat_template
    )


def small_model(tokenizer):
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(folder: Path, trainer: type[GRPOTrainer], env_id: str, tokens: int):
    """One step of a trainer on a small random model; what it has logged."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    small_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    made = trainer(
        model=Qwen3ForCausalLM.from_pretrained(folder / "model"),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(folder / "run"),
            max_steps=1,
            num_generations=4,
            per_device_train_batch_size=8,
            max_completion_length=tokens,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
        ),
        train_dataset=rows(4),
        environment_factory=environment_class(env_id),
    )
    made.train()
    return made.state.log_history[0]


class Scripted(GRPOTrainer):
    """TRL's trainer with a script for a model: it calculates, then every second rollout answers with what came back."""

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        actions = [self.script(index, self.processing_class.decode(ids)) for index, ids in enumerate(prompt_ids)]
        return [self.processing_class.encode(f"{action}<|im_end|>", add_special_tokens=False) for action in actions], None

    def script(self, index, text):
        turn = re.split(r"<\|im_start\|>", text)[-2]
        found = re.search(r"<tool_response>\n(-?\d+)\n</tool_response>", turn)
        if found:
            call = {"name": "answer", "arguments": {"text": found[1] if index % 2 else "no idea"}}
        elif "<tool_response>" in turn:
            return "That was all."
        else:
            call = {"name": "python", "arguments": {"code": f"print({re.search(r'[0-9(][0-9+*()-]*', turn)[0]})"}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def test_trl_plays_our_episodes_and_learns_from_their_rewards(tmp_path):
    logged = train(tmp_path, Scripted, "agent_envs/MathTool-v0", tokens=600)
    assert logged["tools/call_frequency"] == 2
    assert logged["tools/failure_frequency"] == 0
    assert logged["rewards/MathTool_v0/mean"] == 0.5
    assert logged["frac_reward_zero_std"] == 0
    assert logged["grad_norm"] > 0


def test_a_model_that_never_answers_earns_nothing(tmp_path):
    logged = train(tmp_path, GRPOTrainer, "examples.sql:Sql-v0", tokens=8)
    assert logged["tools/call_frequency"] == 0
    assert logged["rewards/Sql_v0/mean"] == 0


def test_the_model_is_shown_the_tools_as_their_schemas_say():
    rollout = environment_class("agent_envs/MathTool-v0")()
    (schema,) = [tool.parameters for tool in rollout._env.unwrapped.tools]
    shown = get_json_schema(rollout.python)["function"]
    assert shown["name"] == "python"
    assert shown["parameters"] == schema
    answer = get_json_schema(rollout.answer)["function"]
    assert answer["parameters"]["required"] == ["text"]


def test_every_kind_of_parameter_is_shown():
    class Many(Tool):
        """Takes many things."""

        def run(self, a: int, b: float, c: bool, d: list[str], f: int | None = None, g: dict = {}) -> str:  # noqa: B006
            """Runs.

            Args:
                a: The first.
            """
            return ""

    shown = get_json_schema(_method(Many()).__get__(object()))["function"]["parameters"]
    kinds = {name: schema.get("type") for name, schema in shown["properties"].items()}
    assert kinds == {"a": "integer", "b": "number", "c": "boolean", "d": "array", "f": "integer", "g": "object"}
    assert shown["required"] == ["a", "b", "c", "d"]
    assert shown["properties"]["a"]["description"] == "The first."
    assert shown["properties"]["d"]["items"] == {"type": "string"}


def test_an_episode_by_hand():
    rollout = environment_class("examples.calculator:Calculator-v0", split="test")()
    question = rollout.reset(seed=3, prompt=[])
    assert rollout.reset(seed=3) == question
    task = rollout._env.unwrapped.task
    assert rollout.calculator(expression="2*(3-10)") == "-14"
    assert rollout.calculator(expression="2*").startswith("ValueError")
    with pytest.raises(ValueError, match="would be read as"):
        rollout.calculator(expression="1</calculator>")  # the format has no way to write it; TRL shows the model why
    assert rollout.get_reward() == 0
    rollout.answer(task.answers[0])
    assert rollout.get_reward() == 1
    with pytest.raises(ValueError, match="the task is over"):
        rollout.answer("again")
    assert rollout.get_reward() == 1


def test_a_fault_is_no_reward(monkeypatch):
    rollout = environment_class("agent_envs/MathTool-v0")()
    rollout.reset(seed=0)

    def gone(**arguments):
        raise OSError("the engine is gone")

    monkeypatch.setattr(rollout._env.unwrapped.tools[0], "run", gone)
    with pytest.raises(EnvironmentFault, match="the engine is gone"):
        rollout.python(code="1")
    with pytest.raises(EnvironmentFault, match="the engine is gone"):
        rollout.get_reward()
    rollout.reset(seed=0)
    assert rollout.get_reward() == 0


def test_what_cannot_be_a_rollout():
    with pytest.raises(TypeError, match="expected a ToolEnv"):
        environment_class("CartPole-v1")
