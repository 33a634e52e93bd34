// How an answer is shown, by the fields that the wire gives it. To add a kind of answer: one more entry of KINDS.
import { made, percent } from "./dom.js";

const FIRST_SHOWN = 6; // scores; the others open on request

// `has` says whether an answer is of the kind, `title` and `parts` show it, `brief` is for the history.
const KINDS = [
  {
    has: (answer) => isScores(answer.probabilities),
    title: (answer) => likeliest(answer.probabilities),
    brief: (answer) => likeliest(answer.probabilities),
    parts: labelParts,
  },
  { has: () => true, title: () => "", brief: briefFields, parts: fieldParts }, // a kind that this page does not know yet
];

const kindOf = (answer) => KINDS.find((kind) => kind.has(answer));

function isScores(value) {
  const scores = value !== null && typeof value === "object" ? Object.values(value) : [];
  return scores.length > 0 && scores.every(Number.isFinite);
}

// The name as the scores have it: a label that is true or 1 is written otherwise in JSON.
const likeliest = (scores) => Object.entries(scores).reduce((best, score) => (score[1] > best[1] ? score : best))[0];

// Returns an answer in a few words, as the history has it.
export const brief = (answer) => kindOf(answer).brief(answer);

// Returns an answer as an element. `explain(button, shown)` replaces the button by the words that count.
export function shownAnswer(answer, explain) {
  const kind = kindOf(answer);
  const label = made("strong", { className: "label" }, kind.title(answer));
  const box = made("div", { className: "answer" });
  box.append(made("h3", {}, made("span", {}, answer.prompt), label));
  if (answer.truncated) {
    box.append(made("p", { className: "cut" }, "Truncated: the end of the text did not fit and was not read."));
  }
  box.append(...kind.parts(answer, explain));
  return box;
}

function scoreRow(name, share, isLikeliest) {
  const fill = made("i");
  fill.style.width = percent(share);
  const row = made("li", { className: isLikeliest ? "score likeliest" : "score" });
  const track = made("span", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true"); // the number next to it says the same
  row.append(made("span", { className: "name" }, name), track, made("span", { className: "share" }, percent(share)));
  return row;
}

function scoreList(scores, first) {
  return made("ul", { className: "scores" }, ...scores.map(([name, share]) => scoreRow(name, share, name === first)));
}

function labelParts(answer, explain) {
  const scores = Object.entries(answer.probabilities);
  const first = likeliest(answer.probabilities);
  const why = made("button", { type: "button", className: "why" }, "Words that count");
  why.addEventListener("click", () => explain(why, shownWords));
  if (scores.length <= FIRST_SHOWN) return [scoreList(scores, first), why];
  scores.sort(([, one], [, other]) => other - one);
  const more = made("summary", {}, `${scores.length - FIRST_SHOWN} more labels`);
  const others = made("details", {}, more, scoreList(scores.slice(FIRST_SHOWN), first));
  return [scoreList(scores.slice(0, FIRST_SHOWN), first), others, why];
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
  for (const { word, drop } of found.words) {
    const isFor = drop >= 0;
    const change = `${isFor ? "+" : "−"}${percent(Math.abs(drop))}`;
    const span = made("span", { className: "word", title: `${change} for ${found.label}` }, word);
    const strength = (0.55 * Math.abs(drop)) / most;
    span.style.backgroundColor = `rgb(var(${isFor ? "--for" : "--against"}) / ${strength.toFixed(3)})`;
    if (!isFor && strength > 0.1) span.classList.add("against"); // colour is not the only sign
    line.append(span, made("span", { className: "unseen" }, ` (${change})`), " ");
  }
  const text = `Green words speak for “${found.label}”, red and underlined ones against it: its probability with and without each word.`;
  return [line, made("p", { className: "note" }, text)];
}

export function shownGuard(guard) {
  if (!guard) return [];
  const reasons = guard.findings.map((finding) => finding.reason).join("; ");
  const isFlagged = guard.verdict !== "pass";
  const text = `Guard: ${guard.verdict}${reasons ? ` (${reasons})` : ""}`;
  return [made("p", { className: isFlagged ? "note flagged" : "note" }, text)];
}
