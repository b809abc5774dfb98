"""A policy that always calls the tool, in a number of tokens that is known beforehand.

Random weights never call a tool, and a policy that was taught to would do so in other lengths on either side. This one has
random weights but for a grammar, which is written into them: each token's embedding says which *place* of an action comes
next, the layers leave those dimensions alone, and the output layer lets only tokens of that place be written. Within a place
all tokens are about equally likely, so that sampling has as much to choose from as the vocabulary has words. A turn is

    <tool_call> \n{"name": "look", "arguments": {"words": " word … word "}}\n </tool_call> <|im_end|>

and every one of these is a token. The forward and backward passes are those of any Qwen3 of the size: nothing is skipped.
"""

from __future__ import annotations

import itertools
import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

BEFORE, AFTER = '\n{"name": "look", "arguments": {"words": "', '"}}\n'
_MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>\n", "\n</tool_response>", BEFORE, AFTER)
_FIXED = 5  # tokens of an action that are no words
_MARGIN = 40.0  # by how many nats a token of the right place is likelier than any other: e^-40 is never drawn

# That of Qwen3 without instructions, which a policy of this kind does not read: then both sides have the same prompts.
_CHAT_TEMPLATE = """
{%- for message in messages if message.role != 'system' -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else -%}
{{ '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

SIZES = {
    "tiny": {"words": 270, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 4},
    "60M": {"words": 16_000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 14,
            "num_attention_heads": 8, "num_key_value_heads": 4},
}  # fmt: skip
"""Words of the vocabulary, and the shape of the model; "tiny" is that of `learners.run.tiny`."""


def words_of(model: str) -> list[str]:
    """The words that a policy knows, each with a space before it and each a token."""
    spelled = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    return [f" {word}" for word in itertools.islice(spelled, SIZES[model]["words"])]


def tokenizer_of(model: str) -> PreTrainedTokenizerFast:
    """Bytes, words, and the markers of Qwen3's conversations."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *(f"Ġ{word[1:]}" for word in words_of(model))]
    tokenizer = Tokenizer(
        models.BPE(vocab={text: index for index, text in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" [a-z]{3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    controls = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in controls])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=_CHAT_TEMPLATE
    )


def save_policy(model: str, written: int, folder: Path) -> None:
    """Makes the policy that writes ``written`` tokens a turn, and saves it with its tokenizer."""
    tokenizer = tokenizer_of(model)
    places = _places(tokenizer, model, written)
    size = {name: value for name, value in SIZES[model].items() if name != "words"}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Qwen3ForCausalLM(config).eval()
    _write_grammar(made, places)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _places(tokenizer: PreTrainedTokenizerFast, model: str, written: int) -> list[list[int]]:
    """The tokens that may stand at each place of an action."""
    names = words_of(model)
    runs = written - _FIXED
    if not 1 <= runs <= len(names):
        raise ValueError(f"a turn has {_FIXED + 1} to {len(names) + _FIXED} tokens, not {written}")
    words = tokenizer.convert_tokens_to_ids([f"Ġ{word[1:]}" for word in names])
    first, before, after, last = tokenizer.convert_tokens_to_ids(["<tool_call>", BEFORE, AFTER, "</tool_call>"])
    return [[first], [before], *(words[run::runs] for run in range(runs)), [after], [last], [tokenizer.eos_token_id]]


@torch.no_grad()
def _write_grammar(model: Qwen3ForCausalLM, places: list[list[int]]) -> None:
    """Writes into the weights which tokens may follow which; see the module. As many dimensions are taken as places."""
    taken = len(places)
    if taken > model.config.hidden_size // 2:
        raise ValueError(f"{taken} tokens a turn are too many for a model of width {model.config.hidden_size}")
    embedded, chosen = model.model.embed_tokens.weight, model.lm_head.weight
    for matrix in (embedded, chosen):
        matrix[:, :taken] = 0.0
    embedded[:, 0] = 4.0  # an action begins after whatever else was read
    for place, tokens in enumerate(places):
        chosen[tokens, place] = 1.0
        if place + 1 < taken:
            embedded[tokens, 0] = 0.0
            embedded[tokens, place + 1] = 4.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:taken] = 0.0
        layer.mlp.down_proj.weight[:taken] = 0.0
    probe = torch.tensor([[tokens[0] for tokens in places] * 4])
    found = model.model(input_ids=probe).last_hidden_state[0, :, :taken].max(-1).values.min()
    chosen[:, :taken] *= _MARGIN / float(found)
