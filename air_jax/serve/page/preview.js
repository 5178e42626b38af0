/** The dialog that shows one image large, with what is known about it. */

import { getImage } from "./api.js";
import { byId, element } from "./elements.js";
import { kindOf, large, scoreText } from "./tiles.js";

const KEYS = {
  ArrowLeft: "previous", ArrowRight: "following", r: "relevant", x: "irrelevant", c: "collect", s: "search",
  o: "close", " ": "close", u: "undo",
};

export class Preview {
  #dialog = byId("preview");
  #grid;
  #does;
  #item;
  #place = 0;

  constructor() {
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
      const action = event.target.closest("[data-action]")?.dataset.action;
      if (action) this.#act(action);
    });
    this.#dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      // A button that has the focus keeps its own key.
      if (event.key === " " && event.target.closest("button")) return;
      const action = KEYS[event.key];
      if (!action) return;
      event.preventDefault();
      this.#act(action);
    });
    this.#dialog.addEventListener("close", () => {
      this.#item = null;
      // The browser has given the focus back to where it was; the image seen last may be another.
      this.#grid?.focus(this.#place);
    });
  }

  /** @returns {boolean} */
  get open() {
    return this.#dialog.open;
  }

  /**
   * Show the grid's current image.
   * @param {import("./grid.js").TileGrid} grid
   * @param {object} does what can be done: `search(item)`, and `toggle(item, relevant)` with
   *   `markOf(item)`, or `collect(item)` with `isCollected(item)`
   */
  show(grid, does) {
    if (!grid.item) return;
    this.#grid = grid;
    this.#does = does;
    this.#fill();
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  /** Marks have changed. */
  refresh() {
    if (this.#item) this.#buttons();
  }

  #act(action) {
    const does = this.#does;
    const item = this.#item;
    if (action === "close") this.#dialog.close();
    else if (action === "previous") this.#move(-1);
    else if (action === "following") this.#move(1);
    else if (action === "search") {
      this.#dialog.close();
      does.search(item);
    } else if (action === "undo") does.undo?.();
    else if (action === "collect") does.collect?.(item);
    else does.toggle?.(item, action === "relevant");
    this.refresh();
  }

  #move(by) {
    if (!this.#grid.itemAt(this.#grid.current + by)) return;
    this.#grid.reveal(this.#grid.current + by);
    this.#fill();
  }

  async #fill() {
    const item = this.#grid.item;
    this.#item = item;
    this.#place = this.#grid.current;
    byId("preview-title").textContent = item.label;
    this.#dialog.querySelector(".picture-frame").replaceChildren(large(item));
    this.#facts(item);
    this.#buttons();
    try {
      const { bytes } = await getImage(item.image);
      if (this.#item === item) this.#facts(item, bytes);
    } catch {
      // The facts already shown have to do.
    }
  }

  #facts(item, bytes = null) {
    const facts = [["Number", `#${item.image}`]];
    if (item.width) facts.push(["Size", `${item.width} × ${item.height}`]);
    if (bytes) facts.push(["File", `${Math.max(1, Math.round(bytes / 1000)).toLocaleString("en")} kB`]);
    if (typeof item.score === "number") facts.push(["Score", scoreText(item.score)]);
    facts.push(...Object.entries(item.metadata ?? {}));
    const rows = facts.map(([key, value]) =>
      element("div", {}, element("dt", {}, key), element("dd", {}, String(value))));
    this.#dialog.querySelector("dl").replaceChildren(...rows);
  }

  #buttons() {
    const button = (action) => this.#dialog.querySelector(`[data-action="${action}"]`);
    const { toggle, markOf, collect, isCollected } = this.#does;
    const kind = toggle ? kindOf(markOf(this.#item)) : "";
    for (const name of ["relevant", "irrelevant"]) {
      button(name).hidden = !toggle;
      button(name).setAttribute("aria-pressed", kind === name);
    }
    button("collect").hidden = !collect;
    button("collect").setAttribute("aria-pressed", Boolean(collect && isCollected(this.#item)));
    for (const [name, by] of [["previous", -1], ["following", 1]]) {
      const possible = Boolean(this.#grid.itemAt(this.#grid.current + by));
      button(name).setAttribute("aria-disabled", !possible);
    }
  }
}
