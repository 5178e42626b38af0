/** What an image looks like: in a tile, in a strip, in words. */

import { previewUrl, thumbnailUrl } from "./api.js";
import { element, icon } from "./elements.js";

/** Names of the values an item's mark may have, for `data-mark`. */
export const kindOf = (relevant) => (relevant === null ? "" : relevant ? "relevant" : "irrelevant");

const INKS = { relevant: "Relevant", irrelevant: "Irrelevant" };

/**
 * A score in about three digits.
 * @param {number} score
 */
export function scoreText(score) {
  const size = Math.abs(score);
  const decimals = size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0;
  return score.toFixed(decimals).replace("-", "−");
}

/** The small image of an item, or its words where there is none. */
export function small(item) {
  if (!item.thumbnail) return words(item);
  return element("img", {
    src: thumbnailUrl(item.image), alt: item.label, draggable: "false", loading: "lazy", decoding: "async",
  });
}

/** The label and metadata of an item that has no picture. */
export function words(item) {
  const facts = Object.entries(item.metadata ?? {}).map(([key, value]) =>
    element("span", {}, `${key}: ${value}`));
  return element("span", { class: "words" }, element("b", {}, item.label), ...facts);
}

/** Fill what every tile has; see `TileGrid`. */
export function fillTile(tile, item, fresh) {
  if (!fresh) return;
  const picture = tile.querySelector(".picture");
  picture.removeAttribute("aria-label");
  picture.replaceChildren(small(item));
  const label = tile.querySelector(".label");
  // The end of a path says most.
  label.textContent = item.label.split("/").at(-1);
  label.title = item.label;
  const score = tile.querySelector(".score");
  if (score && item.score !== null) {
    score.textContent = scoreText(item.score);
    score.title = "Score: higher is better";
  }
}

/** Show in a tile whether its image is relevant (null: not marked). */
export function markTile(tile, item, relevant) {
  const kind = kindOf(relevant);
  tile.dataset.mark = kind;
  tile.querySelector(".badge").textContent = INKS[kind] ?? "";
  for (const name of ["relevant", "irrelevant"]) {
    const button = tile.querySelector(`[data-action="${name}"]`);
    button.setAttribute("aria-pressed", kind === name);
    button.setAttribute("aria-label", `${INKS[name]}: ${item.label}`);
    button.title = name === "relevant" ? "Relevant (r)" : "Irrelevant (x)";
  }
  const search = tile.querySelector('[data-action="search"]');
  search.setAttribute("aria-label", `Search with ${item.label}`);
  search.title = "Search with this (s)";
}

/**
 * A strip's entry.
 * @param {object} item
 * @param {{title?: string, onclick?: () => void, remove?: () => void}} [how] remove: what its cross does
 */
export function stripEntry(item, { title = item.label, onclick, remove } = {}) {
  const entry = element("li", { "data-image": item.image });
  const frame = onclick
    ? element("button", { type: "button", title, onclick }, small(item))
    : element("span", { class: "still", title }, small(item));
  entry.append(frame);
  if (remove) {
    entry.append(element("button", {
      type: "button", class: "remove", "aria-label": `Take back: ${item.label}`, title: "Take back", onclick: remove,
    }, icon("close")));
  }
  return entry;
}

/** The large picture of an item, or words where there is none. */
export function large(item) {
  if (!item.thumbnail) return words(item);
  const picture = element("img", { src: previewUrl(item.image), alt: item.label, draggable: "false" });
  picture.addEventListener("error", () => {
    picture.replaceWith(element("p", {}, "The original cannot be shown."));
  });
  return picture;
}
