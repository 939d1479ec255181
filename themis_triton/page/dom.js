// Elements are built and changed through textContent and attributes alone: a name of a model or an error cannot become markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties, attributes and children (strings become text). */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set text only when it changed, so that selections and screen readers are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** Make the children of a list those of `items`, keyed: existing elements are kept and updated. */
export function reconcile(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = known.get(name);
    if (element === undefined) {
      element = create(item);
      element.dataset.key = name;
    }
    known.delete(name);
    if (element !== place) parent.insertBefore(element, place);
    else place = place.nextElementSibling;
    update(element, item);
  }
  for (const element of known.values()) element.remove();
}

/** A state with a shape and a word, never a colour alone. */
export function stateMark(element, level, word) {
  if (element.dataset.level === level && element.dataset.word === word) return;
  element.dataset.level = level;
  element.dataset.word = word;
  element.replaceChildren(h("span", { class: "mark", "aria-hidden": "true" }, MARKS[level] ?? "●"), h("span", {}, word));
}

export const MARKS = { bad: "▲", warn: "◆", good: "●", idle: "○", info: "◇" };
