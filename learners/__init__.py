"""Learners: agentic reinforcement-learning algorithms that train on any Gymnasium text environment.

One algorithm a file (``learners/grpo.py``), read top to bottom; ``python -m learners.grpo --help`` is its command line.
Inside, the floors are: algorithms and commands over ``run`` (configuration, trainer, checkpoints, reports) over ``update``
(advantages, losses, optimiser steps) over ``rollout`` (episodes and their trees) over ``sampling`` (token ids in, token ids
out). Imports point down; the trainer knows no algorithm by name.
"""
