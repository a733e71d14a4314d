// Draws what the admin API says, and asks again each second. Whatever comes from outside, such as the name of an image,
// is only ever put in as text: nothing here parses markup.
"use strict";

const API = "/admin/v1";
const byId = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------------ small things

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  fill(element, attributes, children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  fill(element, attributes, children);
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
}

function put(id, text) {
  const element = byId(id);
  if (element.textContent !== String(text)) element.textContent = String(text);
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${at && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

function percent(part) { return part === null || part === undefined ? "–" : `${(100 * part).toFixed(1)} %`; }

function span(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

function when(text) {
  if (!text) return "–";
  const seconds = (Date.now() - Date.parse(text)) / 1000;
  return seconds < 1 ? "now" : `${span(seconds)} ago`;
}

// Rows that are the same thing as before stay the same elements: focus and reading position are not lost.
function list(parent, items, keyOf, build, update, empty) {
  const known = new Map([...parent.children].map((row) => [row.dataset.key, row]));
  let place = parent.firstElementChild;
  const wanted = items.length ? items : [null];
  for (const item of wanted) {
    const key = item === null ? "empty" : keyOf(item);
    let row = known.get(key);
    if (!row) {
      row = item === null ? make("li", { class: "quiet" }, empty) : build(item);
      row.dataset.key = key;
    }
    known.delete(key);
    if (item !== null) update(row, item);
    if (row === place) place = place.nextElementSibling;
    else parent.insertBefore(row, place);
  }
  for (const row of known.values()) row.remove();
}

function part(row, name) { return row.querySelector(`[data-part="${name}"]`); }
function set(row, name, text, kind) {
  const element = part(row, name);
  if (element.textContent !== text) element.textContent = text;
  if (kind !== undefined) element.className = kind;
}

// ------------------------------------------------------------------------------------------------ asking

async function ask(path, options = {}) {
  const answer = await fetch(API + path, {
    credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(20000), ...options,
    headers: { Accept: "application/json", "Mirror-Admin": "1", ...options.headers },
  });
  const body = await answer.json();
  if (!answer.ok) throw new Refused(body.errors?.[0]?.message ?? `status ${answer.status}`);
  return body;
}

class Refused extends Error {}

let saidUntil;
function say(text) {
  put("said", text);
  clearTimeout(saidUntil);
  saidUntil = setTimeout(() => put("said", ""), 6000);
}

const nameInPath = (image) => image.split("/").map(encodeURIComponent).join("/");

// ------------------------------------------------------------------------------------------------ now

let limit = 0;

function showStatus(status) {
  const sealed = status.offline ? ", sealed" : "";
  const workers = status.workers.length;
  put("about", `${status.version}, ${workers} worker${workers === 1 ? "" : "s"}, up ${span(status.uptime)}${sealed}`);
  const traffic = status.traffic;
  put("ratio", percent(traffic.hit_ratio));
  put("saved", bytes(traffic.saved));
  put("sent", bytes(traffic.sent));
  put("received", bytes(traffic.received));
  put("requests", traffic.requests.toLocaleString("en"));
  limit = status.store.limit ?? 0; // null: being counted
  const part = limit ? status.store.bytes / limit : 0;
  byId("fullness").value = part;
  const full = status.store.bytes === null ? "being counted" : `${bytes(status.store.bytes)} of ${bytes(limit)} (${percent(part)})`;
  put("fullness-text", `${full} in ${status.store.root}`);
}

function showFlights({ flights }) {
  list(byId("flights"), flights, (one) => one.digest, () => make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": "how" })),
    make("progress", { "data-part": "bar", max: "1", "aria-label": "progress" }),
  ), (row, one) => {
    set(row, "name", `${one.repository ?? one.upstream} ${one.digest.slice(0, 19)}…`);
    const clients = `${one.followers} client${one.followers === 1 ? "" : "s"}`;
    set(row, "how", `${bytes(one.received)} of ${one.size === null ? "?" : bytes(one.size)}, ${clients}`, "quiet");
    const bar = part(row, "bar");
    bar.setAttribute("aria-label", `progress of ${one.digest.slice(0, 19)}`);
    if (one.size) bar.value = one.received / one.size; else bar.removeAttribute("value");
  }, "none at the moment");
}

// ------------------------------------------------------------------------------------------------ charts

const WIDE = 480, HIGH = 130, LEFT = 52, BOTTOM = 18, DAY = 86400;

function frame(title, top, labels) {
  const chart = draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": title });
  for (const [part, label] of labels) {
    const y = top + (HIGH - BOTTOM - top) * (1 - part);
    chart.append(draw("line", { class: "axis", x1: LEFT, x2: WIDE, y1: y, y2: y }));
    chart.append(draw("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, label));
  }
  chart.append(draw("text", { x: LEFT, y: HIGH - 4 }, "24 h ago"));
  chart.append(draw("text", { x: WIDE, y: HIGH - 4, "text-anchor": "end" }, "now"));
  return chart;
}

// Points are minutes; what is drawn are `count` equal parts of the last day.
function parts(points, count) {
  const now = points.length ? points[points.length - 1].at : 0;
  const sums = Array.from({ length: count }, () => ({ requests: 0, hits: 0, saved: 0 }));
  for (const one of points) {
    const at = count - 1 - Math.floor((now - one.at) / (DAY / count));
    if (at < 0 || at >= count) continue;
    for (const name of ["requests", "hits", "saved"]) sums[at][name] += one[name];
  }
  return sums;
}

function showHistory({ points }) {
  const top = 8, ground = HIGH - BOTTOM, tall = ground - top;
  const quarters = parts(points, 96);
  const x = (at) => LEFT + ((at + 0.5) / 96) * (WIDE - LEFT);
  const known = quarters.map((one, at) => [x(at), one.requests ? one.hits / one.requests : null]).filter((one) => one[1] !== null);
  const latest = known.length ? percent(known[known.length - 1][1]) : "no requests yet";
  const ratio = frame(`Hit ratio over the last day, now ${latest}`, top, [[1, "100 %"], [0.5, "50 %"], [0, "0 %"]]);
  const path = known.map(([at, part]) => `${at.toFixed(1)},${(ground - tall * part).toFixed(1)}`);
  if (known.length > 1) ratio.append(draw("polyline", { class: "curve", points: path.join(" ") }));
  for (const [at, part] of known) ratio.append(draw("circle", { class: "bar", cx: at, cy: ground - tall * part, r: 2.5 }));
  byId("ratio-chart").replaceChildren(ratio);

  const hours = parts(points, 24);
  const most = Math.max(1, ...hours.map((one) => one.saved));
  const whole = hours.reduce((sum, one) => sum + one.saved, 0);
  const saved = frame(`Saved per hour over the last day, ${bytes(whole)} in all`, top,
    [[1, bytes(most)], [0.5, bytes(most / 2)], [0, "0 B"]]);
  const step = (WIDE - LEFT) / 24;
  hours.forEach((one, at) => {
    const height = (tall * one.saved) / most;
    if (height > 0) saved.append(draw("rect", { class: "bar", x: LEFT + at * step + 1, y: ground - height, width: step - 2, height }));
  });
  byId("saved-chart").replaceChildren(saved);
}

// ------------------------------------------------------------------------------------------------ images

let shownSearch = "", shownNext = null, searching = 0, imagesLoaded = false;

async function loadImages(more = false) {
  const turn = ++searching;
  const search = byId("search").value.trim();
  const query = new URLSearchParams({ limit: "50", search });
  if (more && shownNext && search === shownSearch) query.set("after", shownNext);
  let page;
  try {
    page = await ask(`/images?${query}`);
  } catch (error) {
    if (turn === searching) put("images-note", error instanceof Refused ? error.message : "");
    return;
  }
  if (turn !== searching) return; // somebody went on typing
  imagesLoaded = true;
  shownSearch = search;
  shownNext = page.next;
  const rows = page.images.map(imageRow);
  if (more) byId("image-rows").append(...rows); else byId("image-rows").replaceChildren(...rows);
  const count = byId("image-rows").children.length;
  const none = page.next ? "none found yet; More looks on" : "no such image is here";
  put("images-note", count ? `${count}${page.next ? " or more" : ""} image${count === 1 && !page.next ? "" : "s"}` : none);
  byId("more").hidden = !page.next;
}

function imageRow(image) {
  const cell = (label, ...content) => make("td", { "data-label": label }, ...content);
  const button = make("button", { type: "button", "aria-pressed": image.pinned });
  const named = () => {
    button.textContent = button.getAttribute("aria-pressed") === "true" ? "unpin" : "pin";
    button.setAttribute("aria-label", `${button.textContent} ${image.image}`);
  };
  named();
  button.addEventListener("click", async () => {
    const pinned = button.getAttribute("aria-pressed") === "true";
    button.disabled = true;
    try {
      const told = await ask(`/pins/${nameInPath(image.image)}`, { method: pinned ? "DELETE" : "PUT" });
      const stays = pinned ? told.pinned : true;
      button.setAttribute("aria-pressed", String(stays));
      named();
      say(`${image.image} is ${stays ? "pinned" : "not pinned any more"}${pinned && stays ? ", by a rule" : ""}`);
    } catch (error) {
      say(`${image.image}: ${error.message}`);
    } finally {
      button.disabled = false;
      button.focus();
    }
  });
  return make("tr", {},
    cell("image", image.image),
    cell("size", bytes(image.size)),
    cell("last pull", when(image.lastPull)),
    cell("complete", make("span", { class: image.complete ? "good" : "warn" }, image.complete ? "yes" : image.emptied ? "manifest only" : `no, ${image.missing || "no platform"} missing`)),
    cell("platforms", image.platforms.join(", ") || "–"),
    cell("pinned", button, image.frozen ? " frozen" : ""));
}

// ------------------------------------------------------------------------------------------------ the rest

function showNext({ images }) {
  list(byId("next"), images.slice(0, 10), (one) => one.digest ?? "loose", () => make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": "how" })),
  ), (row, one) => {
    set(row, "name", one.names.join(", ") || one.digest || "blobs that no image here names");
    const used = one.last_used ? `last used ${when(new Date(one.last_used * 1000).toISOString())}` : "";
    set(row, "how", `${bytes(one.bytes)}, ${used}`, "quiet");
  }, "nothing could be evicted");
}

const KINDS = { ok: "good", done: "good", running: "warn", failing: "warn", held: "warn", down: "bad", failed: "bad" };

function showUpstreams({ upstreams }) {
  list(byId("upstream-rows"), upstreams, (one) => one.name, () => make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": "state" })),
    make("div", { "data-part": "more" }), make("div", { "data-part": "login" }),
    make("meter", { "data-part": "budget", min: "0", max: "1", low: "0.1" }),
  ), (row, one) => {
    set(row, "name", one.name);
    set(row, "state", one.state, `state ${KINDS[one.state] ?? ""}`);
    const lines = one.endpoints.map((each) => `${each.url} ${each.state}${each.retry_in ? `, asked again in ${span(each.retry_in)}` : ""}`);
    if (one.budget) lines.push(`${one.budget.remaining} of ${one.budget.limit} pulls left in ${span(one.budget.window)}, as of ${when(one.budget.seen)}`);
    set(row, "more", lines.join("; "), "quiet");
    const refused = one.endpoints.filter((each) => each.credentials);
    set(row, "login", refused.map(({ credentials: { provider, reason, since } }) => `credentials of ${provider}: ${reason} (since ${when(since)})`).join("; "), refused.length ? "state bad" : "");
    const meter = part(row, "budget");
    meter.hidden = !one.budget;
    meter.setAttribute("aria-label", `pulls left at ${one.name}`);
    if (one.budget) meter.value = one.budget.remaining / one.budget.limit;
  }, "none was asked yet");
}

function showJobs({ jobs }) {
  list(byId("job-rows"), jobs.slice(0, 20), (one) => one.id, () => make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": "state" })),
    make("div", { "data-part": "more" }),
  ), (row, one) => {
    const images = one.arguments?.images ?? [];
    const others = images.length - 1 + (one.arguments?.more ?? 0);
    set(row, "name", `${one.kind} ${one.arguments?.rule ?? images[0] ?? ""}${others > 0 ? ` and ${others} more` : ""}`);
    set(row, "state", one.state, `state ${KINDS[one.state] ?? ""}`);
    const done = one.progress ? `, ${bytes(one.progress.received ?? 0)} of ${bytes(one.progress.size ?? 0)}` : "";
    const trouble = one.result?.error ?? one.result?.first_failure;
    set(row, "more", `${when(one.created)}${done}${trouble ? `: ${trouble}` : ""}`, "quiet");
  }, "none in the last week");
}

function showSync({ rules }) {
  list(byId("sync-rows"), rules, (one) => one.name, () => make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": "state" })),
    make("div", { "data-part": "more" }),
  ), (row, one) => {
    set(row, "name", one.name);
    set(row, "state", one.state, `state ${KINDS[one.state] ?? ""}`);
    set(row, "more", `${one.when ?? ""}${one.next ? `, next ${new Date(one.next).toLocaleString()}` : ""}`, "quiet");
  }, "none configured");
}

