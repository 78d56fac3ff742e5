/** The page: it connects the recording, the server's answers, and what is shown of them. */

import { drawAxis, drawSpectrogram, drawWaveform } from "./drawing.js";
import { findEvents, prepare, toCsv, toJson } from "./events.js";
import { drawLanes, pickLanes, pickLiveLanes, rankLanes, showLanes } from "./lanes.js";
import { findObstacle, LiveSession, VIEW_S } from "./microphone.js";
import { connectKeys, connectSeek, formatTime, Player } from "./player.js";
import { askEvents, askModel, keepToken, readToken } from "./server.js";
import { Settings } from "./settings.js";
import { Sound } from "./sound.js";
import { countEvents, download, markEvents, showEvents } from "./table.js";

const byId = (id) => document.getElementById(id);
const ASK_AGAIN_MS = 400;
const LIVE_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 200;

let model = null;
let recording = null; // {file, sound, timeline, events, lanes, answer}
let live = null;
let request = null;
let retry = null;

const player = new Player({ onMove: showPosition, onView: draw, onPlay: showPlaying });
const settings = new Settings(changeRule, () => recording && listen());

/* The model and the token */

async function openModel() {
  try {
    model = await askModel(byId("version").value);
  } catch (error) {
    byId("model").textContent = "No model";
    showError(error, openModel);
    return false;
  }
  hideError();
  const count = model.labels.length;
  byId("model").textContent = `${model.name}${model.version ? ` ${model.version}` : ""} · ${count} ${count === 1 ? "label" : "labels"}`;
  byId("model").title = `Digest ${model.digest}`;
  if (!byId("version").value) showVersions();
  settings.open(model);
  return true;
}

/** List the versions; the first choice follows the champion, the others stay. */
function showVersions() {
  const name = ({ version, aliases }) => [version, ...aliases].join(" · ");
  const versions = model.versions ?? [];
  const served = versions.find((own) => own.version === model.version);
  const options = versions.map((own) => new Option(name(own), own.version));
  byId("version").replaceChildren(new Option(`as served (${served ? name(served) : model.version})`, ""), ...options);
  byId("version-field").hidden = versions.length < 2;
}

async function openModelAgain() {
  if ((await openModel()) && recording) listen();
}

function connectToken() {
  byId("token").value = readToken();
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(byId("token").value.trim());
    byId("token-box").open = false;
    openModelAgain();
  });
}

/* Messages */

function showError(error, again = null) {
  byId("alert").hidden = false;
  byId("alert-text").textContent = error.message;
  retry = again;
  byId("retry").hidden = !again;
  if (error.status === 401) {
    byId("token-box").open = true;
    byId("token").focus();
  }
}

function hideError() {
  byId("alert").hidden = true;
}

function showBusy(text) {
  byId("busy").hidden = !text;
  byId("busy-text").textContent = text;
  if (text) byId("status").textContent = text;
}

/* A recording */

async function open(file) {
  live?.stop();
  hideError();
  recording = { file, sound: null, timeline: null, events: [], lanes: [] };
  const own = recording;
  player.close();
  player.playable = false;
  player.lengthS = 0;
  byId("lanes").replaceChildren();
  byId("results").hidden = true;
  showRecording(file.name);
  const asked = listen();
  try {
    own.sound = await Sound.decode(file, model?.sample_rate_hz ?? 16000);
  } catch {
    own.sound = null; // the server may know more formats than the browser
  }
  if (recording !== own) return;
  player.playable = Boolean(own.sound);
  byId("unplayable").hidden = player.playable;
  byId("listen").classList.toggle("mute", !player.playable);
  if (own.sound) show(own.sound.lengthS);
  await asked;
}

/** Show the frame of a recording or of live audio. */
function showRecording(title) {
  byId("listen").hidden = false;
  byId("listen-title").textContent = title;
  byId("source").classList.add("compact");
  byId("source-title").textContent = "Drop another recording anywhere";
  byId("listen").classList.toggle("live", Boolean(live));
  byId("listen").classList.remove("mute");
  byId("unplayable").hidden = true;
}

function show(lengthS) {
  if (player.address && Math.abs(player.lengthS - lengthS) < 0.5) return;
  byId("length").textContent = `of ${formatTime(lengthS)}`;
  byId("seek").setAttribute("aria-valuemax", lengthS.toFixed(1));
  player.open(recording.file, lengthS);
}

/** Ask the server for events and timeline of the recording. */
async function listen() {
  request?.abort();
  const [own, now] = [recording, new AbortController()];
  request = now;
  hideError();
  showBusy("The model listens …");
  try {
    own.answer = await askEvents(own.file, { ...settings.query, version: byId("version").value }, now.signal);
    if (recording !== own || request !== now) return;
    own.timeline = prepare(own.answer.result.timeline);
    own.ranked = rankLanes(own.timeline);
    if (!own.sound) show(own.timeline.lengthS);
    byId("results").hidden = false;
    recompute();
  } catch (error) {
    if (request === now && error.name !== "AbortError") showError(error, error.status === 422 ? null : listen);
  } finally {
    if (request === now) {
      request = null;
      showBusy("");
    }
  }
}

let waiting = 0;

/** Apply the sliders. Only a calibrated model has to be asked again: its calibration is the server's. */
function changeRule() {
  if (!recording?.timeline) return;
  clearTimeout(waiting);
  if (settings.calibrated) waiting = setTimeout(listen, ASK_AGAIN_MS);
  else recompute();
}

