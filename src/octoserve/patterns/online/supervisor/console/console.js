// Keeps the console current and asks the admin API for what a person confirms. No library, nothing from elsewhere.
"use strict";
(() => {
  const EVERY = 1000; // ms between looks
  const PATIENCE = 5000; // ms that one look may take
  const OLD_AFTER = 3000; // ms without an answer until the figures are called old
  const SAID_FOR = 8000; // ms that a message stays
  const KEY = "octoserve-admin-token";

  const at = (id) => document.getElementById(id);
  const now = () => Date.now();
  let token = sessionStorage.getItem(KEY) || "";
  let answered = now(); // when the last good answer came
  let unanswered = 0; // since when we ask in vain; 0 while we do not
  let trouble = "";
  let timer = 0;
  let looking = false;
  let paused = false; // until there is a token
  let known = null; // what was announced, by id
  let chosen = null; // the command in the dialog
  let sending = false;

  function ask(path, options = {}) {
    const headers = { ...options.headers };
    if (token) headers.authorization = `Bearer ${token}`;
    return fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers });
  }

  // ---- looking ---------------------------------------------------------------------------------

  async function look() {
    clearTimeout(timer);
    if (looking || paused) return;
    looking = true;
    unanswered ||= now();
    try {
      const answer = await ask("/console/fragment", { signal: AbortSignal.timeout(PATIENCE) });
      if (answer.status === 403) {
        wantToken(`That token is not accepted here: ${await reasonOf(answer)}`);
      } else if (answer.status === 401) {
        wantToken(token ? "That token is not accepted." : "");
      } else if (!answer.ok) {
        trouble = `The service answered ${answer.status}.`;
      } else {
        show(await answer.text());
        answered = now();
        unanswered = 0;
        trouble = "";
      }
    } catch {
      trouble = "The service cannot be reached.";
    }
    looking = false;
    judge();
    if (!paused) timer = setTimeout(look, EVERY);
  }

  function judge() {
    const old = paused ? at("live").dataset.locked === undefined : unanswered && now() - unanswered > OLD_AFTER;
    const banner = at("stale");
    if (old) {
      const age = Math.round((now() - answered) / 1000);
      write(banner, `No answer for ${age} s: these figures are old. ${paused ? "The token is missing." : trouble}`);
      if (banner.hidden) announce("The service does not answer. The figures are old.");
    } else if (!banner.hidden) {
      announce("The service answers again. The figures are current.");
    }
    banner.hidden = !old;
    document.body.classList.toggle("old", Boolean(old));
    write(at("pulse"), paused ? "not updated" : old ? "no answer" : "updates each second");
  }

  function show(html) {
    const next = new DOMParser().parseFromString(html, "text/html").getElementById("live");
    if (!next) throw new Error("no figures in the answer");
    const focused = document.activeElement;
    const card = focused && focused.closest(".endpoint");
    change(at("live"), next);
    if (focused && card && !focused.isConnected) focusCard(card.id);
    document.title = at("live").dataset.title;
    tellChanges();
    checkChosen();
  }

  function focusCard(id) {
    const heading = at(`${id}-name`);
    if (heading) heading.focus({ preventScroll: true });
  }

  function tellChanges() {
    const told = new Map();
    for (const one of document.querySelectorAll("[data-announce]")) told.set(one.id, one.dataset.announce);
    if (known) {
      const news = [...told].filter(([id, text]) => text && known.get(id) !== text).map(([, text]) => text);
      if (news.length) announce(news.join(". "));
    }
    known = told;
  }

  function announce(text) {
    at("announcer").textContent = text;
  }

  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // ---- changing the page in place, so that focus, scroll and a reader's place stay --------------

  function change(from, to) {
    if (from.nodeType === Node.TEXT_NODE) {
      if (from.data !== to.data) from.data = to.data;
      return;
    }
    for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    for (const { name } of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
    const wanted = new Set([...to.children].map((child) => child.id).filter(Boolean));
    for (const child of [...from.children]) if (child.id && !wanted.has(child.id)) child.remove();
    let place = from.firstChild;
    for (const next of [...to.childNodes]) {
      const mine = mate(place, next);
      while (mine && place !== mine && !place.id) {
        const gone = place;
        place = place.nextSibling;
        gone.remove();
      }
      if (!mine) {
        from.insertBefore(next, place);
        continue;
      }
      if (mine === place) place = place.nextSibling;
      else from.insertBefore(mine, place);
      change(mine, next);
    }
    while (place) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
  }

  function mate(place, next) {
    for (let one = place; one; one = one.nextSibling) {
      if (one.nodeName === next.nodeName && (one.id || "") === (next.id || "")) return one;
    }
    return null;
  }

  // ---- the token --------------------------------------------------------------------------------

  function wantToken(problem) {
    paused = true;
    write(at("token-error"), problem);
    at("token-value").value = "";
    showSession();
    if (!at("token").open) at("token").showModal();
    at("token-value").focus();
  }

  function takeToken(event) {
    event.preventDefault();
    token = at("token-value").value.trim();
    at("token-value").value = "";
    if (!token) return write(at("token-error"), "A token is wanted.");
    if (!/^[\x21-\x7e]+$/.test(token)) {
      token = "";
      return write(at("token-error"), "That is no token: it holds a space or a character that no header can carry.");
    }
    sessionStorage.setItem(KEY, token);
    at("token").close();
    paused = false;
    showSession();
    look();
  }

  function forgetToken() {
    sessionStorage.removeItem(KEY);
    location.reload();
  }

  function showSession() {
    at("forget-token").hidden = !token;
    at("enter-token").hidden = !paused;
  }

  // ---- commands ---------------------------------------------------------------------------------

  function choose(button) {
    const { command, endpoint, rollout, title, label, consequence } = button.dataset;
    chosen = { command, endpoint, rollout, consequence, label, id: button.id, card: button.closest(".endpoint").id };
    write(at("confirm-title"), title);
    write(at("confirm-consequence"), consequence);
    write(at("confirm-error"), "");
    write(at("confirm-changed"), "");
    write(at("confirm-go"), label);
    at("confirm-go").className = button.className;
    at("confirm-reason").value = "";
    at("confirm").showModal();
    at("confirm-reason").focus();
  }

  // What is confirmed is what was read: if it has changed since, the dialog says so. An approval is of the step that
  // was read (ID/STEP), and the service refuses it at another one.
  function checkChosen() {
    if (!chosen || sending || !at("confirm").open) return;
    const button = at(chosen.id);
    const rolloutOf = (id) => id.split("/")[0];
    if (!button || rolloutOf(button.dataset.rollout) !== rolloutOf(chosen.rollout)) {
      write(at("confirm-changed"), "This has changed since you opened it: the command may no longer be possible.");
    } else if (button.dataset.consequence !== chosen.consequence) {
      write(at("confirm-changed"), `This has changed since you opened it: ${button.dataset.consequence}`);
    } else {
      write(at("confirm-changed"), "");
    }
  }

  async function send(event) {
    event.preventDefault();
    if (sending || !chosen) return;
    const { command, endpoint, rollout, label } = chosen;
    sending = true;
    at("confirm-go").setAttribute("aria-disabled", "true");
    write(at("confirm-error"), "");
    let problem = "";
    let refused = false;
    try {
      const answer = await ask(`/api/rollouts/${encodeURIComponent(endpoint)}/${encodeURIComponent(command)}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ reason: at("confirm-reason").value.trim(), id: rollout }),
        signal: AbortSignal.timeout(2 * PATIENCE),
      });
      refused = answer.status === 401;
      if (refused) problem = "The token is not accepted. Nothing was changed.";
      else if (!answer.ok) problem = `Refused: ${await reasonOf(answer)}`;
    } catch {
      problem = "No answer, so it is not known whether the command arrived. Look at the state before you try again.";
    }
    sending = false;
    at("confirm-go").removeAttribute("aria-disabled");
    if (problem) {
      write(at("confirm-error"), problem);
      if (!at("confirm").open) say(`${label}, ${endpoint}: ${problem}`);
      if (refused) wantToken("That token is not accepted. Nothing was changed.");
      return;
    }
    at("confirm").close();
    say(`${label}, ${endpoint}: accepted.`);
    look();
  }

  async function reasonOf(answer) {
    try {
      return String((await answer.json()).error || answer.status);
    } catch {
      return `the service answered ${answer.status}`;
    }
  }

  let silence = 0;
  function say(text) {
    write(at("said"), text);
    announce(text);
    clearTimeout(silence);
    silence = setTimeout(() => write(at("said"), ""), SAID_FOR);
  }

  // ---- history and report -----------------------------------------------------------------------

  async function history(link) {
    const rows = at("history-rows");
    write(at("history-title"), `History: ${link.dataset.history}`);
    rows.textContent = "Asking…";
    at("history").showModal();
    try {
      const answer = await ask(link.getAttribute("href"), { signal: AbortSignal.timeout(PATIENCE) });
      if (!answer.ok) throw new Error(await reasonOf(answer));
      rows.replaceChildren(historyTable(await answer.json()));
    } catch (error) {
      rows.textContent = `The history could not be read: ${error.message}`;
    }
  }

  function historyTable(summaries) {
    if (!summaries.length) return document.createTextNode("No rollout has run here.");
    const day = (seconds) => (typeof seconds === "number" ? new Date(seconds * 1000).toLocaleString() : "–");
    const names = ["Started", "Ended", "Strategy", "Versions", "Result", "Reason"];
    const make = (tag, role, text) => {
      const made = document.createElement(tag);
      made.setAttribute("role", role);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const table = make("table", "table");
    const head = make("thead", "rowgroup");
    const body = make("tbody", "rowgroup");
    table.append(head, body);
    head.append(make("tr", "row"));
    for (const name of names) head.firstChild.append(make("th", "columnheader", name));
    for (const one of summaries) {
      const versions = `${one.stable} → ${one.candidate}`;
      const ended = one.phase === "ended" ? day(one.ended) : "–";
      const line = make("tr", "row");
      line.append(make("th", "rowheader", day(one.started)));
      [ended, one.strategy, versions, one.result || one.phase, one.reason || "–"].forEach((text, index) => {
        const cell = make("td", "cell", text);
        cell.dataset.name = names[index + 1];
        line.append(cell);
      });
      body.append(line);
    }
    return table;
  }

  // A link carries no token, so with one the report is fetched and saved.
  async function saveReport(link) {
    try {
      const answer = await ask(link.getAttribute("href"), { signal: AbortSignal.timeout(4 * PATIENCE) });
      if (!answer.ok) throw new Error(await reasonOf(answer));
      const saved = document.createElement("a");
      saved.href = URL.createObjectURL(await answer.blob());
      saved.download = `report-${link.dataset.report}.html`;
      saved.click();
      setTimeout(() => URL.revokeObjectURL(saved.href), SAID_FOR);
    } catch (error) {
      say(`The report could not be read: ${error.message}`);
    }
  }

  // ---- start ------------------------------------------------------------------------------------

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-command]");
    const past = event.target.closest("a[data-history]");
    const report = event.target.closest("a[data-report]");
    if (button) choose(button);
    if (past || (report && token)) event.preventDefault();
    if (past) history(past);
    if (report && token) saveReport(report);
  });
  // A key that is held down opens a dialog; it must not confirm it too.
  at("confirm").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.repeat) event.preventDefault();
  });
  at("confirm").addEventListener("submit", send);
  at("confirm").addEventListener("close", () => {
    if (chosen && !at(chosen.id)) focusCard(chosen.card);
    chosen = null;
  });
  at("token").addEventListener("submit", takeToken);
  at("token").addEventListener("close", showSession);
  for (const name of ["confirm", "token"]) at(`${name}-cancel`).addEventListener("click", () => at(name).close());
  at("history-close").addEventListener("click", () => at("history").close());
  at("enter-token").addEventListener("click", () => wantToken(""));
  at("forget-token").addEventListener("click", forgetToken);
  document.addEventListener("visibilitychange", () => document.hidden || look());

  document.documentElement.classList.remove("plain");
  showSession();
  if (at("live").dataset.locked !== undefined && !token) wantToken("");
  else look();
  setInterval(judge, 500);
})();
