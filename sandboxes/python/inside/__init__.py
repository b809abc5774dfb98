"""The program that runs on the sandbox's side of the wire, the same on every backend: the supervisor and its workers.

`supervisor` keeps time and order over a family of `branch`es, each with a `worker` that runs the code (`handle` is how the
supervisor holds one, `copying` how a worker is copied); `enclosure` is what every launcher's walls have in common. Standard
library only, and nothing from the rest of the project but the contract in `sandboxes.python.interpreter`: in a container
nothing else is installed.
"""
