"""What `sandboxes.search.elasticsearch` is made of: the server, the form of an index, merged requests, loading.

Only this room knows the client's module and the server's protocol.
"""
