/** The start view: all images to browse and collect, and the sessions so far. */

import * as api from "./api.js";
import { ago, byId, counted, element, icon } from "./elements.js";
import { TileGrid } from "./grid.js";
import { announce, attempt, complain } from "./notices.js";
import { fillTile, stripEntry } from "./tiles.js";

const PAGE = 200; // images asked for at once
const SETTLE = 60; // milliseconds: pages that are scrolled past are not asked for
const AGAIN = 3000; // milliseconds before a page that failed is asked for again
const FEW = 5; // sessions shown at first

export class Start {
  #index;
  #search;
  #preview;
  #pages = new Map();
  #range = [0, 0];
  #timer = 0;
  #collected = new Map();
  #grid;
  #allSessions = false;
  #does;

  /**
   * @param {object} index what the server said about it
   * @param {object} how
   * @param {(images: number[]) => void} how.search
   * @param {import("./preview.js").Preview} how.preview
   */
  constructor(index, { search, preview }) {
    this.#index = index;
    this.#search = search;
    this.#preview = preview;
    this.#does = {
      search: (item) => search([item.image]),
      collect: (item) => this.#collect(item),
      isCollected: (item) => this.#collected.has(item.image),
    };
    this.#grid = new TileGrid(byId("browse"), {
      template: byId("browse-tile"),
      fill: (tile, item, fresh) => this.#fill(tile, item, fresh),
      need: (from, to) => this.#need(from, to),
    });
    byId("browse").addEventListener("click", (event) => this.#click(event));
    byId("clear-collected").addEventListener("click", () => this.#clear());
    byId("search-collected").addEventListener("click", () => search([...this.#collected.keys()]));
    byId("all-sessions").addEventListener("click", () => {
      this.#allSessions = !this.#allSessions;
      this.#loadSessions();
    });
    window.addEventListener("focus", () => byId("start").hidden || this.#follow());
    this.#browse();
  }

  get grid() {
    return this.#grid;
  }

  /** The view comes into sight. */
  show() {
    document.title = `${this.#index.name} – image search`;
    this.#grid.draw();
    this.#loadSessions();
    this.#follow();
  }

  /**
   * What a key does; returns whether it does anything.
   * @param {string} key
   * @param {HTMLElement} target that has the focus
   */
  key(key, target) {
    const item = this.#grid.item;
    const onPicture = target.closest("#browse .picture");
    if (this.#grid.move(key)) return true;
    if (!item) return false;
    if (key === "c") {
      if (!this.#grid.focused) this.#grid.focus();
      this.#collect(item);
    } else if (key === "s" || (key === "Enter" && onPicture)) this.#does.search(item);
    else if (key === "o" || (key === " " && onPicture)) this.#preview.show(this.#grid, this.#does);
    else return false;
    return true;
  }

  /** Forget what was collected: it has been searched with. */
  clearCollected() {
    this.#collected.clear();
    this.#showCollected();
  }

  /** Show all images, from the first. */
  #browse() {
    const { name, size, kind } = this.#index;
    byId("index-name").textContent = name;
    byId("index-size").textContent = counted(size, kind === "vectors" ? "vector" : "image");
    byId("browse-title").textContent = size === 1 ? "The one image" : `All ${counted(size, "image")}`;
    this.#pages.clear();
    this.#grid.show(size, (at) => this.#itemAt(at));
  }

  /** The index may have been made anew since it was asked for: its images are others then. */
  async #follow() {
    const index = await attempt(() => api.getIndex());
    if (!index || index.version === this.#index.version) return;
    this.#index = index;
    this.#browse();
    announce(`the index has changed: ${counted(index.size, "image")}`);
  }

  #itemAt(at) {
    const page = this.#pages.get(Math.floor(at / PAGE));
    return (Array.isArray(page) && page[at % PAGE]) || null;
  }

  #need(from, to) {
    this.#range = [from, to];
    const missing = !this.#itemAt(from) || !this.#itemAt(to - 1);
    if (missing && !this.#timer) this.#timer = setTimeout(() => this.#load(), SETTLE);
  }

  #load() {
    this.#timer = 0;
    const [from, to] = this.#range;
    for (let page = Math.floor(from / PAGE); page * PAGE < to; page += 1) {
      if (!this.#pages.has(page)) this.#loadPage(page);
    }
  }

  async #loadPage(page) {
    this.#pages.set(page, "asked for");
    try {
      const { version, images } = await api.getImages(page * PAGE, PAGE);
      if (version !== this.#index.version) return void this.#follow();
      this.#pages.set(page, images);
      this.#grid.refill();
    } catch (error) {
      complain(error.message);
      setTimeout(() => {
        this.#pages.delete(page);
        this.#load();
      }, AGAIN);
    }
  }

  #fill(tile, item, fresh) {
    fillTile(tile, item, fresh);
    const collected = this.#collected.has(item.image);
    tile.dataset.mark = collected ? "relevant" : "";
    tile.querySelector(".badge").textContent = collected ? "Collected" : "";
    const collect = tile.querySelector('[data-action="collect"]');
    collect.setAttribute("aria-pressed", collected);
    if (!fresh) return;
    collect.setAttribute("aria-label", `Collect: ${item.label}`);
    collect.title = "Collect (c)";
    const look = tile.querySelector('[data-action="look"]');
    look.setAttribute("aria-label", `Look at ${item.label}`);
    look.title = "Look at it (Space)";
  }

  #click(event) {
    const tile = event.target.closest(".tile");
    const action = event.target.closest("[data-action]")?.dataset.action;
    const item = tile && this.#grid.itemAt(Number(tile.dataset.index));
    if (!item || !action) return;
    this.#grid.focus(Number(tile.dataset.index));
    if (action === "look") this.#preview.show(this.#grid, this.#does);
    else this.#does[action](item);
  }

  #collect(item) {
    if (!this.#collected.delete(item.image)) this.#collected.set(item.image, item);
    this.#showCollected();
  }

  #clear() {
    this.clearCollected();
    this.#grid.focus();
  }

  #showCollected() {
    const items = [...this.#collected.values()];
    byId("collected").hidden = !items.length;
    byId("search-collected").textContent = items.length === 1 ? "Search with it" : `Search with these ${items.length}`;
    byId("collected-images").replaceChildren(...items.map((item) =>
      stripEntry(item, { remove: () => this.#collect(item) })));
    this.#grid.refill();
    this.#preview.refresh();
  }

  async #loadSessions() {
    const answer = await attempt(() => api.getSessions());
    if (!answer) return;
    const { sessions } = answer;
    byId("recent").hidden = !sessions.length;
    const shown = this.#allSessions ? sessions : sessions.slice(0, FEW);
    byId("sessions").replaceChildren(...shown.map((session) => this.#sessionEntry(session)));
    const more = byId("all-sessions");
    more.hidden = sessions.length <= FEW;
    more.textContent = this.#allSessions ? "Show fewer" : `Show all ${sessions.length}`;
  }

  #sessionEntry(session) {
    const name = session.name || "Unnamed session";
    const rounds = Math.max(0, session.rounds - 1); // the first is the query's own result
    const facts = `${counted(rounds, "round")}, +${session.relevant} −${session.irrelevant}, ${ago(session.updated)}`;
    const entry = element("li", {},
      element("a", { href: `#/session/${encodeURIComponent(session.session)}` },
        element("strong", {}, name), element("span", {}, facts)),
      element("button", {
        type: "button", "aria-label": `Rename ${name}`, title: "Rename", onclick: () => this.#rename(session, entry),
      }, icon("edit")),
      element("button", {
        type: "button", "aria-label": `Delete ${name}`, title: "Delete", onclick: () => this.#delete(session, name),
      }, icon("bin")));
    return entry;
  }

  #rename(session, entry) {
    const input = element("input", { type: "text", value: session.name, maxlength: 200, "aria-label": "New name" });
    let left = false;
    const leave = async (keep) => {
      if (left) return;
      left = true;
      const name = input.value.trim();
      if (keep && name && name !== session.name) await attempt(() => api.renameSession(session.session, name));
      await this.#loadSessions();
      byId("sessions").querySelector(`a[href$="${CSS.escape(session.session)}"]`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") leave(true);
      if (event.key === "Escape") leave(false);
    });
    input.addEventListener("blur", () => leave(true));
    entry.replaceChildren(input);
    input.focus();
    input.select();
  }

  #delete(session, name) {
    const dialog = byId("confirm");
    byId("confirm-title").textContent = "Delete this session?";
    byId("confirm-text").textContent = `“${name}” and its marks will be gone. The images stay.`;
    byId("confirm-no").onclick = () => dialog.close();
    byId("confirm-yes").onclick = async () => {
      dialog.close();
      await attempt(() => api.deleteSession(session.session));
      await this.#loadSessions();
      (byId("sessions").querySelector("a") ?? byId("start-title")).focus();
    };
    dialog.showModal();
  }
}
