/**
 * Events in time, from the probabilities of overlapping windows.
 *
 * This is the rule of `ast_core/evaluation/events.py`, number for number, so that a slider changes the events without
 * another request. A timeline is `{starts_s, ends_s, labels, thresholds, probabilities}`, as `/v1/events?timeline=true`
 * returns it; the probabilities of a calibrated model are calibrated.
 */

/** Shortest event in hops: two edges in the same hop may have the same estimate. */
const SHORTEST = 0.1;

/**
 * Return a timeline with its probabilities by label, and what the rule needs to know of the windows.
 *
 * @param {object} timeline as the server sends it
 */
export function prepare(timeline) {
  const { starts_s: starts, ends_s: ends, labels, thresholds, probabilities } = timeline;
  const lengthS = longest(ends);
  const windowS = longest(starts.map((start, w) => ends[w] - start)); // the recording cuts the others at its end
  const hopS = starts.length > 1 ? longest(starts.slice(1).map((start, w) => start - starts[w])) : windowS;
  const least = Math.min(windowS / 2, lengthS) - 1e-9;
  const canBegin = starts.map((start, w) => ends[w] - Math.max(start, 0) >= least);
  const scores = labels.map((_, c) => Float32Array.from(probabilities, (row) => row[c]));
  return { starts, ends, labels, thresholds, scores, lengthS, windowS, hopS, canBegin };
}

function longest(values) {
  return values.reduce((most, value) => Math.max(most, value), -Infinity);
}

/**
 * Return the events of a prepared timeline, the earliest first.
 *
 * @param {object} timeline what `prepare` returns
 * @param {{threshold: number | null, release: number, minS: number, gapS: number, overlap: number}} rule as the query of `/v1/events`;
 *   without a threshold, each label has its own
 */
export function findEvents(timeline, rule) {
  const events = timeline.labels.flatMap((label, c) => {
    // The probabilities are of single precision, and so is the comparison.
    const high = Math.fround(rule.threshold ?? timeline.thresholds[c]);
    const low = Math.fround(high * Math.fround(rule.release));
    const scores = timeline.scores[c];
    const begins = (w) => scores[w] >= high && timeline.canBegin[w];
    const found = findRuns(scores, low)
      .filter(([first, last]) => anyWindow(first, last, begins))
      .map(([first, last]) => {
        const run = scores.subarray(first, last + 1);
        const onset = first + run.findIndex((score) => score >= high);
        const [start_s, end_s] = locate(timeline, onset, last, rule);
        return { label, start_s, end_s, peak: longest(run) };
      });
    return join(found, rule.gapS).filter((own) => own.end_s - own.start_s >= rule.minS);
  });
  return events.sort((one, two) => one.start_s - two.start_s || (one.label < two.label ? -1 : 1));
}

function anyWindow(first, last, test) {
  for (let w = first; w <= last; w += 1) if (test(w)) return true;
  return false;
}

/** Return first and last window of each run at or above the lower threshold. */
function findRuns(scores, low) {
  const runs = [];
  for (let w = 0; w < scores.length; w += 1) {
    if (!(scores[w] >= low)) continue;
    if (runs.length && runs.at(-1)[1] === w - 1) runs.at(-1)[1] = w;
    else runs.push([w, w]);
  }
  return runs;
}

/** Return start and end of the event that the windows from `first` to `last` report. */
function locate({ starts, ends, lengthS, windowS, hopS }, first, last, rule) {
  const overlapS = rule.overlap * windowS;
  let [start, end] = [0, lengthS];
  if (first > 0) start = (ends[first - 1] + ends[first]) / 2 - overlapS;
  if (last + 1 < starts.length) end = (Math.max(0, starts[last]) + Math.max(0, starts[last + 1])) / 2 + overlapS * rule.release;
  if (start > end + hopS) {
    start = (start + end - hopS) / 2;
    end = start + hopS;
  }
  [start, end] = [Math.min(start, end), Math.max(start, end)];
  start = Math.min(Math.max(start, 0), lengthS);
  return [start, Math.min(Math.max(end, start + SHORTEST * hopS), lengthS)];
}

/** Return the events of a label with those joined whose gap is shorter than `gapS`. */
function join(events, gapS) {
  const joined = [];
  for (const own of events) {
    const before = joined.at(-1);
    if (before && (own.start_s <= before.end_s || own.start_s - before.end_s < gapS)) {
      before.end_s = Math.max(before.end_s, own.end_s);
      before.peak = Math.max(before.peak, own.peak);
    } else joined.push({ ...own });
  }
  return joined;
}

/** Return events as a table with the columns of `predict --events`. */
export function toCsv(recording, events) {
  const rows = events.map((own) => [recording, own.label, own.start_s.toFixed(3), own.end_s.toFixed(3), own.peak.toFixed(4)]);
  return [["path", "label", "start_s", "end_s", "peak"], ...rows].map((row) => `${row.map(quote).join(",")}\r\n`).join("");
}

function quote(value) {
  return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

/** Return events as JSON, with the model and the rule that made them. */
export function toJson(recording, model, rule, events) {
  return `${JSON.stringify({ recording, model, rule, events }, null, 2)}\n`;
}
