/** Live audio on the stage. */

import { pickLiveLanes, showLanes } from "./lanes.js";
import { findObstacle, LiveSession } from "./microphone.js";
import { hideError, say, showError } from "./messages.js";
import { formatTime } from "./player.js";
import { drawStage, openStage } from "./stage.js";

const VIEW_S = 20;
const STEP_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 200;
const byId = (id) => document.getElementById(id);

/**
 * The button of the microphone, and what it shows.
 *
 * @param {Settings} settings threshold and hop
 * @param {function()} onStart is called before the microphone starts
 * @param {function(File)} onHeard gets what was heard when the session ends
 */
export class Live {
  constructor(settings, onStart, onHeard) {
    Object.assign(this, { settings, onStart, onHeard, session: null, query: {}, rateHz: 16000 });
    const obstacle = findObstacle();
    byId("microphone").disabled = Boolean(obstacle);
    byId("microphone-hint").textContent = obstacle;
    byId("microphone-hint").hidden = !obstacle;
    byId("microphone").addEventListener("click", () => (this.session ? this.session.stop() : this.#start()));
  }

  get on() {
    return Boolean(this.session);
  }

  /** End live audio because a recording takes its place. */
  close() {
    const session = this.session;
    this.#show(null);
    session?.stop();
  }

  /** Draw the newest seconds; also called when the size or the theme of the page changes. */
  draw() {
    const { session } = this;
    if (!session?.context) return;
    const view = { fromS: Math.max(0, session.seconds - VIEW_S), toS: Math.max(VIEW_S, session.seconds) };
    const lanes = pickLiveLanes(session.windows, view.fromS, this.settings.liveThreshold);
    showLanes(byId("lanes"), lanes);
    byId("now").textContent = formatTime(session.seconds);
    byId("length").textContent = session.lag === null ? "· waiting for the first answer" : `· answers ${session.lag.toFixed(2)} s after the sound`;
    drawStage({ sound: session.newest(VIEW_S), lanes, view });
  }

  async #start() {
    hideError();
    this.onStart();
    const session = new LiveSession((heard, reason) => this.#end(session, heard, reason));
    this.#show(session);
    openStage("Live", true);
    say("The microphone is on.");
    try {
      await session.start(this.rateHz, { hop_s: this.settings.hopS || 1, top: 10, ...this.query });
    } catch (error) {
      return this.#end(session, null, error.message);
    }
    if (this.session === session) this.timer = setInterval(() => this.draw(), STEP_MS); // it may be stopped already
    return undefined;
  }

  #show(session) {
    clearInterval(this.timer);
    this.session = session;
    byId("microphone").textContent = session ? "Stop" : "Use the microphone";
  }

  #end(session, heard, reason) {
    if (this.session !== session) return; // a recording has taken its place
    this.#show(null);
    byId("listen").classList.remove("live");
    if (heard) this.onHeard(heard);
    else byId("listen").hidden = true;
    if (reason) showError(new Error(reason));
  }
}
