"""Short programs that ask an exported folder without this library."""

from __future__ import annotations

from pathlib import Path

PYTHON, JAVASCRIPT = "example.py", "example.mjs"

_OPENED = {
    "onnx": (
        "import json, os, sys, numpy, onnxruntime, tokenizers",
        'graph = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        'graph.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0]',
    ),
    "openvino": (
        "import json, os, sys, numpy, openvino, tokenizers",
        'graph = openvino.Core().compile_model("model.xml", "CPU")',
        'graph({"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0]',
    ),
}

_PYTHON = """# python example.py 'a text'            or, of several fields: python example.py name=text name=text
{imports}
asked = sys.argv[1:] or sys.exit("give a text")
os.chdir(os.path.dirname(os.path.abspath(__file__)))
manifest = json.load(open("manifest.json", encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
{graph}
tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
span, most = manifest["span"], manifest["max_text_tokens"]
names = [part["field"] for part in span if "field" in part]
fields = dict(part.split("=", 1) for part in asked) if len(names) > 1 else {{names[0]: asked[0]}}
def ids_of(part):
    if "ids" in part:
        return part["ids"]
    text = fields[part["field"]]
    text = part["prefix"] + (text.lstrip() if part["strip"] else text)
    return tokenizer.encode(text, add_special_tokens=False).ids
ids = sum(map(ids_of, span), [])
if most is not None and len(ids) > most and manifest["truncation"] == "refuse":
    sys.exit(f"the text has {{len(ids)}} tokens, and the graph takes {{most}}")
ids = numpy.array([ids[:most]], dtype=numpy.int64)
print(dict(zip(manifest["task"]["labels"], {run}.tolist())))
"""

_JAVASCRIPT = """// npm install onnxruntime-node @huggingface/tokenizers; node example.mjs 'a text'
import {{ readFileSync }} from "node:fs";
import {{ fileURLToPath }} from "node:url";
import ort from "onnxruntime-node";
import {{ Tokenizer }} from "@huggingface/tokenizers";
const at = (name) => fileURLToPath(new URL(name, import.meta.url));
const read = (name) => JSON.parse(readFileSync(at(name)));
const fail = (why) => (console.error(why), process.exit(1));
const manifest = read("manifest.json"), rules = read("tokenizer.json");
rules.added_tokens = rules.added_tokens.filter((token) => !token.special); // in a text they are text
const tokenizer = new Tokenizer(rules, {{}});
const graph = await ort.InferenceSession.create(at("model.onnx"));
const asked = process.argv.slice(2), names = manifest.span.flatMap((part) => part.field ?? []);
if (!asked.length) fail("give a text");
const fields = Object.fromEntries(names.length > 1 ? asked.map((a) => a.split(/=(.*)/s)) : [[names[0], asked[0]]]);
const textOf = (part) => fields[part.field] ?? fail(`give ${{part.field}}=text`);
const written = (part) => part.prefix + (part.strip ? textOf(part).trimStart() : textOf(part));
const idsOf = (part) => part.ids ?? tokenizer.encode(written(part), {{ add_special_tokens: false }}).ids;
const all = manifest.span.flatMap(idsOf), most = manifest.max_text_tokens ?? all.length;
if (all.length > most && manifest.truncation === "refuse") fail(`${{all.length}} tokens; the graph takes ${{most}}`);
const ids = all.slice(0, most);
const tensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
const {{ probabilities }} = await graph.run({{ input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)) }});
console.log(Object.fromEntries(manifest.task.labels.map((label, n) => [label, probabilities.data[n]])));
"""


def write_examples(folder: Path, kind: str) -> list[str]:
    """Write the examples of a format into a folder; return their names."""
    imports, graph, run = _OPENED[kind]
    (folder / PYTHON).write_text(_PYTHON.format(imports=imports, graph=graph, run=run), encoding="utf-8")
    if kind != "onnx":
        return [PYTHON]
    (folder / JAVASCRIPT).write_text(_JAVASCRIPT.format(), encoding="utf-8")
    return [PYTHON, JAVASCRIPT]
