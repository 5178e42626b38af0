/** What the page says about itself: errors to dismiss, news for screen readers, work in progress. */

import { byId, element, icon } from "./elements.js";

const MOST = 4;
let working = 0;

/**
 * Show an error until it is dismissed; the same text is not shown twice.
 * @param {string} text
 */
export function complain(text) {
  const box = byId("notices");
  for (const old of [...box.children]) if (old.textContent === text) old.remove();
  const notice = element("div", { class: "notice", role: "alert" }, element("p", {}, text));
  const close = element("button", {
    type: "button", class: "round", "aria-label": "Dismiss", onclick: () => notice.remove(),
  }, icon("close"));
  notice.append(close);
  box.append(notice);
  while (box.children.length > MOST) box.firstChild.remove();
}

/** Dismiss the newest error; returns whether there was one. */
export function dismiss() {
  const notice = byId("notices").lastElementChild;
  notice?.remove();
  return Boolean(notice);
}

/**
 * Tell a screen reader.
 * @param {string} text
 */
export function announce(text) {
  byId("live").textContent = text;
}

/**
 * Run something that may take a while: the page shows that it works, and what went wrong.
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T|undefined>} undefined where it failed
 */
export async function attempt(work) {
  working += 1;
  document.body.dataset.busy = "";
  try {
    return await work();
  } catch (error) {
    complain(error.message);
    return undefined;
  } finally {
    working -= 1;
    if (!working) delete document.body.dataset.busy;
  }
}
