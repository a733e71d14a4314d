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
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, printable(value));
  element.append(...children.map((child) => (child instanceof Node ? child : printable(child))));
}

function put(id, text) { write(byId(id), text); }

function write(element, text) {
  const shown = printable(text);
  if (element.textContent !== shown) element.textContent = shown;
}

// What would turn the reading direction, hide letters or not be shown at all is written as an escape, such as \u202e.
function printable(text) {
  return String(text).replace(/[^\P{C}\n\t]|[\p{Zl}\p{Zp}]/gu, (one) => `\\u${one.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (count >= 999.5 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${at && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

function percent(part) { return part === null || part === undefined ? "–" : `${(100 * part).toFixed(1)} %`; }

function span(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

const secondsOf = (text) => Date.parse(text) / 1000;

function when(text) {
  if (!text) return "–";
  const seconds = Date.now() / 1000 - secondsOf(text);
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
  write(element, text);
  if (kind !== undefined) element.className = kind;
}

// ------------------------------------------------------------------------------------------------ asking

async function ask(path, options = {}) {
  let answer, body;
  try {
    answer = await fetch(API + path, {
      credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(20000), ...options,
      headers: { Accept: "application/json", "Mirror-Admin": "1", ...options.headers },
    });
    body = await answer.json();
  } catch {
    throw new Unheard("the mirror does not answer"); // or a proxy that cannot reach it does
  }
  if (answer.status === 401) loggedOut = true;
  if (!answer.ok) throw new Refused(body.errors?.[0]?.message ?? `status ${answer.status}`);
  return body;
}

class Refused extends Error {}
class Unheard extends Error {}

// Asking on would have the browser ask for a password again and again.
let loggedOut = false;

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
  // any worker answers, and some may have been replaced
  const up = Math.max(...status.workers.map((one) => one.uptime));
  put("about", `${status.version}, ${workers} worker${workers === 1 ? "" : "s"}, up ${span(up)}${sealed}`);
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
  const aside = status.store.quarantine_bytes ? `; ${bytes(status.store.quarantine_bytes)} of damaged blobs set aside: check the disk` : "";
  const failing = status.store.failing_workers ? "; the last write failed: blobs are passed on without being stored" : "";
  const index = status.index.error ? `; the index is not used: ${status.index.error}` : "";
  put("fullness-text", `${full} in ${status.store.root}${aside}${failing}${index}`);
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

const WIDE = 480, HIGH = 140, LEFT = 68, BOTTOM = 22, DAY = 86400;

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
  const now = points.length ? secondsOf(points[points.length - 1].at) : 0;
  const sums = Array.from({ length: count }, () => ({ requests: 0, hits: 0, sent: 0, received: 0 }));
  for (const one of points) {
    const at = count - 1 - Math.floor((now - secondsOf(one.at)) / (DAY / count));
    if (at < 0 || at >= count) continue;
    for (const name of ["requests", "hits", "sent", "received"]) sums[at][name] += one[name];
  }
  return sums;
}

// What was fetched before anybody asked is saved only once it was sent more often than that.
const savedOf = (sums) => Math.max(0, sums.reduce((saved, one) => saved + one.sent - one.received, 0));

function showHistory({ points }) {
  const top = 8, ground = HIGH - BOTTOM, tall = ground - top;
  const quarters = parts(points, 96);
  const x = (at) => LEFT + ((at + 0.5) / 96) * (WIDE - LEFT);
  const known = quarters.map((one, at) => [x(at), one.requests ? one.hits / one.requests : null]).filter((one) => one[1] !== null);
  const latest = known.length ? percent(known[known.length - 1][1]) : "nothing served yet";
  const ratio = frame(`Hit ratio over the last day, now ${latest}`, top, [[1, "100 %"], [0.5, "50 %"], [0, "0 %"]]);
  // nothing is drawn over a time without requests: nobody knows what it would have been
  const gap = 1.5 * (x(1) - x(0));
  const curves = [];
  known.forEach(([at, part], number) => {
    if (!number || at - known[number - 1][0] > gap) curves.push([]);
    curves[curves.length - 1].push(`${at.toFixed(1)},${(ground - tall * part).toFixed(1)}`);
  });
  for (const curve of curves) if (curve.length > 1) ratio.append(draw("polyline", { class: "curve", points: curve.join(" ") }));
  for (const [at, part] of known) ratio.append(draw("circle", { class: "bar", cx: at, cy: ground - tall * part, r: 2.5 }));
  byId("ratio-chart").replaceChildren(ratio);

  const sums = parts(points, 24);
  const hours = sums.map((one) => savedOf([one]));
  const most = Math.max(...hours);
  const saved = frame(`Saved per hour over the last day, ${bytes(savedOf(sums))} in all`, top,
    most ? [[1, bytes(most)], [0.5, bytes(most / 2)], [0, "0 B"]] : [[0, "0 B"]]);
  const step = (WIDE - LEFT) / 24;
  hours.forEach((one, at) => {
    const height = most && (tall * one) / most;
    if (height > 0) saved.append(draw("rect", { class: "bar", x: LEFT + at * step + 1, y: ground - height, width: step - 2, height }));
  });
  byId("saved-chart").replaceChildren(saved);
}

// ------------------------------------------------------------------------------------------------ images

let shownSearch = "", shownNext = null, searching = 0, imagesLoaded = false;

async function loadImages(more = false, again = false) {
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
  if (again && !atRest()) return; // or took hold of them meanwhile
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

function complete(image) {
  if (image.complete) return "yes";
  if (image.manifests_only) return "manifest only";
  return image.missing ? `no, ${image.missing} missing` : "no platform was pulled";
}

// A name is broken behind what parts it, before it is broken elsewhere; an item of a list is not broken if it fits.
function breakable(name) { return name.split(/(?<=[/:@])/).flatMap((one) => [one, make("wbr")]); }
function listed(items) {
  return items.flatMap((one, at) => [make("span", { class: "item" }, at < items.length - 1 ? `${one},` : one), " "]);
}

function imageRow(image) {
  const cell = (label, ...content) => make("td", { "data-label": label }, make("div", {}, ...content));
  const button = make("button", { type: "button" });
  let { pinned } = image;
  const named = () => {
    button.textContent = pinned ? "unpin" : "pin";
    button.setAttribute("aria-label", printable(`${button.textContent} ${image.image}`));
  };
  named();
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const answer = await ask(`/pins/${nameInPath(image.image)}`, { method: pinned ? "DELETE" : "PUT" });
      const stays = pinned ? answer.still_pinned : true;
      say(`${image.image} is ${stays ? "pinned" : "not pinned any more"}${pinned && stays ? ", by a rule" : ""}`);
      pinned = stays;
      named();
    } catch (error) {
      say(`${image.image}: ${error.message}`);
    } finally {
      button.disabled = false;
      // it had to let go of the focus; somebody who went on keeps it
      if (document.activeElement === document.body) button.focus({ preventScroll: true });
    }
  });
  return make("tr", {},
    cell("image", ...breakable(image.image)),
    cell("size", bytes(image.size)),
    cell("last pull", when(image.last_pull)),
    cell("complete", make("span", { class: image.complete ? "good" : "warn" }, complete(image))),
    cell("platforms", ...(image.platforms.length ? listed(image.platforms) : ["–"])),
    cell("pinned", button, image.frozen ? " frozen" : ""));
}

// ------------------------------------------------------------------------------------------------ the rest

function showNext({ images }) {
  list(byId("next"), images.slice(0, 10), (one) => one.digest ?? "loose", () => make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": "how" })),
  ), (row, one) => {
    set(row, "name", one.names.join(", ") || one.digest || "blobs that no image here names");
    const used = one.last_used ? `, last used ${when(one.last_used)}` : "";
    set(row, "how", `${bytes(one.bytes)}${used}`, "quiet");
  }, "nothing could be evicted");
}

// A mirror that counts a large store anew does not know it for a while; all else goes on.
async function loadNext() {
  if (!limit) return;
  try {
    showNext(await ask(`/eviction?bytes=${Math.max(1, Math.round(limit / 20))}&limit=10`));
  } catch (error) {
    if (!(error instanceof Refused) || loggedOut) throw error;
    byId("next").replaceChildren(make("li", { class: "quiet" }, error.message));
  }
}

const KINDS = { ok: "good", done: "good", running: "warn", failing: "warn", throttled: "warn", down: "bad", failed: "bad" };

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
    const trouble = one.result?.error ?? one.result?.failures?.[0];
    set(row, "more", `${one.schedule}${one.next_run ? `, next ${new Date(one.next_run).toLocaleString()}` : ""}${trouble ? `: ${trouble}` : ""}`, "quiet");
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
      make("ul", { class: "quiet" }, ...[...one.next_steps.map((step) => `then: ${step}`), ...one.notes].map((line) => make("li", {}, line))));
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
      // without HTTPS there is no clipboard but the old one; where that fails too, it is selected, to be copied by hand
      getSelection().selectAllChildren(content);
      const give = (event) => { event.clipboardData.setData("text/plain", text); event.preventDefault(); };
      document.addEventListener("copy", give);
      const done = document.execCommand("copy");
      document.removeEventListener("copy", give);
      if (!done) {
        say("it is selected: copy it by hand");
        return;
      }
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
  [30, loadNext],
];

let lastHeard = null;

// What is read out to those who listen changes when something has happened, not each second.
function heard(error) {
  const line = byId("connection");
  const gone = error instanceof Unheard;
  if (gone) {
    put("connection", error.message);
    put("heard", lastHeard === null ? "" : `last heard ${span((Date.now() - lastHeard) / 1000)} ago, what you see is from then`);
  } else {
    lastHeard = Date.now();
    put("connection", loggedOut ? `${error.message}; load this page again to log in` : error ? error.message : "live");
    put("heard", "");
  }
  line.className = gone ? "gone" : error ? "" : "up";
}

// Rows are not drawn anew under somebody's hands: not while something in them has the focus or is selected, and not
// where somebody has asked for more of them.
function atRest() {
  const images = byId("images"), selection = getSelection();
  const selected = !selection.isCollapsed && images.contains(selection.anchorNode);
  return !selected && !images.contains(document.activeElement) && byId("image-rows").children.length <= 50;
}

async function turn(number) {
  if (!document.hidden) {
    let failed = null;
    for (const [every, show] of EVERY) {
      if (number % every) continue;
      try {
        await show();
      } catch (error) {
        failed = error;
        if (error instanceof Unheard || loggedOut) break;
        if (!(error instanceof Refused)) console.error(error); // a mistake of this page's
      }
    }
    heard(failed);
    if (loggedOut) return;
    if (!failed && !clientsLoaded) await loadClients();
    if (!failed && (!imagesLoaded || (number % 5 === 0 && atRest()))) await loadImages(false, imagesLoaded);
  }
  setTimeout(turn, 1000, document.hidden ? number : number + 1);
}

let typing;
byId("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(loadImages, 200); });
byId("search-form").addEventListener("submit", (event) => { event.preventDefault(); loadImages(); });
byId("more").addEventListener("click", () => loadImages(true));
let choosingSoon;
byId("address").addEventListener("input", () => { clearTimeout(choosingSoon); choosingSoon = setTimeout(loadClients, 200); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && atRest() && !loggedOut) loadImages(false, true); });
turn(0);
