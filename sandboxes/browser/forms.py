"""Forms: their fields as a page brings them, and what has been entered since.

What a form sends follows the HTML standard (https://html.spec.whatwg.org, "constructing the entry list"), without files and
without anything that scripts would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sandboxes.browser.browser import PageProblem

_LONGEST_LIST = 200  # characters of a select's options

FieldKind = Literal["text", "checkbox", "radio", "select", "submit", "reset", "button", "hidden", "file"]


@dataclass(frozen=True)
class Form:
    """A form.

    Args:
        action: Where it sends to, as the page has it; "" for the page itself.
        method: ``"get"``, ``"post"`` or ``"dialog"``.
        encoding: Of a POST.
    """

    action: str
    method: str
    encoding: str


@dataclass(frozen=True)
class Option:
    """One of a select's options."""

    label: str
    value: str
    chosen: bool
    disabled: bool


@dataclass(frozen=True)
class Field:
    """A field.

    Args:
        kind: What it is. ``"text"`` is everything that text is typed into.
        name: What its value is sent as; "" for a field that is not sent.
        value: At first; of a button or a tick box what it sends.
        form: Which of the page's forms it belongs to.
        on: Whether it is ticked at first.
        options: Of a select.
        many: Whether several options may be chosen, or a text has several lines.
        disabled: It cannot be acted on, and is not sent.
        fixed: It cannot be changed, but is sent.
        secret: A password, which is not shown.
        action, method: Of a button that has its own.
    """

    kind: FieldKind
    name: str = ""
    value: str = ""
    form: int | None = None
    on: bool = False
    options: tuple[Option, ...] = ()
    many: bool = False
    disabled: bool = False
    fixed: bool = False
    secret: bool = False
    action: str = ""
    method: str = ""


class Entries:
    """What stands in the fields of a page now.

    Args:
        fields: Of the page, in document order; they are named by their place in it.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._texts: dict[int, str] = {}
        self._ticks: dict[int, bool] = {}
        self._choices: dict[int, list[int]] = {}

    def text(self, place: int) -> str:
        return self._texts.get(place, self._fields[place].value)

    def ticked(self, place: int) -> bool:
        return self._ticks.get(place, self._fields[place].on)

    def chosen(self, place: int) -> list[int]:
        """The places of a select's chosen options."""
        field = self._fields[place]
        if place not in self._choices:
            marked = [number for number, option in enumerate(field.options) if option.chosen]
            usable = [number for number, option in enumerate(field.options) if not option.disabled]
            self._choices[place] = marked if field.many else (marked[-1:] or usable[:1])
        return self._choices[place]

    def shown(self, place: int) -> str | None:
        """The value as a snapshot shows it."""
        field = self._fields[place]
        if field.kind == "text":
            text = self.text(place)
            return "•" * min(len(text), 20) if field.secret else text
        if field.kind in ("checkbox", "radio"):
            return "checked" if self.ticked(place) else "unchecked"
        if field.kind == "select":
            chosen = set(self.chosen(place))
            labels = [f"*{option.label}*" if at in chosen else option.label for at, option in enumerate(field.options)]
            if sum(len(label) + 3 for label in labels) > _LONGEST_LIST:  # what is chosen must not be cut off
                labels.sort(key=lambda label: not label.startswith("*"))
            return " | ".join(labels)
        return None

    def enter(self, place: int, text: str) -> None:
        self._texts[place] = text

    def tick(self, place: int) -> None:
        """What a click on a tick box or on a radio button does."""
        field = self._fields[place]
        if field.kind == "checkbox":
            self._ticks[place] = not self.ticked(place)
            return
        for at, other in enumerate(self._fields):
            if (other.kind, other.form) == ("radio", field.form) and other.name and other.name == field.name:
                self._ticks[at] = False
        self._ticks[place] = True

    def choose(self, place: int, text: str) -> None:
        """Chooses the option of that label or value.

        Raises:
            PageProblem: There is none, or it is disabled.
        """
        options = self._fields[place].options
        for wanted in (text, text.strip()):
            for at, option in enumerate(options):
                if wanted in (option.label, option.value) and not option.disabled:
                    self._choices[place] = [at]
                    return
        labels = [option.label for option in options if not option.disabled]
        more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
        raise PageProblem(f"there is no option {text[:80]!r}; the options are {', '.join(map(repr, labels[:20]))}{more}")

    def reset(self, form: int | None) -> None:
        """What a reset button does."""
        for place, field in enumerate(self._fields):
            if field.form == form:
                self._texts.pop(place, None)
                self._ticks.pop(place, None)
                self._choices.pop(place, None)

    def sent(self, form: int, button: int | None) -> list[tuple[str, str]]:
        """What the form sends, in document order.

        Args:
            form: Which one.
            button: The one that sends it, if one does.
        """
        pairs: list[tuple[str, str]] = []
        for place, field in enumerate(self._fields):
            if field.form != form or field.disabled or not field.name:
                continue
            if field.kind == "select":
                values = [field.options[at].value for at in self.chosen(place) if not field.options[at].disabled]
            elif field.kind in ("checkbox", "radio"):
                values = [field.value] if self.ticked(place) else []
            elif field.kind in ("text", "hidden"):
                values = [self.text(place)]
            elif field.kind == "file":
                values = [""]
            else:
                values = [field.value] if place == button else []
            pairs += [(_lines(field.name), _lines(value)) for value in values]
        return pairs


def _lines(text: str) -> str:
    """Line ends as forms send them."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
