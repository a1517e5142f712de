// Whether the server is there: says so in the page's head, asks for a key where one is needed, and tries again
// until there is an answer.
import { isReady, keepKey, servedModel } from "./api.js";

const FIRST_PAUSE = 500; // milliseconds between tries; it doubles
const LONGEST_PAUSE = 4000;

export class Connection {
  // onModel(model): the server answers, and can take questions.
  constructor({ onModel, onLost }) {
    this.line = document.getElementById("connection");
    this.form = document.getElementById("key-form");
    this.field = document.getElementById("key");
    this.onModel = onModel;
    this.onLost = onLost;
    this.trying = false;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      keepKey(this.field.value.trim());
      this.field.value = "";
      this.connect();
    });
  }

  async connect() {
    if (this.trying) return;
    this.trying = true;
    for (let pause = FIRST_PAUSE; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      try {
        const model = await servedModel();
        if (await isReady()) {
          this._say("ready", "Connected");
          this.form.hidden = true;
          this.onModel(model);
          break;
        }
        this._say("waiting", "The model warms up…");
      } catch (error) {
        this.onLost();
        if (error.status === 401) {
          this.askForKey();
          break;
        }
        this._say("gone", error.status ? error.message : "The server is gone. Trying again…");
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    this.trying = false;
  }

  askForKey() {
    this._say("gone", "A key is needed");
    this.form.hidden = false;
    this.field.focus();
  }

  _say(state, text) {
    this.line.dataset.state = state;
    if (this.line.textContent !== text) this.line.textContent = text;
  }
}
