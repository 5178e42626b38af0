/** The box that finds images by path or number while one types. */

import { findImages } from "./api.js";
import { byId, counted, element } from "./elements.js";
import { announce } from "./notices.js";
import { small } from "./tiles.js";

const WAIT = 150; // milliseconds without a key before asking
const MOST = 50;

/** @param {(item: object) => void} choose what clicking a result does */
export function listenForFinding(choose) {
  const box = byId("find");
  const list = byId("found");
  let asking = null;
  let timer = 0;

  const close = () => {
    list.hidden = true;
    asking?.abort();
    clearTimeout(timer);
  };
  const take = (item) => {
    box.value = "";
    close();
    choose(item);
  };
  const entry = (item) => {
    const number = element("small", {}, `#${item.image}`);
    const picture = item.thumbnail ? small(item) : element("span", { class: "blank" });
    if (item.thumbnail) picture.alt = "";
    return element("button", { type: "button", onclick: () => take(item) },
      picture, element("span", {}, `${item.label} `, number));
  };
  const ask = async () => {
    const text = box.value.trim();
    asking?.abort();
    if (!text) return close();
    asking = new AbortController();
    const { signal } = asking;
    try {
      const { images } = await findImages(text, MOST, signal);
      const none = element("p", {}, "No image has that in its path.");
      list.replaceChildren(...(images.length ? images.map(entry) : [none]));
      announce(`${counted(images.length, "image")} found`);
    } catch (error) {
      if (signal.aborted) return;
      list.replaceChildren(element("p", {}, error.message));
    }
    list.hidden = false;
  };

  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, WAIT);
  });
  box.addEventListener("focus", () => {
    if (box.value.trim()) ask();
  });
  box.parentElement.addEventListener("keydown", (event) => {
    const entries = [...list.querySelectorAll("button")];
    const at = entries.indexOf(document.activeElement);
    if (event.key === "Escape") {
      box.focus();
      if (list.hidden) box.blur();
      close();
    } else if (event.key === "ArrowDown" && !list.hidden) entries[at + 1]?.focus();
    else if (event.key === "ArrowUp" && at >= 0) (entries[at - 1] ?? box).focus();
    else if (event.key === "Enter" && at < 0 && !list.hidden) entries[0]?.click();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!box.parentElement.contains(event.target)) close();
  });
  box.parentElement.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !box.parentElement.contains(event.relatedTarget)) close();
  });
}
