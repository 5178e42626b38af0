/**
 * A grid of tiles of which only those in sight exist, with one tile that keys act on.
 *
 * The window scrolls; the list is as high as all its rows. Tiles keep their elements while they are
 * in sight, and the one with the focus always, so that focus is never lost by scrolling.
 */

const HIGHEST = 30e6; // pixels; browsers know no higher element
const CAPTION = 4.15; // rem below the picture

export class TileGrid {
  #list;
  #template;
  #fill;
  #need;
  #tiles = new Map();
  #total = 0;
  #itemAt = () => null;
  #current = 0;
  #columns = 1;
  #step = { x: 1, y: 1 };
  #drawn = null;
  #due = false;

  /**
   * @param {HTMLElement} list
   * @param {object} how
   * @param {HTMLTemplateElement} how.template of a tile
   * @param {(tile: HTMLElement, item: object, fresh: boolean) => void} how.fill puts an item into
   *   a tile; fresh unless the tile holds that item already
   * @param {(from: number, to: number) => void} [how.need] told which items are in sight
   */
  constructor(list, { template, fill, need = () => {} }) {
    this.#list = list;
    this.#template = template;
    this.#fill = fill;
    this.#need = need;
    const later = () => this.#later();
    new ResizeObserver(later).observe(list);
    window.addEventListener("scroll", later, { passive: true });
    list.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.#makeCurrent(Number(tile.dataset.index));
    });
  }

  /**
   * Show other items.
   * @param {number} total
   * @param {(index: number) => object|null} itemAt null while it is not loaded
   */
  show(total, itemAt) {
    for (const tile of this.#tiles.values()) tile.remove();
    this.#tiles.clear();
    this.#total = total;
    this.#itemAt = itemAt;
    this.#current = 0;
    this.#drawn = null;
    this.draw();
  }

  /** Put the items into the tiles in sight again: some have come or changed. */
  refill() {
    for (const [index, tile] of this.#tiles) this.#refill(index, tile);
  }

  /** The item keys act on. */
  get item() {
    return this.#total ? this.#itemAt(this.#current) : null;
  }

  /** Its place. */
  get current() {
    return this.#current;
  }

  get total() {
    return this.#total;
  }

  /** @returns {boolean} whether the focus is in the grid */
  get focused() {
    return this.#list.contains(document.activeElement);
  }

  /**
   * The item at a place, if it is loaded.
   * @param {number} index
   */
  itemAt(index) {
    return index >= 0 && index < this.#total ? this.#itemAt(index) : null;
  }

  /**
   * Make a tile the current one and bring it into sight.
   * @param {number} index
   */
  reveal(index) {
    if (!this.#total) return;
    this.#makeCurrent(Math.max(0, Math.min(this.#shown - 1, index)));
    this.draw();
    this.#tiles.get(this.#current)?.scrollIntoView({ block: "nearest" });
    this.draw();
  }

  /**
   * Reveal a tile and give it the focus.
   * @param {number} index
   */
  focus(index = this.#current) {
    this.reveal(index);
    this.#tiles.get(this.#current)?.querySelector(".picture").focus({ preventScroll: true });
  }

  /**
   * Move the focus by a key; returns whether the key is one that moves.
   * @param {string} key
   */
  move(key) {
    const columns = this.#columns;
    const page = columns * Math.max(1, Math.floor((window.innerHeight * 0.7) / this.#step.y));
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
    };
    if (key === "Home") this.focus(0);
    else if (key === "End") this.focus(this.#total - 1);
    else if (key in steps) {
      const wanted = this.#current + (this.focused ? steps[key] : 0);
      const within = wanted >= 0 && wanted < this.#total;
      if (within || key.startsWith("Page")) this.focus(wanted);
      else if (key === "ArrowDown" && this.#row(this.#current) < this.#row(this.#total - 1)) this.focus(this.#total - 1);
      else this.focus();
    } else return false;
    return true;
  }

  /** Draw now what is in sight. */
  draw() {
    this.#measure();
    if (!this.#list.clientWidth) return;
    const top = -this.#list.getBoundingClientRect().top;
    const spare = window.innerHeight / 2;
    const last = Math.max(0, this.#row(this.#shown - 1));
    const row = (y) => Math.max(0, Math.min(last, Math.floor(y / this.#step.y)));
    const from = row(top - spare) * this.#columns;
    const to = Math.min(this.#shown, (row(top + window.innerHeight + spare) + 1) * this.#columns);
    const wanted = new Set();
    for (let index = from; index < to; index += 1) wanted.add(index);
    if (this.#total) wanted.add(this.#current);
    for (const [index, tile] of this.#tiles) {
      if (!wanted.has(index)) {
        tile.remove();
        this.#tiles.delete(index);
      }
    }
    // From the last to the first, so that tiles stand in order without moving one that is there.
    let after = null;
    for (const index of [...wanted].sort((a, b) => b - a)) {
      let tile = this.#tiles.get(index);
      if (!tile) {
        tile = this.#make(index);
        this.#list.insertBefore(tile, after);
        this.#tiles.set(index, tile);
      }
      after = tile;
    }
    if (this.#total) this.#need(from, to);
  }

  get #shown() {
    const rows = Math.floor(HIGHEST / this.#step.y);
    return Math.min(this.#total, rows * this.#columns);
  }

  #later() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.draw();
    });
  }

  #row(index) {
    return Math.floor(index / this.#columns);
  }

  #measure() {
    const width = this.#list.clientWidth;
    if (!width) return;
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const sizes = `${width} ${rem} ${this.#total}`;
    if (this.#drawn === sizes) return;
    const small = width < 36 * rem;
    const gap = (small ? 0.5 : 0.75) * rem;
    const columns = Math.max(2, Math.floor((width + gap) / ((small ? 6.75 : 9.5) * rem + gap)));
    const side = (width - gap * (columns - 1)) / columns;
    const top = -this.#list.getBoundingClientRect().top;
    const anchor = this.#drawn && top > 0 ? Math.floor(top / this.#step.y) * this.#columns : null;
    this.#drawn = sizes;
    this.#columns = columns;
    this.#step = { x: side + gap, y: side + CAPTION * rem + gap };
    this.#list.style.setProperty("--side", `${side}px`);
    const rows = Math.ceil(this.#shown / columns);
    this.#list.style.height = `${Math.max(0, rows * this.#step.y - gap)}px`;
    for (const [index, tile] of this.#tiles) this.#place(index, tile);
    // Where the width has changed, the images that were in sight still are.
    if (anchor !== null) window.scrollBy(0, this.#row(anchor) * this.#step.y - top);
  }

  #place(index, tile) {
    tile.style.left = `${(index % this.#columns) * this.#step.x}px`;
    tile.style.top = `${this.#row(index) * this.#step.y}px`;
  }

  #make(index) {
    const tile = this.#template.content.firstElementChild.cloneNode(true);
    tile.dataset.index = index;
    tile.setAttribute("aria-setsize", this.#total);
    tile.setAttribute("aria-posinset", index + 1);
    this.#place(index, tile);
    this.#refill(index, tile);
    this.#reach(tile, index === this.#current);
    return tile;
  }

  #refill(index, tile) {
    const item = this.#itemAt(index);
    tile.classList.toggle("waiting", !item);
    if (!item) {
      tile.querySelector(".picture").setAttribute("aria-label", "loading");
      return;
    }
    const fresh = tile.dataset.image !== String(item.image);
    tile.dataset.image = item.image;
    this.#fill(tile, item, fresh);
  }

  #makeCurrent(index) {
    if (index === this.#current) return;
    const before = this.#tiles.get(this.#current);
    const after = this.#tiles.get(index);
    this.#current = index;
    if (before) this.#reach(before, false);
    if (after) this.#reach(after, true);
  }

  /** The tab key reaches the buttons of one tile only. */
  #reach(tile, reachable) {
    for (const button of tile.querySelectorAll("button")) button.tabIndex = reachable ? 0 : -1;
  }
}
