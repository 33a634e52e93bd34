import { brief, shownAnswer, shownGuard } from "./answers.js";
import { WRITERS } from "./code.js";
import { at, made } from "./dom.js";
import * as history from "./history.js";
import { ask, RequestError } from "./wire.js";

const MOST_TEXTS = 32;
const FIRST_CHOSEN = 4; // prompts
const CLASSES_SHOWN = 6; // of a prompt, in its line

let prompts = new Map(); // id -> what the server says of it
let last = null; // the body of the last request that was answered
let isBusy = false;

const token = () => at("token").value.trim();
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function showError(error) {
  const box = at("error");
  box.hidden = !error;
  box.replaceChildren();
  if (!error) return;
  if (error.status === 401) at("access").open = true;
  box.append(made("p", {}, error.message));
  if (error.detail) box.append(made("p", { className: "note" }, `${error.status}: ${error.detail}`));
}

// ---- prompts

const boxes = () => [...document.querySelectorAll("[name=prompt]")];
const chosen = () => boxes().filter((box) => box.checked).map((box) => box.value);

function promptLine(prompt) {
  const box = made("input", { type: "checkbox", name: "prompt", value: prompt.id });
  box.addEventListener("change", showInputs);
  const classes = prompt.classes ?? [];
  const some = classes.slice(0, CLASSES_SHOWN).join(" / ") + (classes.length > CLASSES_SHOWN ? ` / … (${classes.length})` : "");
  const read = [...prompt.fields, ...(prompt.options ? [prompt.options] : [])];
  const fields = read.length > 1 ? `reads ${read.join(", ")}` : "";
  const answers = prompt.answers === "labels" ? "" : prompt.answers;
  const more = [prompt.kind, answers, fields, some].filter(Boolean).join(", ");
  return made("label", { title: prompt.template }, box, made("span", {}, prompt.id, " ", made("small", {}, more)));
}

function choose(ids) {
  for (const box of boxes()) box.checked = ids.includes(box.value);
  showInputs();
}

async function loadPrompts() {
  try {
    const found = await ask("v1/prompts", token());
    at("model").textContent = found.model;
    prompts = new Map(found.prompts.map((prompt) => [prompt.id, prompt]));
    at("prompts").replaceChildren(...found.prompts.map(promptLine));
    const plain = found.prompts.filter((prompt) => prompt.fields.length === 1 && !prompt.options);
    choose((plain.length ? plain : found.prompts.slice(0, 1)).slice(0, FIRST_CHOSEN).map((prompt) => prompt.id));
    showError(found.prompts.length ? null : new RequestError("The server has no prompts yet. Upload one, then load the page again."));
  } catch (error) {
    showError(error);
  }
}

// ---- texts: lines where each chosen prompt reads one field, otherwise one text with its fields by name
// Options that a text brings are a box too, with one a line.

const optionNames = () => new Set(chosen().map((id) => prompts.get(id).options).filter(Boolean));

