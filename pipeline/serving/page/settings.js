/** The sliders and choices that make events out of probabilities. */

const HOPS_S = [0.1, 0.25, 0.5, 1, 2, 5];
const byId = (id) => document.getElementById(id);
const SLIDERS = { threshold: (value) => value.toFixed(2), release: (value) => value.toFixed(2), shortest: formatSeconds, gap: formatSeconds, overlap: (value) => value.toFixed(2) };

function formatSeconds(value) {
  return `${value.toFixed(2)} s`;
}

/**
 * The panel of the thresholds.
 *
 * @param {function()} onRule is called when a value of the rule changes
 * @param {function()} onHop is called when the model must listen again
 */
export class Settings {
  constructor(onRule, onHop) {
    for (const id of Object.keys(SLIDERS)) {
      byId(id).addEventListener("input", () => {
        this.#show();
        onRule();
      });
    }
    byId("own").addEventListener("input", () => {
      this.#show();
      onRule();
    });
    byId("hop").addEventListener("change", onHop);
    this.#show();
  }

  /** Fit the choices to a model. */
  open(model) {
    this.calibrated = Boolean(model.calibrated);
    byId("own-field").hidden = !this.calibrated;
    const hops = HOPS_S.filter((hop) => hop <= model.window_s);
    const before = hops.find((hop) => hop === this.hopS); // another version keeps the choice
    const usual = before ?? hops.findLast((hop) => hop <= Math.min(1, model.window_s / 4)) ?? hops[0] ?? model.window_s;
    const options = (hops.length ? hops : [model.window_s]).map((hop) => new Option(`${hop} s`, hop, hop === usual, hop === usual));
    byId("hop").replaceChildren(...options);
    this.#show();
  }

  /** Whether the thresholds are those of the calibrated model. */
  get own() {
    return this.calibrated && byId("own").checked;
  }

  /** Threshold of live audio; null for a calibrated model, whose live probabilities are not calibrated. */
  get liveThreshold() {
    return this.calibrated ? null : this.rule.threshold;
  }

  get hopS() {
    return Number(byId("hop").value);
  }

  /** Values of the rule as `findEvents` takes them. */
  get rule() {
    const value = (id) => Number(byId(id).value);
    return { threshold: this.own ? null : value("threshold"), release: value("release"), minS: value("shortest"), gapS: value("gap"), overlap: value("overlap") };
  }

  /** The rule by the names of `/v1/events`, for the download. */
  get description() {
    const { threshold, release, minS, gapS, overlap } = this.rule;
    return { hop_s: this.hopS, threshold: threshold ?? "calibrated", release, min_s: minS, gap_s: gapS, overlap };
  }

  #show() {
    for (const [id, format] of Object.entries(SLIDERS)) {
      const text = format(Number(byId(id).value));
      byId(`${id}-value`).value = text;
      byId(id).setAttribute("aria-valuetext", text);
    }
    byId("threshold").disabled = this.own;
    if (this.own) byId("threshold-value").value = "one for each label";
  }
}
