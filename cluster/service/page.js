// The search page: asks /stats and /random once, then /search and /search/image. Text goes in by textContent only.

const $ = (id) => document.getElementById(id);
const SMALL_PIXELS = 64;
let stats = null;
let lastQuery = null; // () => Promise of an answer, so that changed controls repeat it
let turn = 0; // only the answer to the newest query is shown
let token = sessionStorage.getItem("token") ?? "";

class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new HttpError(0, "The service does not answer. Is it still running?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new HttpError(response.status, answer.error ?? `The service answered ${response.status}.`);
  }
  return response;
}

const askJson = async (path, options) => (await ask(path, options)).json();

function showError(error) {
  $("token-form").hidden = error?.status !== 401;
  $("error").hidden = !error || error.status === 401;
  $("error").textContent = error?.message ?? "";
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function markSmall(image) {
  image.classList.toggle("small", image.naturalWidth <= SMALL_PIXELS);
}

async function setImage(image, id) {
  const path = `/image/${id}?v=${encodeURIComponent(stats.index_version)}`;
  image.addEventListener("load", () => markSmall(image));
  try {
    image.src = token ? URL.createObjectURL(await (await ask(path)).blob()) : path;
  } catch {
    image.alt += " (not available)";
  }
}

const nameOf = (item) => item.key || `id ${item.id}`;

function imageOf(item) {
  if (stats.bare) return element("span", "no-image", nameOf(item));
  const image = element("img");
  image.alt = item.key;
  image.decoding = "async";
  if (!token) image.loading = "lazy";
  setImage(image, item.id);
  return image;
}

function card(item, ...below) {
  const button = element("button", "card");
  button.type = "button";
  button.title = `Search for ${nameOf(item)}`;
  button.dataset.id = item.id;
  button.append(imageOf(item), ...below);
  button.addEventListener("click", () => searchItem(item));
  const entry = element("li");
  entry.append(button);
  return entry;
}

function neighborCard(neighbor, queryCode) {
  const meter = element("meter");
  meter.max = stats.bits;
  meter.value = neighbor.distance;
  meter.setAttribute("aria-label", `${neighbor.distance} of ${stats.bits} bits differ`);
  const below = [element("span", "distance", `distance ${neighbor.distance}`), meter];
  const { length } = neighbor.labels;
  if (length) below.push(element("span", "labels", `label${length === 1 ? "" : "s"} ${neighbor.labels.join(", ")}`));
  const entry = card(neighbor, ...below, element("span", "key", nameOf(neighbor)));
  entry.append(whyOf(neighbor, queryCode));
  return entry;
}

const bitsOf = (hex) =>
  hex.match(/../g).flatMap((byte) => Array.from({ length: 8 }, (_, bit) => (parseInt(byte, 16) >> bit) & 1));

function whyOf(neighbor, queryCode) {
  const why = element("details", "why");
  why.append(element("summary", "", "Why"));
  why.addEventListener("toggle", () => why.children.length === 1 && why.append(...comparison(neighbor, queryCode)));
  return why;
}

function comparison(neighbor, queryCode) {
  const asked = bitsOf(queryCode);
  const found = bitsOf(neighbor.code);
  const differing = asked.flatMap((bit, place) => (bit === found[place] ? [] : [place]));
  const text = differing.length
    ? `${differing.length} of ${count(asked.length, "bit")} differ: ${differing.join(", ")}`
    : `All ${asked.length} bits agree`;
  const bits = element("div", "bits");
  bits.setAttribute("aria-hidden", "true");
  found.forEach((bit, place) => {
    const cell = element("span", `${bit ? "one" : "zero"}${bit === asked[place] ? "" : " differs"}`);
    cell.title = `bit ${place}: ${asked[place]} in the query, ${bit} here`;
    bits.append(cell);
  });
  return [element("p", "", text), bits];
}

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

function showAnswer(answer, shown) {
  const neighbors = answer.neighbors[0];
  $("found").hidden = false;
  $("summary").textContent = neighbors.length ? count(neighbors.length, "neighbor") : "No neighbors within this radius";
  const shards = `${answer.shards_answered} of ${count(answer.shards_total, "shard")} answered`;
  $("timing").textContent = `${(answer.seconds * 1000).toFixed(0)} ms · ${shards}`;
  $("partial").hidden = !answer.partial;
  $("partial").textContent = answer.partial
    ? `Incomplete: ${(answer.coverage * 100).toFixed(0)} % of the index was searched (missing: ${answer.missing_shards.join(", ")}).`
    : "";
  const [image, caption] = $("asked").children;
  const fresh = image.cloneNode();
  fresh.alt = `Query: ${shown.name}`;
  fresh.addEventListener("load", () => markSmall(fresh));
  image.replaceWith(fresh);
  if (shown.url) fresh.src = shown.url;
  else if (!stats.bare) setImage(fresh, shown.id);
  caption.textContent = shown.name;
  caption.title = shown.name;
  const [queryCode] = answer.query_codes;
  $("neighbors").replaceChildren(...neighbors.map((neighbor) => neighborCard(neighbor, queryCode)));
}

function wanted() {
  const mode = document.querySelector("input[name=mode]:checked").value;
  return { [mode]: Number($("amount").value), allow_partial: true, with_codes: true };
}

async function run(query) {
  if (!$("controls").reportValidity()) return;
  lastQuery = query;
  const mine = ++turn;
  $("found").setAttribute("aria-busy", "true");
  try {
    const answer = await query.ask(wanted());
    if (mine !== turn) return;
    showAnswer(answer, query.shown);
    showError(null);
  } catch (error) {
    if (mine === turn) {
      $("found").hidden = true;
      showError(error);
    }
  } finally {
    if (mine === turn) $("found").setAttribute("aria-busy", "false");
  }
}

function searchItem(item) {
  window.scrollTo({ top: 0, behavior: "smooth" });
  const headers = { "Content-Type": "application/json" };
  run({
    shown: { id: item.id, name: nameOf(item) },
    ask: (want) => askJson("/search", { method: "POST", headers, body: JSON.stringify({ ids: [item.id], ...want }) }),
  });
}

function searchFile(file) {
  run({
    shown: { url: URL.createObjectURL(file), name: file.name || "pasted image" },
    ask: (want) => askJson(`/search/image?${new URLSearchParams(want)}`, { method: "POST", body: file }),
  });
}

async function showRandom() {
  const answer = await askJson("/random?n=12");
  $("random").replaceChildren(...answer.images.map((item) => card(item)));
}

async function start() {
  try {
    stats = await askJson("/stats");
    $("change").hidden = !stats.change;
    $("change").textContent = stats.change;
    const digest = stats.encoder_digest.slice(0, 12);
    const facts = [count(stats.count, "image"), `${stats.bits} bits`, count(stats.shards_total, "shard")];
    $("facts").textContent = [...facts, `index ${stats.index_version}`, `encoder ${digest}`].join(" · ");
    setLimits();
    await showRandom();
    showError(null);
  } catch (error) {
    $("facts").textContent = "";
    showError(error);
  }
}

function setLimits() {
  const byRadius = document.querySelector("input[name=mode]:checked").value === "radius";
  $("amount-name").textContent = byRadius ? "How many bits" : "How many";
  $("amount").min = byRadius ? 0 : 1;
  $("amount").max = byRadius ? stats.bits : stats.max_k;
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) searchFile($("file").files[0]);
  $("file").value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, () => $("drop").classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) searchFile(event.clipboardData.files[0]);
});
for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.addEventListener("change", () => {
    $("amount").value = radio.value === "radius" ? Math.floor(stats.bits / 8) : 24;
    setLimits();
    if (lastQuery) run(lastQuery);
  });
}
$("amount").addEventListener("change", () => lastQuery && run(lastQuery));
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  if (lastQuery) run(lastQuery);
});
$("shuffle").addEventListener("click", () => showRandom().catch(showError));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  start();
});
start();
