/** The session view: the query, the rounds, marks on the results, and the way to the next round. */

import * as api from "./api.js";
import { byId, counted, element, icon } from "./elements.js";
import { TileGrid } from "./grid.js";
import { MarkQueue } from "./marks.js";
import { announce, attempt, complain } from "./notices.js";
import { fillTile, kindOf, markTile, stripEntry } from "./tiles.js";

const COUNTS = [12, 30, 60, 120, 240, 500, 1000];
const SETTINGS = "air_jax.settings";
const SHOWS = { best: "the best", uncertain: "the uncertain" };

export class SessionView {
  #index;
  #search;
  #preview;
  #grid;
  #session = null;
  #marks = new Map();
  #queue = null;
  #busy = false;
  #does;

  /**
   * @param {object} index what the server said about it
   * @param {object} how
   * @param {(images: number[]) => void} how.search
   * @param {import("./preview.js").Preview} how.preview
   * @param {() => void} how.choose opens the file chooser
   */
  constructor(index, { search, preview, choose }) {
    this.#index = index;
    this.#search = search;
    this.#preview = preview;
    this.#does = {
      search: (item) => search([item.image]),
      toggle: (item, relevant) => this.#toggle(item, relevant),
      markOf: (item) => this.#markOf(item),
      undo: () => this.#undo(),
    };
    this.#grid = new TileGrid(byId("results"), {
      template: byId("result-tile"),
      fill: (tile, item, fresh) => {
        fillTile(tile, item, fresh);
        markTile(tile, item, this.#markOf(item));
      },
    });
    this.#offerSettings();
    byId("results").addEventListener("click", (event) => this.#click(event));
    byId("next").addEventListener("click", () => this.#next());
    byId("undo").addEventListener("click", () => this.#undo());
    byId("name").addEventListener("change", () => this.#rename());
    byId("name").addEventListener("keydown", (event) => {
      if (event.key === "Enter") event.target.blur();
    });
    byId("try-now").addEventListener("click", () => this.#queue?.hurry());
    byId("add-example").hidden = !index.uploads;
    byId("add-example").addEventListener("click", choose);
    for (const panel of ["tray", "options"]) {
      byId(`toggle-${panel}`).addEventListener("click", () => this.#open(panel, byId(panel).hidden));
    }
    byId("export").addEventListener("focusout", (event) => {
      if (event.relatedTarget && !event.currentTarget.contains(event.relatedTarget)) event.currentTarget.open = false;
    });
    document.addEventListener("pointerdown", (event) => {
      if (!byId("export").contains(event.target)) byId("export").open = false;
    });
    window.addEventListener("online", () => this.#queue?.hurry());
    window.addEventListener("beforeunload", (event) => {
      if (this.#queue?.size) event.preventDefault();
    });
  }

  get grid() {
    return this.#grid;
  }

  /** The first settings of a new session. */
  get count() {
    return Number(byId("count").value);
  }

  /** Show a session that the server has just told about. */
  show(session) {
    if (this.#session?.session !== session.session) this.#begin(session);
    this.#take(session, { moved: true });
  }

  /**
   * Load a session and show it.
   * @param {string} token
   * @returns {Promise<boolean>} whether there is one
   */
  async load(token) {
    const session = await attempt(() => api.getSession(token));
    if (session) this.show(session);
    return Boolean(session);
  }

  /** The view goes out of sight. */
  leave() {
    this.#queue?.close();
    this.#queue = null;
    this.#session = null;
  }

  /**
   * Add uploaded images to the examples.
   * @param {string[]} uploads tokens
   */
  addExamples(uploads) {
    return this.#change((token) => api.addExamples(token, uploads), () => {
      announce(`${counted(uploads.length, "example")} added; the next round learns from it`);
    });
  }

  /** What a key does; see `Start.key`. */
  key(key, target) {
    const onPicture = target.closest("#results .picture");
    const onControl = !onPicture && target.closest("button, a, summary, select");
    if (key === "Escape") return this.#closePanels();
    if (this.#grid.move(key)) return true;
    if (key === "u") this.#undo();
    else if (key === "Enter" && !onControl) this.#next();
    else if (!this.#grid.item) return false;
    else if (key === "r" || key === "x") {
      const item = this.#grid.item;
      if (!this.#grid.focused) this.#grid.focus();
      this.#toggle(item, key === "r");
    } else if (key === "s") this.#does.search(this.#grid.item);
    else if (key === "o" || (key === " " && onPicture)) this.#preview.show(this.#grid, this.#does);
    else return false;
    return true;
  }

  #begin(session) {
    this.leave();
    this.#session = session;
    this.#queue = new MarkQueue(session.session, {
      send: (image, relevant) => api.mark(session.session, image, relevant),
      told: (event) => this.#told(event),
    });
    byId("name").value = session.name;
    byId("export-json").href = api.exportUrl(session.session, "export.json");
    byId("export-csv").href = api.exportUrl(session.session, "export.csv");
    this.#open("tray", false);
    this.#open("options", false);
  }

  /** Show what the server says the session is; moved: the view has just come into sight. */
  #take(session, { moved = false } = {}) {
    const places = (round) => round?.results.map((item) => item.image).join();
    const changed = moved || this.#session.current !== session.current
      || places(this.#session.round) !== places(session.round);
    const focused = moved || this.#grid.focused || [document.body, byId("next")].includes(document.activeElement);
    this.#session = session;
    this.#keepMarks(session.marks);
    if (document.activeElement !== byId("name")) byId("name").value = session.name;
    document.title = `${session.name || "Session"} – ${this.#index.name}`;
    this.#showQuery();
    this.#showRounds();
    this.#explain();
    if (changed) {
      const { results } = session.round;
      this.#grid.show(results.length, (at) => results[at] ?? null);
      if (session.current) this.#adoptSettings(session.round);
      window.scrollTo(0, 0);
      if (focused) this.#grid.focus(0);
      window.scrollTo(0, 0);
      announce(byId("results-title").textContent);
    }
    this.#showMarks();
  }

  #keepMarks(marks) {
    this.#marks = new Map(marks.map((mark) => [mark.image, mark]));
  }

  /** Marks as they are seen: those saved, then those on their way. */
  #allMarks() {
    const all = new Map([...this.#marks].map(([image, { relevant, item }]) => [image, { relevant, item }]));
    for (const { image, relevant, item } of this.#queue?.waiting ?? []) {
      if (relevant === null) all.delete(image);
      else all.set(image, { relevant, item });
    }
    return all;
  }

  #markOf(item) {
    const waiting = this.#queue?.waiting.findLast((mark) => mark.image === item.image);
    return waiting ? waiting.relevant : (this.#marks.get(item.image)?.relevant ?? null);
  }

  #toggle(item, relevant) {
    if (this.#busy) return;
    const wanted = this.#markOf(item) === relevant ? null : relevant;
    this.#queue.add(item, wanted);
    this.#showMarks();
    announce(wanted === null ? "not marked" : kindOf(wanted));
  }

  #told({ saved, refused, image }) {
    if (saved) {
      this.#keepMarks(saved.marks);
      this.#session.can_undo = saved.can_undo;
    }
    if (refused) complain(`The mark of #${image} was not kept: ${refused.message}`);
    this.#showMarks();
  }

  /** Ask the server for a change, after all marks are with it. */
  async #change(ask, after = () => {}) {
    if (this.#busy || !this.#session) return;
    const { session: token } = this.#session;
    this.#busy = true;
    this.#showBusy();
    await attempt(async () => {
      await this.#queue.idle();
      if (this.#session?.session !== token) return;
      try {
        const session = await ask(token);
        if (this.#session?.session !== token) return;
        this.#take(session);
        after();
      } catch (error) {
        // Whether it was done before the answer was lost, only the server knows.
        if (error instanceof api.Unreachable) this.#reloadLater(token);
        else if (error instanceof api.Outdated) this.#take(await api.getSession(token));
        throw error;
      }
    });
    this.#busy = false;
    this.#showBusy();
  }

  #reloadLater(token) {
    const again = async () => {
      if (this.#session?.session !== token) return;
      try {
        this.#take(await api.getSession(token));
      } catch {
        setTimeout(again, 2000);
      }
    };
    setTimeout(again, 1000);
  }

  #next() {
    if (!this.#canLearn()) {
      complain("Mark at least one image first: the next round learns from your marks.");
      return;
    }
    const settings = this.#settings();
    this.#keepSettings(settings);
    this.#change((token) => api.nextRound(token, { follows: this.#session.current, ...settings }));
  }

  #undo() {
    if (!this.#session?.can_undo && !this.#queue?.size) return;
    this.#change((token) => api.undo(token), () => announce("undone"));
  }

  async #rename() {
    const { session: token } = this.#session;
    const name = byId("name").value.trim();
    const session = await attempt(() => api.renameSession(token, name));
    if (session && this.#session?.session === token) this.#take(session);
  }

  #canLearn() {
    const { query } = this.#session;
    return this.#allMarks().size > 0 || query.images.length > 0 || query.uploads.length > 0;
  }

  #click(event) {
    const tile = event.target.closest(".tile");
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (!tile || !action) return;
    const item = this.#grid.itemAt(Number(tile.dataset.index));
    // The keys then act on this tile, and Enter goes on instead of pressing the button again. Where
    // a key pressed the button, the focus stays on it.
    if (event.detail) this.#grid.focus(Number(tile.dataset.index));
    if (action === "look") this.#preview.show(this.#grid, this.#does);
    else if (action === "search") this.#does.search(item);
    else this.#toggle(item, action === "relevant");
  }

  // Settings of the next round

  #offerSettings() {
    const { learners, learner, shows, limits } = this.#index;
    const option = (value, text = value) => element("option", { value }, text);
    byId("learner").append(...learners.map((name) => option(name, name.replaceAll("_", " "))));
    byId("show").append(...shows.map((name) => option(name, SHOWS[name] ?? name)));
    byId("count").append(...COUNTS.filter((count) => count <= limits.count).map((count) => option(count)));
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    } catch {
      kept = {};
    }
    const first = { learner, show: "best", count: 60, hide_judged: true };
    this.#adoptSettings(first); // what was kept may be none of this index's
    this.#adoptSettings({ ...first, ...kept });
  }

  #adoptSettings({ learner, show, count, hide_judged: hide }) {
    const counts = byId("count");
    if (![...counts.options].some((option) => Number(option.value) === count)) {
      counts.append(element("option", { value: count }, String(count)));
    }
    counts.value = count;
    if (this.#index.learners.includes(learner)) byId("learner").value = learner;
    if (this.#index.shows.includes(show)) byId("show").value = show;
    byId("hide-judged").checked = hide;
  }

  #settings() {
    return {
      learner: byId("learner").value,
      show: byId("show").value,
      count: this.count,
      hide_judged: byId("hide-judged").checked,
    };
  }

  #keepSettings(settings) {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  }

  // What is seen

  #showQuery() {
    const { images, uploads, random } = this.#session.query;
    const uploaded = (token) => element("li", {}, element("span", { class: "still", title: "uploaded" },
      element("img", { src: api.uploadUrl(token), alt: "uploaded example", draggable: "false" })));
    const entries = [
      ...images.map((item) => stripEntry(item, {})),
      ...uploads.map(uploaded),
    ];
    byId("query-title").textContent = random && !entries.length ? "From a random start" : "Looking for";
    byId("query").replaceChildren(...entries);
    byId("query").hidden = !entries.length;
  }

  #showRounds() {
    const { rounds, current, round, query } = this.#session;
    const focused = byId("rounds").contains(document.activeElement);
    byId("rounds").replaceChildren(...rounds.map(({ number, learner, show, relevant, irrelevant }) => {
      const name = number ? `Round ${number}` : "Start";
      const made = learner ? `${learner.replaceAll("_", " ")}, ${SHOWS[show] ?? show}` : "before any marks";
      const marks = number ? element("small", {}, `+${relevant} −${irrelevant}`) : null;
      const button = element("button", {
        type: "button", title: made, "aria-current": number === current ? "step" : null,
        onclick: () => this.#back(number),
      }, name, marks);
      return element("li", { class: number > current ? "later" : null }, button);
    }));
    const shown = byId("rounds").querySelector("[aria-current]");
    shown.parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (focused) shown.focus();
    const results = counted(round.results.length, query.random && !current ? "random image" : "result");
    byId("results-title").textContent = current ? `${results}, round ${current}` : results;
    const model = byId("export-model");
    model.parentElement.hidden = query.random && !current;
    model.href = api.exportUrl(this.#session.session, "model.npz");
  }

  #back(number) {
    if (number !== this.#session.current) this.#change((token) => api.stepBack(token, number));
  }

  #showMarks() {
    if (!this.#session) return;
    const marks = this.#allMarks();
    const of = (relevant) => [...marks.values()].filter((mark) => mark.relevant === relevant);
    const count = (kind, sign, number) => element("span", { class: kind },
      icon(sign), `${number} `, element("b", {}, kind === "yes" ? "relevant" : "irrelevant"));
    const counts = byId("toggle-tray");
    const [yes, no] = [of(true).length, of(false).length];
    counts.replaceChildren(count("yes", "plus", yes), " ", count("no", "minus", no));
    for (const [id, relevant] of [["tray-relevant", true], ["tray-irrelevant", false]]) {
      this.#showTray(byId(id), of(relevant), relevant);
    }
    this.#grid.refill();
    this.#preview.refresh();
    this.#showSaved();
    this.#showBusy();
  }

  #showTray(list, marks, relevant) {
    const focused = [...list.children].findIndex((entry) => entry.contains(document.activeElement));
    const entries = marks.map(({ item }) => {
      const entry = stripEntry(item, { remove: () => this.#toggle(item, relevant) });
      entry.dataset.mark = kindOf(relevant);
      return entry;
    });
    list.replaceChildren(...(entries.length ? entries : [element("li", {}, element("p", {}, "None yet"))]));
    if (focused < 0) return;
    const next = list.children[Math.min(focused, list.children.length - 1)];
    (next.querySelector("button") ?? byId("toggle-tray")).focus();
  }

  #showSaved() {
    const { size, lost } = this.#queue ?? { size: 0, lost: "" };
    const away = size > 0 && lost !== "";
    byId("saved").textContent = away ? "Not saved" : size ? "Saving…" : "Saved";
    byId("lost-text").textContent = `${lost} ${counted(size, "mark")} not saved yet. Trying again…`;
    if (byId("lost").hidden === away) announce(away ? byId("lost-text").textContent : "All marks are saved");
    byId("lost").hidden = !away;
  }

  #explain() {
    const { round, rounds, current, query } = this.#session;
    const notes = [];
    const note = (text, important = false) =>
      notes.push(element("p", { class: important ? "important" : null }, text));
    if (!current) {
      note(query.random
        ? "Mark an image that is what you want (+), or some that are not (−), then press Next round."
        : "Nearest first. Mark what fits (+) and what does not (−), then press Next round.");
    }
    if (current && !round.learnt) {
      const given = rounds[current];
      const lacking = given.irrelevant ? "relevant" : "irrelevant";
      const held = given.irrelevant ? "Only irrelevant images were marked" : "Only relevant images were marked";
      const none = !given.irrelevant && !given.relevant;
      note(none
        ? "Nothing was marked, so the order is still by distance to the query."
        : `${held}, so the order is still by distance to the query. Mark some ${lacking} ones as well, and the next round can learn.`, true);
    }
    if (!round.solved) {
      note("The learner did not finish its calculation on these marks, so this order is only near the one they ask for. Another learner may do better.", true);
    }
    if (!round.certain) {
      note("An image just below the last one could belong above it: the codes are stored or searched approximately, or the scores are so close that rounding decides.");
    }
    if (!round.results.length) note("No images are left: all are judged. Untick “Hide judged” to see them again.", true);
    if (current < rounds.length - 1) note("You stepped back. The later rounds stay until a new one takes their place.");
    byId("explain").replaceChildren(...notes);
  }

  #showBusy() {
    const able = !this.#busy && Boolean(this.#session);
    byId("next").setAttribute("aria-disabled", !able || !this.#canLearn());
    byId("undo").setAttribute("aria-disabled", !able || !(this.#session.can_undo || this.#queue?.size));
    byId("results").setAttribute("aria-busy", this.#busy);
  }

  #open(panel, open) {
    byId(panel).hidden = !open;
    byId(`toggle-${panel}`).setAttribute("aria-expanded", open);
  }

  #closePanels() {
    const menu = byId("export");
    if (menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
      return true;
    }
    for (const panel of ["tray", "options"]) {
      if (byId(panel).hidden) continue;
      this.#open(panel, false);
      byId(`toggle-${panel}`).focus();
      return true;
    }
    return false;
  }
}
