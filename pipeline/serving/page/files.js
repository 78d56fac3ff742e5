/** The list of recordings: those that were dropped or chosen, and what the microphone heard. */

const byId = (id) => document.getElementById(id);

export class FileList {
  /** @param {function(File)} onShow is called with the recording that is to be shown */
  constructor(onShow) {
    this.onShow = onShow;
    this.buttons = [];
  }

  /** Add recordings, and show the first of them. The list is visible once there are two. */
  add(files) {
    const added = [...files].map((file) => this.#makeButton(file));
    this.buttons.push(...added);
    byId("files").append(...added.map((button) => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
    byId("files-card").hidden = this.buttons.length < 2;
    byId("files-count").textContent = `${this.buttons.length} recordings`;
    added[0]?.click();
  }

  /** Mark no recording, because live audio is shown. */
  unmark() {
    for (const button of this.buttons) button.removeAttribute("aria-current");
  }

  #makeButton(file) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = file.name;
    button.title = file.name;
    button.addEventListener("click", () => {
      this.unmark();
      button.setAttribute("aria-current", "true");
      this.onShow(file);
    });
    return button;
  }
}
