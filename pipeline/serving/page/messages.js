/** What the page says about errors and about what it waits for. */

const byId = (id) => document.getElementById(id);
let retry = null;

/**
 * Show an error. A missing or wrong token opens the field of the token.
 *
 * @param {Error} error its message is for the user
 * @param {function() | null} again what the button "Try again" does; null if that does not help
 */
export function showError(error, again = null) {
  byId("alert").hidden = false;
  byId("alert-text").textContent = error.message;
  retry = again;
  byId("retry").hidden = !again;
  if (error.status === 401) {
    byId("token-box").open = true;
    byId("token").focus();
  }
}

/** Remove the error that is shown. */
export function hideError() {
  byId("alert").hidden = true;
}

/** Say what the page waits for; an empty text ends that. */
export function showBusy(text) {
  byId("busy").hidden = !text;
  byId("busy-text").textContent = text;
  if (text) say(text);
}

/** Say something to screen readers. */
export function say(text) {
  byId("status").textContent = text;
}

/** Connect the buttons of the messages. */
export function connectMessages(onCancel) {
  byId("retry").addEventListener("click", () => retry?.());
  byId("cancel").addEventListener("click", onCancel);
}
