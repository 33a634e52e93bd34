"use strict";

const MOST_TEXTS = 32;
const at = (id) => document.getElementById(id);

function made(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function asked(path, body) {
  const headers = { "content-type": "application/json" };
  const token = at("token").value.trim();
  if (token) headers.authorization = `Bearer ${token}`;
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const document = await response.json();
  if (!response.ok) {
    if (response.status === 401) at("access").open = true;
    throw new Error(document.error || `the server answered ${response.status}`);
  }
  return document;
}

function tell(error) {
  at("error").textContent = error ? error.message : "";
  at("error").hidden = !error;
}

async function loadPrompts() {
  try {
    const { model, prompts } = await asked("v1/prompts");
    at("model").textContent = model;
    at("prompts").replaceChildren(...prompts.map((prompt, number) => {
      const takesOne = prompt.fields.length === 1;
      const box = made("input", { type: "checkbox", name: "prompt", value: prompt.id });
      box.checked = takesOne && number < 4;
      box.disabled = !takesOne;
      const classes = takesOne ? prompt.classes.join(" / ") : `takes ${prompt.fields.join(", ")}: not on this page`;
      return made("label", { title: prompt.template }, box, prompt.id, made("small", {}, `${prompt.kind}, ${classes}`));
    }));
    at("classify").disabled = prompts.length === 0;
    tell(prompts.length ? null : new Error("no prompt is served yet"));
  } catch (error) {
    tell(error);
  }
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

function bar(name, share, isLikeliest) {
  const fill = made("i");
  fill.style.width = percent(share);
  const row = made("div", { className: isLikeliest ? "bar likeliest" : "bar" });
  row.append(fill, made("span", {}, name), made("span", {}, percent(share)));
  return row;
}

function shownWords(found) {
  const most = Math.max(1e-9, ...found.words.map(({ drop }) => Math.abs(drop)));
  const line = made("p", { className: "words" });
  for (const { word, drop } of found.words) {
    const span = made("span", { title: `${drop >= 0 ? "+" : "−"}${percent(Math.abs(drop))} for ${found.label}` }, word);
    const strength = (0.55 * Math.abs(drop)) / most;
    span.style.backgroundColor = `rgb(var(${drop >= 0 ? "--for" : "--against"}) / ${strength.toFixed(3)})`;
    line.append(span, " ");
  }
  const note = `green words speak for “${found.label}”, red ones against it: its probability without each of them`;
  return [line, made("p", { className: "note" }, note)];
}

function shownAnswer(text, answer) {
  const shares = Object.entries(answer.probabilities);
  const most = Math.max(...shares.map(([, share]) => share));
  const label = shares.find(([, share]) => share === most)[0];
  const box = made("div", { className: "answer" });
  const title = made("h3", {}, made("span", {}, answer.prompt), made("span", { className: "label" }, label));
  box.append(title, ...shares.map(([name, share]) => bar(name, share, name === label)));
  if (answer.truncated) box.append(made("p", { className: "note" }, "the text was cut at its end to fit the model"));
  const why = made("button", { type: "button", className: "why" }, "Words that count");
  why.addEventListener("click", async () => {
    why.disabled = true;
    try {
      why.replaceWith(...shownWords(await asked("v1/explain", { input: text, prompt: answer.prompt })));
    } catch (error) {
      why.disabled = false;
      tell(error);
    }
  });
  box.append(why);
  return box;
}

function shownGuard(guard) {
  if (!guard) return [];
  const reasons = guard.findings.map((finding) => finding.reason).join("; ");
  const isFlagged = guard.verdict !== "pass";
  const text = `Guard: ${guard.verdict}${reasons ? ` (${reasons})` : ""}`;
  return [made("p", { className: isFlagged ? "note flagged" : "note" }, text)];
}

async function classify(event) {
  event.preventDefault();
  if (at("classify").disabled) return undefined;
  const texts = at("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const prompts = [...document.querySelectorAll("[name=prompt]:checked")].map((box) => box.value);
  if (!texts.length) return tell(new Error("write a text first"));
  if (!prompts.length) return tell(new Error("choose a prompt first"));
  if (texts.length > MOST_TEXTS) return tell(new Error(`${texts.length} texts; this page takes ${MOST_TEXTS} at once`));
  at("classify").disabled = true;
  const begun = performance.now();
  try {
    const { results } = await asked("v1/classify", { inputs: texts, prompts, guard: "flag" });
    at("latency").textContent = `${results.length * prompts.length} answers in ${Math.round(performance.now() - begun)} ms`;
    at("results").replaceChildren(...results.map((result, number) => {
      const answers = made("div", { className: "answers" });
      answers.append(...(result.answers || []).map((answer) => shownAnswer(texts[number], answer)));
      return made("article", {}, made("h2", {}, texts[number]), ...shownGuard(result.guard), answers);
    }));
    tell(null);
  } catch (error) {
    tell(error);
  } finally {
    at("classify").disabled = false;
  }
}

at("form").addEventListener("submit", classify);
at("reload").addEventListener("click", loadPrompts);
at("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
loadPrompts();
