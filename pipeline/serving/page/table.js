/** The list of events, and its downloads. */

import { formatTime } from "./player.js";

const MOST_ROWS = 1000;

/**
 * Show events as rows; the beginning of each is a button that jumps to it.
 *
 * @param {HTMLElement} body rows of the table
 * @param {object[]} events what `findEvents` returns
 * @param {function(object)} onJump is called with the event
 */
export function showEvents(body, events, onJump) {
  body.replaceChildren(...events.slice(0, MOST_ROWS).map((own) => makeRow(own, onJump)));
}

/** Return the number of events in words. */
export function countEvents(events) {
  const labels = new Set(events.map((own) => own.label)).size;
  const more = events.length > MOST_ROWS ? `; the first ${MOST_ROWS} are shown, the files have all` : "";
  if (!events.length) return "none";
  return `${plural(events.length, "event")}, ${plural(labels, "label")}${more}`;
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function makeRow(own, onJump) {
  const row = document.createElement("tr");
  const jump = document.createElement("button");
  jump.type = "button";
  jump.className = "jump";
  jump.textContent = formatTime(own.start_s);
  jump.setAttribute("aria-label", `Jump to ${own.label} at ${formatTime(own.start_s)}`);
  jump.addEventListener("click", () => onJump(own));
  const meter = document.createElement("meter");
  meter.value = own.peak;
  meter.setAttribute("aria-hidden", "true");
  const peak = document.createElement("span");
  peak.textContent = own.peak.toFixed(2);
  addCells(row, [own.label, jump, formatTime(own.end_s), (own.end_s - own.start_s).toFixed(2), [meter, peak]]);
  return row;
}

function addCells(row, contents) {
  contents.forEach((content, n) => {
    const cell = document.createElement(n ? "td" : "th");
    if (!n) cell.scope = "row";
    cell.append(...[content].flat());
    row.append(cell);
  });
}

/** Mark the rows of the events that sound at a time. */
export function markEvents(body, events, seconds) {
  [...body.children].forEach((row, n) => {
    row.classList.toggle("sounding", events[n].start_s <= seconds && seconds < events[n].end_s);
  });
}

/** Save a text as a file. */
export function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
