"""Rollouts: episodes that run by themselves, and the trees that their tokens form.

``tree`` is the data, ``rendering`` turns a format's roles and pieces into token ids, ``episode`` plays one path, ``engine``
plays groups of them at once. This is the one room of the learners that knows environments; it knows no algorithm and no
command line.
"""
