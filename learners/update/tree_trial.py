"""Whether a model can learn over trees: tried before a run depends on it (`learners.sampling.trial`)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from learners.sampling.trial import Pairs, Trial
from learners.update.packing import packs, stacked, tree_attention, tree_logprobs


@torch.no_grad()
def refusal_of_trees(model: PreTrainedModel) -> str:
    """Why passes over trees cannot be made with a model, or "" where they can.

    Args:
        model: In evaluation mode; whole, where it is to learn.
    """
    trial = Trial.of(model)
    return trial.refusal(lambda: _over_a_tree(model, trial))


def _over_a_tree(model: PreTrainedModel, trial: Trial) -> Pairs:
    """The log-probabilities of all tokens but the first of each row, over one pack of all rows and one by one."""
    forest = stacked(packs(trial.rows, sum(map(len, trial.rows))), model.device)
    wanted = [torch.arange(len(trial.rows[number])) > 0 for number in forest.rows]
    with tree_attention(model):
        found, _ = tree_logprobs(model, forest, wanted, temperature=1.0)
    expected = [
        trial.expected[number][:-1].gather(-1, trial.rows[number][1:, None].to(model.device))[:, 0] for number in forest.rows
    ]
    return list(zip(found.split(list(map(len, expected))), expected, strict=True))
