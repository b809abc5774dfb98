"""The local backend: interpreters forked from a warm process of this machine, shut in as well as its kernel allows.

`engine` is the host's end, `zygote` the warm process, `confinement` has the walls, and `probe` finds out which of them this
machine grants.
"""
