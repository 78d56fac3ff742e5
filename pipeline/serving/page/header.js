/** The head of the page: the model, its versions, and the token. */

import { hideError, showError } from "./messages.js";
import { askModel, keepToken, readToken } from "./server.js";

const byId = (id) => document.getElementById(id);

/**
 * The model that the user has chosen.
 *
 * @param {function(object)} onModel is called with the description of each model
 * @param {function()} onChange is called after that if the user has chosen another version or token
 */
export class Header {
  constructor(onModel, onChange) {
    this.onModel = onModel;
    this.onChange = onChange;
    this.model = null;
    this.asked = null;
    byId("version").addEventListener("change", () => this.#change());
    this.#connectToken();
  }

  /** Version that requests name; empty for the one that the server serves. */
  get version() {
    return byId("version").value;
  }

  /** Ask the server for the model; return whether it has one. `asked` is the promise of that. */
  open() {
    this.asked = this.#ask();
    return this.asked;
  }

  async #ask() {
    try {
      this.model = await askModel(this.version);
    } catch (error) {
      byId("model").textContent = "No model";
      showError(error, () => this.#change());
      return false;
    }
    hideError();
    const { name, version, labels, digest } = this.model;
    byId("model").textContent = `${name}${version ? ` ${version}` : ""} · ${labels.length} ${labels.length === 1 ? "label" : "labels"}`;
    byId("model").title = `Digest ${digest}`;
    if (!this.version) this.#showVersions();
    this.onModel(this.model);
    return true;
  }

  async #change() {
    if (await this.open()) this.onChange();
  }

  /** List the versions; the first choice follows the champion, the others stay. */
  #showVersions() {
    const name = ({ version, aliases }) => [version, ...aliases].join(" · ");
    const versions = this.model.versions ?? [];
    const served = versions.find((own) => own.version === this.model.version);
    const options = versions.map((own) => new Option(name(own), own.version));
    byId("version").replaceChildren(new Option(`as served (${served ? name(served) : this.model.version})`, ""), ...options);
    byId("version-field").hidden = versions.length < 2;
  }

  #connectToken() {
    const box = byId("token-box");
    byId("token").value = readToken();
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      box.open = false;
      box.querySelector("summary").focus();
    });
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      keepToken(byId("token").value.trim());
      box.open = false;
      this.#change();
    });
  }
}
