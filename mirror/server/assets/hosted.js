// The section about hosted registries, and the question before something is deleted or brought back. page.js has what
// is used here, and asks again and again.
"use strict";

let hosting = false, retaining = false, repositoriesShown = 50;

function showQuotas({ hosted }) {
  hosting = hosted.length > 0;
  byId("hosted").hidden = !hosting;
  byId("hosted-link").hidden = !hosting;
  list(byId("quota-rows"), hosted, (usage) => usage.scope, () =>
    entry("how", make("meter", { "data-part": "bar", min: "0", max: "1", high: "0.9" })), (row, { scope, bytes: used, quota }) => {
    set(row, "name", scope);
    const known = used === null ? "not known at the moment" : bytes(used);
    set(row, "how", quota === null ? known : `${known} of ${bytes(quota)}${used === null ? "" : ` (${percent(used / (quota || 1))})`}`, "quiet");
    const bar = part(row, "bar");
    bar.hidden = quota === null || used === null;
    bar.setAttribute("aria-label", printable(`quota of ${scope}`));
    if (!bar.hidden) bar.value = used / (quota || 1);
  }, "");
}

// ------------------------------------------------------------------------------------------------ repositories

async function loadRepositories() {
  if (!hosting) return;
  const query = new URLSearchParams({ limit: String(repositoriesShown), search: byId("repository-search").value.trim() });
  const search = query.get("search");
  let page;
  try {
    page = await ask(`/hosted?${query}`);
  } catch (error) {
    if (!(error instanceof Refused) || loggedOut) throw error;
    put("repositories-note", error.message);
    return;
  }
  if (search !== byId("repository-search").value.trim()) return; // the user has typed more meanwhile
  put("repositories-note", "");
  byId("more-repositories").hidden = page.next === null || repositoriesShown >= 500;
  list(byId("repository-rows"), page.repositories, (one) => one.repository, repositoryRow, (row, one) => {
    const size = one.size === null ? "size not known at the moment" : bytes(one.size);
    const deleted = one.deleted ? `, ${counted(one.deleted, "deletion")} to undo` : "";
    part(row, "plan").hidden = !retaining;
    set(row, "how", `${size}, ${counted(one.tags, "tag")}, ${counted(one.manifests, "manifest")}${deleted}`, "quiet");
  }, "no such repository is here");
}

function repositoryRow({ repository }) {
  const button = make("button", { type: "button", "aria-label": printable(`show the images of ${repository}`) }, "images");
  button.addEventListener("click", () => {
    byId("search").value = `${repository}:`;
    loadImages();
    byId("search").focus();
  });
  const plan = make("ul", { class: "rows", "aria-label": printable(`what retention would do with ${repository}`) });
  const details = make("details", { "data-part": "plan" }, make("summary", {}, "what retention would take, and why"), plan);
  details.addEventListener("toggle", () => { if (details.open) showPlan(repository, plan); });
  return make("li", {},
    make("div", { class: "line" }, make("span", {}, ...breakable(repository)), button),
    make("div", { "data-part": "how" }), details);
}

const MOST_JUDGED = 100;

// What goes comes first, in the mirror's order.
async function showPlan(repository, shown) {
  let judged, words, total;
  try {
    const { repositories: [plan] } = await ask(`/retention/plan?${new URLSearchParams({ repository })}`);
    judged = plan ? [...plan.tags, ...plan.manifests].sort((one, other) => other.goes - one.goes) : [];
    total = judged.length + (plan?.more ?? 0);
    const going = judged.filter((one) => one.goes).length;
    words = plan?.unread ? `nothing goes, because this cannot be read: ${plan.unread}`
      : `of ${total} tags and manifests, ${going === judged.length && going < total ? "at least " : ""}${going} would go`;
  } catch (error) {
    shown.replaceChildren(make("li", { class: "quiet" }, error.message));
    return;
  }
  const more = total - Math.min(judged.length, MOST_JUDGED);
  const rest = more ? [make("li", { class: "quiet" }, `and ${more} more: mirror retention --dry-run`)] : [];
  shown.replaceChildren(make("li", { class: "quiet" }, words), ...judged.slice(0, MOST_JUDGED).map((one) => make("li", {},
    make("span", { class: one.goes ? "warn" : "" }, `${one.name} ${one.goes ? "goes" : "stays"}: `), make("span", { class: "quiet" }, one.reason))), ...rest);
}

// ------------------------------------------------------------------------------------------------ questions

