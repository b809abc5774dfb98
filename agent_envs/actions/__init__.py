"""Actions: the text of one assistant turn, and the formats that give it a meaning.

Each format is a file here, beside the contract that they keep (`agent_envs.actions.format`). ``TagFormat`` is the papers':
``<think> <python> <search> <browse> <result> <answer>``. ``HermesFormat`` is that of chat models that were trained to call
tools as JSON. ``PlainFormat`` is for anybody's text environment.
"""

from agent_envs.actions.boxed import last_boxed
from agent_envs.actions.format import Format, Message, Parsed, Piece, Role
from agent_envs.actions.hermes import HermesFormat
from agent_envs.actions.plain import PlainFormat
from agent_envs.actions.tag import TagFormat
from agent_envs.moves import Answer, Call, Move

__all__ = [
    "Answer",
    "Call",
    "Format",
    "HermesFormat",
    "Message",
    "Move",
    "Parsed",
    "Piece",
    "PlainFormat",
    "Role",
    "TagFormat",
    "last_boxed",
]
