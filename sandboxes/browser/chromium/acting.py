"""What an agent does to an element of a page, after a look whether a person could.

Each function raises a `PageProblem` that says what is in the way: the element is gone, disabled, not shown, or covered by
another one; a text was given to what is no text field. None of them waits for what the action leads to. Clicks and text go
in as input, as a person's do. Playwright's own actions would wait for two drawn frames to see that nothing moves, which is
most of the time that they take.
"""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page

from sandboxes.browser.browser import PageProblem
from sandboxes.browser.chromium.reading import Target

_NAMED_KEYS = (
    *("Enter", "Tab", "Escape", "Backspace", "Delete", "Space", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"),
    *("Home", "End", "PageUp", "PageDown", "Shift+Tab", "Control+A"),
)

_DRAWN = "for (let drawn = 0; drawn < 2; drawn++) await new Promise(requestAnimationFrame);"

# Begins the function of each script below: finds the element and brings it into view, or returns what is in the way.
_LOOK = """
  const element = reading.elements[index];
  if (!element.isConnected) return "is no longer on the page: take a new snapshot";
  if (element.matches(":disabled") || element.closest("[aria-disabled=true]")) return "is disabled: another step is first";
  const firstBox = () => [...element.getClientRects()].find((box) => box.width > 0 && box.height > 0);
  let box = firstBox();
  if (!box || getComputedStyle(element).visibility !== "visible") return "is not shown at present: take a new snapshot";
  if (box.top < 0 || box.left < 0 || box.bottom > innerHeight || box.right > innerWidth) {
    element.scrollIntoView({ block: "center", inline: "nearest", behavior: "instant" });
    box = firstBox();
  }
"""

# The place to click on, in the coordinates of the document.
_AIM = (
    "(reading, [index]) => {"
    + _LOOK
    + """
  if (element.type === "file") return "takes a file, which this browser does not send";
  if (element.tagName === "SELECT") return "is a select: use select with one of its options";
  const middle = (low, high, most) => (Math.max(low, 0) + Math.min(high, most)) / 2;
  const x = middle(box.left, box.right, innerWidth), y = middle(box.top, box.bottom, innerHeight);
  let hit = null;
  for (let root = document; root; root = hit.shadowRoot) {
    const next = root.elementFromPoint(x, y);
    if (!next || next === hit) break;
    hit = next;
  }
  if (!hit) return "is outside of what can be seen: scroll to it";
  for (let node = hit; node; node = node.assignedSlot ?? node.parentNode ?? node.host)
    if (node === element || (node.control && node.control === element)) return [x, y];
  const words = (hit.innerText ?? "").replace(/\\s+/g, " ").trim().slice(0, 60);
  return `is covered by another element (${hit.tagName.toLowerCase()}${words ? `: ${words}` : ""}): deal with that first`;
}"""
)

# The same place in the coordinates of the document around a frame, which is brought into view; a frame may have a process of
# its own, to which a click finds its way only once that was drawn.
_AIM_THROUGH_FRAME = (
    """async (frame, [x, y]) => {
  const place = () => {
    const box = frame.getBoundingClientRect(), style = getComputedStyle(frame);
    const left = box.left + frame.clientLeft + parseFloat(style.paddingLeft);
    return [left + x, box.top + frame.clientTop + parseFloat(style.paddingTop) + y];
  };
  const isInView = ([left, top]) => left >= 0 && left < innerWidth && top >= 0 && top < innerHeight;
  if (!isInView(place())) {
    frame.scrollIntoView({ block: "center", inline: "center", behavior: "instant" });
    if (!isInView(place())) scrollBy({ top: place()[1] - innerHeight / 2, behavior: "instant" });
    """
    + _DRAWN
    + """
  }
  const hit = frame.getRootNode().elementFromPoint(...place());
  return hit === frame ? place() : "is in a frame that another element covers: deal with that first";
}"""
)

# Makes a text field ready for its new text: "text" where that is put in as input, "value" where it was set here, since the
# field takes only texts of one form.
_CLEAR = (
    "(reading, [index, text]) => {"
    + _LOOK
    + """
  const isInput = element.tagName === "INPUT";
  const free = "text search email url tel password".split(" ");
  const formed = "number date time datetime-local month week color".split(" ");
  const isField = element.tagName === "TEXTAREA" || (isInput && [...free, ...formed].includes(element.type));
  if (!isField && !element.isContentEditable) return "is no text field: click on it, or take another ref";
  if (element.readOnly) return "is read-only";
  element.focus();
  if (isInput && formed.includes(element.type)) {
    const before = element.value;
    element.value = text.trim();
    if (element.value.toLowerCase() !== text.trim().toLowerCase()) {
      element.value = before;
      return `is a field for a ${element.type}: ${JSON.stringify(text.slice(0, 60))} is none`;
    }
    for (const type of ["input", "change"]) element.dispatchEvent(new Event(type, { bubbles: true, composed: true }));
    return ["value"];
  }
  if (isField) element.select();
  else getSelection().selectAllChildren(element);
  return ["text"];
}"""
)

_CHOOSE = (
    "(reading, [index, wanted]) => {"
    + _LOOK
    + """
  if (element.tagName !== "SELECT") return "is no select: click on it, or take another ref";
  const labelOf = (option) => (option.label || option.text).replace(/\\s+/g, " ").trim();
  const options = [...element.options];
  const found =
    options.find((option) => labelOf(option) === wanted) ??
    options.find((option) => option.value === wanted) ??
    options.find((option) => labelOf(option).toLowerCase() === wanted.toLowerCase());
  if (!found) {
    const labels = options.slice(0, 50).map((option) => labelOf(option).slice(0, 100));
    return `has no option ${JSON.stringify(wanted.slice(0, 60))}: its options are ${labels.join(" | ").slice(0, 1000)}`;
  }
  if (found.disabled || found.parentElement.disabled) return `has that option, but it is disabled: choose another one`;
  element.focus();
  for (const option of options) option.selected = option === found;
  for (const type of ["input", "change"]) element.dispatchEvent(new Event(type, { bubbles: true, composed: true }));
  return ["done"];
}"""
)


async def click(page: Page, target: Target, ref: str) -> None:
    """Clicks on the middle of an element."""
    place = await _evaluate(target, ref, _AIM)
    frame = target.frame
    while frame.parent_frame is not None:
        holder = await frame.frame_element()
        place = _unless_problem(ref, await holder.evaluate(_AIM_THROUGH_FRAME, place))
        frame = frame.parent_frame
    await page.mouse.click(*place)


async def type_text(page: Page, target: Target, ref: str, text: str) -> None:
    """Replaces what stands in a text field."""
    (way,) = await _evaluate(target, ref, _CLEAR, text)
    if way == "text" and text:
        await page.keyboard.insert_text(text)
    elif way == "text":
        await page.keyboard.press("Delete")


async def select_option(target: Target, ref: str, option: str) -> None:
    """Chooses an option by its label or value."""
    await _evaluate(target, ref, _CHOOSE, option.strip())


async def press_key(page: Page, key: str) -> None:
    """Presses a key for what has the focus: what was acted on last, if it takes keys."""
    if key not in _NAMED_KEYS and not (len(key) == 1 and key.isprintable()):
        raise PageProblem(f"there is no key {key[:40]!r} here: press one character, or one of {', '.join(_NAMED_KEYS)}")
    await page.keyboard.press(key)


async def _evaluate(target: Target, ref: str, script: str, *arguments: str) -> list[Any]:
    return _unless_problem(ref, await target.document.evaluate(script, [target.index, *arguments]))


def _unless_problem(ref: str, outcome: list[Any] | str) -> list[Any]:
    if isinstance(outcome, str):
        raise PageProblem(f"{ref} {outcome}")
    return outcome