// ------------------------------------------------------------------------------------------------ clients

let clientsLoaded = false, choosing = 0;

// What `mirror configure` would write, as the mirror itself says it.
async function loadClients() {
  const turn = ++choosing;
  const input = byId("address");
  let told;
  try {
    told = await ask(`/clients?${new URLSearchParams(input.value ? { mirror: input.value } : {})}`);
  } catch (error) {
    if (turn === choosing && error instanceof Refused) put("clients-note", error.message);
    return;
  }
  if (turn !== choosing) return; // somebody went on typing
  clientsLoaded = true;
  put("clients-note", "");
  if (!input.value) input.value = told.mirror;
  const open = new Set([...byId("client-files").children].filter((one) => one.open).map((one) => one.dataset.client));
  byId("client-files").replaceChildren(...told.clients.map((one) => {
    const details = make("details", { "data-client": one.client }, make("summary", {}, one.client),
      ...clientText("command", one.client, "on the client's machine, as root, beside what is there already", one.command),
      ...one.files.flatMap((file) => clientText("configuration", one.client, file.path, file.content)),
      make("ul", { class: "quiet" }, ...[...one.needs.map((need) => `then: ${need}`), ...one.notes].map((line) => make("li", {}, line))));
    details.open = open.has(one.client);
    return details;
  }));
}

