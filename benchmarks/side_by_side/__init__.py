"""The parts of benchmarks/throughput.py: a policy and a task that both trainers can be given, and the two sides."""
