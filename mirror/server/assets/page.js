// Shows what the admin API answers, and requests it again each second. Text from outside, such as the name of an image,
// is always inserted as text: nothing here parses markup.
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

// Characters that change the reading direction, hide others or are invisible are written as escapes, such as \u202e.
function printable(text) {
  return String(text).replace(/[^\P{C}\n\t]|[\p{Zl}\p{Zp}]/gu, (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`);
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (count >= 999.5 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${at && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

function percent(part) { return part === null || part === undefined ? "–" : `${(100 * part).toFixed(1)} %`; }

const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

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

// A row with a name and a second part on one line, and further parts below it.
function entry(second, ...below) {
  return make("li", {},
    make("div", { class: "line" }, make("span", { "data-part": "name" }), make("span", { "data-part": second })),
    ...below.map((name) => (name instanceof Node ? name : make("div", { "data-part": name }))));
}

// A row whose key was shown before stays the same element, so that focus and reading position are not lost.
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
    throw new NoAnswer("the mirror does not answer"); // or a proxy in front of it answers instead
  }
  if (answer.status === 401) loggedOut = true;
  if (!answer.ok) throw new Refused(body.errors?.[0]?.message ?? `status ${answer.status}`);
  return body;
}

class Refused extends Error {}
class NoAnswer extends Error {}

// Further requests would make the browser ask for a password again and again.
let loggedOut = false;

let noticeTimer;
function notify(text) {
  put("notice", text);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => put("notice", ""), 6000);
}

// Actions on images that run, and how many have ended: a list that was read before an action ended may lack its effect.
let actionsRunning = 0, actionsEnded = 0;

// Lets a button act on an image; a failure is shown. Meanwhile it is disabled.
function acting(button, image, act) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    actionsRunning += 1;
    try {
      await act();
    } catch (error) {
      notify(`${image}: ${error.message}`);
    } finally {
      actionsRunning -= 1;
      actionsEnded += 1;
      button.disabled = false;
      // a disabled button loses the focus; give it back unless the user has moved on
      if (document.activeElement === document.body) button.focus({ preventScroll: true });
    }
  });
  return button;
}

const nameInPath = (image) => image.split("/").map(encodeURIComponent).join("/");

// ------------------------------------------------------------------------------------------------ now

let limit = 0;

/** What there is to say of the bucket. */
function behind(bucket) {
  if (!bucket) return "";
  const states = {
    ok: "answers",
    throttled: "asks for fewer requests",
    refusing: "refuses the mirror",
    unfit: "cannot have hosted content",
    down: "does not answer",
  };
  const reason = bucket.reason ? `: ${bucket.reason}` : "";
  const overtaken = bucket.reads_only ? "; another mirror uses it" : "";
  const listed = bucket.records_complete ? "" : `; its records are being listed, ${counted(bucket.records_listed ?? 0, "record")} so far`;
  const cached = bucket.cache ? `; it has ${bytes(bucket.cache.bytes)} of cached content` : "";
  return `; the bucket ${bucket.address} ${states[bucket.state]}${reason}${overtaken}${listed}${cached}`;
}

/** What there is to say of the other replicas. */
function beside(cluster) {
  if (!cluster) return "";
  const down = cluster.members.filter((member) => !member.up).map((member) => `${member.address} (${member.reason})`);
  const answering = `${cluster.members.length - down.length} of ${counted(cluster.members.length, "other replica")} answering`;
  return `; a replica of ${cluster.name}, ${answering}${down.length ? `, but not ${down.join(", ")}` : ""}`;
}

function showStatus(status) {
  const sealed = status.offline ? ", sealed" : "";
  const workers = status.workers.length;
  // any worker answers, and some may be younger than the mirror
  const up = Math.max(...status.workers.map((worker) => worker.uptime));
  put("about", `${status.version}, ${counted(workers, "worker")}, up ${span(up)}${sealed}`);
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
  put("fullness-text", `${full} in ${status.store.root}${aside}${failing}${index}${behind(status.bucket)}${beside(status.cluster)}`);
}

function showFlights({ flights }) {
  list(byId("flights"), flights, (flight) => flight.digest, () =>
    entry("how", make("progress", { "data-part": "bar", max: "1", "aria-label": "progress" })), (row, flight) => {
    set(row, "name", `${flight.repository ?? flight.upstream} ${flight.digest.slice(0, 19)}…`);
    const clients = counted(flight.followers, "client");
    set(row, "how", `${bytes(flight.received)} of ${flight.size === null ? "?" : bytes(flight.size)}, ${clients}`, "quiet");
    const bar = part(row, "bar");
    bar.setAttribute("aria-label", `progress of ${flight.digest.slice(0, 19)}`);
    if (flight.size) bar.value = flight.received / flight.size; else bar.removeAttribute("value");
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

// Points are minutes; the chart shows `count` equal parts of the last day.
function parts(points, count) {
  const now = points.length ? secondsOf(points[points.length - 1].at) : 0;
  const sums = Array.from({ length: count }, () => ({ requests: 0, hits: 0, sent: 0, received: 0 }));
  for (const point of points) {
    const at = count - 1 - Math.floor((now - secondsOf(point.at)) / (DAY / count));
    if (at < 0 || at >= count) continue;
    for (const name of ["requests", "hits", "sent", "received"]) sums[at][name] += point[name];
  }
  return sums;
}

// Content that was fetched in advance counts as saved only once more was sent than received.
const savedOf = (sums) => Math.max(0, sums.reduce((saved, sum) => saved + sum.sent - sum.received, 0));

function showHistory({ points }) {
  const top = 8, ground = HIGH - BOTTOM, tall = ground - top;
  const quarters = parts(points, 96);
  const x = (at) => LEFT + ((at + 0.5) / 96) * (WIDE - LEFT);
  const known = quarters.map((sum, at) => [x(at), sum.requests ? sum.hits / sum.requests : null]).filter(([, ratio]) => ratio !== null);
  const latest = known.length ? percent(known[known.length - 1][1]) : "nothing served yet";
  const ratio = frame(`Hit ratio over the last day, now ${latest}`, top, [[1, "100 %"], [0.5, "50 %"], [0, "0 %"]]);
  // the curve has a gap where there were no requests, because then there is no ratio
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
  const hours = sums.map((sum) => savedOf([sum]));
  const most = Math.max(...hours);
  const saved = frame(`Saved per hour over the last day, ${bytes(savedOf(sums))} in all`, top,
    most ? [[1, bytes(most)], [0.5, bytes(most / 2)], [0, "0 B"]] : [[0, "0 B"]]);
  const step = (WIDE - LEFT) / 24;
  hours.forEach((hour, at) => {
    const height = most && (tall * hour) / most;
    if (height > 0) saved.append(draw("rect", { class: "bar", x: LEFT + at * step + 1, y: ground - height, width: step - 2, height }));
  });
  byId("saved-chart").replaceChildren(saved);
}

// ------------------------------------------------------------------------------------------------ images

let shownSearch = "", shownNext = null, searching = 0, imagesLoaded = false;

async function loadImages(more = false, again = false) {
  const turn = ++searching, ended = actionsEnded;
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
  if (turn !== searching) return; // the user has typed more meanwhile
  if (again && (ended !== actionsEnded || !isUntouched())) return; // or has begun to use the rows
  imagesLoaded = true;
  shownSearch = search;
  shownNext = page.next;
  const rows = page.images.map(imageRow);
  if (more) byId("image-rows").append(...rows); else byId("image-rows").replaceChildren(...rows);
  const count = byId("image-rows").children.length;
  const none = page.next ? "none found yet; More continues the search" : "no such image is here";
  put("images-note", count ? `${count}${page.next ? " or more" : ""} image${count === 1 && !page.next ? "" : "s"}` : none);
  byId("more").hidden = !page.next;
}

function complete(image) {
  if (image.complete) return "yes";
  if (image.manifests_only) return "manifest only";
  return image.missing ? `no, ${image.missing} missing` : "no platform was pulled";
}

// A name wraps behind `/`, `:` and `@` first; an item of a list does not wrap if it fits on a line.
function breakable(name) { return name.split(/(?<=[/:@])/).flatMap((part) => [part, make("wbr")]); }
function listed(items) {
  return items.flatMap((item, at) => [make("span", { class: "item" }, at < items.length - 1 ? `${item},` : item), " "]);
}

function imageRow(image) {
  const cell = (label, ...content) => make("td", { "data-label": label }, make("div", {}, ...content));
  const button = make("button", { type: "button" });
  let { pinned } = image;
  const label = () => {
    button.textContent = pinned ? "unpin" : "pin";
    button.setAttribute("aria-label", printable(`${button.textContent} ${image.image}`));
  };
  label();
  acting(button, image.image, async () => {
    const answer = await ask(`/pins/${nameInPath(image.image)}`, { method: pinned ? "DELETE" : "PUT" });
    const stays = pinned ? answer.still_pinned : true;
    notify(`${image.image} is ${!stays ? "not pinned any more" : pinned ? "still pinned by a rule" : "pinned"}`);
    pinned = stays;
    label();
  });
  return make("tr", {},
    cell("image", ...breakable(image.image)),
    cell("size", bytes(image.size)),
    cell("last pull", when(image.last_pull)),
    cell("complete", make("span", { class: image.complete ? "good" : "warn" }, complete(image))),
    cell("platforms", ...(image.platforms.length ? listed(image.platforms) : ["–"])),
    // a hosted image is never evicted: it needs no pin
    cell("pinned", ...(image.hosted ? hostedMark(image) : [button]), image.frozen ? " frozen" : ""));
}

// ------------------------------------------------------------------------------------------------ the rest

function showNext({ images }) {
  list(byId("next"), images.slice(0, 10), (image) => image.digest ?? "loose", () => entry("how"), (row, image) => {
    set(row, "name", image.names.join(", ") || image.digest || "blobs that no cached image needs");
    const used = image.last_used ? `, last used ${when(image.last_used)}` : "";
    set(row, "how", `${bytes(image.bytes)}${used}`, "quiet");
  }, "nothing could be evicted");
}

// While the mirror counts a large store, it refuses this request; everything else goes on.
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
  list(byId("upstream-rows"), upstreams, (upstream) => upstream.name, () =>
    entry("state", "more", "login", make("meter", { "data-part": "budget", min: "0", max: "1", low: "0.1" })), (row, upstream) => {
    set(row, "name", upstream.name);
    set(row, "state", upstream.state, `state ${KINDS[upstream.state] ?? ""}`);
    const lines = upstream.endpoints.map(({ url, state, reason, retry_in: wait }) => `${url} ${state}${reason ? `: ${reason}` : ""}${wait ? `, next try in ${span(wait)}` : ""}`);
    if (upstream.budget) lines.push(`${upstream.budget.remaining} of ${upstream.budget.limit} pulls left in ${span(upstream.budget.window)}, as of ${when(upstream.budget.seen)}`);
    set(row, "more", lines.join("; "), "quiet");
    const refused = upstream.endpoints.filter((endpoint) => endpoint.credentials);
    set(row, "login", refused.map(({ credentials: { provider, reason, since } }) => `credentials of ${provider}: ${reason} (since ${when(since)})`).join("; "), refused.length ? "state bad" : "");
    const meter = part(row, "budget");
    meter.hidden = !upstream.budget;
    meter.setAttribute("aria-label", `pulls left at ${upstream.name}`);
    if (upstream.budget) meter.value = upstream.budget.remaining / upstream.budget.limit;
  }, "none was used yet");
}

function showJobs({ jobs }) {
  list(byId("job-rows"), jobs.slice(0, 20), (job) => job.id, () => entry("state", "more"), (row, job) => {
    const images = job.arguments?.images ?? [];
    const others = images.length - 1 + (job.arguments?.more ?? 0);
    set(row, "name", `${job.kind} ${job.arguments?.rule ?? images[0] ?? ""}${others > 0 ? ` and ${others} more` : ""}`);
    set(row, "state", job.state, `state ${KINDS[job.state] ?? ""}`);
    const done = job.progress ? `, ${bytes(job.progress.received ?? 0)} of ${bytes(job.progress.size ?? 0)}` : "";
    const failure = job.result?.error ?? job.result?.first_failure;
    set(row, "more", `${when(job.created)}${done}${failure ? `: ${failure}` : ""}`, "quiet");
  }, "none in the last week");
}

function showSync({ rules }) {
  list(byId("sync-rows"), rules, (rule) => rule.name, () => entry("state", "more"), (row, rule) => {
    set(row, "name", rule.name);
    set(row, "state", rule.state, `state ${KINDS[rule.state] ?? ""}`);
    const failure = rule.result?.error ?? rule.result?.failures?.[0];
    set(row, "more", `${rule.schedule}${rule.next_run ? `, next ${new Date(rule.next_run).toLocaleString()}` : ""}${failure ? `: ${failure}` : ""}`, "quiet");
  }, "none configured");
}

// ------------------------------------------------------------------------------------------------ clients

let clientsLoaded = false, choosing = 0;

// The files that `mirror configure` would write.
async function loadClients() {
  const turn = ++choosing;
  const input = byId("address");
  let answer;
  try {
    answer = await ask(`/clients?${new URLSearchParams(input.value ? { mirror: input.value } : {})}`);
  } catch (error) {
    if (turn === choosing && error instanceof Refused) put("clients-note", error.message);
    return;
  }
  if (turn !== choosing) return; // the user has typed more meanwhile
  clientsLoaded = true;
  put("clients-note", "");
  if (!input.value) input.value = answer.mirror;
  const open = new Set([...byId("client-files").children].filter((details) => details.open).map((details) => details.dataset.client));
  byId("client-files").replaceChildren(...answer.clients.map((client) => {
    const details = make("details", { "data-client": client.client }, make("summary", {}, client.client),
      ...clientText("command", client.client, "on the client's machine, as root; keeps what is in the files already", client.command),
      ...client.files.flatMap((file) => clientText("configuration", client.client, file.path, file.content)),
      make("ul", { class: "quiet" }, ...[...client.next_steps.map((step) => `then: ${step}`), ...client.notes].map((line) => make("li", {}, line))));
    details.open = open.has(client.client);
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
      // without HTTPS only the older interface works; if that fails too, the text is selected, to be copied by hand
      getSelection().selectAllChildren(content);
      const give = (event) => { event.clipboardData.setData("text/plain", text); event.preventDefault(); };
      document.addEventListener("copy", give);
      const done = document.execCommand("copy");
      document.removeEventListener("copy", give);
      if (!done) {
        notify("the text is selected: copy it by hand");
        return;
      }
    }
    notify(kind === "command" ? "copied" : `copied: put it into ${place}`);
  });
  return [make("p", {}, `${place} `, button), content];
}

// ------------------------------------------------------------------------------------------------ again and again

const EVERY = [
  // seconds, what
  [1, async () => {
    const status = await ask("/status");
    showStatus(status);
    showQuotas(status);
  }],
  [1, async () => showFlights(await ask("/flights"))],
  [2, async () => showJobs(await ask("/jobs"))],
  [3, async () => showUpstreams(await ask("/upstreams"))],
  [5, async () => showSync(await ask("/sync"))],
  [15, async () => showHistory(await ask("/history"))],
  [10, loadRetention],
  [10, loadRepositories],
  [10, loadEvents],
  [10, loadReplication],
  [15, loadDeleted],
  [15, loadCollection],
  [30, loadDamaged],
  [30, loadNext],
];

let lastAnswer = null;

// The text for screen readers changes only when something has happened, not each second.
function showConnection(error) {
  const line = byId("connection");
  const gone = error instanceof NoAnswer;
  if (gone) {
    put("connection", error.message);
    put("last-answer", lastAnswer === null ? "" : `last answer ${span((Date.now() - lastAnswer) / 1000)} ago; the page shows the state at that time`);
  } else {
    lastAnswer = Date.now();
    put("connection", loggedOut ? `${error.message}; load this page again to log in` : error ? error.message : "live");
    put("last-answer", "");
  }
  line.className = gone ? "gone" : error ? "" : "up";
}

// True if the user is not using the list of images: no button acts (one that acts has lost the focus), nothing in the
// list has the focus or is selected, and it shows one page.
function isUntouched() {
  if (actionsRunning) return false;
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
        if (error instanceof NoAnswer || loggedOut) break;
        if (!(error instanceof Refused)) console.error(error); // a mistake in this page
      }
    }
    showConnection(failed);
    if (loggedOut) return;
    if (!failed && !clientsLoaded) await loadClients();
    if (!failed && (!imagesLoaded || (number % 5 === 0 && isUntouched()))) await loadImages(false, imagesLoaded);
  }
  setTimeout(turn, 1000, document.hidden ? number : number + 1);
}

let typing;
byId("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(loadImages, 200); });
byId("search-form").addEventListener("submit", (event) => { event.preventDefault(); loadImages(); });
byId("more").addEventListener("click", () => loadImages(true));
listenToHosted();
let choosingSoon;
byId("address").addEventListener("input", () => { clearTimeout(choosingSoon); choosingSoon = setTimeout(loadClients, 200); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && isUntouched() && !loggedOut) loadImages(false, true); });
turn(0);
