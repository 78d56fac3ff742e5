/** The lanes below the spectrogram: the probability of the top labels over time. */

import { drawLane } from "./drawing.js";

const USUAL_LANES = 8;
const MOST_LANES = 16;

/**
 * Return a lane for each label of a prepared timeline, the most probable first.
 *
 * A window is drawn at the middle of the part of the recording that it has. Windows with less than half of their
 * length in the recording only locate events, so they are not drawn.
 */
export function rankLanes(timeline) {
  const shown = timeline.starts.map((_, w) => w).filter((w) => timeline.canBegin[w]);
  const times = shown.map((w) => (Math.max(0, timeline.starts[w]) + timeline.ends[w]) / 2);
  const lanes = timeline.labels.map((label, c) => {
    const values = Float32Array.from(shown, (w) => timeline.scores[c][w]);
    return { label, times, values, own: timeline.thresholds[c], peak: values.reduce((most, value) => Math.max(most, value), 0), lengthS: timeline.lengthS };
  });
  return lanes.sort((one, two) => two.peak - one.peak);
}

/**
 * Return the lanes to show, with their events: the most probable labels, and others that have events.
 *
 * @param {object[]} lanes what `rankLanes` returns
 * @param {object[]} events what `findEvents` returns
 * @param {number | null} threshold of all lanes; null for each label's own
 */
export function pickLanes(lanes, events, threshold) {
  const found = new Set(events.map((own) => own.label));
  return lanes
    .filter((lane, n) => n < USUAL_LANES || found.has(lane.label))
    .slice(0, MOST_LANES)
    .map((lane) => ({ ...lane, threshold: threshold ?? lane.own, events: events.filter((own) => own.label === lane.label) }));
}

/**
 * Return the lanes of live audio. A lane is `loud` while its newest probability reaches the threshold.
 *
 * @param {{start_s: number, end_s: number, probabilities: object}[]} windows what the server has sent
 * @param {number} fromS beginning of the view
 * @param {number | null} threshold probability; null if there is none
 */
export function pickLiveLanes(windows, fromS, threshold) {
  const seen = windows.filter((own) => own.end_s >= fromS);
  const peaks = new Map();
  for (const own of seen) {
    for (const [label, score] of Object.entries(own.probabilities)) peaks.set(label, Math.max(score, peaks.get(label) ?? 0));
  }
  const labels = [...peaks.keys()].sort((one, two) => peaks.get(two) - peaks.get(one)).slice(0, USUAL_LANES);
  return labels.map((label) => {
    const values = seen.map((own) => own.probabilities[label] ?? 0);
    const newest = values.at(-1);
    const loud = threshold !== null && newest >= threshold;
    return { label, peak: newest, loud, threshold, times: seen.map((own) => own.end_s), values, events: [], growing: true };
  });
}

/** Show lanes; rows of labels that stay are used again, so that nothing flickers. */
export function showLanes(list, lanes) {
  while (list.children.length > lanes.length) list.lastChild.remove();
  while (list.children.length < lanes.length) list.append(makeRow());
  lanes.forEach((lane, n) => {
    const [name, peak, canvas] = list.children[n].children;
    name.textContent = lane.label;
    name.title = lane.label;
    peak.textContent = lane.peak.toFixed(2);
    const count = lane.events.length;
    list.children[n].classList.toggle("found", count > 0 || Boolean(lane.loud));
    const end = lane.growing ? "now" : `at most, threshold ${lane.threshold.toFixed(2)}, ${count} ${count === 1 ? "event" : "events"}`;
    canvas.setAttribute("aria-label", `${lane.label}: ${lane.peak.toFixed(2)} ${end}`);
  });
}

function makeRow() {
  const row = document.createElement("div");
  row.className = "lane";
  row.setAttribute("role", "listitem");
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  const [name, peak] = ["lane-name", "lane-peak"].map((kind) => {
    const text = document.createElement("span");
    text.className = kind;
    return text;
  });
  row.append(name, peak, canvas);
  return row;
}

/** Draw the lanes that `showLanes` has shown. */
export function drawLanes(list, lanes, view) {
  lanes.forEach((lane, n) => drawLane(list.children[n].querySelector("canvas"), lane, view));
}
