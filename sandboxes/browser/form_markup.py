"""Forms in HTML: collects fields, their options and their labels while a document is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sandboxes.browser.flow import SPACES
from sandboxes.browser.forms import Field, FieldKind, Form, Option

_KINDS: Mapping[str, FieldKind] = {
    "submit": "submit",
    "image": "submit",
    "reset": "reset",
    "button": "button",
    "checkbox": "checkbox",
    "radio": "radio",
    "file": "file",
    "hidden": "hidden",
}


@dataclass
class Label:
    """A label while it is read.

    Args:
        target: The id of what it names; "" for the first field in it.
        texts: What it says.
        element: The place of the element that it names, once that is known.
    """

    target: str
    texts: list[str] = field(default_factory=list)
    element: int | None = None

    @property
    def text(self) -> str:
        return SPACES.sub(" ", "".join(self.texts)).strip().removesuffix(":").rstrip()


class FormCollector:
    """The forms of a document in the making.

    Attributes:
        size: How many fields and options there are, to bound them by.
        reads_text: Whether text belongs to an option or to a text area now, and is handed to `text`.
    """

    def __init__(self) -> None:
        self.size = 0
        self.labels: list[Label] = []
        self._fields: list[Field] = []
        self._forms: list[Form] = []
        self._form: int | None = None
        self._form_ids: dict[str, int] = {}
        self._owners: dict[int, str] = {}  # fields that name their form by its id
        self._elements: dict[str, int] = {}  # of fields, by id
        self._label: int | None = None
        self._options: list[Option] | None = None  # of the select that is open
        self._option: Mapping[str, str] | None = None
        self._texts: list[str] = []
        self._in_area = False
        self._reading = 0  # the place of the select or text area that is open

    @property
    def reads_text(self) -> bool:
        return self._in_area or self._options is not None

    @property
    def label(self) -> int | None:
        """The place of the label that is open."""
        return self._label

    def text(self, text: str) -> None:
        """Text of an option or a text area."""
        self._texts.append(text)

    def open_form(self, attributes: Mapping[str, str]) -> None:
        method, encoding = (attributes.get(name, "").strip().lower() for name in ("method", "enctype"))
        self._forms.append(Form(attributes.get("action", "").strip(), method or "get", encoding))
        self._form = len(self._forms) - 1
        self._form_ids.setdefault(attributes.get("id", ""), self._form)

    def open_field(self, tag: str, attributes: Mapping[str, str], disabled: bool) -> tuple[int, Field]:
        """An input, a button, a select or a text area begins.

        Returns:
            The field and its place.
        """
        kind = _kind(tag, attributes)
        made = Field(
            kind,
            attributes.get("name", ""),
            attributes.get("value", "on" if kind in ("checkbox", "radio") else ""),
            self._form,
            on="checked" in attributes,
            many="multiple" in attributes or tag == "textarea",
            disabled=disabled or "disabled" in attributes,
            fixed="readonly" in attributes and kind == "text",
            secret=attributes.get("type", "").strip().lower() == "password",
            action=attributes.get("formaction", "").strip(),
            method=attributes.get("formmethod", "").strip().lower(),
        )
        self._fields.append(made)
        self.size += 1
        place = len(self._fields) - 1
        if "form" in attributes:
            self._owners[place] = attributes["form"]
        if tag == "select":
            self._options = []
        self._in_area = tag == "textarea"
        if tag in ("select", "textarea"):
            self._reading, self._texts = place, []
        return place, made

    def shown(self, element: int, attributes: Mapping[str, str]) -> None:
        """The field that was opened last is that element."""
        if attributes.get("id"):
            self._elements.setdefault(attributes["id"], element)
        if self._label is not None and not self.labels[self._label].target and self.labels[self._label].element is None:
            self.labels[self._label].element = element

    def open_option(self, attributes: Mapping[str, str]) -> None:
        self.close_option()
        self.size += 1
        self._option = attributes
        if self._options is not None:
            self._texts = []

    def close_option(self) -> None:
        marks, self._option = self._option, None
        if marks is not None and self._options is not None:
            text = SPACES.sub(" ", "".join(self._texts)).strip()
            label, value = marks.get("label") or text, marks.get("value", text)
            self._options.append(Option(label, value, "selected" in marks, "disabled" in marks))

    def open_label(self, attributes: Mapping[str, str]) -> None:
        self.labels.append(Label(attributes.get("for", "")))
        self._label = len(self.labels) - 1

    def close(self, tag: str) -> None:
        """A tag ends."""
        if tag == "form":
            self._form = None
        elif tag == "label":
            self._label = None
        elif tag == "option":
            self.close_option()
        elif tag == "select" and self._options is not None:
            self.close_option()
            self._fields[self._reading] = replace(self._fields[self._reading], options=tuple(self._options))
            self._options = None
        elif tag == "textarea" and self._in_area:
            self._fields[self._reading] = replace(self._fields[self._reading], value="".join(self._texts).removeprefix("\n"))
            self._in_area = False

    def finish(self) -> tuple[list[Field], list[Form], dict[int, int]]:
        """What was collected: the fields, the forms, and the elements that labels name, as {label: element}."""
        self.close("select")
        self.close("textarea")
        fields = [
            replace(made, form=self._form_ids.get(self._owners[place])) if place in self._owners else made
            for place, made in enumerate(self._fields)
        ]
        named: dict[int, int] = {}
        for place, label in enumerate(self.labels):
            element = self._elements.get(label.target) if label.target else label.element
            if element is not None and label.text:
                named[place] = element
        return fields, self._forms, named


def _kind(tag: str, attributes: Mapping[str, str]) -> FieldKind:
    given = attributes.get("type", "").strip().lower()
    if tag == "select":
        return "select"
    if tag == "textarea":
        return "text"
    if tag == "button":
        return _KINDS[given] if given in ("reset", "button") else "submit"
    return _KINDS.get(given, "text")
