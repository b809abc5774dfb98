"""Samplers: what turns token ids into a continuation with log-probabilities and entropies.

``sampler`` is the contract, ``transformers`` the default. Nothing in this room knows an environment or an algorithm.
"""