function fieldNames() {
  const read = chosen().map((id) => prompts.get(id).fields);
  const options = [...optionNames()];
  const isPlain = read.every((names) => names.length === 1) && !options.length;
  return isPlain ? [] : [...new Set([...read.flat(), ...options])];
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

function showInputs() {
  const names = fieldNames();
  const before = [...document.querySelectorAll("[data-field]")];
  if (names.join("\n") === before.map((area) => area.dataset.field).join("\n")) return;
  const values = Object.fromEntries(before.map((area) => [area.dataset.field, area.value]));
  for (const area of before) area.parentElement.remove();
  for (const node of at("inputs").children) node.hidden = names.length > 0;
  for (const name of names) {
    const area = made("textarea", { rows: 2, maxLength: 200000, value: values[name] ?? "" });
    area.dataset.field = name;
    const isOptions = optionNames().has(name);
    if (isOptions) area.rows = 4;
    at("inputs").append(made("label", {}, isOptions ? `${name}, one per line` : name, area));
  }
}

function inputs() {
  const areas = [...document.querySelectorAll("[data-field]")];
  const options = optionNames();
  const value = (area) => (options.has(area.dataset.field) ? lines(area.value) : area.value.trim());
  const fields = Object.fromEntries(areas.map((area) => [area.dataset.field, value(area)]));
  if (areas.length) return Object.values(fields).some((own) => own.length) ? [fields] : [];
  return lines(at("texts").value);
}

function fill(entry) {
  choose(entry.prompts.filter((id) => prompts.has(id)));
  const [first] = entry.inputs;
  if (typeof first === "string") at("texts").value = entry.inputs.join("\n");
  else for (const area of document.querySelectorAll("[data-field]")) area.value = asLines(first[area.dataset.field]);
  showError(null);
  (document.querySelector("[data-field]") ?? at("texts")).focus();
}

const asLines = (value) => (Array.isArray(value) ? value.join("\n") : (value ?? ""));
const inOneLine = ([name, value]) => `${name}: ${Array.isArray(value) ? value.join(" | ") : value}`;
const written = (input) => (typeof input === "string" ? input : Object.entries(input).map(inOneLine).join("\n"));
const kindOf = (answer) => prompts.get(answer.prompt)?.answers;

// ---- answers

function explainer(input, answer) {
  return async (button, shown) => {
    if (button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    try {
      const nodes = shown(await ask("v1/explain", token(), { input, prompt: answer.prompt }));
      nodes[0].tabIndex = -1; // the focus goes on from here, since its button is gone
      button.replaceWith(...nodes);
      nodes[0].focus();
      showError(null);
    } catch (error) {
      button.ariaBusy = "false";
      showError(error);
    }
  };
}

function shownResult(result, input) {
  const answers = made("div", { className: "answers" });
  answers.append(...(result.answers ?? []).map((answer) => shownAnswer(answer, kindOf(answer), input, explainer(input, answer))));
  return made("article", {}, made("h2", {}, written(input)), ...shownGuard(result.guard), answers);
}

function refusal(texts, ids) {
  if (!ids.length) return "Choose a prompt first.";
  if (!texts.length) return "Write a text first.";
  return texts.length > MOST_TEXTS ? `These are ${texts.length} texts; this page takes ${MOST_TEXTS} at once.` : "";
}

async function classify(event) {
  event.preventDefault();
  if (isBusy) return;
  const body = { inputs: inputs(), prompts: chosen(), guard: "flag" };
  const refused = refusal(body.inputs, body.prompts);
  if (refused) {
    showError(new RequestError(refused));
    return;
  }
  isBusy = true; // the button is not disabled: it would lose the focus
  at("classify").ariaBusy = "true";
  at("status").textContent = "Classifying…";
  const begun = performance.now();
  try {
    const { results } = await ask("v1/classify", token(), body);
    const count = results.reduce((sum, result) => sum + (result.answers ?? []).length, 0);
    at("status").textContent = `${counted(count, "answer")} in ${Math.round(performance.now() - begun)} ms`;
    at("results").replaceChildren(...results.map((result, number) => shownResult(result, body.inputs[number])));
    showError(null);
    last = body;
    at("code").hidden = false;
    at("source").hidden = true;
    at("copied").textContent = "";
    const labels = results.map((result) => (result.answers ?? []).map((answer) => brief(answer, kindOf(answer))));
    history.add({ inputs: body.inputs, prompts: body.prompts, labels, when: Date.now() });
    showHistory();
  } catch (error) {
    at("status").textContent = "";
    showError(error);
  } finally {
    isBusy = false;
    at("classify").ariaBusy = "false";
  }
}

// ---- history and code

function historyLine(entry) {
  const more = entry.inputs.length > 1 ? ` and ${counted(entry.inputs.length - 1, "more text")}` : "";
  const labels = entry.prompts.map((id, number) => `${id}: ${entry.labels[0]?.[number] ?? "no answer"}`).join(", ");
  const when = made("time", {}, new Date(entry.when).toLocaleString([], { dateStyle: "short", timeStyle: "short" }));
  const text = made("span", { className: "asked" }, written(entry.inputs[0]));
  const button = made("button", { type: "button" }, text, made("small", {}, `${labels}${more}`), when);
  button.addEventListener("click", () => fill(entry));
  return made("li", {}, button);
}

function showHistory() {
  const entries = history.all();
  at("history").replaceChildren(...entries.map(historyLine));
  at("clear").hidden = entries.length === 0;
}

async function copy(event) {
  const kind = event.currentTarget.dataset.code;
  const source = at("source");
  source.value = WRITERS[kind](new URL("v1/classify", location.href).href, last, Boolean(token()));
  source.rows = source.value.split("\n").length;
  source.hidden = false;
  try {
    await navigator.clipboard.writeText(source.value);
    at("copied").textContent = "Copied.";
  } catch {
    source.select(); // browsers give pages without TLS no clipboard
    at("copied").textContent = "Press Ctrl + C to copy.";
    source.focus();
  }
}

at("form").addEventListener("submit", classify);
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("reload").addEventListener("click", loadPrompts);
at("token").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault(); // the token opens the prompts; it does not send texts
    loadPrompts();
  }
});
at("clear").addEventListener("click", () => {
  history.clear();
  showHistory();
  at("asked").focus();
});
for (const button of document.querySelectorAll("[data-code]")) button.addEventListener("click", copy);
showHistory();
loadPrompts();
