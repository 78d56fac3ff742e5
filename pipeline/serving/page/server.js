/** Requests to the server that the page comes from, and its errors in words. */

const TOKEN = "ast-token";

/** Return the address of a route next to the page, which may be served below a prefix. */
function address(route, query = {}) {
  const url = new URL(route, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

/** Return the token of this tab, or an empty string. */
export function readToken() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

/** Keep the token until the tab is closed. */
export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

/** An answer that is not a result. `message` is for the user. */
export class ServerError extends Error {
  constructor(status, message, retryS = 0) {
    super(message);
    this.status = status;
    this.retryS = retryS;
  }
}

/** Return the model that serves, or another version of it. */
export async function askModel(version = "") {
  return ask(address("v1/model", { version }));
}

/**
 * Return events and timeline of a recording: `{model, result}`.
 *
 * @param {File} file recording
 * @param {object} query parameters of `/v1/events`
 * @param {AbortSignal} signal stops the request
 */
export async function askEvents(file, query, signal) {
  const body = new FormData();
  body.append("file", file, file.name || "recording");
  const answer = await ask(address("v1/events", { ...query, timeline: true }), { method: "POST", body, signal });
  const result = answer.results?.[0];
  if (!result) throw new ServerError(200, "The server's answer has no result.");
  if (result.error) throw new ServerError(422, describe(422, result.error));
  return { model: answer.model, result };
}

async function ask(url, options = {}) {
  const token = readToken();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. It has stopped, or it closed the connection because the file is too large.");
  }
  if (response.ok) return response.json();
  const retryS = Number(response.headers.get("Retry-After")) || 0;
  throw new ServerError(response.status, describe(response.status, await readReason(response), retryS), retryS);
}

/** Return the reason in an answer that is an error; empty if it has none. */
async function readReason(response) {
  try {
    const body = await response.json();
    return typeof body.error === "string" ? body.error : "";
  } catch {
    return "";
  }
}

/** Return a sentence for the user. The server's own sentences say what to do, except those about HTTP's headers. */
function describe(status, reason, retryS = 0) {
  const known = {
    401: readToken() ? "The server does not know this token. Enter another one above." : "This server wants a token. Enter it above.",
    404: "The server does not have this version.",
    413: "The recording is larger than this server takes.",
    422: "The model cannot use this recording.",
    429: "Your token has too many requests at the same time.",
    503: "The server is busy or is just starting.",
  };
  const sentence = (status !== 401 && reason) || (known[status] ?? `The server answered with the error ${status}.`);
  return retryS ? `${sentence} Try again in ${retryS} s.` : sentence;
}

/**
 * Open the WebSocket of live audio, 16-bit PCM.
 *
 * @param {number} rateHz sampling rate of the samples that follow
 * @param {object} query other parameters of `/v1/live`
 */
export function openLive(rateHz, query) {
  const url = address("v1/live", { ...query, format: "pcm_s16le", sample_rate_hz: rateHz });
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const token = readToken();
  // Browsers set no headers here. The server answers with a subprotocol that was offered, and need not repeat the token.
  const socket = token ? new WebSocket(url, ["ast", `bearer.${token}`]) : new WebSocket(url);
  socket.binaryType = "arraybuffer";
  return socket;
}

/** Return why the server closed a live connection. */
export function describeClose(code) {
  const reasons = {
    1003: "The server cannot use this audio.",
    1008: "The server refuses the connection: it wants a token, does not know yours, or you have too many connections.",
    1009: "The server refuses a message because it is too large.",
    1011: "The server is busy or has an error.",
  };
  return reasons[code] ?? "The connection to the server broke, or the server wants a token.";
}
