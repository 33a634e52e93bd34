"""Short programs that ask an exported folder without this library."""

from __future__ import annotations

from pathlib import Path

PYTHON, JAVASCRIPT = "example.py", "example.mjs"

_OPENED = {
    "onnx": (
        "import json, os, sys, numpy, onnxruntime, tokenizers",
        'graph = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        "graph.run(None, inputs)[0]",
    ),
    "openvino": (
        "import json, os, sys, numpy, openvino, tokenizers",
        'graph = openvino.Core().compile_model("model.xml", "CPU")',
        "graph(inputs)[0]",
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
span, prompts = manifest["span"], manifest["prompts"]
most = min((own["max_text_tokens"] for own in prompts if own["max_text_tokens"] is not None), default=None)
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
inputs = {{"input_ids": ids, "attention_mask": numpy.ones_like(ids)}}
if len(prompts) > 1:
    inputs["prompts"] = numpy.arange(len(prompts), dtype=numpy.int64)  # all; give the numbers of fewer to ask fewer
for prompt, shares in zip(prompts, numpy.reshape({run}, (len(prompts), -1))):
    print(prompt["name"], dict(zip(prompt["task"]["labels"], shares.tolist())))
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
const all = manifest.span.flatMap(idsOf), prompts = manifest.prompts;
const most = Math.min(...prompts.map((prompt) => prompt.max_text_tokens ?? all.length));
if (all.length > most && manifest.truncation === "refuse") fail(`${{all.length}} tokens; the graph takes ${{most}}`);
const ids = all.slice(0, most);
const tensor = (values, sizes) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), sizes);
const row = [1, ids.length], inputs = {{ input_ids: tensor(ids, row), attention_mask: tensor(ids.map(() => 1), row) }};
// All prompts; give the numbers of fewer to ask fewer.
if (prompts.length > 1) inputs.prompts = tensor([...prompts.keys()], [prompts.length]);
const {{ probabilities: {{ data }} }} = await graph.run(inputs), width = data.length / prompts.length;
prompts.forEach(({{ name, task }}, k) =>
  console.log(name, Object.fromEntries(task.labels.map((label, n) => [label, data[k * width + n]]))));
"""


def write_examples(folder: Path, kind: str) -> list[str]:
    """Write the examples of a format into a folder; return their names."""
    imports, graph, run = _OPENED[kind]
    (folder / PYTHON).write_text(_PYTHON.format(imports=imports, graph=graph, run=run), encoding="utf-8")
    if kind != "onnx":
        return [PYTHON]
    (folder / JAVASCRIPT).write_text(_JAVASCRIPT.format(), encoding="utf-8")
    return [PYTHON, JAVASCRIPT]
