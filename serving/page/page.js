// The page at /: asks this service, and nobody else.
const get = (id) => document.getElementById(id);
const state = { models: [], samples: {}, image: null, run: 0 };
const SIGNIFICANT = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) get("token-form").hidden = false;
  if (!response.ok) throw new Error(body.error ?? `the service answered ${response.status}`);
  return body;
}

function say(text, failed = false) {
  get("status").textContent = text;
  get("status").classList.toggle("error", failed);
}

// --- what there is -----------------------------------------------------------------------------------------------

async function begin() {
  try {
    state.models = (await ask("/models")).models;
    state.samples = (await ask("/page/samples.json")).samples;
  } catch (error) {
    say(error.message, true);
    return;
  }
  get("token-form").hidden = true;
  get("model").replaceChildren(...state.models.map((model) => new Option(model.name, model.name, model.default, model.default)));
  showFigures();
  chooseModel();
  say("Choose an image.");
}

function chosen() {
  return state.models.find((model) => model.name === get("model").value);
}

function chooseModel() {
  const model = chosen();
  const [height, width] = model.input;
  get("model-note").textContent = `Made for ${model.dataset}: ${model.classes.length} classes, ${width} × ${height} pixels. ` +
    "Other images are cut around their centre and resized.";
  const boxes = model.versions.map((variant) => {
    const box = make("input", { type: "checkbox", value: variant.version, checked: true });
    box.addEventListener("change", predict);
    return make("label", {}, box, variant.version + (variant.version === model.default_version ? " (default)" : ""));
  });
  get("variants").replaceChildren(get("variants").querySelector("legend"), ...boxes);
  showSamples(model);
  if (state.image) predict();
}

function showSamples(model) {
  const names = state.samples[model.dataset] ?? [];
  get("samples").replaceChildren(...names.map((name) => {
    const url = `/page/samples/${model.dataset}/${name}`;
    const label = name.replace(/\.png$/, "");
    const button = make("button", { type: "button", title: label }, make("img", { src: url, alt: `Sample: ${label}` }));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", async () => {
      take(await (await fetch(url)).blob(), label);
      button.setAttribute("aria-pressed", "true");
    });
    return button;
  }));
}

function showFigures() {
  const rows = state.models.flatMap((model) => model.versions.map((variant, index) => {
    const row = make("tr", { className: index ? "" : "first" },
      make("th", { scope: "row", textContent: index ? "" : model.name, ariaLabel: model.name }),
      make("td", { textContent: variant.version }));
    const measured = variant.p50_ms !== null;
    row.append(...[
      variant.top1 === null ? "" : variant.top1.toFixed(2),
      SIGNIFICANT.format(variant.size_bytes / 1000),
      measured ? SIGNIFICANT.format(variant.p50_ms) : `≈ ${SIGNIFICANT.format(variant.warm_ms)}`,
      variant.images_per_s === null ? "" : SIGNIFICANT.format(variant.images_per_s),
    ].map((text) => make("td", { className: "number", textContent: text })));
    row.classList.toggle("default", variant.version === model.default_version);
    return row;
  }));
  get("figures").tBodies[0].replaceChildren(...rows);
}

// --- an image and its answers ------------------------------------------------------------------------------------

function take(blob, name) {
  if (!blob) return;
  state.image = blob;
  const preview = get("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(blob);
  preview.alt = `The chosen image: ${name}`;
  preview.hidden = false;
  for (const button of get("samples").children) button.setAttribute("aria-pressed", "false");
  predict();
}

async function predict() {
  if (!state.image) return;
  const run = ++state.run;
  const model = chosen();
  const versions = [...get("variants").querySelectorAll("input:checked")].map((box) => box.value);
  if (!versions.length) return say("Choose a variant.");
  say("Asking …");
  const answers = [];
  try {
    for (const version of versions) { // one after another, so that no answer's time is the other's wait
      const query = new URLSearchParams({ model: model.name, version, top: 5 });
      const headers = { "content-type": "application/octet-stream" };
      answers.push(await ask(`/predict?${query}`, { method: "POST", body: state.image, headers }));
      if (run !== state.run) return;
    }
  } catch (error) {
    if (run !== state.run) return;
    get("answers").replaceChildren();
    return say(error.message, true);
  }
  const slowest = Math.max(...answers.map((answer) => answer.milliseconds.total));
  get("answers").replaceChildren(...answers.map((answer) => show(answer, slowest)));
  const firsts = [...new Set(answers.map((answer) => answer.predictions[0].class))];
  say(firsts.length === 1 ? `${versions.length === 1 ? "It says" : "All say"} ${firsts[0]}.` : `They disagree: ${firsts.join(", ")}.`);
}

function show(answer, slowest) {
  const bars = make("dl", { className: "bars" });
  for (const { class: name, probability } of answer.predictions) bars.append(...bar(name, probability, `${(100 * probability).toFixed(1)} %`));
  const times = make("dl", { className: "bars times" });
  for (const stage of ["decode", "queue", "compute", "total"]) {
    const taken = answer.milliseconds[stage];
    if (taken) times.append(...bar(stage, taken / slowest, `${SIGNIFICANT.format(taken)} ms`));
  }
  const title = make("h3", {}, answer.version, " ", make("small", { textContent: answer.model }));
  return make("article", {}, title, bars, times);
}

function bar(name, share, text) {
  const fill = make("div", { className: "fill" });
  fill.style.width = `${100 * Math.min(1, share)}%`;
  const track = make("div", { className: "track", ariaHidden: "true" }, fill);
  return [make("dt", { textContent: name }), make("dd", {}, track, make("span", { className: "value", textContent: text }))];
}

// --- ways in -----------------------------------------------------------------------------------------------------

get("model").addEventListener("change", chooseModel);
get("file").addEventListener("change", (event) => take(event.target.files[0], event.target.files[0]?.name));
get("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", get("token").value);
  begin();
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
  if (file) take(file, "pasted");
});
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); get("drop").classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); get("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files[0], event.dataTransfer.files[0]?.name));
begin();
