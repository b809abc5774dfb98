"""The questions about small worlds: right, split by world, and not to be answered without reading what leads there."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs.task import SPLITS, UnknownTask, normalise_question
from agent_envs.tasks.tiny_wiki import WORLDS, TinyWiki
from agent_envs.tasks.world import RELATIONS, make_world
from agent_envs.verifiers.qa import QAVerifier, normalise_answer

HOPS = (1, 2, 3, 4)
LAST = {
    relation.question: relation.name for relations in RELATIONS.values() for relation in relations.values()
}  # how the end of a chain is asked for


def draw(count, split="train", seed=0, **options):
    source, rng = TinyWiki(**options), np.random.default_rng(seed)
    return [source.sample(rng, split) for _ in range(count)]


def read_question(question):
    """What a question names, and the relations from there to what it asks for."""
    asked = re.fullmatch(r"(?:Tell me: |I want to know: )?(.+\?)(?: Look it up\.)?", question)[1]
    for words, last in LAST.items():
        before, after = words.split("{}")
        if asked.startswith(before) and asked.endswith(after):
            *relations, start = asked[len(before) : -len(after)].split(" of ")
            return start, [*(relation.removeprefix("the ") for relation in reversed(relations)), last]
    raise AssertionError(question)


def chain_of(task):
    """The things that the question leads through, by the facts of its world and the words of the question alone."""
    world = make_world(0, task.metadata["world"])
    start, relations = read_question(task.question)
    title = world.aliases.get(start, start)
    return world, [title, *world.follow(title, relations)]


@pytest.mark.parametrize("hops", HOPS)
def test_the_gold_answer_is_what_the_questions_words_lead_to(hops):
    for task in draw(150, hops=hops):
        world, chain = chain_of(task)
        assert len(chain) == hops + 1 == task.metadata["hops"] + 1
        assert task.answers[0] == chain[-1]
        end = world.articles.get(chain[-1])
        assert set(task.answers) == ({end.title, end.name, end.alias} - {""} if end else {chain[-1]})


@pytest.mark.parametrize("hops", HOPS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_hop_is_needed(split, hops):
    for task in draw(300 if split == "train" else 1000, split, hops=hops):
        world, chain = chain_of(task)
        assert len(set(chain)) == len(chain)
        assert task.answers[0] in world.articles[chain[-2]].text
        early = normalise_answer(" ".join([task.question, *(world.articles[title].text for title in chain[:-2])]))
        for gold in task.answers:
            assert not re.search(rf"\b{re.escape(normalise_answer(gold))}\b", early), task


def test_no_question_no_world_and_nothing_named_is_in_two_splits():
    drawn = {split: draw(500, split, hops=HOPS) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        for about in (
            lambda task: normalise_question(task.question),
            lambda task: task.metadata["world"],
            lambda task: task.metadata["start"],
            lambda task: task.id,
        ):
            assert not {about(task) for task in drawn[one]} & {about(task) for task in drawn[other]}
    for split, tasks in drawn.items():
        assert {task.metadata["world"] for task in tasks} <= set(WORLDS[split])
    assert len({task.metadata["world"] for task in drawn["train"]}) > len(WORLDS["train"]) / 2


@pytest.fixture(scope="module")
def common():
    """What the training questions that end alike are answered by most often."""
    said = {}
    for task in draw(1000, hops=HOPS):
        said.setdefault(task.metadata["path"][-1], Counter()).update(task.answers)
    return {last: counter.most_common(1)[0][0] for last, counter in said.items()}


def guesses(task, common):
    question = task.question
    return {
        "nothing": [""],
        "the question": [question],
        "each word of the question": question.split(),
        "what it names": [task.metadata["start"]],
        "a sort of things": ["city", "person", "painter", "organisation", "country"],
        "what was right in training": [common[task.metadata["path"][-1]]],
        "a year": ["1450", "1500"],
        "yes and no": ["yes", "no"],
    }


@pytest.mark.parametrize("hops", HOPS)
def test_the_question_alone_is_no_help(common, hops):
    verifier, accuracy, success = QAVerifier(), Counter(), Counter()
    tasks = draw(250, "test", hops=hops)
    for task in tasks:
        for guess, texts in guesses(task, common).items():
            verdicts = [verifier.verify(text, task) for text in texts]
            accuracy[guess] += max(verdict.accuracy for verdict in verdicts)
            success[guess] += any(verdict.success for verdict in verdicts)
    assert max(accuracy.values()) <= 0.05 * len(tasks), accuracy
    assert max(success.values()) <= 0.01 * len(tasks), success


def test_every_relation_frame_and_kind_of_start_occurs():
    tasks = draw(600, hops=HOPS)
    assert Counter(task.metadata["hops"] for task in tasks).keys() == set(HOPS)
    assert {relation for task in tasks for relation in task.metadata["path"]} == {*LAST.values()}
    assert {task.id.split(":")[3] for task in tasks} == {"0", "1", "2", "3"}
    by_alias = [task for task in tasks if task.metadata["start"] in make_world(0, task.metadata["world"]).aliases]
    in_parentheses = [task for task in tasks if task.metadata["start"].endswith(")")]
    assert min(len(by_alias), len(in_parentheses)) > 20
    assert len({task.question for task in tasks}) > 550


def test_the_same_generator_state_gives_the_same_task_and_its_id_makes_it_again():
    tasks = draw(200, seed=3, hops=(1, 3))
    assert tasks == draw(200, seed=3, hops=(1, 3)) != draw(200, seed=4, hops=(1, 3))
    assert [TinyWiki().get(task.id) for task in tasks] == tasks
    assert json.loads(json.dumps([dict(task.metadata) for task in tasks])) == [dict(task.metadata) for task in tasks]
    assert TinyWiki().ids("train") is None


IDS = [task.id for task in draw(40, hops=HOPS)]


@given(
    st.one_of(
        st.text(max_size=60),
        st.tuples(st.sampled_from(IDS), st.integers(0, 80), st.characters()).map(
            lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + 1 :]
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_an_id_makes_a_task_of_that_id_or_none(task_id):
    try:
        task = TinyWiki().get(task_id)
    except UnknownTask:
        return
    assert task.id == task_id


def test_ids_that_make_no_task():
    number = WORLDS["train"][1]
    person = next(title for title, article in make_world(0, number).articles.items() if article.sort == "person")
    for task_id in (
        f"tiny_wiki:0:{number}:0:{person}:spouse/spouse",  # comes back to where it was
        f"tiny_wiki:0:{number}:0:{person}:author",
        f"tiny_wiki:0:{number}:0:{person}:year of birth/country",
        f"tiny_wiki:0:{number}:0:{person}:",
        f"tiny_wiki:0:{number}:4:{person}:spouse",
        f"tiny_wiki:0:{number + 1}:0:{person}:spouse",
        f"tiny_wiki:1:{number}:0:{person}:spouse",
        f"tiny_wiki:0:{max(map(max, WORLDS.values())) + 1}:0:{person}:spouse",
        f"tiny_web:0:{number}:0:{person}:spouse",
    ):
        with pytest.raises(UnknownTask, match="an id of these tasks reads 'tiny_wiki:0:WORLD:"):
            TinyWiki().get(task_id)
    question = f"Tell me: Who is the spouse of {person}?"
    assert TinyWiki().get(f"tiny_wiki:0:{number}:1:{person}:spouse").question == question
    with pytest.raises(UnknownTask, match="splits"):
        TinyWiki().sample(np.random.default_rng(0), "dev")


@pytest.mark.parametrize("hops", [0, 5, [], [1, 5], "two", 2.0])
def test_hops_out_of_range(hops):
    with pytest.raises(ValueError, match="hops is a number of relations from 1 to 4"):
        TinyWiki(hops)


def test_search_finds_each_thing_by_its_title_and_by_its_second_name():
    with TinyWiki().open_index() as index:
        for number in (0, *(numbers[-1] for numbers in WORLDS.values())):
            world = make_world(0, number)
            named = {**{title: title for title in world.articles}, **world.aliases}
            for title, hits in zip(named.values(), index.search(list(named), 3), strict=True):
                assert title in [hit.id for hit in hits]
            for title, hits in zip(world.aliases.values(), index.search(list(world.aliases), 1), strict=True):
                assert (hits[0].id, hits[0].text) == (title, world.articles[title].text)


def test_the_index_holds_the_articles_of_all_worlds_and_is_of_its_seed():
    articles = {
        title: one.text for numbers in WORLDS.values() for n in numbers for title, one in make_world(0, n).articles.items()
    }
    with TinyWiki().open_index() as index, TinyWiki(hops=3).open_index() as same, TinyWiki(seed=1).open_index() as other:
        assert len(index) == len(articles)
        for title in list(articles)[::500]:
            assert index.get(title).text == articles[title]
            assert same.get(title) == index.get(title)
        assert other.search(list(articles)[:20], 1) != index.search(list(articles)[:20], 1)
