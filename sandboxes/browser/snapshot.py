"""How a page reads: the text that every engine gives for a page, so that an agent need not know which one is behind it.

    Page: Talido Benu
    URL: http://wiki.test/wiki/Talido_Benu

    # Talido Benu
    Talido Benu wrote [e3: Kovamir] in 1923.
    - [e4: Works]
    [e5 textbox "Search": ] [e6 button: Go] [e7 select "Sort by": *Title* | Date]

A block is a line; headings begin with ``#``, items of a list with ``-``, cells of a row are parted by ``|``. What can be
acted on stands in brackets with its ref, numbered in document order from e1. A snapshot is cut to a budget of characters
between lines, and says how much it leaves out above and below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BREAKS = re.compile(r"\s+")
_LONGEST_NAME = 200  # characters of an element's name or value
_GOES_ON = " [this line goes on]"


def element(ref: str, role: str, name: str, value: str | None = None) -> str:
    """An element that can be acted on, as it stands in a line.

    Args:
        ref: Such as ``"e7"``.
        role: ``"link"``, which is left out, ``"button"``, ``"textbox"``, ``"select"``, ``"checkbox"``, ``"radio"``...
        name: Its label.
        value: What it holds: the text, ``"checked"`` or ``"unchecked"``, options parted by ``|`` with the chosen one in
            asterisks. None for what holds nothing.

    Example:
        >>> element("e3", "link", "Kovamir"), element("e6", "button", "Go"), element("e5", "textbox", "Search", "")
        ('[e3: Kovamir]', '[e6 button: Go]', '[e5 textbox "Search": ]')
    """
    name = _tidy(name)
    if value is not None:
        label = f' "{name}"' if name else ""
        return f"[{ref} {role}{label}: {_tidy(value)}]"
    return f"[{ref}: {name}]" if role == "link" else f"[{ref} {role}: {name}]"


def render(title: str, url: str, lines: Sequence[str], budget: int, first: int = 0) -> str:
    """A snapshot.

    Args:
        title, url: Of the page.
        lines: The blocks of the whole page.
        budget: Characters of the snapshot.
        first: The first line that is shown; those before it have been scrolled past.

    Returns:
        At most ``budget`` characters, if that is enough for the head, the notes and a part of one line.
    """
    head = f"Page: {_tidy(title)}\nURL: {url[:500]}\n\n"
    above = f"[{first} lines above are left out: scroll up]\n" if first else ""
    shown: list[str] = []
    room = budget - len(head) - len(above) - 60
    for line in lines[first:]:
        if len(line) + 1 > room:
            if not shown and room > 0:  # one endless line: its beginning
                shown.append(f"{line[: max(0, room - len(_GOES_ON))]}{_GOES_ON}")
            break
        shown.append(line)
        room -= len(line) + 1
    rest = len(lines) - first - len(shown)
    below = f"\n[{rest} lines below are left out: scroll down]" if rest > 0 else ""
    return f"{head}{above}{chr(10).join(shown)}{below}"


def _tidy(text: str) -> str:
    text = _BREAKS.sub(" ", text).strip()
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."
