/** Starts the page: which view is in sight follows the address, and keys go to that view. */

import * as api from "./api.js";
import { byId } from "./elements.js";
import { listenForFinding } from "./find.js";
import { listenForFiles, uploadAll } from "./incoming.js";
import { announce, attempt, complain, dismiss } from "./notices.js";
import { Preview } from "./preview.js";
import { SessionView } from "./session.js";
import { Start } from "./start.js";

const AGAIN = 2000; // milliseconds before asking again for an index that does not answer

class Page {
  #index;
  #start;
  #session;
  #view = null;
  #fresh = null;
  #starting = false;
  #scrolled = 0;

  constructor(index) {
    this.#index = index;
    const preview = new Preview();
    const search = (images) => this.begin({ images });
    const choose = listenForFiles({
      invitation: () => this.#invitation(),
      take: (files) => this.#takeFiles(files),
    });
    this.#start = new Start(index, { search, preview });
    this.#session = new SessionView(index, { search, preview, choose });
    listenForFinding((item) => search([item.image]));
    byId("drop").hidden = !index.uploads;
    byId("choose").addEventListener("click", choose);
    byId("random").addEventListener("click", () => this.begin({ random: true }));
    byId("help").addEventListener("click", () => byId("keys").showModal());
    byId("close-keys").addEventListener("click", () => byId("keys").close());
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault();
      this.#view?.grid.focus();
    });
    document.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("hashchange", () => this.route());
  }

  /** Show what the address says. */
  async route() {
    const token = /^#\/session\/([^/]+)$/.exec(location.hash)?.[1];
    if (this.#view === this.#start) this.#scrolled = window.scrollY;
    if (!token) {
      this.#session.leave();
      this.#turnTo(this.#start, "start");
      this.#start.show();
      window.scrollTo(0, this.#scrolled);
      return;
    }
    const session = this.#fresh?.session === decodeURIComponent(token) ? this.#fresh : null;
    this.#fresh = null;
    if (this.#view !== this.#session) this.#turnTo(this.#session, "session");
    if (session) this.#session.show(session);
    else if (!(await this.#session.load(decodeURIComponent(token)))) location.hash = "#/";
  }

  /**
   * Start a session and go to it.
   * @param {{images?: number[], uploads?: string[], random?: boolean}} query
   */
  async begin(query) {
    if (this.#starting) return;
    this.#starting = true;
    const session = await attempt(() => api.startSession({ ...query, count: this.#session.count }));
    this.#starting = false;
    if (!session) return;
    this.#start.clearCollected();
    this.#fresh = session;
    location.hash = `#/session/${encodeURIComponent(session.session)}`;
  }

  #turnTo(view, id) {
    this.#view = view;
    for (const name of ["start", "session"]) byId(name).hidden = name !== id;
  }

  #invitation() {
    if (!this.#index.uploads) return null;
    return this.#view === this.#session ? "Drop to add an example" : "Drop to search with this image";
  }

  async #takeFiles(files) {
    const asExample = this.#view === this.#session;
    announce("uploading");
    const uploads = await attempt(() => uploadAll(files, this.#index.limits.upload_bytes));
    if (!uploads?.length) return;
    if (asExample && this.#view === this.#session) await this.#session.addExamples(uploads);
    else await this.begin({ uploads });
  }

  #key(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    const target = event.target instanceof Element ? event.target : document.body;
    const typing = target.closest("input:not([type=checkbox]), textarea, select");
    if (typing) return;
    if (event.repeat && !/^(Arrow|Page)/.test(event.key)) return;
    if (this.#always(event.key) || this.#view?.key(event.key, target)) event.preventDefault();
  }

  #always(key) {
    if (key === "/") byId("find").focus();
    else if (key === "?") byId("keys").showModal();
    else if (key === "n") this.begin({ random: true });
    else return key === "Escape" && dismiss();
    return true;
  }
}

/** Ask for the index until it answers. */
async function start() {
  try {
    const page = new Page(await api.getIndex());
    await page.route();
  } catch (error) {
    complain(error.message);
    if (error instanceof api.Unreachable) setTimeout(start, AGAIN);
    else throw error;
  }
}

start();