function clientText(kind, client, place, text) {
  const content = make("pre", { tabindex: "0", "aria-label": `${client}: ${place}` }, text);
  const button = make("button", { type: "button", "aria-label": `copy the ${kind} for ${client}: ${place}` }, "copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // without HTTPS there is no clipboard: have it selected, to be copied by hand
      getSelection().selectAllChildren(content);
      say("press Ctrl-C to copy");
      return;
    }
    say(kind === "command" ? "copied" : `copied: put it into ${place}`);
  });
  return [make("p", {}, `${place} `, button), content];
}

// ------------------------------------------------------------------------------------------------ again and again

const EVERY = [
  // seconds, what
  [1, async () => showStatus(await ask("/status"))],
  [1, async () => showFlights(await ask("/flights"))],
  [2, async () => showJobs(await ask("/jobs"))],
  [3, async () => showUpstreams(await ask("/upstreams"))],
  [5, async () => showSync(await ask("/sync"))],
  [15, async () => showHistory(await ask("/history"))],
  [30, async () => limit && showNext(await ask(`/gc?bytes=${Math.max(1, Math.round(limit / 20))}&limit=10`))],
];

let lastHeard = null;

function heard(error) {
  const line = byId("connection");
  if (!error || error instanceof Refused) {
    lastHeard = Date.now();
    put("connection", error ? error.message : "live");
    line.className = error ? "" : "up";
    return;
  }
  const ago = lastHeard === null ? "" : `; last heard ${span((Date.now() - lastHeard) / 1000)} ago, what you see is from then`;
  put("connection", `the mirror does not answer${ago}`);
  line.className = "gone";
}

async function turn(number) {
  if (!document.hidden) {
    let failed = null;
    for (const [every, show] of EVERY) {
      if (number % every) continue;
      try { await show(); } catch (error) { failed = error; if (!(error instanceof Refused)) break; }
    }
    heard(failed);
    if (!failed && !clientsLoaded) await loadClients();
    // not under somebody's hands
    const idle = !byId("images").contains(document.activeElement) && byId("image-rows").children.length <= 50;
    if (!failed && (!imagesLoaded || (number % 5 === 0 && idle))) await loadImages();
  }
  setTimeout(turn, 1000, document.hidden ? number : number + 1);
}

let typing;
byId("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(loadImages, 200); });
byId("search-form").addEventListener("submit", (event) => { event.preventDefault(); loadImages(); });
byId("more").addEventListener("click", () => loadImages(true));
let choosingSoon;
byId("address").addEventListener("input", () => { clearTimeout(choosingSoon); choosingSoon = setTimeout(loadClients, 200); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) loadImages(); });
turn(0);
