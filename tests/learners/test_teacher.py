"""The steps of other episodes that the teacher's episodes meet on their way, and go on as if they had not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from test_formats import sums

from agent_envs import TagFormat
from agent_envs.actions import HermesFormat
from learners.rollout.rendering import Renderer
from learners.run.teacher import Teacher
from learners.run.tiny import TAGS, tiny_tokenizer
from learners.update.supervised import Example

TOKENIZER = tiny_tokenizer(tags=(*TAGS, "calculator", "tool_call", "tool_response"))
OPEN, CLOSE = TOKENIZER.convert_tokens_to_ids(["<retrieve>", "</retrieve>"])


def episodes(format=None, count=60, **options) -> list[Example]:
    make_env = lambda: sums(format or TagFormat())  # noqa: E731
    teacher = Teacher(make_env, Renderer(TOKENIZER), seed=1, copied_weight=0.5, context_weight=0.1)
    return teacher.episodes(count, **{"spoilt_share": 0.0, "stage": "mixed", **options})


def parted(example: Example) -> tuple[list[tuple[int, float]], list[list[tuple[int, float]]]]:
    """An example without its blocks, and the blocks: each token with its weight."""
    rest: list[tuple[int, float]] = []
    blocks: list[list[tuple[int, float]]] = []
    inside, after = False, False
    for pair in zip(example.ids, example.weights, strict=True):
        if pair[0] == OPEN:
            inside = True
            blocks.append([])
        (blocks[-1] if inside or after else rest).append(pair)
        after = pair[0] == CLOSE  # the new line behind it belongs to the block
        inside &= not after
    return rest, blocks


def text(pairs: Sequence[tuple[int, float]]) -> str:
    return TOKENIZER.decode([token for token, _ in pairs])


@pytest.mark.parametrize("format", [TagFormat(), HermesFormat()])
def test_after_every_step_stands_one_of_another_episode_of_which_nothing_is_learned(format):
    plain, with_blocks = episodes(format), episodes(format, retrieved_share=1.0)
    written = r'(?<=<calculator>)[^<]+|(?<="expression": ")[^"]+'
    calls = [re.findall(written, TOKENIZER.decode(example.ids))[0] for example in plain]
    for example, met, call in zip(plain, with_blocks, calls, strict=True):
        rest, blocks = parted(met)
        assert [token for token, _ in rest] == list(example.ids)
        assert sum(weight == 1.0 for _, weight in rest) == sum(weight == 1.0 for weight in example.weights)
        assert len(blocks) == 1  # one call, and the answer ends it
        assert {weight for _, weight in blocks[0]} == {0.0}
        read = text(blocks[0])
        assert read.startswith("<retrieve>\n")
        assert read.endswith("\n</result>\n\n</retrieve>\n")
        assert re.findall(written, read)[0] in {other for other in calls if other != call}


def test_mistakes_leave_steps_that_stand_where_others_go_on():
    """An episode that first breaks the form has its call as step 1: what the others meet after their own first step."""
    met = episodes(count=300, spoilt_share=0.5, retrieved_share=1.0)
    blocks = [text(block) for example in met for block in parted(example)[1]]
    second = [block for block in blocks if "<calculator>" in block]
    assert 0.5 < len(second) / len(blocks) < 1  # those that broke the form are not all that is read
    assert len(set(blocks)) > len(blocks) / 4


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_is_of_the_steps(share):
    count = sum(len(parted(example)[1]) for example in episodes(count=300, retrieved_share=share))
    assert abs(count - 300 * share) <= 4 * (300 * share * (1 - share)) ** 0.5


def test_the_same_episodes_each_time():
    assert episodes(spoilt_share=0.5, retrieved_share=0.5) == episodes(spoilt_share=0.5, retrieved_share=0.5)


def test_a_lone_episode_meets_nobody():
    (example,) = episodes(count=1, retrieved_share=1.0)
    assert parted(example)[1] == []
