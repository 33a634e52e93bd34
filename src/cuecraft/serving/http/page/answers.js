// How an answer is shown: by its kind, or by the fields that the wire gives it where the page does not know its kind.
import { made, percent } from "./dom.js";
import { KINDS } from "./kinds.js";

const UNKNOWN = { title: () => "", brief: briefFields, parts: fieldParts, isUnexplained: true };

// `named` is the kind as the server calls it; servers before 0.1 name none, and answer with labels.
function kindOf(answer, named = "labels") {
  const kind = KINDS[named];
  return kind?.has(answer) ? kind : UNKNOWN;
}

// Returns an answer in a few words, as the history has it.
export const brief = (answer, named) => kindOf(answer, named).brief(answer);

// Returns an answer to an input as an element. `explain(button, shown)` replaces the button by the words that count.
export function shownAnswer(answer, named, input, explain) {
  const kind = kindOf(answer, named);
  const title = kind.title(answer);
  const label = made("strong", { className: "label" }, ...(Array.isArray(title) ? title : [title]));
  const box = made("div", { className: "answer" });
  box.append(made("h3", {}, made("span", {}, answer.prompt), label));
  if (answer.truncated) {
    box.append(made("p", { className: "cut" }, "Truncated: the end of the text did not fit and was not read."));
  }
  box.append(...kind.parts(answer, input));
  if (!kind.isUnexplained) {
    const why = made("button", { type: "button", className: "why" }, "Words that count");
    why.addEventListener("click", () => explain(why, shownWords));
    box.append(why);
  }
  return box;
}

const ENVELOPE = new Set(["prompt", "version", "truncated"]);
const ownFields = (answer) => Object.entries(answer).filter(([name]) => !ENVELOPE.has(name));
const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function briefFields(answer) {
  const [first] = ownFields(answer);
  return first ? written(first[1]).slice(0, 80) : "no answer";
}

function fieldParts(answer) {
  const pairs = ownFields(answer).flatMap(([name, value]) => [made("dt", {}, name), made("dd", {}, written(value))]);
  return [made("dl", {}, ...pairs)];
}

function shownWords(found) {
  const most = Math.max(1e-9, ...found.words.map(({ drop }) => Math.abs(drop)));
  const line = made("p", { className: "words" });
  const option = found.option ?? found.label;
  for (const { word, drop } of found.words) {
    const isFor = drop >= 0;
    const change = `${isFor ? "+" : "−"}${percent(Math.abs(drop))}`;
    const span = made("span", { className: "word", title: `${change} for ${option}` }, word);
    const strength = (0.55 * Math.abs(drop)) / most;
    span.style.backgroundColor = `rgb(var(${isFor ? "--for" : "--against"}) / ${strength.toFixed(3)})`;
    if (!isFor && strength > 0.1) span.classList.add("against"); // colour is not the only sign
    line.append(span, made("span", { className: "unseen" }, ` (${change})`), " ");
  }
  const text = `Green words speak for “${option}”, red and underlined ones against it: its probability with and without each word.`;
  return [line, made("p", { className: "note" }, text)];
}

export function shownGuard(guard) {
  if (!guard) return [];
  const reasons = guard.findings.map((finding) => finding.reason).join("; ");
  const isFlagged = guard.verdict !== "pass";
  const text = `Guard: ${guard.verdict}${reasons ? ` (${reasons})` : ""}`;
  return [made("p", { className: isFlagged ? "note flagged" : "note" }, text)];
}
