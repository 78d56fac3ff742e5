/** The page: it connects the recording, the server's answers, and what is shown of them. */

import { findEvents, prepare, toCsv, toJson } from "./events.js";
import { FileList } from "./files.js";
import { Header } from "./header.js";
import { drawLanes, pickLanes, rankLanes, showLanes } from "./lanes.js";
import { Live } from "./live.js";
import { connectMessages, hideError, showBusy, showError } from "./messages.js";
import { connectKeys, connectSeek, formatTime, Player } from "./player.js";
import { askEvents } from "./server.js";
import { Settings } from "./settings.js";
import { Sound } from "./sound.js";
import { drawStage, openStage, placePlayhead } from "./stage.js";
import { countEvents, download, markEvents, showEvents } from "./table.js";

const byId = (id) => document.getElementById(id);

let recording = null; // {file, sound, timeline, ranked, events, lanes, answer}
let request = null; // the request that runs

const player = new Player({ onMove: showPosition, onView: draw, onPlay: showPlaying });
const settings = new Settings(() => recording?.timeline && showResult(), () => recording && listen());
const files = new FileList(open);
const live = new Live(settings, openLive, (heard) => files.add([heard]));
const header = new Header(openModel, () => recording && listen());

function openModel(model) {
  settings.open(model);
  live.rateHz = model.sample_rate_hz;
  live.query = { version: header.version };
}

/** Close the recording that is shown. */
function close() {
  request?.abort();
  player.close();
  recording = null;
}

function openLive() {
  close();
  files.unmark();
}

/** Show a recording, and ask the server for its events. */
async function open(file) {
  live.close();
  close();
  hideError();
  const own = { file, sound: null, timeline: null, events: [], lanes: [] };
  recording = own;
  openStage(file.name, false);
  await header.asked; // the model says which hops and sampling rate are right
  if (recording !== own) return;
  const asked = listen();
  try {
    own.sound = await Sound.decode(file, header.model?.sample_rate_hz ?? 16000);
  } catch {
    own.sound = null; // the server knows more formats than the browser
  }
  if (recording !== own) return;
  byId("stage").setAttribute("aria-busy", "false");
  player.playable = Boolean(own.sound);
  byId("unplayable").hidden = player.playable;
  byId("listen").classList.toggle("mute", !player.playable);
  if (own.sound) openPlayer(own.sound.lengthS);
  draw(); // the server may have answered before
  await asked;
}

function openPlayer(lengthS) {
  if (player.address) return;
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
    own.answer = await askEvents(own.file, { hop_s: settings.hopS || null, version: header.version }, now.signal);
    if (recording !== own || request !== now) return;
    own.timeline = prepare(own.answer.result.timeline);
    own.ranked = rankLanes(own.timeline);
    openPlayer(own.timeline.lengthS);
    byId("results").hidden = false;
    showResult();
  } catch (error) {
    if (request === now && error.name !== "AbortError") showError(error, error.status === 422 ? null : listen);
  } finally {
    if (request === now) {
      request = null;
      showBusy("");
    }
  }
}

/** Find the events by the sliders, and show them. */
function showResult() {
  const { timeline, ranked } = recording;
  const events = findEvents(timeline, settings.rule);
  recording.events = events;
  recording.lanes = pickLanes(ranked, events, settings.rule.threshold);
  showLanes(byId("lanes"), recording.lanes);
  showEvents(byId("events"), events, (own) => player.seek(own.start_s));
  byId("events-count").textContent = countEvents(events);
  byId("no-events").hidden = events.length > 0;
  byId("window-hint").textContent = `Each point of a curve is a window of ${timeline.windowS.toFixed(1)} s, so a curve is wider than the event that it locates.`;
  drawLanes(byId("lanes"), recording.lanes, player.view);
  showPosition(player.positionS);
}

function draw() {
  if (live.on) return live.draw();
  if (!recording) return undefined;
  drawStage({ sound: recording.sound, lanes: recording.lanes, view: player.view });
  return placePlayhead(player.positionS, player.view);
}

function showPosition(seconds) {
  if (!recording) return;
  const names = recording.events.filter((own) => own.start_s <= seconds && seconds < own.end_s).map((own) => own.label);
  byId("now").textContent = formatTime(seconds);
  byId("seek").setAttribute("aria-valuenow", seconds.toFixed(1));
  byId("seek").setAttribute("aria-valuetext", [formatTime(seconds), ...new Set(names)].join(", "));
  markEvents(byId("events"), recording.events, seconds);
  placePlayhead(seconds, player.view);
}

function showPlaying(playing) {
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  byId("play").classList.toggle("playing", playing);
}

function saveCsv() {
  download(`${baseName()}-events.csv`, toCsv(recording.file.name, recording.events), "text/csv");
}

function saveJson() {
  const text = toJson(recording.file.name, recording.answer.model, settings.description, recording.events);
  download(`${baseName()}-events.json`, text, "application/json");
}

function baseName() {
  return recording.file.name.replace(/\.[^.]*$/, "");
}

function connectFiles() {
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    files.add(byId("file").files);
    byId("file").value = "";
  });
  let depth = 0; // each element below the pointer has its own events
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
    files.add(event.dataTransfer.files);
  });
}

function connectButtons() {
  const actions = {
    play: () => player.toggle(), "zoom-in": () => player.zoom(0.5), "zoom-out": () => player.zoom(2),
    "zoom-all": () => player.zoomAll(), csv: saveCsv, json: saveJson,
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  connectMessages(() => request?.abort());
}

connectFiles();
connectButtons();
connectSeek(byId("seek"), player);
connectKeys(player, () => Boolean(recording));
new ResizeObserver(draw).observe(byId("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
header.open();