// Resolves to true if the user agrees. Escape and "no" are the same.
function question(title, lines, verb) {
  const dialog = byId("question");
  put("question-title", title);
  byId("question-lines").replaceChildren(...lines.map((line) => make("p", {}, line)));
  put("question-yes", verb);
  return new Promise((resolve) => {
    let agreed = false;
    const yes = byId("question-yes"), no = byId("question-no");
    const agree = () => { agreed = true; dialog.close(); };
    const refuse = () => dialog.close();
    yes.addEventListener("click", agree);
    no.addEventListener("click", refuse);
    dialog.addEventListener("close", () => {
      yes.removeEventListener("click", agree);
      no.removeEventListener("click", refuse);
      // the button that asked is disabled, and gets the focus back later
      if (dialog.contains(document.activeElement)) document.activeElement.blur();
      resolve(agreed);
    }, { once: true });
    dialog.showModal();
    no.focus();
  });
}

const some = (names) => `${names.slice(0, 10).join(", ")}${names.length > 10 ? ` and ${names.length - 10} more` : ""}`;

// What an image that is hosted has in place of the button that pins it.
function hostedMark(image) {
  if (image.immutable) return ["immutable"];
  const button = make("button", { type: "button", "aria-label": printable(`delete ${image.image}`) }, "delete");
  return ["hosted ", acting(button, image.image, () => deleteHosted(image.image))];
}

async function deleteHosted(image) {
  const path = `/hosted/${nameInPath(image)}`;
  const plan = await ask(`${path}?dry_run=true`, { method: "DELETE" });
  const until = plan.until ? `It can be undeleted until ${new Date(plan.until).toLocaleString()}.` : "It cannot be undeleted.";
  const what = plan.manifests.length
    ? `The image goes: ${counted(plan.manifests.length, "manifest")} with ${bytes(plan.size)}, some of it perhaps shared with others.`
    : "The tag goes; its image stays, under its digest.";
  const tags = plan.manifests.length && plan.tags.length ? [`With it go its tags: ${some(plan.tags)}.`] : [];
  if (!await question(`Delete ${image}?`, [what, ...tags, until], "delete")) return;
  await ask(path, { method: "DELETE" });
  notify(`${image} is deleted`);
  await Promise.all([loadImages(), loadDeleted(), loadRepositories()]);
}

async function loadDeleted() {
  if (!hosting) return;
  const { deleted, more } = await ask("/deleted?limit=20");
  list(byId("deleted-rows"), deleted, (one) => `${one.image} ${one.deleted}`, ({ image, digest, tags }) => {
    const button = make("button", { type: "button", "aria-label": printable(`undelete ${image}`) }, "undelete");
    acting(button, image, () => undelete(image, digest, tags));
    return make("li", {},
      make("div", { class: "line" }, make("span", {}, ...breakable(image)), button), make("div", { "data-part": "more" }));
  }, (row, one) => {
    const tags = one.tags.length ? `; tags: ${some(one.tags)}` : "";
    set(row, "more", `${when(one.deleted)}${one.by ? ` by ${one.by}` : ""}, to undo until ${new Date(one.until).toLocaleString()}${tags}`, "quiet");
  }, "nothing was deleted that can be undeleted");
  put("deleted-note", more ? `and ${counted(more, "more deletion")}: mirror undelete lists them` : "");
}

async function undelete(image, digest, tags) {
  const names = tags.length ? [`Its tags come back, unless they point to something again: ${some(tags)}.`] : ["It has no tags."];
  if (!await question(`Undelete ${image}?`, [`It points to ${digest}.`, ...names], "undelete")) return;
  const { left } = await ask(`/deleted/${nameInPath(image)}`, { method: "POST" });
  notify(left.length ? `${image} is back; but ${left.join("; ")}` : `${image} is back`);
  await Promise.all([loadImages(), loadDeleted(), loadRepositories()]);
}

// ------------------------------------------------------------------------------------------------ what waits

async function loadCollection() {
  if (!hosting) return;
  const { last } = await ask("/collection");
  const sums = last && `last round ${when(last.ended ?? last.begun)}: ${counted(last.blobs, "blob")} with ${bytes(last.bytes)} gone; ` +
    `${counted(last.waiting_blobs, "blob")} with ${bytes(last.waiting_bytes)} and ${counted(last.waiting_links, "link")} wait`;
  const unread = last?.unread.length ? `; ${last.unread_count} could not be read, and lost nothing: ${last.unread[0].what}: ${last.unread[0].reason}` : "";
  put("collection-text", last ? `${sums}${unread}` : "there was no round yet");
  const kinds = { link: "a layer or config of", bytes: "bytes that no repository has:", manifest: "a deleted image of" };
  list(byId("waiting-rows"), (last?.waiting ?? []).slice(0, 10), (one) => `${one.kind} ${one.repository} ${one.digest}`, () => entry("how", "more"), (row, one) => {
    set(row, "name", `${kinds[one.kind] ?? one.kind} ${one.repository ?? ""} ${one.digest.slice(0, 19)}…`);
    set(row, "how", bytes(one.size), "quiet");
    set(row, "more", `${one.why}, since ${when(one.since)}; may go from ${new Date(one.may_go).toLocaleString()}`, "quiet");
  }, "nothing waits to be collected");
}

