// The flow: who judges, the next item, votes by key or button, edits, notes, the end.

import { Refused, ask, keptVote, newId, pause, persist, sendVote, stateOf } from "./server.js";
import {
  $, SIDES, showEdit, showEditChoice, showEditFault, showItem, showNote, showPhase, showProgress,
  showResult, showTrouble,
} from "./view.js";

const JUDGE = "orpo-mlx-judge";
const FOLDED = "orpo-mlx-guidelines-folded";
const KEYS_OFF = "orpo-mlx-keys-off";
const UNREAD_MS = 300; // nobody has read an item so soon: it is the second half of a double press
const CHOICE_KEYS = { 1: "first", 2: "second", t: "tie", 0: "tie", "=": "tie", b: "both_bad", s: "skip" };
const SAVED = {
  first: "Saved: answer 1 is better.", second: "Saved: answer 2 is better.", tie: "Saved: a tie.",
  both_bad: "Saved: both are bad.", skip: "Skipped.",
};

let start = null; // what /api/start answered
let judge = sessionStorage.getItem(JUDGE);
let state = null; // what the server answered last
let busy = false; // something was sent and is not answered yet
let editing = null; // the side whose answer is edited
let choosing = false; // which one to edit
let unread = 0; // the timer of an item that nobody can have read yet
const drafts = new Map(); // edits that were closed or taken back, by item and side

// --- states ---

async function begin() {
  start = await persist(() => ask("/api/start"), showTrouble);
  showTrouble("");
  $("guidelines-text").innerHTML = start.guidelines_html;
  $("guidelines").open = !sessionStorage.getItem(FOLDED);
  $("purpose").textContent = start.purpose === "verdict"
    ? "The votes become a verdict: which of two models is preferred, and how sure that is."
    : "The votes become preference pairs, on which a model can be trained.";
  $("notes").replaceChildren(...start.notes.map((note) => {
    const row = document.createElement("li");
    row.textContent = note;
    return row;
  }));
  $("judges").replaceChildren(...start.judges.map((name) => new Option(name)));
  const vote = keptVote();
  if (vote) await send(() => sendVote(vote, reportUnsent), SAVED[vote.choice]);
  else if (judge) await send(() => persist(() => stateOf(judge), showTrouble), "");
  else askName();
}

function askName() {
  showPhase("start");
  $("name").value = judge ?? start.judge;
  $("name").focus({ preventScroll: true });
  $("name").select();
  scrollTo(0, 0);
}

async function takeName(event) {
  event.preventDefault();
  judge = $("name").value.trim();
  if (!judge) return;
  sessionStorage.setItem(JUDGE, judge);
  $("guidelines").open = false; // they were read; what is opened again stays open
  await send(() => persist(() => stateOf(judge), showTrouble), "");
}

/** Wait for an answer of the server and show the state that it holds. */
async function send(request, message) {
  if (busy) return;
  setBusy(true);
  try {
    show(await request(), message);
    showTrouble("");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    showTrouble(error.message);
    await showAgain();
  } finally {
    setBusy(false);
  }
}

/** What there is to judge now; a name that is refused is asked for again. */
async function showAgain() {
  try {
    show(await persist(() => stateOf(judge), showTrouble), "");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    sessionStorage.removeItem(JUDGE);
    askName();
  }
}

function setBusy(value) {
  busy = value;
  document.body.dataset.busy = value;
}

function show(answer, message) {
  const isSame = state?.item?.id === answer.item?.id && state?.phase === answer.phase && !message;
  state = answer;
  $("who-name").textContent = judge;
  showPhase(answer.phase);
  const text = showProgress(answer, answer.phase);
  if (isSame) return;
  closeEdit();
  chooseEdit(false);
  $("note").value = "";
  showNote(false);
  if (answer.phase === "item") {
    showItem(answer.item, { edit: openEdit, save: saveEdit, close: closeEdit, typing: typeInEdit });
    scrollTo(0, 0);
    // Who votes by Tab and Enter stays there; else focus would mark what is done with.
    if (!document.activeElement.matches("[data-choice]"))
      $("item-heading").focus({ preventScroll: true });
    leaveUnread();
    $("status").textContent = `${message} ${text}.`.trim();
  } else if (answer.phase === "done") {
    $("done-heading").focus();
  } else {
    waitForResult(answer);
  }
}

function leaveUnread() {
  clearTimeout(unread);
  unread = setTimeout(() => {
    unread = 0;
    document.body.dataset.unread = false;
  }, UNREAD_MS);
  document.body.dataset.unread = true;
}

async function waitForResult(answer) {
  $("ended-heading").focus();
  showResult(answer.result);
  while (!answer.result) {
    await pause(500);
    const sentences = [`The result is in the terminal, and in ${start.folder}.`];
    answer = await stateOf(judge).catch(() => ({ result: { sentences, files: [], failed: false } }));
  }
  showResult(answer.result);
}

// --- votes ---

function vote(choice, edit = null) {
  if (busy || unread || state?.phase !== "item") return;
  const body = { vote: newId(), judge, item: state.item.id, choice, edit, note: $("note").value };
  send(() => sendVote(body, reportUnsent), edit ? "Saved with your version." : SAVED[choice]);
}

