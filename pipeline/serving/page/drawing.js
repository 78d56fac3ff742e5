/** Canvases: waveform, spectrogram, axis and the lane of a label. A view is `{fromS, toS}`. */

import { spectrogram } from "./sound.js";

const STOPS = ["--map-0", "--map-1", "--map-2", "--map-3", "--map-4"];
const MOST_COLUMNS = 900;

/** Fit the pixels of a canvas to its size on the page; return its context and size, or null while it is hidden. */
function open(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Draw the lowest and the highest sample of each pixel. */
export function drawWaveform(canvas, sound, view) {
  const place = open(canvas);
  if (!place) return;
  const { context, width, height } = place;
  const perPixel = ((view.toS - view.fromS) * sound.rateHz) / width;
  const first = (view.fromS - sound.startS) * sound.rateHz;
  const scale = (height / 2 - 3) / Math.max(0.02, sound.loudest);
  context.fillStyle = colour("--wave");
  for (let x = 0; x < width; x += 1) {
    if (first + x * perPixel < 0 || first + x * perPixel >= sound.samples.length) continue;
    const [low, high] = sound.range(first + x * perPixel, first + (x + 1) * perPixel);
    context.fillRect(x, height / 2 - high * scale - 0.5, 1, (high - low) * scale + 1);
  }
}

/** Draw the log-mel spectrogram of the view. */
export function drawSpectrogram(canvas, sound, view) {
  const place = open(canvas);
  if (!place) return;
  const { context, width, height } = place;
  const { image, columns, rows } = spectrogram(sound, view.fromS, view.toS, Math.min(MOST_COLUMNS, width));
  const colours = colourMap();
  const pixels = new ImageData(columns, rows);
  const words = new Uint32Array(pixels.data.buffer);
  for (let x = 0; x < columns; x += 1) {
    for (let y = 0; y < rows; y += 1) {
      words[(rows - 1 - y) * columns + x] = colours[Math.min(255, Math.floor(image[x * rows + y] * 256))];
    }
  }
  const sheet = new OffscreenCanvas(columns, rows);
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(sheet, 0, 0, width, height);
}

/** Return 256 colours as words of pixels, interpolated between the stops of the theme. */
function colourMap() {
  const stops = STOPS.map((name) => colour(name).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16)));
  return Uint32Array.from({ length: 256 }, (_, n) => {
    const place = (n / 255) * (stops.length - 1);
    const below = Math.min(stops.length - 2, Math.floor(place));
    const mix = (channel) => Math.round(stops[below][channel] + (place - below) * (stops[below + 1][channel] - stops[below][channel]));
    return (255 << 24) | (mix(2) << 16) | (mix(1) << 8) | mix(0);
  });
}

/** Draw times at round seconds. */
export function drawAxis(canvas, view) {
  const place = open(canvas);
  if (!place) return;
  const { context, width, height } = place;
  const span = view.toS - view.fromS;
  const steps = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600];
  const step = steps.find((own) => (own / span) * width >= 64) ?? 7200;
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
  for (let mark = Math.max(0, Math.ceil(view.fromS / step)); mark * step <= view.toS; mark += 1) {
    const x = ((mark * step - view.fromS) / span) * width;
    context.fillStyle = colour("--line");
    context.fillRect(Math.min(width - 1, x), 0, 1, 5);
    context.fillStyle = colour("--dim");
    const text = formatMark(mark * step, step);
    const half = context.measureText(text).width / 2;
    context.fillText(text, Math.min(Math.max(0, x - half), width - 2 * half), height / 2 + 3);
  }
}

function formatMark(seconds, step) {
  const minutes = Math.floor(seconds / 60 + 1e-9);
  if (step < 1) return (seconds - 60 * minutes).toFixed(step < 0.1 ? 2 : 1).padStart(minutes ? 4 : 3, "0").replace(/^/, minutes ? `${minutes}:` : "");
  return `${minutes}:${String(Math.round(seconds - 60 * minutes)).padStart(2, "0")}`;
}

/**
 * Draw the probability of a label over time, its threshold, and its events.
 *
 * @param {HTMLCanvasElement} canvas place
 * @param {{times: number[], values: number[], events: object[], threshold: number | null}} lane what is drawn
 * @param {{fromS: number, toS: number}} view seconds that are shown
 */
export function drawLane(canvas, lane, view) {
  const place = open(canvas);
  if (!place) return;
  const { context, width, height } = place;
  const toX = (seconds) => ((seconds - view.fromS) / (view.toS - view.fromS)) * width;
  const toY = (value) => height - 1 - value * (height - 9);
  for (const own of lane.events) {
    const x = toX(own.start_s);
    const length = Math.max(3, toX(own.end_s) - x);
    context.fillStyle = colour("--event-area");
    context.fillRect(x, 4, length, height - 4);
    context.fillStyle = colour("--event");
    context.beginPath();
    context.roundRect(x, 1, length, 4, 2);
    context.fill();
  }
  if (lane.times.length) {
    const points = lane.times.map((time, n) => [toX(time), toY(lane.values[n])]);
    if (!lane.growing) points.unshift([toX(0), points[0][1]]);
    if (!lane.growing) points.push([toX(lane.lengthS), points.at(-1)[1]]);
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x, y));
    context.strokeStyle = colour("--curve");
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(points.at(-1)[0], height);
    context.lineTo(points[0][0], height);
    context.fillStyle = colour("--curve-area");
    context.fill();
  }
  if (lane.threshold !== null) {
    context.setLineDash([3, 4]);
    context.strokeStyle = colour("--threshold");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(0, Math.round(toY(lane.threshold)) + 0.5);
    context.lineTo(width, Math.round(toY(lane.threshold)) + 0.5);
    context.stroke();
  }
}
