"""From a folded module to an ONNX file, and the short programs next to it that ask it without this library."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cuecraft.core.errors import ExportError, named
from cuecraft.export.folding import Folded, FoldedSeveral
from cuecraft.export.runtime.manifest import INPUTS, PROMPTS

GRAPH, EXTERNAL = "model.onnx", "model.onnx.data"
_OUTPUT = "probabilities"
_OPSET = 18
ONE_FILE = 2**31 - 2**24  # a protobuf message ends at 2 GiB; some of it is the graph itself
#: Names of sizes that are free, with a size to trace with: any but 0 and 1, which would be taken for fixed.
_TEXTS, _ASKED = {"batch": 3, "length": 7}, {"asked": 5}


def require_onnx() -> None:
    """Raise ExportError where the packages that write graphs are not installed."""
    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ExportError("export as a graph needs further packages: pip install 'cuecraft[export]'")


def write_graph(folded: Folded | FoldedSeveral, folder: Path) -> Path:
    """Write a module as a graph with any batch size and length, and any number of prompts asked; return its file.

    Weights of more than 2 GB are next to it, in `model.onnx.data`.

    Raises:
        ExportError: the model cannot be traced.
    """
    inputs = dict.fromkeys(INPUTS, _TEXTS) | ({PROMPTS: _ASKED} if isinstance(folded, FoldedSeveral) else {})
    target = folder / GRAPH
    # A tensor for each: inputs that are one object are traced as one input.
    sample = tuple(torch.ones(tuple(sizes.values()), dtype=torch.long) for sizes in inputs.values())
    with torch.no_grad(), _quietly():
        try:
            program = torch.onnx.export(
                folded,
                sample,
                dynamo=True,
                input_names=list(inputs),
                output_names=[_OUTPUT],
                dynamic_shapes=tuple(dict(enumerate(sizes)) for sizes in inputs.values()),
                opset_version=_OPSET,
                verbose=False,
            )
        except Exception as error:  # tracing fails in ways of its own for each architecture
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(
                f"a {folded.model.config.model_type} cannot be written as an ONNX graph ({first}); export its prompt "
                f"alone with {named('format')} safetensors, or to PEFT"
            ) from error
        assert program is not None
        _without_gemm(program.model)
        _without_traces(program.model)
        program.save(target, external_data=_weight_bytes(program.model) > ONE_FILE)
    return target


def _without_gemm(model: Any) -> None:
    """Write products of a matrix with a weight and a bias as two steps: what makes 8 bits knows the first alone."""
    import onnx_ir as ir

    for node in list(model.graph):
        plain = {own.name: own.value for own in node.attributes.values()}
        is_plain = plain.get("alpha", 1.0) == plain.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not is_plain or plain.get("transA", 0) or plain.get("transB", 0):
            continue
        product = ir.node("MatMul", node.inputs[:2])
        parts = [product]
        if len(node.inputs) > 2:
            parts.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], parts, list(node.outputs), list(parts[-1].outputs)
        )


def _weight_bytes(model: Any) -> int:
    return sum(own.const_value.nbytes for own in model.graph.initializers.values())


def _without_traces(model: Any) -> None:
    """Take out which line of which file on this machine each node comes from: it is of no use elsewhere."""
    graph = model.graph
    for held in (model, graph, *graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        held.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter prints off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [own.level for own in loggers]
    for own in loggers:
        own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for own, level in zip(loggers, levels, strict=True):
            own.setLevel(level)


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
    answers = prompt["task"]["answers"]
    options = answers.get("labels") or answers.get("numbers") or answers["candidates"]
    print(prompt["name"], dict(zip(options, shares.tolist())))
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
const optionsOf = ({{ labels, numbers, candidates }}) => labels ?? numbers ?? candidates;
prompts.forEach(({{ name, task }}, k) =>
  console.log(name, Object.fromEntries(optionsOf(task.answers).map((own, n) => [own, data[k * width + n]]))));
"""


def write_examples(folder: Path, kind: str) -> list[str]:
    """Write the examples of a format into a folder; return their names."""
    imports, graph, run = _OPENED[kind]
    (folder / PYTHON).write_text(_PYTHON.format(imports=imports, graph=graph, run=run), encoding="utf-8")
    if kind != "onnx":
        return [PYTHON]
    (folder / JAVASCRIPT).write_text(_JAVASCRIPT.format(), encoding="utf-8")
    return [PYTHON, JAVASCRIPT]
