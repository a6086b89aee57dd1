// Small helpers; text always goes in as text.

export const byId = (id) => document.getElementById(id);

/** An element with attributes, and children that are elements or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Milliseconds for people: three digits are enough. */
export const milliseconds = (value) => `${value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0)} ms`;

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** Labels of data sets are identifiers. */
export const words = (label) => label.replaceAll("_", " ");

/** Says something to a screen reader. */
export function speak(text) {
  byId("spoken").textContent = text;
}
