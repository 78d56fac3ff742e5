/** Live audio: from the microphone through an AudioWorklet and the WebSocket to the model. */

import { describeClose, openLive } from "./server.js";
import { Sound, toWav } from "./sound.js";

const KEPT_S = 600;
const LAST_WORD_MS = 8000;

/** Return why this page cannot use the microphone, or an empty string. */
export function findObstacle() {
  if (!window.isSecureContext) {
    return `Browsers allow the microphone only over HTTPS, or from the machine itself (127.0.0.1, localhost). This page comes from ${location.origin}.`;
  }
  return navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode ? "" : "This browser has no microphone for pages.";
}

function describeRefusal(error) {
  const reasons = {
    NotAllowedError: "The browser does not allow this page to use the microphone. Allow it in the address bar and try again.",
    NotFoundError: "No microphone is connected.",
    NotReadableError: "Another program holds the microphone.",
    SyntaxError: "This token has characters that a browser cannot send with live audio.",
  };
  return reasons[error.name] ?? `The microphone does not start: ${error.message}`;
}

/**
 * A live session.
 *
 * @param {function(File | null, string)} onEnd gets what was heard, and the reason if the session ended by itself
 */
export class LiveSession {
  constructor(onEnd) {
    this.onEnd = onEnd;
    this.windows = [];
    this.chunks = [];
    this.samples = 0;
    this.lag = null;
    this.ended = false;
  }

  /** Start the microphone and the connection. It rejects with an error whose message is for the user. */
  async start(rateHz, query) {
    try {
      const voice = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: voice });
      if (this.ended) return this.#release();
      const source = this.#openContext(rateHz);
      await this.context.audioWorklet.addModule(new URL("./pcm-worklet.js", import.meta.url));
      this.#connect(query);
      const worklet = new AudioWorkletNode(this.context, "pcm", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
      worklet.port.onmessage = (event) => this.#take(event.data);
      source.connect(worklet);
      this.stream.getAudioTracks()[0].addEventListener("ended", () => this.stop());
    } catch (error) {
      this.ended = true;
      this.#release();
      throw new Error(describeRefusal(error), { cause: error });
    }
  }

  /** Open a context at the rate of the model; browsers that cannot resample a microphone use its own rate. */
  #openContext(rateHz) {
    try {
      this.context = new AudioContext({ sampleRate: rateHz });
      return this.context.createMediaStreamSource(this.stream);
    } catch {
      this.context = new AudioContext();
      return this.context.createMediaStreamSource(this.stream);
    }
  }

  #connect(query) {
    this.socket = openLive(this.context.sampleRate, query);
    this.socket.onopen = () => this.chunks.forEach((chunk) => this.socket.send(chunk)); // heard while it connected
    this.socket.onmessage = (event) => this.#read(JSON.parse(event.data));
    this.socket.onclose = (event) => this.#finish(this.reason || (this.stopping ? "" : describeClose(event.code)));
  }

  #read(message) {
    if (message.error) this.reason = message.error;
    else if (message.end) this.socket.close();
    else {
      this.windows.push(message);
      this.lag = message.lag_s;
    }
  }

  /** Keep and send 16-bit samples. */
  #take(buffer) {
    if (this.stopping || this.ended) return;
    this.chunks.push(new Int16Array(buffer));
    this.samples += buffer.byteLength / 2;
    while (this.chunks.length * this.chunks[0].length > KEPT_S * this.context.sampleRate) this.chunks.shift();
    while (this.windows.length && this.windows[0].end_s < this.seconds - KEPT_S) this.windows.shift();
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(buffer);
  }

  get seconds() {
    return this.context ? this.samples / this.context.sampleRate : 0;
  }

  /** Return the newest seconds that were heard. */
  newest(seconds) {
    const wanted = Math.ceil(seconds * this.context.sampleRate);
    const some = [];
    let count = 0;
    for (let n = this.chunks.length - 1; n >= 0 && count < wanted; n -= 1) {
      some.unshift(this.chunks[n]);
      count += this.chunks[n].length;
    }
    const samples = new Float32Array(count);
    let place = 0;
    for (const chunk of some) for (const value of chunk) samples[place++] = value / 32768;
    return new Sound(samples, this.context.sampleRate, this.seconds - count / this.context.sampleRate);
  }

  /** Stop listening; the server sends the last windows before `onEnd`. */
  stop() {
    if (this.stopping || this.ended) return;
    this.stopping = true;
    this.#release();
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send("end");
    setTimeout(() => this.#finish(""), this.socket?.readyState === WebSocket.OPEN ? LAST_WORD_MS : 0);
  }

  #release() {
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") this.context.close();
  }

  #finish(reason) {
    if (this.ended) return;
    this.ended = true;
    this.#release();
    this.socket?.close();
    const name = `microphone-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.wav`;
    const heard = this.samples ? new File([toWav(this.chunks, this.context.sampleRate)], name, { type: "audio/wav" }) : null;
    this.onEnd(heard, reason);
  }
}
