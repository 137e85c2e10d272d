// What is on the screen. Markup comes from the server, which made text of all that models wrote.

export const $ = (id) => document.getElementById(id);
export const SIDES = ["first", "second"];
const NAMES = { first: "Answer 1", second: "Answer 2" };
const ROLES = {
  system: "System prompt", developer: "System prompt", tools: "Tools", tool: "Tool result",
  ipython: "Tool result", function: "Tool result", user: "User", assistant: "Assistant",
};
const FOLDED = ["system", "developer", "tools", "tool", "ipython", "function"];
const TURNS_SHOWN = 3;

/** Show one section of main, and what belongs to it around it. */
export function showPhase(phase) {
  for (const name of ["start", "item", "done", "ended"]) $(name).hidden = name !== phase;
  const judging = phase === "item" || phase === "done";
  $("votes").hidden = phase !== "item";
  $("progress").hidden = $("who").hidden = $("end-button").hidden = !judging;
  $("guidelines").hidden = phase === "ended" || !$("guidelines-text").innerHTML;
  document.body.dataset.phase = phase;
}

export function showProgress({ done, total, can_undo }, phase) {
  const text = `Item ${Math.min(done + 1, total)} of ${total}`;
  $("count").textContent = phase === "done" ? `${done} of ${total}` : text;
  $("item-heading").textContent = text;
  $("bar").max = total || 1;
  $("bar").value = done;
  $("undo").disabled = $("done-undo").disabled = !can_undo;
  return text;
}

export function showItem(item, handlers) {
  showPrompt(item.prompt);
  $("answers").replaceChildren(...item.answers.map((answer, n) => answerCard(item.id, answer, SIDES[n], handlers)));
  makeScrollable();
}

function showPrompt(messages) {
  const turns = messages.filter((message) => !FOLDED.includes(message.role));
  const earlier = new Set(turns.slice(0, Math.max(0, turns.length - TURNS_SHOWN)));
  const nodes = [];
  let fold = null;
  for (const message of messages) {
    if (!earlier.has(message)) {
      nodes.push(messageNode(message, message === turns.at(-1)));
      continue;
    }
    if (!fold) nodes.push((fold = foldNode(`${earlier.size} earlier messages`)));
    fold.append(messageNode(message, false));
  }
  $("prompt").replaceChildren(...nodes);
}

function messageNode({ role, html }, isLast) {
  const text = textNode(html);
  const name = ROLES[role] ?? role;
  if (FOLDED.includes(role)) {
    const node = foldNode(name);
    node.append(text);
    return node;
  }
  const node = document.createElement("div");
  node.className = `turn ${role}${isLast ? " last" : ""}`;
  const label = document.createElement("p");
  label.className = "role";
  label.textContent = name;
  node.append(label, text);
  return node;
}

function foldNode(name) {
  const node = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = name;
  node.append(summary);
  return node;
}

function textNode(html) {
  const text = document.createElement("div");
  text.className = "text";
  text.dir = "auto";
  text.innerHTML = html;
  return text;
}

function answerCard(item, answer, side, handlers) {
  const card = $("answer-template").content.firstElementChild.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  const other = SIDES.find((name) => name !== side);
  card.id = side;
  card.dataset.item = item;
  find("h2").textContent = NAMES[side];
  find("h2").id = `${side}-heading`;
  card.setAttribute("aria-labelledby", `${side}-heading`);
  find("header button").setAttribute("aria-label", `Edit ${NAMES[side]}`);
  find("header button").addEventListener("click", () => handlers.edit(side));
  find(".thought").hidden = !answer.thought_html;
  find(".thought .text").innerHTML = answer.thought_html;
  find(".body").innerHTML = answer.html || "<p class='empty'>(an empty answer)</p>";
  find(".cut").hidden = !answer.cut;
  find("textarea").id = `${side}-edit`;
  find(".edit > label").htmlFor = `${side}-edit`;
  const [own, rival] = card.querySelectorAll("fieldset span");
  own.textContent = `${NAMES[side]} was better`;
  rival.textContent = `${NAMES[other]} was better`;
  find(".edit").addEventListener("submit", (event) => handlers.save(event, side));
  find(".edit .close").addEventListener("click", () => handlers.close());
  find(".edit").addEventListener("keydown", (event) => handlers.typing(event, side));
  return card;
}

/** Show the box in which an answer is edited in its card, or close it (side: null). */
export function showEdit(side, text) {
  for (const name of SIDES) {
    const card = $(name);
    const open = name === side;
    for (const part of [".edit", ".body", "header button"])
      card.querySelector(part).hidden = part === ".edit" ? !open : open;
    card.classList.toggle("editing", open);
  }
  $("votes").hidden = side !== null;
  if (side === null) return;
  const box = $(side).querySelector("textarea");
  box.value = text;
  box.focus({ preventScroll: true });
  box.setSelectionRange(0, 0);
  box.scrollTop = 0;
  $(side).scrollIntoView({ block: "nearest" });
}

export function showEditFault(side, text) {
  const fault = $(side).querySelector(".fault");
  fault.textContent = text;
  fault.hidden = !text;
}

/** The two answers to choose from before one is edited, in place of the votes. */
export function showEditChoice(open) {
  $("vote-buttons").hidden = open;
  $("edit-buttons").hidden = !open;
}

export function showNote(open) {
  $("note-row").hidden = !open;
  $("note-button").setAttribute("aria-expanded", open);
  if (open) $("note").focus({ preventScroll: true });
  else $("note-button").classList.toggle("filled", $("note").value.trim() !== "");
}

export function showTrouble(text) {
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

export function showResult(result) {
  const paragraphs = (result ? result.sentences : ["Working out what the votes come to …"]).map((text) => {
    const node = document.createElement("p");
    node.textContent = text;
    return node;
  });
  $("result").replaceChildren(...paragraphs);
  if (!result) return;
  $("result").className = result.failed ? "failed" : "";
  if (result.files.length) {
    const list = document.createElement("ul");
    list.className = "files";
    for (const file of result.files) {
      const code = document.createElement("code");
      code.textContent = file;
      const row = document.createElement("li");
      row.append(code);
      list.append(row);
    }
    const heading = document.createElement("h2");
    heading.textContent = "Files";
    $("result").append(heading, list);
  }
  const end = document.createElement("p");
  end.className = "hint";
  end.textContent = "The command in the terminal has ended too, and this tab can be closed.";
  $("result").append(end);
}

/** What is wider than its column can be scrolled by keys, too. */
function makeScrollable() {
  for (const node of document.querySelectorAll("#item pre, #item .table")) {
    if (node.scrollWidth <= node.clientWidth) continue;
    node.tabIndex = 0;
    node.setAttribute("role", "region");
    node.setAttribute("aria-label", node.tagName === "PRE" ? "Code" : "Table");
  }
}
