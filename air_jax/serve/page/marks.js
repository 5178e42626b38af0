/**
 * Marks on their way to the server: in order, one at a time, until each is acknowledged.
 *
 * A mark is shown at once, but counts as saved only when the server has said so. What is not
 * acknowledged yet also stands in the tab's storage, so that a reload does not lose it.
 */

import { Refused } from "./api.js";

const WAITS = [300, 1000, 2000, 4000]; // milliseconds before trying again

export class MarkQueue {
  #key;
  #send;
  #told;
  #waiting;
  #running = false;
  #wake = null;
  #closed = false;
  #idle = [];

  /**
   * @param {string} token of the session
   * @param {object} how
   * @param {(image: number, relevant: boolean|null) => Promise<object>} how.send
   * @param {(event: {saved?: object, refused?: Error, image?: number}) => void} how.told after
   *   every change: an answer, a refusal, a lost or regained connection
   */
  constructor(token, { send, told }) {
    this.#key = `air_jax.marks.${token}`;
    this.#send = send;
    this.#told = told;
    this.#waiting = JSON.parse(sessionStorage.getItem(this.#key) ?? "[]");
    this.lost = ""; // why no answer comes, in a sentence
    this.#run();
  }

  /** Marks not yet acknowledged. */
  get size() {
    return this.#waiting.length;
  }

  /**
   * Marks not yet acknowledged, oldest first.
   * @returns {{image: number, relevant: boolean|null, item: object}[]}
   */
  get waiting() {
    return this.#waiting;
  }

  /**
   * @param {object} item
   * @param {boolean|null} relevant
   */
  add(item, relevant) {
    this.#waiting.push({ image: item.image, relevant, item });
    this.#keep();
    this.#run();
  }

  /** Try now rather than later. */
  hurry() {
    this.#wake?.();
  }

  /** Send nothing more; what waits stays in storage for the session's next opening. */
  close() {
    this.#closed = true;
    this.#wake?.();
  }

  /** Resolves when every mark is acknowledged. */
  idle() {
    if (!this.#waiting.length) return Promise.resolve();
    this.hurry();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  #keep() {
    if (this.#waiting.length) sessionStorage.setItem(this.#key, JSON.stringify(this.#waiting));
    else sessionStorage.removeItem(this.#key);
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    let failures = 0;
    while (this.#waiting.length && !this.#closed) {
      const { image, relevant } = this.#waiting[0];
      try {
        const saved = await this.#send(image, relevant);
        failures = 0;
        this.#done({ saved });
      } catch (error) {
        if (error instanceof Refused) {
          this.#done({ refused: error, image });
        } else {
          this.lost = /[.?!]$/.test(error.message) ? error.message : `${error.message}.`;
          this.#told({});
          await this.#pause(WAITS[Math.min(failures, WAITS.length - 1)]);
          failures += 1;
        }
      }
    }
    this.#running = false;
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  #done(event) {
    this.lost = "";
    this.#waiting.shift();
    this.#keep();
    if (!this.#closed) this.#told(event);
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, milliseconds);
    });
  }
}
