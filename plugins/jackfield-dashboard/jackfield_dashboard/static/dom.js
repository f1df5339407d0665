// Small helpers to make elements. Texts become text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

export const part = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Nothing is touched that stays the same: selections last, and screen readers have no reason to look again.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// A group of radio buttons that look like one switch. Gives back the fieldset's labels by value.
export function choices(fieldset, name, options, chosen, changed) {
  const labels = new Map();
  for (const [value, text] of options) {
    const input = h("input", { type: "radio", name, value, id: `${name}-${value}` });
    const label = h("label", { for: input.id }, text);
    input.checked = value === chosen;
    input.addEventListener("change", () => changed(value));
    fieldset.append(input, label);
    labels.set(value, label);
  }
  return labels;
}
