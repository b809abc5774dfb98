"""The docker backend: interpreters in containers, each of which serves one family at a time.

`settings` says how a container is shut in, `engine` starts them, `link` is the wire to one, and `container` is what runs in
it, sent in by `program` and `boot`; `image` builds the image.
"""
