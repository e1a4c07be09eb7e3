// Search in a page that was opened as a file, where browsers start no workers: the worker's script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc =
        "<!doctype html><script>postMessage = data => frameElement.answer(data)</script>" +
        `<script src="${String(url).replaceAll('"', "%22")}"></script>`;
      frame.answer = data => this.dispatchEvent(new MessageEvent("message", { data }));
      this.inside = new Promise(resolve => (frame.onload = () => resolve(frame.contentWindow)));
      document.body.append(frame);
    }

    postMessage(data) {
      this.inside.then(inside => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
