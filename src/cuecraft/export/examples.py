"""Short programs that ask an exported folder without this library."""

from __future__ import annotations

from pathlib import Path

PYTHON, JAVASCRIPT = "example.py", "example.mjs"

_OPENED = {
    "onnx": (
        "import json, sys, numpy, onnxruntime, tokenizers",
        'graph = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        'graph.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0]',
    ),
    "openvino": (
        "import json, sys, numpy, openvino, tokenizers",
        'graph = openvino.Core().compile_model("model.xml", "CPU")',
        'graph({"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0]',
    ),
}

_PYTHON = """# python example.py 'a text'            or, of several fields: python example.py name=text name=text
{imports}
manifest, tokenizer = json.load(open("manifest.json")), tokenizers.Tokenizer.from_file("tokenizer.json")
{graph}
tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
asked, span = sys.argv[1:], manifest["span"]
fields = dict(part.split("=", 1) for part in asked) if len(asked) > 1 else {{span[0]["field"]: asked[0]}}
def ids_of(part):
    text = part.get("prefix", "") + fields.get(part.get("field"), "")
    return part.get("ids") or tokenizer.encode(text, add_special_tokens=False).ids
ids = numpy.array([sum(map(ids_of, span), [])[: manifest["max_text_tokens"]]], dtype=numpy.int64)
print(dict(zip(manifest["task"]["labels"], {run}.tolist())))
"""

_JAVASCRIPT = """// npm install onnxruntime-node @huggingface/tokenizers; node example.mjs 'a text'
import {{ readFileSync }} from "node:fs";
import ort from "onnxruntime-node";
import {{ Tokenizer }} from "@huggingface/tokenizers";
const read = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url)));
const manifest = read("manifest.json"), tokenizer = new Tokenizer(read("tokenizer.json"), {{}});
const graph = await ort.InferenceSession.create(new URL("model.onnx", import.meta.url).pathname);
const asked = process.argv.slice(2), first = manifest.span[0].field;
const fields = Object.fromEntries(asked.length > 1 ? asked.map((a) => a.split(/=(.*)/s)) : [[first, asked[0]]]);
const textOf = (p) => p.prefix + fields[p.field];
const idsOf = (p) => p.ids ?? tokenizer.encode(textOf(p), {{ add_special_tokens: false }}).ids;
const ids = manifest.span.flatMap(idsOf).slice(0, manifest.max_text_tokens ?? undefined);
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
