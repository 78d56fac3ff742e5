/** Playback, position and zoom of the recording that is shown. */

const SHORTEST_VIEW_S = 0.25;

/** Return seconds as minutes and seconds with a tenth. */
export function formatTime(seconds) {
  const tenths = Math.round(Math.max(0, seconds) * 10);
  const minutes = Math.floor(tenths / 600);
  return `${minutes}:${((tenths - 600 * minutes) / 10).toFixed(1).padStart(4, "0")}`;
}

/**
 * A player with a view.
 *
 * @param {{onMove: function(number), onView: function(), onPlay: function(boolean)}} listener
 */
export class Player {
  constructor(listener) {
    this.listener = listener;
    this.audio = new Audio();
    this.audio.preload = "auto";
    this.lengthS = 0;
    this.positionS = 0;
    this.view = { fromS: 0, toS: 1 };
    this.address = "";
    this.playable = false;
    for (const kind of ["play", "pause", "ended"]) this.audio.addEventListener(kind, () => listener.onPlay(this.playing));
    this.audio.addEventListener("play", () => this.#follow());
    this.audio.addEventListener("ended", () => this.#move(this.lengthS));
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended;
  }

  /** Show another recording from its beginning. */
  open(file, lengthS) {
    this.address = URL.createObjectURL(file);
    this.audio.src = this.address;
    this.lengthS = lengthS;
    this.zoomAll();
    this.#move(0);
  }

  close() {
    this.playable = false;
    this.audio.pause();
    if (this.address) URL.revokeObjectURL(this.address);
    this.audio.removeAttribute("src");
    this.address = "";
  }

  async toggle() {
    if (this.playing || !this.playable) return this.audio.pause();
    if (this.positionS >= this.lengthS - 0.05) this.seek(0);
    return this.audio.play();
  }

  /** Jump to a time. */
  seek(seconds) {
    const target = Math.min(Math.max(0, seconds), this.lengthS);
    if (this.playable) this.audio.currentTime = target;
    this.#move(target);
  }

  #follow() {
    if (!this.playing) return;
    this.#move(Math.min(this.audio.currentTime, this.lengthS));
    requestAnimationFrame(() => this.#follow());
  }

  #move(seconds) {
    this.positionS = seconds;
    const { fromS, toS } = this.view;
    if (seconds < fromS || seconds > toS) this.show(seconds - (toS - fromS) * (seconds < fromS ? 0.9 : 0.1), toS - fromS);
    this.listener.onMove(seconds);
  }

  /** Show `spanS` seconds from a time on, inside the recording. */
  show(fromS, spanS) {
    const span = Math.min(Math.max(spanS, Math.min(SHORTEST_VIEW_S, this.lengthS)), this.lengthS);
    const from = Math.min(Math.max(0, fromS), this.lengthS - span);
    this.view = { fromS: from, toS: from + span };
    this.listener.onView();
  }

  /** Zoom by a factor; what is at `aroundS` stays in its place. */
  zoom(factor, aroundS = this.positionS) {
    const span = (this.view.toS - this.view.fromS) * factor;
    this.show(aroundS - (aroundS - this.view.fromS) * factor, span);
  }

  zoomAll() {
    this.show(0, this.lengthS);
  }
}

/** Let pointer, wheel and keys of an element move the player. */
export function connectSeek(element, player) {
  const toSeconds = (event) => {
    const box = element.getBoundingClientRect();
    return player.view.fromS + ((event.clientX - box.left) / box.width) * (player.view.toS - player.view.fromS);
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    player.seek(toSeconds(event));
  });
  element.addEventListener("pointermove", (event) => {
    if (!element.hasPointerCapture(event.pointerId)) return;
    player.seek(Math.min(Math.max(toSeconds(event), player.view.fromS), player.view.toS));
  });
  element.addEventListener("wheel", (event) => wheel(event, player, toSeconds(event)), { passive: false });
  element.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    const targets = { ArrowLeft: player.positionS - step, ArrowRight: player.positionS + step, ArrowDown: player.positionS - step,
      ArrowUp: player.positionS + step, PageDown: player.positionS - 10, PageUp: player.positionS + 10, Home: 0, End: player.lengthS };
    if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    player.seek(targets[event.key]);
  });
}

/** Zoom with Ctrl and the wheel, and pan with a sideways wheel; the plain wheel scrolls the page. */
function wheel(event, player, seconds) {
  if (event.ctrlKey) player.zoom(Math.exp(event.deltaY / 300), seconds);
  else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const span = player.view.toS - player.view.fromS;
    player.show(player.view.fromS + (event.deltaX / 800) * span, span);
  } else return;
  event.preventDefault();
}

/** Let keys of the page play and zoom, except in fields and on buttons, which have their own use for them. */
export function connectKeys(player, isOpen) {
  const keys = { " ": () => player.toggle(), "+": () => player.zoom(0.5), "=": () => player.zoom(0.5), "-": () => player.zoom(2), 0: () => player.zoomAll() };
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea, summary, button, a");
    if (!isOpen() || event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
    if (busy && (event.key === " " || busy.matches("input, select"))) return;
    event.preventDefault();
    keys[event.key]();
  });
}
