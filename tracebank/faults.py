"""What can be wrong with a bank: one error, whose message says what was expected, what was found and what to do."""

from __future__ import annotations


class BankError(RuntimeError):
    """A bank that cannot be opened, read or written as asked. Whatever was acknowledged before is still there."""
