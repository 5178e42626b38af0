/**
 * The HTTP API of the server, one function for each request. Addresses are relative: a proxy may show
 * the page below a path.
 */

/** The server understood and said no; the message is the server's. */
export class Refused extends Error {}

/** Another tab or person has changed what the request is about: it has to be loaded again. */
export class Outdated extends Refused {}

/** No answer, or one that says nothing about the request: trying again may help. */
export class Unreachable extends Error {}

const CONFLICT = 409;
let seconds = 60; // for an answer; longer than the server takes for any
let version = ""; // of the index: the same number may be another image in another one

async function request(method, path, { json, body, type, signal } = {}) {
  const headers = {};
  if (json !== undefined) {
    body = JSON.stringify(json);
    type = "application/json";
  }
  if (type) headers["Content-Type"] = type;
  const limit = AbortSignal.timeout(seconds * 1000);
  let response;
  let answer = null;
  try {
    response = await fetch(`api/${path}`, {
      method, headers, body, signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    const text = await response.text();
    try {
      answer = JSON.parse(text);
    } catch {
      answer = null;
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable("The server does not answer. Is it still running?");
  }
  if (response.ok && answer !== null) return answer;
  const said = answer?.error ?? `The server answered ${response.status} ${response.statusText}`.trim();
  const passing = response.ok || response.status >= 500 || [408, 429].includes(response.status);
  if (response.status === CONFLICT) throw new Outdated(said);
  throw new (passing ? Unreachable : Refused)(said);
}

const session = (token) => `sessions/${encodeURIComponent(token)}`;

export async function getIndex() {
  const index = await request("GET", "index");
  version = index.version;
  seconds = Math.max(60, index.limits.round_seconds + 15);
  return index;
}

/** A page of all images, in order of path. */
export const getImages = (offset, count) => request("GET", `images?offset=${offset}&count=${count}`);

/** Images by path or number. */
export const findImages = (text, count, signal) =>
  request("GET", `images/find?text=${encodeURIComponent(text)}&count=${count}`, { signal });

export const getImage = (image) => request("GET", `images/${image}`);

/** @param {Blob} file */
export const upload = (file) =>
  request("POST", "uploads", {
    body: file,
    type: file.type.startsWith("image/") ? file.type : "application/octet-stream",
  });

export const getSessions = () => request("GET", "sessions");

/** @param {{images?: number[], uploads?: string[], random?: boolean, count: number}} start */
export const startSession = ({ images = [], uploads = [], random = false, count }) =>
  request("POST", "sessions", { json: { images, uploads, random, count, name: "" } });

export const getSession = (token) => request("GET", session(token));

export const renameSession = (token, name) => request("PATCH", session(token), { json: { name } });

export const deleteSession = (token) => request("DELETE", session(token));

/** @param {boolean|null} relevant null takes the mark back */
export const mark = (token, image, relevant) =>
  request("POST", `${session(token)}/marks`, { json: { marks: [{ image, relevant }] } });

export const addExamples = (token, uploads) =>
  request("POST", `${session(token)}/uploads`, { json: { uploads } });

/** @param {{follows: number}} settings the round that is shown, and how the next one is made */
export const nextRound = (token, settings) =>
  request("POST", `${session(token)}/rounds`, { json: settings });

export const stepBack = (token, round) => request("POST", `${session(token)}/back`, { json: { round } });

export const undo = (token) => request("POST", `${session(token)}/undo`, { json: {} });

export const thumbnailUrl = (image) => `api/images/${image}/thumbnail?${version}`;

export const previewUrl = (image) => `api/images/${image}/preview?${version}`;

export const uploadUrl = (token) => `api/uploads/${encodeURIComponent(token)}/thumbnail`;

/** @param {"export.json"|"export.csv"|"model.npz"} file */
export const exportUrl = (token, file) => `api/${session(token)}/${file}`;
