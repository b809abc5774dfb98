"""Examples, one file each, to be read like a tutorial and run from the repository's root.

- `calculator`: a tool and its environment in thirty lines.
- `sql`: a tool with state that is copied, tasks of one's own.
- `terminal`: a tool that runs in a sandbox.
- `reinforce`: an environment in a training loop of one's own.
- `leave_one_out`: a learner of one's own, with every option, file and report of the project's.
- `vector_agent`: many environments at once in Gymnasium's vector API.
- `trl_environment`: an environment in TRL's GRPO trainer.
"""
