"""The kit finds each planted bug of the gallery's environments with tools, by the promise that it breaks, and names it."""

from __future__ import annotations

import re

import pytest
from gallery import copied, made, paid
from gallery.workshop import OURS, Opener, workshop

from agent_envs.testing import PROMISES, check_agent_env

GALLERY = {
    # what is copied
    "a copy shares a tool's state": (lambda: copied.with_lots(copied.SharedLots()), "fork apart", "'lot 2.*then 'lot 3"),
    "a copy shares a generator": (lambda: copied.with_lots(copied.SharedGenerator()), "fork apart", "first 'lot 2.*'lot 2"),
    "a copy's tool begins anew": (lambda: copied.with_lots(copied.StaleLots()), "fork", "first 'lot 2.*then 'lot 1"),
    "closing a copy closes both": (lambda: copied.with_lots(copied.Drawer()), "fork apart", "the drawer is gone"),
    "a replay is not equal": (
        lambda: copied.with_lots(copied.ForgetsSettings(7)),
        "fork",
        "ForkError.*another result.*first '7, then lot 1.*then '0, then lot 1",
    ),
    "no copy before the reset": (lambda: copied.with_lots(copied.NeedsReset()), "fork", "lots raised AttributeError"),
    "a refused copy does harm": (lambda: copied.with_lots(copied.ReadOnly()), "fork apart", "first 'lot 2.*then 'lot 1"),
    "a copy forgets the generator": (lambda: workshop(copied.ForgetsGenerator), "fork", "reset number 1 .* in the copy"),
    "a copy forgets the turns": (lambda: workshop(copied.ForgetsTurns), "fork", r"info\['turn'\].*first 2, then 1"),
    "a copy shares the episode": (lambda: workshop(copied.SharesEpisode), "fork apart", r"info\['turn'\].*then 3"),
    "a copy loses its wrapper": (copied.loses_wrapper, "fork", "^ToolEnv$"),
    "a shallow copy, without tools": (copied.ShallowWords, "fork apart", "the original went on differently"),
    "a copy made by the constructor": (copied.StartsAfresh, "fork", "in the copy"),
    # what is paid and told
    "the whole history is scored": (lambda: workshop(paid.PaysForHistory), "authorship", "accuracy 1, success True"),
    "a printed answer is paid": (lambda: workshop(format=paid.FirstBox()), "authorship", "accuracy 1, success True"),
    "an answer in a thought is paid": (lambda: workshop(format=paid.ThoughtsCount()), "authorship", "accuracy 1"),
    "an answer behind the end is paid": (lambda: workshop(format=paid.LastAnswer()), "authorship", "accuracy 1"),
    "hedged answers are accepted": (lambda: workshop(verifier=paid.Contains()), "hedges", "or .*' is accepted"),
    "the empty answer is accepted": (lambda: workshop(verifier=paid.IsContained()), "garbage", "success True"),
    "trying is paid": (lambda: workshop(verifier=paid.PaysForTrying()), "garbage", "accuracy 0.1, success False"),
    "the gold answer is wrong": (lambda: workshop(verifier=paid.Strict()), "gold", "accuracy 0, success False"),
    "the score does not add up": (lambda: workshop(paid.AddsUpWrongly), "score", "sum of -1; return -1.25"),
    "each step is paid": (lambda: workshop(paid.PaysEachStep), "score", "^0.1 after action 1"),
    "success at every step": (lambda: workshop(paid.SuccessAlways), "score", r"\['success'\] in info after action 1"),
    "a reward that is no number": (lambda: workshop(paid.NotANumber), "score", "return nan"),
    "calls that never ran are counted": (lambda: workshop(paid.CountsAllCalls), "counters", r"info\['tool_calls'\] is 1"),
    "gold in info": (lambda: workshop(paid.TellsGold), "secrets", r"info\['ground_truth'\] of reset holds it"),
    "gold in a message": (lambda: workshop(paid.TellsAfterwards), "secrets", "the observation after a wrong action holds"),
    "what breaks is paid 0": (lambda: workshop(paid.PaysForFailure), "faults", "a reward of 0.0 and score .*RuntimeError"),
    "what breaks is told to the policy": (lambda: workshop(paid.ReportsFailure), "faults", "'The tool failed: opener"),
    "a verifier that raises says no": (lambda: workshop(paid.VerifierFailureIsWrong), "faults", "a reward of -1.0"),
    "the first error ends the episode": (lambda: workshop(paid.EndsOnError), "tool errors", "ended at action 1 of 5"),
    # tools
    "arguments are changed": (
        lambda: made.with_opener(made.SortsItsBoxes()),
        "examples",
        r"'boxes': \[3, 2\]} became {'boxes': \[2, 3\]}",
    ),
    "schema and run differ": (lambda: made.with_opener(made.OldSchema()), "tools", "missing a required argument: 'boxes'"),
    "an example does not fit": (lambda: made.with_opener(made.OldExample()), "tools", "must be array of integer, found '1'"),
    "a schema that is no JSON": (lambda: made.with_opener(made.NotJson()), "tools", "set is not JSON serializable"),
    "a call breaks the tool": (lambda: made.with_opener(made.BreaksOnExample()), "examples", "opener raised IndexError"),
    "arguments are not checked": (lambda: workshop(made.ChecksNothing), "arguments", r"opener was run with {'boxes': None}"),
    "a time limit is not passed on": (
        lambda: made.with_waiter(made.KeepsNoTime()),
        "timeouts",
        r"it (took 2\.\d|ran for more than 2\.2) s",
    ),
    "a time limit is not told": (lambda: made.with_waiter(made.HidesTime()), "timeouts", "^''$"),
    "one time-out, all time-outs": (lambda: made.with_waiter(made.StaysDead()), "timeouts", "fault 'timeout'"),
    "results without end": (lambda: workshop(made.NeverCuts), "floods", "1000000 characters that are not in it"),
    "results are cut in silence": (lambda: workshop(made.CutsSilently), "floods", "first 8000 characters, without a mark"),
    "actions of any length are read": (lambda: workshop(made.ReadsAll), "too long", "^'no_action'$"),
    # formats
    "results close tags": (lambda: workshop(format=made.Trusting()), "escaping", "</answer>"),
    "what is written reads otherwise": (lambda: workshop(format=made.Unquoted()), "written", "Answer"),
    "what is cut off counts": (
        lambda: workshop(format=made.Greedy()),
        "parsing",
        "well formed instead of .* not well formed",
    ),
    "half a tag raises": (lambda: workshop(format=made.Fragile()), "parsing", "IndexError: string index out of range"),
    # tasks
    "splits overlap": (lambda: workshop(tasks=made.SplitsOverlap()), "splits", "is in 'train' and 'validation'"),
    "the seed is ignored": (lambda: workshop(tasks=made.SeedBlind()), "tasks", "first Task.* then Task"),
    "there is but one task": (lambda: workshop(tasks=made.OneTask()), "tasks", "12 times"),
    "an id leads to another task": (lambda: workshop(tasks=made.OtherById()), "tasks", "8507.* instead of .*8506"),
    "any id leads to a task": (lambda: workshop(tasks=made.AnyId()), "options", "the task 'boxes:0'"),
    "the asked-for task is not given": (lambda: workshop(made.IgnoresId), "options", "task 'boxes:2640'"),
    "the oracle fails": (lambda: workshop(tasks=made.LostExpert()), "oracle", "success False.* after 1 actions"),
    "the oracle takes too long": (lambda: workshop(tasks=made.SlowExpert()), "oracle", "success False.* after 5 actions"),
}


