"""A small web site on this machine, behind which a world of `agent_envs.tasks.world` stands.

It has a search, lists, articles with links, and things that keep state: a reading list, notes, settings and orders. State
belongs to a session, which an environment opens, reads and copies; what a session shows depends on its world and on what was
done in it, never on the time or on other sessions.

    state.py     what a session keeps, and what may be done to it
    pages.py     what the pages show
    routes.py    what a request leads to
    server.py    the sessions, and the server that listens
    opening.py   an episode's share of the server
"""

from agent_envs.tasks.site.opening import HOST, OpenWikiSite, WikiSite
from agent_envs.tasks.site.server import SiteServer, UnknownSession
from agent_envs.tasks.site.state import Order, Refused, Settings, State, initial_state

__all__ = [
    "HOST",
    "OpenWikiSite",
    "Order",
    "Refused",
    "Settings",
    "SiteServer",
    "State",
    "UnknownSession",
    "WikiSite",
    "initial_state",
]
