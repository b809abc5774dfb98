"""From trajectories to an update of the weights: advantages, surrogate losses, batches and the optimiser's step.

What is in `advantages` and `losses` is pure: tensors in, tensors out, with the papers' equations beside it. Nothing here
knows a command line, an environment or an algorithm by name.
"""
