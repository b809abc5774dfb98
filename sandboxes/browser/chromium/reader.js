// Reads one document: what a person would see of it, as lines of text and of elements that can be acted on.
//
// Evaluates to a function of the limits that returns {data, elements, nodes, frames}. `data` is plain and goes to Python:
// {title, lines, frames, cut, goal}, where a line is a list of texts and of elements [index, role, name, value or null], or
// {frame: index}, and goal is the line at which what the address's fragment names begins, or -1. The rest stays here, for what is done to an element later: `elements` and `frames` by those indexes, and
// `nodes`, which holds the node that each line begins with.
(limits) => {
  const SKIPPED = new Set([
    "SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE", "HEAD", "META", "LINK", "TITLE", "BASE", "OBJECT", "EMBED", "CANVAS", "AUDIO",
    "VIDEO", "DATALIST", "SOURCE", "TRACK", "AREA",
  ]);
  const TEXT_FIELDS = new Set([
    "text", "search", "email", "url", "tel", "password", "number", "date", "time", "datetime-local", "month", "week", "color",
  ]);
  const BUTTONS = new Set(["submit", "reset", "button", "image"]);
  const ROLES = new Set([
    "button", "link", "checkbox", "radio", "switch", "tab", "menuitem", "menuitemcheckbox", "menuitemradio", "option",
    "treeitem",
  ]);
  const INTERACTIVE = "a[href], button, input, select, textarea, summary, [contenteditable], [role=button], [role=link]";
  const LAYOUT = "table, h1, h2, h3, h4, h5, h6, ul, ol, dl, pre, form, hr, p + p";
  const LONGEST_NAME = 200;
  const DEEPEST = 600;

  const lines = [], elements = [], nodes = [], frames = [];
  let parts = [], first = null, prefix = "", characters = 0, visited = 0, cut = false, goal = -1;
  const target = document.querySelector?.(":target");
  const began = performance.now();

  const tidy = (text) => text.replace(/\s+/g, " ").trim();

  // Fields of a form hide what is the form's own: with an input called "childNodes", form.childNodes is that input.
  const childNodesOf = Object.getOwnPropertyDescriptor(Node.prototype, "childNodes").get;

  const children = (element) => {
    if (element instanceof HTMLFormElement) return childNodesOf.call(element);
    if (element.shadowRoot) return element.shadowRoot.childNodes;
    if (element.tagName === "SLOT") {
      const assigned = element.assignedNodes({ flatten: true });
      if (assigned.length) return assigned;
    }
    return element.childNodes;
  };

  const isRendered = (element) =>
    element.getClientRects().length > 0 && getComputedStyle(element).visibility === "visible";

  const isSkipped = (element, style) =>
    SKIPPED.has(element.tagName) || style.display === "none" || element.getAttribute("aria-hidden") === "true" ||
    (style.overflow !== "visible" && !style.display.startsWith("inline") && style.display !== "contents" &&
      (element.clientHeight === 0 || element.clientWidth === 0) && element.offsetParent !== null);

  // The text inside an element, without that of fields, at most about `most` characters.
  const textOf = (element, most = LONGEST_NAME * 2, depth = 0) => {
    let text = "";
    for (const child of children(element)) {
      if (text.length > most || depth > DEEPEST) break;
      if (child.nodeType === Node.TEXT_NODE) {
        if (getComputedStyle(child.parentElement ?? element).visibility === "visible") text += child.data.slice(0, most);
      } else if (child instanceof Element && !/^(select|textarea|svg|form)$/i.test(child.tagName)) {
        if (child.tagName === "IMG") text += ` ${child.alt} `;
        else {
          const style = getComputedStyle(child);
          if (isSkipped(child, style)) continue;
          const inside = textOf(child, most - text.length, depth + 1);
          text += style.display.startsWith("inline") ? inside : ` ${inside} `;
        }
      }
    }
    return text;
  };

  const nameOf = (element) => {
    const label = tidy(element.getAttribute("aria-label") ?? "");
    if (label) return label;
    const root = element.getRootNode();
    const labelled = (element.getAttribute("aria-labelledby") ?? "").split(/\s+/).filter(Boolean)
      .map((id) => root.getElementById?.(id)).filter(Boolean).map((other) => textOf(other)).join(" ");
    if (tidy(labelled)) return tidy(labelled);
    const type = element.tagName === "INPUT" ? element.type : "";
    if (type === "submit" || type === "reset" || type === "button")
      return tidy(element.value) || { submit: "Submit", reset: "Reset", button: "" }[type];
    if (type === "image") return tidy(element.alt || "Submit");
    const labels = [...(element.labels ?? [])].map((other) => textOf(other)).join(" ");
    if (tidy(labels)) return tidy(labels).replace(/\s*:$/, "");
    if (!/^(INPUT|SELECT|TEXTAREA)$/.test(element.tagName) && !element.isContentEditable) {
      const text = tidy(textOf(element));
      if (text) return text;
    }
    const other = tidy(element.getAttribute("placeholder") || element.getAttribute("title") || element.getAttribute("name") || "");
    return other || (element.getAttribute("href") ?? "").replace(/[?#].*$/s, "").replace(/\/+$/, "").split("/").at(-1).slice(0, 60);
  };

  const optionsOf = (select) => {
    const options = [...select.options].slice(0, limits.options).map((option) => {
      const text = tidy(option.label || option.text);
      return option.selected ? `*${text}*` : text;
    });
    const chosen = options.filter((text) => text.startsWith("*"));
    const all = options.join(" | ");
    // A long list is cut at its end: what is chosen must not be lost by that.
    return all.length < LONGEST_NAME ? all : [...chosen, ...options.filter((text) => !text.startsWith("*"))].join(" | ");
  };

  const checked = (isOn) => (isOn ? "checked" : "unchecked");

  // [role, value or null] of an element that can be acted on, else null.
  const kindOf = (element) => {
    const tag = element.tagName;
    if (tag === "A" && element.hasAttribute("href")) return ["link", null];
    if (tag === "BUTTON" || tag === "SUMMARY") return ["button", null];
    if (tag === "SELECT") return ["select", optionsOf(element)];
    if (tag === "TEXTAREA") return ["textbox", element.value];
    if (tag === "INPUT") {
      const type = element.type;
      if (type === "checkbox" || type === "radio") return [type, checked(element.checked)];
      if (BUTTONS.has(type)) return ["button", null];
      if (type === "password") return ["textbox", "•".repeat(Math.min(element.value.length, 20))];
      if (TEXT_FIELDS.has(type)) return ["textbox", element.value];
      if (type === "file") return ["file", null];
      return type === "range" ? ["slider", element.value] : null;
    }
    const role = element.getAttribute("role");
    if (ROLES.has(role)) {
      const state = element.getAttribute("aria-checked");
      return [role, state === null ? null : checked(state === "true")];
    }
    if (element.isContentEditable && !element.parentElement?.isContentEditable) return ["textbox", textOf(element)];
    return null;
  };

  const endLine = () => {
    while (parts.length && typeof parts.at(-1) === "string" && !parts.at(-1).trim()) parts.pop();
    if (parts.length) {
      if (typeof parts.at(-1) === "string") parts.push(parts.pop().trimEnd());
      if (prefix) parts.unshift(prefix);
      lines.push(parts);
      nodes.push(first);
      prefix = "";
    }
    parts = [];
    first = null;
  };

  const put = (part, node) => {
    first ??= node;
    parts.push(part);
  };

  const endsWithSpace = () => {
    const last = parts.at(-1);
    return typeof last === "string" && last.endsWith(" ");
  };

  const space = (node) => {
    if (parts.length && !endsWithSpace()) put(" ", node);
  };

  const putText = (text, context, node) => {
    characters += text.length;
    text = text.slice(0, limits.characters);
    if (context.pre) {
      text.split("\n").forEach((piece, index) => {
        if (index) endLine();
        if (piece.trim() || parts.length) put(piece, node);
      });
      return;
    }
    text = text.replace(/\s+/g, " ");
    if (!parts.length || endsWithSpace()) text = text.trimStart();
    if (text) put(text, node);
  };

  const putElement = (element, role, name, value) => {
    if (elements.length >= limits.elements) {
      cut = true;
      return;
    }
    if (element.matches(":disabled") || element.getAttribute("aria-disabled") === "true") role += " (disabled)";
    const chosen = element.getAttribute("aria-selected") === "true" ? " (selected)" : "";
    if (Array.isArray(parts.at(-1))) put(" ", element);
    name = name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 20)}...` : name;
    if (value !== null) value = value.slice(0, LONGEST_NAME + 1);
    put([elements.length, role, name + chosen, value], element);
    characters += name.length + (value?.length ?? 0);
    elements.push(element);
  };

  const walkChildren = (element, context) => {
    for (const child of children(element)) {
      if (cut) return;
      walk(child, element, context);
    }
  };

  // `context`: depth; visible and pre: how text is shown; inside: within something that is one element already; mute: only
  // elements, no text; cell: within a row that is one line; hand: the cursor around it is a hand.
  const walk = (node, parent, context) => {
    visited += 1;
    const isLate = visited % 256 === 0 && performance.now() - began > limits.milliseconds;
    if (isLate || visited > limits.nodes || characters > limits.characters || context.depth > DEEPEST) {
      cut = true;
      return;
    }
    if (node.nodeType === Node.TEXT_NODE) {
      if (context.visible && !context.mute) putText(node.data, context, parent);
      return;
    }
    if (node instanceof HTMLFormElement) return walkForm(node, context);
    if (node.nodeType !== Node.ELEMENT_NODE) return;
    const style = getComputedStyle(node);
    if (isSkipped(node, style)) return;
    const tag = node.tagName, display = style.display;
    if (tag === "BR") {
      if (context.cell) space(node);
      else endLine();
      return;
    }
    const isCell = display === "table-cell";
    const isBlock = !isCell && !context.cell && !display.startsWith("inline") && !display.startsWith("ruby") && display !== "contents";
    const isPre = style.whiteSpaceCollapse.startsWith("preserve") && style.whiteSpaceCollapse !== "preserve-breaks";
    const within = { ...context, depth: context.depth + 1, visible: style.visibility === "visible", pre: isPre };
    if (isBlock) endLine();
    else if (isCell && parts.length) {
      space(node);
      put("| ", node);
    } else if (context.cell && !display.startsWith("inline")) space(node);
    if (node === target) goal = lines.length;
    if (display === "table-row") within.cell = !node.querySelector(LAYOUT);
    const level = /^H[1-6]$/.test(tag) ? Number(tag[1])
      : node.getAttribute("role") === "heading" ? Number(node.getAttribute("aria-level") ?? 2) : 0;
    if (level && isBlock) prefix = "#".repeat(Math.min(Math.max(level, 1), 6)) + " ";
    else if (display === "list-item" && isBlock && tag !== "SUMMARY") prefix = "- ";
    walkContent(node, style, within);
    if (isBlock) {
      endLine();
      prefix = "";
    } else if (context.cell && !display.startsWith("inline")) space(node);
  };

  const walkForm = (form, context) => {
    const style = getComputedStyle(form);
    if (style.display === "none") return;
    const isBlock = !context.cell && !style.display.startsWith("inline");
    if (isBlock) endLine();
    walkChildren(form, { ...context, depth: context.depth + 1, visible: style.visibility === "visible" });
    if (isBlock) endLine();
  };

  const walkContent = (node, style, within) => {
    const tag = node.tagName, visible = within.visible;
    if (tag === "IFRAME" || tag === "FRAME") {
      if (!visible || node.clientWidth === 0 || node.clientHeight === 0) return;
      endLine();
      lines.push({ frame: frames.length });
      nodes.push(node);
      frames.push(node);
      return;
    }
    if (tag === "IMG") {
      if (visible && !within.mute && tidy(node.alt)) put(tidy(node.alt), node);
      return;
    }
    if (tag.toLowerCase() === "svg" || tag.toLowerCase() === "math") {
      const text = tidy(node.getAttribute("aria-label") ?? (tag.toLowerCase() === "math" ? node.textContent : ""));
      if (visible && !within.mute && text) put(text, node);
      return;
    }
    if (!within.inside && visible) {
      const kind = kindOf(node);
      if (kind) {
        const name = nameOf(node);
        putElement(node, kind[0], name, kind[1]);
        // A link around a whole paragraph: its text is content, too.
        if (kind[0] !== "link" || name.length <= LONGEST_NAME) return;
        endLine();
        walkChildren(node, { ...within, inside: true });
        return;
      }
      if (tag === "LABEL" && node.control) {
        const control = kindOf(node.control);
        if (control && isRendered(node.control)) {
          walkChildren(node, { ...within, mute: true });
          return;
        }
        if (control && (control[0] === "checkbox" || control[0] === "radio")) {
          putElement(node, control[0], tidy(textOf(node)), control[1]);
          return;
        }
      }
      const isHand = style.cursor === "pointer";
      if ((isHand && !within.hand) || node.hasAttribute("onclick")) {
        const name = nameOf(node);
        if (name && name.length < LONGEST_NAME && !node.querySelector(INTERACTIVE) && tag !== "BODY" && tag !== "LABEL") {
          putElement(node, "clickable", name, null);
          return;
        }
      }
      within.hand = isHand;
    }
    if (/^(INPUT|SELECT|TEXTAREA|OPTION|OPTGROUP)$/.test(tag)) return;
    if (tag === "DETAILS" && !node.open) {
      const summary = [...node.children].find((child) => child.tagName === "SUMMARY");
      if (summary) walk(summary, node, within);
      return;
    }
    walkChildren(node, within);
  };

  const root = document.body ?? document.documentElement;
  if (root) walk(root, root, { depth: 0, visible: true, pre: false, inside: false, mute: false, cell: false, hand: false });
  endLine();
  return { data: { title: document.title.slice(0, 500), lines, frames: frames.length, cut, goal }, elements, nodes, frames };
}
