"""Places to run what is not trusted: Python interpreters now, search indexes and browsers beside them.

Nothing in here knows what a reward, a task or a policy is, and nothing in here imports the packages above it. What the
sandboxed code does, however bad, is a result; only an engine that cannot do its work raises (`sandboxes.faults`).
"""