@pytest.mark.parametrize("bug", GALLERY)
def test_the_kit_finds_the_bug_and_names_it(bug):
    make, promise, found = GALLERY[bug]
    (finding,) = check_agent_env(make, only=promise, verbose=False).findings
    assert finding.status == "broken"
    assert finding.expected
    assert re.search(found, finding.found, re.DOTALL), finding.found


@pytest.mark.parametrize("make", [workshop, lambda: workshop(tools=[Opener(), copied.LotsAgain()])], ids=["exact", "replay"])
def test_what_the_gallery_is_built_on_keeps_every_promise(make):
    check_agent_env(make, only=OURS, verbose=False).raise_if_broken()


@pytest.mark.parametrize(
    ("bug", "broken"),
    [
        ("a copy forgets the turns", {"fork"}),
        ("the whole history is scored", {"authorship"}),
        ("what breaks is paid 0", {"faults"}),
        ("splits overlap", {"splits"}),
    ],
)
def test_one_bug_breaks_one_promise_of_all(bug, broken):
    make, promise, _ = GALLERY[bug]
    cheap = [promise.name for promise in PROMISES if promise.share >= 0.2]
    report = check_agent_env(make, only=cheap, verbose=False)
    assert {finding.promise.name for finding in report.broken} == broken == {promise}
