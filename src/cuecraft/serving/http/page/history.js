// What was asked, newest first, in this browser's storage; in memory alone where storage is switched off.

const KEY = "cuecraft.history";
const MOST = 50; // entries

let entries = read();

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) || "[]");
    return Array.isArray(found) ? found.filter(isEntry) : [];
  } catch {
    return [];
  }
}

// Another version of the page may have stored something else.
function isEntry(entry) {
  const lists = [entry?.inputs, entry?.prompts, entry?.labels];
  const isText = (input) => typeof input === "string" || (typeof input === "object" && input !== null);
  return lists.every(Array.isArray) && entry.inputs.length > 0 && entry.inputs.every(isText);
}

function store() {
  for (let kept = entries.length; kept > 0; kept = Math.floor(kept / 2)) {
    try {
      localStorage.setItem(KEY, JSON.stringify(entries.slice(0, kept)));
      return;
    } catch {
      // storage is full: half of the entries may fit
    }
  }
}

export const all = () => entries;

// An entry is { inputs, prompts, labels, when }: a repeated question replaces the earlier one.
export function add(entry) {
  const question = ({ inputs, prompts }) => JSON.stringify([inputs, prompts]);
  entries = [entry, ...entries.filter((other) => question(other) !== question(entry))].slice(0, MOST);
  store();
}

export function clear() {
  entries = [];
  try {
    localStorage.removeItem(KEY);
  } catch {
    // nothing was stored
  }
}