function reportUnsent(reason) {
  showTrouble(`${reason} Your vote is kept in this tab, and sent again until it is saved.`);
}

function undo() {
  if (!state?.can_undo) return;
  const body = { judge, undo: newId() };
  send(() => persist(() => ask("/api/undo", body), showTrouble), "Took your last vote back.");
}

// --- edits and notes ---

function chooseEdit(open) {
  choosing = open;
  showEditChoice(open);
}

function openEdit(side) {
  if (busy || state?.phase !== "item") return;
  chooseEdit(false);
  keepDraft();
  editing = side;
  showEdit(side, drafts.get(state.item.id + side) ?? original(side));
  showEditFault(side, "");
}

const original = (side) => state.item.answers[SIDES.indexOf(side)].text;
const box = () => $(editing).querySelector("textarea");

function keepDraft() {
  if (editing && $(editing)) drafts.set($(editing).dataset.item + editing, box().value);
}

function closeEdit() {
  if (!editing || !$(editing)) return;
  const side = editing;
  keepDraft();
  editing = null;
  showEdit(null);
  $(side).querySelector("header button").focus();
}

function saveEdit(event, side) {
  event.preventDefault();
  const text = box().value;
  if (!text.trim() || text.trim() === original(side).trim()) {
    showEditFault(side, "Change the text first, or close the box to vote without an edit.");
    box().focus();
    return;
  }
  const other = SIDES.find((name) => name !== side);
  const choice = $(side).querySelector("[name=edit-choice]:checked").value;
  vote({ own: side, other }[choice] ?? choice, { of: side, text });
}

function typeInEdit(event, side) {
  if (event.isComposing) return;
  if (event.key === "Escape") closeEdit();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) saveEdit(event, side);
}

function closeNote(event) {
  if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
  event.preventDefault();
  event.stopPropagation();
  showNote(false);
  $("note-button").focus({ preventScroll: true });
}

// --- the end ---

function askEnd() {
  const { done, total } = state;
  if (done >= total) {
    end();
    return;
  }
  const early = start.purpose === "verdict"
    ? "A verdict that is stopped early is not a test, and it will be marked as stopped by choice."
    : "Pairs are made of the votes so far.";
  $("confirm-text").textContent = `You have judged ${done} of ${total}. ${early} You can go on later with the same command.`;
  $("confirm").showModal();
}

function end() {
  $("confirm").close();
  send(() => persist(() => ask("/api/end", { judge }), showTrouble), "Ended.");
}

// --- keys and buttons ---

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.closest("input:not([type=radio], [type=checkbox]), textarea, dialog")) return;
  const key = event.key.toLowerCase();
  if (key === "escape") {
    if (choosing) chooseEdit(false);
    else closeEdit();
    return;
  }
  if (localStorage.getItem(KEYS_OFF)) return;
  const act = action(key);
  if (!act) return;
  event.preventDefault();
  act();
}

/** What a single key does now. */
function action(key) {
  if (key === "?") return () => $("help").showModal();
  if (key === "u" && ["item", "done"].includes(state?.phase)) return undo;
  if (document.body.dataset.phase !== "item" || editing) return null;
  if (choosing) return { 1: () => openEdit("first"), 2: () => openEdit("second") }[key];
  if (key === "e") return () => chooseEdit(true);
  if (key === "n") return () => showNote(true);
  return CHOICE_KEYS[key] && (() => vote(CHOICE_KEYS[key]));
}

/** A double click is one click. */
const onClick = (node, act) => node.addEventListener("click", (event) => event.detail < 2 && act());

function connect() {
  document.addEventListener("keydown", onKey);
  for (const node of document.querySelectorAll("[data-choice]")) onClick(node, () => vote(node.dataset.choice));
  for (const node of document.querySelectorAll("[data-edit]")) onClick(node, () => openEdit(node.dataset.edit));
  onClick($("undo"), undo);
  onClick($("done-undo"), undo);
  onClick($("edit"), () => chooseEdit(true));
  onClick($("edit-cancel"), () => chooseEdit(false));
  onClick($("note-button"), () => showNote($("note-row").hidden));
  $("note").addEventListener("keydown", closeNote);
  onClick($("who"), askName);
  onClick($("help-button"), () => $("help").showModal());
  onClick($("end-button"), askEnd);
  onClick($("finish"), end);
  onClick($("confirm-yes"), end);
  onClick($("confirm-no"), () => $("confirm").close());
  $("start-form").addEventListener("submit", takeName);
  $("keys-on").checked = !localStorage.getItem(KEYS_OFF);
  $("keys-on").addEventListener("change", () =>
    $("keys-on").checked ? localStorage.removeItem(KEYS_OFF) : localStorage.setItem(KEYS_OFF, "1"));
  $("guidelines").addEventListener("toggle", () =>
    $("guidelines").open ? sessionStorage.removeItem(FOLDED) : sessionStorage.setItem(FOLDED, "1"));
  addEventListener("beforeunload", (event) => {
    if (editing && box().value !== original(editing)) event.preventDefault();
  });
}

connect();
begin();
