"""The small worlds: consistent in themselves, and without a name in common."""

import itertools

import pytest

from agent_envs.tasks.tiny_wiki import WORLDS
from agent_envs.tasks.world import MOST_WORLDS, RELATIONS, make_world

NUMBERS = [*itertools.chain(*WORLDS.values()), MOST_WORLDS - 1]
SAMPLE = [*((0, number) for number in range(0, 60, 10)), (0, MOST_WORLDS - 1), (3, 1), (2**31, 2)]


@pytest.fixture(params=SAMPLE, ids=str)
def world(request):
    return make_world(*request.param)


def of_sort(world, sort):
    return [article for article in world.articles.values() if article.sort == sort]


def test_every_thing_has_the_relations_of_its_sort_and_they_lead_to_things_of_theirs(world):
    for article in world.articles.values():
        relations = RELATIONS[article.sort]
        assert set(article.facts) == set(relations)
        for name, value in article.facts.items():
            if relations[name].target == "year":
                assert value.isdecimal()
                assert 1000 <= int(value) < 2000
            else:
                assert world.articles[value].sort == relations[name].target
        assert article.title not in article.facts.values()


def test_marriage_is_mutual_and_of_two(world):
    for person in of_sort(world, "person"):
        spouse = world.articles[person.facts["spouse"]]
        assert spouse.facts["spouse"] == person.title != spouse.title
        assert person.facts["best friend"] not in (spouse.title, person.title)


def test_a_capital_lies_in_its_country(world):
    countries = of_sort(world, "country")
    for country in countries:
        assert world.articles[country.facts["capital"]].facts["country"] == country.title
    assert {city.facts["country"] for city in of_sort(world, "city")} == {country.title for country in countries}


def test_nobody_makes_anything_before_growing_up(world):
    for relation, year in (
        ("author", "year of release"),
        ("director", "year of release"),
        ("founder", "year of foundation"),
    ):
        made = [article for article in world.articles.values() if relation in article.facts]
        assert made
        for article in made:
            born = int(world.articles[article.facts[relation]].facts["year of birth"])
            assert 20 <= int(article.facts[year]) - born <= 90


def test_an_article_tells_its_facts_and_links_to_what_it_names(world):
    for article in world.articles.values():
        assert "[" not in article.text
        assert article.text.startswith(article.title)
        for name, value in article.facts.items():
            assert f"The {name} is {value}." in article.text
        assert list(article.links) == [value for value in article.facts.values() if value in world.articles]
        assert (f"also called {article.alias}," in article.text) == bool(article.alias)


def test_things_of_one_name_are_told_apart_by_what_they_are(world):
    names = [article.name for article in world.articles.values()]
    shared = [article for article in world.articles.values() if names.count(article.name) > 1]
    assert len(shared) >= 2
    for article in shared:
        assert article.title == f"{article.name} ({article.occupation or article.sort})"
    assert all(article.title == article.name for article in world.articles.values() if article not in shared)
    assert len(world.aliases) >= 5
    assert not set(world.aliases) & {*names, *world.articles}
    assert all(world.articles[title].alias == alias for alias, title in world.aliases.items())


@pytest.mark.parametrize("seed", [0, 7])
def test_no_two_worlds_have_a_name_in_common(seed):
    owner = {}
    for number in NUMBERS:
        world = make_world(seed, number)
        for name in {*world.articles, *world.aliases, *(article.name for article in world.articles.values())}:
            assert owner.setdefault(name, number) == number


def test_a_world_is_a_function_of_seed_and_number():
    first, again = make_world(3, 1), make_world.__wrapped__(3, 1)
    assert first is not again
    assert {title: article.markup for title, article in first.articles.items()} == {
        title: article.markup for title, article in again.articles.items()
    }
    assert first.articles.keys() != make_world(3, 2).articles.keys() != make_world(4, 2).articles.keys()


def test_a_chain_of_relations_has_one_end():
    world = make_world(0, 4)
    novel = of_sort(world, "novel")[0]
    author = world.articles[novel.facts["author"]]
    assert world.follow(novel.title, ["author", "spouse", "spouse", "year of birth"]) == (
        author.title,
        author.facts["spouse"],
        author.title,
        author.facts["year of birth"],
    )
    assert world.follow(novel.title, []) == ()
    with pytest.raises(KeyError, match="capital"):
        world.follow(novel.title, ["author", "capital"])


@pytest.mark.parametrize("number", [-1, MOST_WORLDS])
def test_there_are_only_so_many_worlds(number):
    with pytest.raises(ValueError, match=f"below {MOST_WORLDS}, found {number}"):
        make_world(0, number)