async function loadRetention() {
  if (!hosting) return;
  const { last, next } = await ask("/retention");
  retaining = last !== null || next !== null;
  byId("retention").hidden = !retaining;
  const due = next ? `next round ${new Date(next).toLocaleString()}` : "no round is due";
  const round = !last ? "there was no round yet"
    : !last.ended ? `a round by ${last.by} began ${when(last.begun)}`
    : `last round ${when(last.ended)} by ${last.by}: ${counted(last.tags, "tag")} and ${counted(last.manifests, "manifest")} went${last.stayed ? `, ${last.stayed} stayed because of a change meanwhile` : ""}`;
  put("retention-text", `${round}; ${due}`);
  const left = last?.unread ?? [];
  list(byId("retention-rows"), left.slice(0, 20), (one) => one.what, () => make("li", {},
    make("span", { "data-part": "name" }), " ", make("span", { "data-part": "more" }),
  ), (row, one) => {
    set(row, "name", `${one.what} was left alone, because it cannot be read:`, "warn");
    set(row, "more", one.reason, "quiet");
  }, "nothing was left alone");
}

async function loadDamaged() {
  if (!hosting) return;
  const { damaged, more } = await ask("/damaged?limit=20");
  byId("damaged").hidden = !damaged.length;
  list(byId("damaged-rows"), damaged, (one) => one.digest, () => make("li", {},
    make("div", {}, make("span", { "data-part": "name" })), make("div", { "data-part": "more" }),
  ), (row, one) => {
    set(row, "name", `${one.digest}, ${bytes(one.size)}, found ${when(one.found)}`, "bad");
    set(row, "more", one.repositories.length ? `push it again to one of ${some(one.repositories)}` : "no repository has it: it will be collected", "quiet");
  }, "");
  put("damaged-note", more ? `and ${more} more` : "");
}

async function loadEvents() {
  if (!hosting) return;
  const { endpoints, events } = await ask("/events?limit=20");
  byId("events").hidden = !endpoints.length;
  list(byId("endpoint-rows"), endpoints, (one) => one.endpoint, () => entry("how", "more"), (row, one) => {
    set(row, "name", `${one.endpoint}${one.configured ? "" : " (not configured any more)"}`);
    const lost = one.lost ? `, ${one.lost} lost` : "";
    set(row, "how", `${one.waiting} waiting, ${one.dead} dead${lost}`, one.dead || one.lost ? "state bad" : "quiet");
    const failed = events.find((event) => event.endpoint === one.endpoint && event.error);
    set(row, "more", `${one.oldest ? `the oldest was made ${when(one.oldest)}` : "nothing waits"}${failed ? `; ${failed.type} of ${failed.about}: ${failed.error}` : ""}`, "quiet");
  }, "");
}

async function loadReplication() {
  if (!hosting) return;
  const { rules } = await ask("/replication");
  byId("replication").hidden = !rules.length;
  list(byId("replication-rows"), rules, (rule) => rule.name, () => entry("state", "more", "trouble"), (row, rule) => {
    set(row, "name", `${rule.name}: ${rule.repositories} to ${rule.to}`);
    set(row, "state", rule.state, `state ${KINDS[rule.state] ?? ""}`);
    const success = rule.last_success ? `last success ${when(rule.last_success)}` : "never succeeded";
    set(row, "more", `${rule.schedule}, ${success}${rule.next_run ? `, compared next ${new Date(rule.next_run).toLocaleString()}` : ""}`, "quiet");
    const failure = rule.result?.error ?? rule.result?.failures?.[0];
    const conflicts = rule.result?.conflicts ?? [];
    const trouble = [failure, conflicts.length && `${counted(conflicts.length, "tag")} left alone: ${conflicts[0]}`];
    set(row, "trouble", trouble.filter(Boolean).join("; "), failure ? "state bad" : "warn");
  }, "");
}

let searchingRepositories;
function listenToHosted() {
  byId("repository-search").addEventListener("input", () => {
    clearTimeout(searchingRepositories);
    searchingRepositories = setTimeout(() => loadRepositories().catch(() => {}), 200);
  });
  byId("repository-form").addEventListener("submit", (event) => { event.preventDefault(); loadRepositories().catch(() => {}); });
  byId("more-repositories").addEventListener("click", () => { repositoriesShown += 50; loadRepositories().catch(() => {}); });
}
