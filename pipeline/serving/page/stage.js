/** The stage: waveform, spectrogram, axis and lanes, of a recording or of live audio. */

import { drawAxis, drawSpectrogram, drawWaveform } from "./drawing.js";
import { drawLanes } from "./lanes.js";

const byId = (id) => document.getElementById(id);

/** Show the frame of a recording or of live audio, still empty. */
export function openStage(title, isLive) {
  byId("listen").hidden = false;
  byId("listen").classList.remove("mute");
  byId("listen").classList.toggle("live", isLive);
  byId("listen-title").textContent = title;
  byId("stage").setAttribute("aria-busy", String(!isLive)); // until the browser has decoded the recording
  byId("unplayable").hidden = true;
  byId("results").hidden = true;
  byId("lanes").replaceChildren();
  byId("events").replaceChildren();
  byId("source").classList.add("compact");
  byId("source-title").textContent = "Drop another recording anywhere";
}

/**
 * Draw all of it.
 *
 * @param {{sound: Sound | null, lanes: object[], view: {fromS: number, toS: number}}} shown what is drawn
 */
export function drawStage({ sound, lanes, view }) {
  if (byId("listen").hidden || view.toS <= view.fromS) return;
  if (sound) {
    drawWaveform(byId("waveform"), sound, view);
    drawSpectrogram(byId("spectrogram"), sound, view);
    byId("high").textContent = `${(sound.rateHz / 2000).toFixed(0)} kHz`;
  }
  drawAxis(byId("axis"), view);
  drawLanes(byId("lanes"), lanes, view);
}

/** Place the line that shows the position. */
export function placePlayhead(seconds, { fromS, toS }) {
  const share = (seconds - fromS) / (toS - fromS);
  byId("playhead").style.left = `${Math.min(1, Math.max(0, share)) * 100}%`;
}
