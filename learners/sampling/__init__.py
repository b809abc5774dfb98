"""Samplers: what turns token ids into a continuation with log-probabilities and entropies.

``sampler`` is the contract, ``transformers`` samples in process, ``vllm`` by its engine, ``server`` by asking a server.
Nothing in this room knows an environment or an algorithm.
"""
