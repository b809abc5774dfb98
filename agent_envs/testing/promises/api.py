"""The promise to be what Gymnasium calls an environment, in the opinion of Gymnasium's own checker."""

from __future__ import annotations

import re
import warnings

from gymnasium.utils.env_checker import check_env

from agent_envs.testing.episode import Episode
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.record import told
from agent_envs.testing.subject import Subject

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BY_GYMNASIUM = ("WARN: ", "ERROR: ")  # others, such as of a file that nobody closed, may come from anywhere
_OF_WRAPPERS = "is different from the unwrapped version"  # they belong to what is checked


def _gymnasium(subject: Subject, episode: Episode) -> None:
    with warnings.catch_warnings(record=True) as caught, subject.env() as env:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=env.spec is None)  # without a spec that check only says that there is none
        except Exception as error:
            raise Broken("gymnasium.utils.env_checker.check_env to pass", _COLOUR.sub("", told(error))) from error
    for message in (_COLOUR.sub("", str(warning.message)) for warning in caught):
        if message.startswith(_BY_GYMNASIUM) and _OF_WRAPPERS not in message:
            raise Broken("gymnasium.utils.env_checker.check_env to pass without a warning", message)


PROMISES = (Promise("gymnasium", "Gymnasium's own checker passes, without a warning.", _gymnasium, once=True),)
