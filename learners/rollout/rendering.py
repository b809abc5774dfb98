"""From a format's messages to token ids: token in, token out.

The chat template of a model is applied once, to the messages that open a conversation. What stands around a later message is
derived once per tokenizer, by applying the template to a dummy conversation and reading off the text between its contents;
from then on tokens are only ever put at the end. What the policy wrote is never decoded and encoded again.

Untrusted text (questions, tool results) never becomes a control token: wherever it spells one, it is cut in two before it
is tokenised, and reads the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from agent_envs.actions import Message, Piece

_MARKERS = ("FirstContentHere", "SecondContentHere", "ThirdContentHere", "FourthContentHere")


class TokenizerError(ValueError):
    """The model's tokenizer lacks what a format needs."""


class Renderer:
    """Turns messages into token ids for one tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template and an end-of-turn token.

    Raises:
        TokenizerError: It lacks one of them, or does not spell out plain tags as they are written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.chat_template:
            raise TokenizerError(
                f"the tokenizer of {name} has no chat template, which says where an assistant's turn begins: "
                "choose an instruction-tuned model, or save a template with the tokenizer"
            )
        if tokenizer.eos_token_id is None:
            raise TokenizerError(f"the tokenizer of {name} has no end-of-turn token (eos_token): set one and save it")
        probe = "</python> <answer>\\boxed{42}</answer>"
        spelled = str(
            tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False), clean_up_tokenization_spaces=False)
        )
        if spelled.strip() != probe:
            raise TokenizerError(f"the tokenizer of {name} cannot write the tags of an action: {probe!r} reads {spelled!r}")
        controls = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, controls))) if controls else None
        self._before, self._after = self._frame()

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        end: int = self._tokenizer.eos_token_id
        return end

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant begins to write, [P]."""
        text = self._template([(message.role, marker) for message, marker in zip(messages, _MARKERS, strict=False)])
        pieces = []
        for message, marker in zip(messages, _MARKERS, strict=False):
            if marker not in text and message.role == "system":
                continue  # a template may leave instructions out: its model reads none
            wrapper, _, text = text.partition(marker)
            pieces += [Piece(wrapper, trusted=True), *message.pieces]
        return self.encode([*pieces, Piece(text, trusted=True)])

    def observation(self, message: Message, *, turn_ended: bool) -> list[int]:
        """The ids that answer an action, up to where the policy goes on, [n].

        A message of role "assistant" goes on inside the policy's turn, unless the policy ended the turn itself; every other
        one closes the turn, stands as a message of its own and opens the next turn.

        Args:
            message: The observation, as a format renders it.
            turn_ended: Whether the action ended with the end-of-turn token.
        """
        if message.role == "assistant" and not turn_ended:
            return self.encode(message.pieces)
        ids = self.encode([Piece(self._before, trusted=True), *message.pieces, Piece(self._after, trusted=True)])
        return ids[1:] if turn_ended and ids[0] == self.end_id else ids

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """The ids of pieces; text that is not trusted makes no control token, not even across a border."""
        text, untrusted = "", []
        for piece in pieces:
            if not piece.trusted:
                untrusted.append((len(text), len(text) + len(piece.text)))
            text += piece.text
        cuts = [0]
        match = self._controls.search(text) if self._controls else None
        while match and self._controls:
            if any(start < match.end() and match.start() < end for start, end in untrusted):
                cuts.append(match.start() + 1)
                match = self._controls.search(text, match.start() + 1)
            else:
                match = self._controls.search(text, match.end())
        ids: list[int] = []
        for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
            ids += self._tokenizer.encode(text[start:end], add_special_tokens=False)
        return ids

    def _frame(self) -> tuple[str, str]:
        """What stands between an assistant's text and a following user's message, and what after it."""
        question, action, observation = _MARKERS[:3]
        text = self._template([("user", question), ("assistant", action), ("user", observation)])
        before, _, after = text.partition(action)[2].partition(observation)
        return before, after

    def _template(self, turns: Sequence[tuple[str, str]]) -> str:
        """The template's text for (role, content) pairs, ready for the assistant to write."""
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as refusal:
            if turns[0][0] != "system":
                raise TokenizerError(
                    f"the chat template refuses the roles {[role for role, _ in turns]}: {refusal}"
                ) from None
            # Templates without a system role take the instructions at the head of the first message.
            text = self._template([(turns[1][0], f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]])
        assert isinstance(text, str)
        return text
