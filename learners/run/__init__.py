"""A run: its configuration, its trainer, its checkpoints and its reports.

The trainer knows no algorithm by name: a learner hands it four functions (``trainer.Learner``).
"""
