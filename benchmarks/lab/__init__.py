"""The lab of `benchmarks/learning.py`: a task in which learners can differ, and a policy that can just about begin it."""