function recompute() {
  const { timeline, answer } = recording;
  recording.events = settings.calibrated ? answer.result.events : findEvents(timeline, settings.rule);
  recording.lanes = pickLanes(recording.ranked, recording.events);
  showLanes(byId("lanes"), recording.lanes);
  showEvents(byId("events"), recording.events, jump);
  byId("window-hint").textContent = `Each point of a curve is a window of ${timeline.windowS.toFixed(1)} s, so a curve is wider than the event that it locates.`;
  byId("events-count").textContent = countEvents(recording.events);
  byId("no-events").hidden = recording.events.length > 0;
  drawRows();
  showPosition(player.positionS);
}

function jump(event) {
  player.seek(event.start_s);
}

/* Drawing */

function draw() {
  const view = live ? live.view : player.view;
  const sound = live ? live.sound : recording?.sound;
  if (byId("listen").hidden || view.toS <= view.fromS) return;
  if (sound) {
    drawWaveform(byId("waveform"), sound, view);
    drawSpectrogram(byId("spectrogram"), sound, view);
    byId("high").textContent = `${(sound.rateHz / 2000).toFixed(0)} kHz`;
  }
  drawAxis(byId("axis"), view);
  drawRows();
  if (!live) placePlayhead();
}

/** Draw the lanes. The curves of a calibrated model have no line, because its thresholds are for calibrated values. */
function drawRows() {
  const { lanes, view } = live ?? { lanes: recording?.lanes ?? [], view: player.view };
  drawLanes(byId("lanes"), lanes, view, settings.calibrated ? null : settings.rule.threshold);
}

function placePlayhead() {
  const { fromS, toS } = player.view;
  const share = (player.positionS - fromS) / (toS - fromS);
  byId("playhead").style.left = `${Math.min(1, Math.max(0, share)) * 100}%`;
}

function showPosition(seconds) {
  byId("now").textContent = formatTime(seconds);
  const sounding = (recording?.events ?? []).filter((own) => own.start_s <= seconds && seconds < own.end_s);
  const names = [...new Set(sounding.map((own) => own.label))].join(", ");
  byId("seek").setAttribute("aria-valuenow", seconds.toFixed(1));
  byId("seek").setAttribute("aria-valuetext", `${formatTime(seconds)}${names ? `, ${names}` : ""}`);
  if (recording) markEvents(byId("events"), recording.events, seconds);
  placePlayhead();
}

function showPlaying(playing) {
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  byId("play").classList.toggle("playing", playing);
}

/* Live audio */

async function toggleLive() {
  if (live) return live.stop();
  request?.abort();
  player.close();
  hideError();
  recording = null;
  byId("results").hidden = true;
  byId("lanes").replaceChildren();
  const own = new LiveSession({ onWindow: () => {}, onEnd: (heard, reason) => endLive(own, heard, reason) });
  live = Object.assign(own, { lanes: [], view: { fromS: 0, toS: VIEW_S }, sound: null });
  byId("microphone").textContent = "Stop";
  showRecording("Live");
  try {
    await own.start(model?.sample_rate_hz ?? 16000, { hop_s: settings.hopS || 1, top: 10, version: byId("version").value });
  } catch (error) {
    return endLive(own, null, error.message);
  }
  own.timer = setInterval(drawLive, LIVE_MS);
  return undefined;
}

function drawLive() {
  const seconds = live.seconds;
  live.view = { fromS: Math.max(0, seconds - VIEW_S), toS: Math.max(VIEW_S, seconds) };
  live.sound = live.newest(VIEW_S);
  live.lanes = pickLiveLanes(live.windows, live.view.fromS, settings.rule.threshold);
  showLanes(byId("lanes"), live.lanes);
  byId("now").textContent = formatTime(seconds);
  byId("length").textContent = live.lag === null ? "· waiting for the first answer" : `· answers ${live.lag.toFixed(2)} s after the sound`;
  draw();
}

/** Show what was heard as a recording. */
function endLive(own, heard, reason) {
  clearInterval(own.timer);
  if (live === own) live = null;
  byId("microphone").textContent = "Use the microphone";
  byId("listen").classList.remove("live");
  if (!recording && heard) open(heard);
  else if (!recording) byId("listen").hidden = true;
  if (reason) showError(new Error(reason));
}

/* Events of the page */

function connectFiles() {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    if (byId("file").files.length) open(byId("file").files[0]);
    byId("file").value = "";
  });
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", () => mark(1));
  addEventListener("dragleave", () => mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    const [file] = event.dataTransfer.files;
    if (file) open(file);
  });
}

function connectButtons() {
  byId("microphone").addEventListener("click", toggleLive);
  byId("play").addEventListener("click", () => player.toggle());
  byId("zoom-in").addEventListener("click", () => player.zoom(0.5));
  byId("zoom-out").addEventListener("click", () => player.zoom(2));
  byId("zoom-all").addEventListener("click", () => player.zoomAll());
  byId("retry").addEventListener("click", () => retry?.());
  byId("cancel").addEventListener("click", () => request?.abort());
  byId("version").addEventListener("change", openModelAgain);
  const name = () => recording.file.name.replace(/\.[^.]*$/, "");
  byId("csv").addEventListener("click", () => download(`${name()}-events.csv`, toCsv(recording.file.name, recording.events), "text/csv"));
  byId("json").addEventListener("click", () => {
    const rule = { ...settings.query, threshold: settings.own ? "calibrated" : settings.rule.threshold };
    download(`${name()}-events.json`, toJson(recording.file.name, recording.answer.model, rule, recording.events), "application/json");
  });
}

const obstacle = findObstacle();
byId("microphone").disabled = Boolean(obstacle);
byId("microphone-hint").textContent = obstacle;
byId("microphone-hint").hidden = !obstacle;
connectFiles();
connectButtons();
connectToken();
connectSeek(byId("seek"), player);
connectKeys(player, () => Boolean(recording) && !live);
new ResizeObserver(() => draw()).observe(byId("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
openModel();
