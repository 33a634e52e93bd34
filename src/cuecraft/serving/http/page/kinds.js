// How the value of each kind of answers is shown; the names are those that the server gives with its prompts.
// `title` is a text or nodes, `brief` a text for the history, `parts` the nodes below the title.
import { made, percent } from "./dom.js";

const FIRST_SHOWN = 6; // scores; the others open on request
const NONE = "none of these";

// The name as the scores have it: a label that is true or 1 is written otherwise in JSON.
const likeliest = (scores) => Object.entries(scores).reduce((best, score) => (score[1] > best[1] ? score : best))[0];
const ranked = (scores) => Object.entries(scores).sort(([, one], [, other]) => other - one);
const rounded = (number) => String(Math.round(100 * number) / 100);
const shownSpan = ({ label, text }) => `${text} (${label})`;

export function isScores(value) {
  const scores = value !== null && typeof value === "object" ? Object.values(value) : [];
  return scores.length > 0 && scores.every(Number.isFinite);
}

function scoreRow([name, share], isChosen) {
  const fill = made("i");
  fill.style.width = percent(share);
  const row = made("li", { className: isChosen ? "score likeliest" : "score" });
  const track = made("span", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true"); // the number next to it says the same
  row.append(made("span", { className: "name" }, name), track, made("span", { className: "share" }, percent(share)));
  return row;
}

// Returns scores as bars: the first ones, and the others on request.
function scoreLists(scores, isChosen, noun) {
  const list = (some) => made("ul", { className: "scores" }, ...some.map((score) => scoreRow(score, isChosen(score[0]))));
  if (scores.length <= FIRST_SHOWN) return [list(scores)];
  const more = made("summary", {}, `${scores.length - FIRST_SHOWN} more ${noun}`);
  return [list(scores.slice(0, FIRST_SHOWN)), made("details", {}, more, list(scores.slice(FIRST_SHOWN)))];
}

// Returns bars of classes: few in their own order, many with the likeliest first. No bar is marked where `first` is undefined.
function classBars(scores, first) {
  const some = Object.keys(scores).length > FIRST_SHOWN ? ranked(scores) : Object.entries(scores);
  return scoreLists(some, (name) => name === first, "labels");
}

// An open set answers with a class, or with a label of its own (null where it has none) that is no option.
const isNone = ({ value, options }) => value === null || !Object.hasOwn(options, String(value));
const noneNote = ({ value, options }) =>
  `${value === null ? "" : `Answered as “${value}”: `}no label is likely enough; the likeliest is ${likeliest(options)}.`;

const chip = (name) => made("span", { className: "chip" }, name);

// A line from the least to the greatest number, with the interval and the number on it.
function scale(numbers, value, interval) {
  const [least, greatest] = [Math.min(...numbers), Math.max(...numbers)];
  const place = (number) => `${(100 * (number - least)) / Math.max(1e-9, greatest - least)}%`;
  const line = made("div", { className: "scale" });
  line.setAttribute("aria-hidden", "true"); // the words next to it say the same
  if (interval) {
    const band = made("i");
    band.style.left = place(interval[0]);
    band.style.right = `calc(100% - ${place(interval[1])})`;
    line.append(band);
  }
  const point = made("b");
  point.style.left = place(value);
  line.append(point);
  return made("div", { className: "ends" }, made("span", {}, rounded(least)), line, made("span", {}, rounded(greatest)));
}

// Offsets count characters of Unicode, as Python does; strings here count halves of some of them.
function marked(text, spans, shares) {
  const characters = [...text];
  const line = made("p", { className: "marked" });
  let at = 0;
  for (const { label, start, end } of spans) {
    const share = shares[`${label} ${start}-${end}`];
    const named = Number.isFinite(share) ? ` ${label} ${percent(share)}` : ` ${label}`;
    line.append(characters.slice(at, start).join(""));
    line.append(made("mark", {}, characters.slice(start, end).join(""), made("small", {}, named)));
    at = end;
  }
  line.append(characters.slice(at).join(""));
  return line;
}

// Returns the field that spans are of: the one whose characters they name.
function textOf(input, spans) {
  const texts = typeof input === "string" ? [input] : Object.values(input).filter((value) => typeof value === "string");
  const fits = (text) => spans.every(({ start, end, text: own }) => [...text].slice(start, end).join("") === own);
  return texts.find(fits) ?? texts[0];
}

export const KINDS = {
  labels: {
    has: (answer) => isScores(answer.probabilities),
    title: (answer) => likeliest(answer.probabilities),
    brief: (answer) => likeliest(answer.probabilities),
    parts: (answer) => classBars(answer.probabilities, likeliest(answer.probabilities)),
  },
  "open-set": {
    has: (answer) => isScores(answer.options),
    title: (answer) => (isNone(answer) ? NONE : likeliest(answer.options)),
    brief: (answer) => (isNone(answer) ? NONE : likeliest(answer.options)),
    parts(answer) {
      const bars = classBars(answer.options, isNone(answer) ? undefined : likeliest(answer.options));
      return isNone(answer) ? [made("p", { className: "note" }, noneNote(answer)), ...bars] : bars;
    },
  },
  choices: {
    has: (answer) => isScores(answer.options),
    title: (answer) => likeliest(answer.options), // the value may be a place
    brief: (answer) => likeliest(answer.options),
    parts: (answer) => scoreLists(ranked(answer.options), (name) => name === likeliest(answer.options), "options"),
  },
  multilabel: {
    has: (answer) => Array.isArray(answer.value) && isScores(answer.options),
    title: (answer) => (answer.value.length ? answer.value.map((name) => chip(String(name))) : "none"),
    brief: (answer) => answer.value.join(", ") || "none",
    parts(answer) {
      const chosen = new Set(answer.value.map(String));
      return scoreLists(ranked(answer.options), (name) => chosen.has(name), "labels");
    },
  },
  ordinal: {
    has: (answer) => Number.isFinite(answer.value) && isScores(answer.options),
    title: (answer) => rounded(answer.value),
    brief: (answer) => rounded(answer.value),
    parts(answer) {
      const scores = Object.entries(answer.options).sort(([one], [other]) => Number(one) - Number(other));
      const numbers = scores.map(([name]) => Number(name));
      const nearest = numbers.reduce((best, own) => (Math.abs(own - answer.value) < Math.abs(best - answer.value) ? own : best));
      const [low, high] = answer.interval ?? [];
      const text = answer.interval ? `Likely between ${rounded(low)} and ${rounded(high)}` : "";
      const line = numbers.every(Number.isFinite) ? [scale(numbers, answer.value, answer.interval)] : [];
      return [...line, made("p", { className: "note" }, text), ...scoreLists(scores, (name) => Number(name) === nearest, "numbers")];
    },
  },
  cloze: {
    has: (answer) => isScores(answer.options),
    title: (answer) => String(answer.value),
    brief: (answer) => String(answer.value),
    parts: (answer) => scoreLists(ranked(answer.options), (name) => name === String(answer.value), "answers"),
  },
  tokens: {
    has: (answer) => Array.isArray(answer.value) && Number.isFinite(answer.confidence),
    title: (answer) => `${answer.value.length} ${answer.value.length === 1 ? "span" : "spans"}`,
    brief: (answer) => answer.value.map(shownSpan).join(", ") || "no spans",
    parts: (answer, input) => [
      marked(textOf(input, answer.value), answer.value, answer.options ?? {}),
      made("p", { className: "note" }, `All words are as marked with ${percent(answer.confidence)}.`),
    ],
    isUnexplained: true, // words that are left out would move the places
  },
};
