"""Exported folders; the oracle is `PromptClassifier.predict_proba`."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from conftest import make_causal
from cuecraft import PromptClassifier
from cuecraft.artifact import load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.core.errors import CuecraftWarning, DataError, ExportError, PromptError
from cuecraft.data import Record
from cuecraft.export import GraphRequest, export_graph, graph
from cuecraft.export import quantise as precision
from cuecraft.export import quantise as rows
from cuecraft.export.quantise import Recipe
from cuecraft.export.runtime import ExportedClassifier, ExportedModel, RuntimeOptions, read_export
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.registry import make_method
from cuecraft.serving.engine import Engine, EngineOptions
from cuecraft.serving.exported import ExportShelf
from cuecraft.task import Task, Template
from cuecraft.task.answers import ANSWERS
from serving import FIRST, KINDS, X, Y, classifiers
from test_answer_space import CASES, TEMPLATE, records

ROOT = Path(__file__).parents[1]
TEXTS = [*X, "love", "the film is a joy and then again a bore " * 3, "great actors", "  a dull   story"]
RECORDS = [Record({"text": text}) for text in TEXTS]
MANY = [Record({"text": f"{text} {other}"}) for text in X for other in TEXTS] * 3
#: What the quick suite exports; `slow` has all.
QUICK = [("masked", "deep")]
ALL = [
    (head, kind)
    for head in ("causal", "masked", "sequence")
    for kind in ("hard", "hard-first", "soft", "soft-first", "deep", "deep-first", "prefix", "lora")
    if head != "sequence" or not kind.startswith("hard")
]


def request(kind="onnx", precision="fp32", truncation="cut", texts=RECORDS, floor=0.99):
    return GraphRequest(kind, precision, truncation, texts, floor)


def exported(classifier, folder, wanted=None):
    return export_graph({"own": classifier.artifact_}, classifier.backbone_, Path(folder), wanted or request())


def check_same(classifier, folder):
    """Answers are those of the classifier, whatever stands together in a batch."""
    found = ExportedClassifier.load(folder)
    expected = classifier.predict_proba(TEXTS)
    assert np.abs(found.predict_proba(TEXTS) - expected).max() < 1e-4
    assert np.abs(found.predict_proba(TEXTS[:1]) - expected[:1]).max() < 1e-4
    assert np.abs(found.predict_proba(TEXTS[3:6]) - expected[3:6]).max() < 1e-4
    assert found.predict(TEXTS).tolist() == classifier.predict(TEXTS).tolist()
    assert found.classes_.tolist() == classifier.classes_.tolist()


@pytest.fixture(scope="module")
def graphs():
    """What was traced in these tests, by the classifier that it is of."""
    return {}


@contextmanager
def traced_once(classifier, graphs):
    """Let a classifier be traced once for all the tests that are about what follows."""
    trace = torch.onnx.export

    def traced(*arguments, **options):
        if id(classifier) not in graphs:
            graphs[id(classifier)] = trace(*arguments, **options)
        return graphs[id(classifier)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced)
        yield classifier


@pytest.fixture(scope="module")
def soft(causal, graphs, tmp_path_factory):
    """A soft prompt on the causal model, exported."""
    folder = tmp_path_factory.mktemp("exports") / "soft"
    with traced_once(classifiers(causal)["soft"], graphs) as classifier:
        exported(classifier, folder)
    return classifier, folder


@pytest.fixture
def one_graph(sequence, graphs):
    """A classifier whose graph is traced once."""
    with traced_once(classifiers(sequence)["soft"], graphs) as classifier:
        yield classifier


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(("head", "kind"), QUICK)
def test_an_exported_graph_answers_as_the_classifier(head, kind, request, tmp_path):
    classifier = classifiers(request.getfixturevalue(head))[kind]
    manifest = exported(classifier, tmp_path / "out")
    assert manifest.agreement.labels == 1
    assert manifest.agreement.texts == len(TEXTS)
    check_same(classifier, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("head", "kind"), [own for own in ALL if own not in QUICK])
def test_every_kind_of_prompt_and_head_answers_as_the_classifier(head, kind, request, tmp_path):
    test_an_exported_graph_answers_as_the_classifier(head, kind, request, tmp_path)


def test_a_prefix_long_label_words_and_a_calibration_are_in_the_graph(causal, tmp_path):
    words = {"negative": ["a bore", "cold"], "positive": ["a film of joy", "warm"]}
    method, options, _ = KINDS["prefix"]
    own = PromptClassifier(causal, method, template=FIRST, label_words=words, seed=3)
    classifier = own.set_params(method_options=options | {"calibration": "fitted"}).fit(X, Y, dev=(X, Y))
    assert classifier.prompt_.kind == "prefix"
    exported(classifier, tmp_path / "out")
    check_same(classifier, tmp_path / "out")


@pytest.mark.slow
def test_openvino_answers_as_the_classifier(masked, tmp_path):
    pytest.importorskip("openvino")
    classifier = classifiers(masked)["soft"]
    exported(classifier, tmp_path / "out", request("openvino"))
    check_same(classifier, tmp_path / "out")


@pytest.mark.parametrize("kind", ["soft", pytest.param("prefix", marks=pytest.mark.slow)])
def test_openvino_answers_for_many_short_texts_of_a_causal_model(kind, causal, graphs, tmp_path):
    # OpenVINO once summed wrongly in every row beyond as many as a row has tokens.
    pytest.importorskip("openvino")
    with traced_once(classifiers(causal)[kind], graphs) as classifier:
        exported(classifier, tmp_path / "out", request("openvino"))
    check_same(classifier, tmp_path / "out")
    texts = [f"{one} {other}" for one in ("a", "joy", "bore", "love", "plot") for other in "abcdefghijklmnop"] * 3
    found = ExportedClassifier.load(tmp_path / "out").predict_proba(texts)
    assert np.abs(found - classifier.predict_proba(texts)).max() < 1e-4
    with pytest.raises(ExportError, match="runs no OpenVINO export"):
        ExportedModel.load(tmp_path / "out", RuntimeOptions(device="cuda"))


@pytest.mark.slow
def test_half_precision_keeps_the_labels(sequence, tmp_path):
    classifier = classifiers(sequence)["soft"]
    manifest = exported(classifier, tmp_path / "out", request(precision="fp16"))
    assert manifest.agreement.labels == 1
    found = ExportedClassifier.load(tmp_path / "out").predict_proba(TEXTS)
    assert np.abs(found - classifier.predict_proba(TEXTS)).max() < 0.02


def test_the_manifest_says_what_is_there(soft):
    classifier, folder = soft
    manifest = read_export(folder)
    assert manifest.prompts[0].artifact_sha256 == classifier.artifact_.manifest.artifact_sha256
    assert set(manifest.files) == {"example.mjs", "example.py", "model.onnx", "tokenizer.json"}
    assert manifest.prompts[0].task.answers.classes == tuple(classifier.artifact_.classes)
    assert (manifest.padding, manifest.truncation, manifest.precision) == ("left", "cut", "fp32")
    assert [own.model_dump() for own in manifest.span] == [{"field": "text", "prefix": "", "strip": False}]
    assert manifest.tried[0].recipe == "float32"


def test_the_same_artifact_gives_the_same_bytes_and_tells_nothing_of_this_machine(soft, tmp_path):
    classifier, folder = soft
    exported(classifier, tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    own = (folder / "model.onnx").read_bytes()
    assert not [part for part in (b"site-packages", b".py", b"stack_trace", str(ROOT).encode()) if part in own]


def test_the_python_example_answers_as_the_classifier(soft):
    classifier, folder = soft
    command = [sys.executable, "example.py", "a joy from start"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    shares = dict(re.findall(r"'(\w+)': ([\d.]+)", told))
    expected = classifier.predict_proba(["a joy from start"])[0]
    assert [float(shares[name]) for name in classifier.classes_] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
def test_long_texts_are_cut_as_the_classifier_cuts_them(causal, tmp_path):
    template = "{text}{prompt: it was}{mask}"
    with pytest.warns(CuecraftWarning, match="cut at the end"):
        classifier = PromptClassifier(causal, "zero-shot", template=template, max_tokens=44).fit(X, Y)
    long = "the film is a joy and then again a bore and the plot is dull"
    exported(classifier, tmp_path / "cut")
    with pytest.warns(CuecraftWarning, match="cut at the end"):
        expected = classifier.predict_proba([long, "a joy"])
    with pytest.warns(CuecraftWarning, match="1 of 2 texts were cut at the end"):
        found = ExportedClassifier.load(tmp_path / "cut").predict_proba([long, "a joy"])
    assert np.abs(found - expected).max() < 1e-4
    exported(classifier, tmp_path / "refuse", request(truncation="refuse"))
    refusing = ExportedClassifier.load(tmp_path / "refuse")
    assert np.abs(refusing.predict_proba(["a joy"]) - expected[1:]).max() < 1e-4
    with pytest.raises(DataError, match=r"text 1 has \d+ tokens, and the graph takes \d+; shorten it"):
        refusing.predict_proba([long])
    model = refusing.model
    with pytest.raises(PromptError, match="a text has 500 tokens"):
        model.probabilities([(5,) * 500], list(model.prompts.values()))


def test_special_tokens_written_in_a_text_are_text(soft):
    classifier, folder = soft
    texts = ["a joy <s> </s>", "<pad> a bore"]
    found = ExportedClassifier.load(folder).predict_proba(texts)
    assert np.abs(found - classifier.predict_proba(texts)).max() < 1e-4


def test_an_engine_answers_with_exported_folders(soft):
    classifier, folder = soft
    engine = Engine(ExportShelf({"one": folder, "two": folder}, RuntimeOptions()), EngineOptions(max_wait_ms=0))
    try:
        answers = engine.ask([{"text": text} for text in TEXTS], ["one", "two"])
    finally:
        engine.close()
    expected = np.repeat(classifier.predict_proba(TEXTS), 2, axis=0)
    assert np.abs(np.array([own.probabilities for own in answers]) - expected).max() < 1e-4
    assert answers[0].version == read_export(folder).export_sha256


def test_over_http_an_exported_folder_refuses_fields_that_it_does_not_take(soft):
    pytest.importorskip("fastapi")
    from serving_here import Server

    server = Server(None, shelf=ExportShelf({"one": soft[1]}, RuntimeOptions()))
    try:
        wrong = server.ask("POST", "/v1/classify", {"inputs": {"body": "a joy"}, "prompts": "one"})
        right = server.ask("POST", "/v1/classify", {"inputs": {"text": "a joy"}, "prompts": "one"})
    finally:
        server.engine.close()
    assert (wrong.status_code, right.status_code) == (409, 200)
    assert "names field 'text'" in wrong.json()["error"]


NO_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "sklearn", "scipy", "safetensors", "pandas"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


def test_the_command_line_predicts_without_torch(soft):
    classifier, folder = soft
    code = NO_TORCH + "from cuecraft.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", str(folder), "--json", *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [list(own["probabilities"].values()) for own in json.loads(done.stdout)["predictions"]]
    assert np.abs(np.array(rows) - classifier.predict_proba(TEXTS)).max() < 1e-4


def test_what_serves_is_imported_without_torch():
    pytest.importorskip("fastapi")
    code = NO_TORCH + "import cuecraft.serving.http.server, cuecraft.serving.exported, cuecraft.serving.command"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def opposite(source, target, _):
    """Write the graph with the probabilities of two classes the wrong way round."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source)
    own = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["kept" if name == own else name for name in node.output]
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    model.graph.node.append(helper.make_node("Sub", ["one", "kept"], [own]))
    onnx.save(model, target / "model.onnx")


def test_int8_is_chosen_by_the_labels_that_it_keeps(one_graph, tmp_path, monkeypatch):
    classifier = one_graph
    good = precision._RECIPES["onnx", "fp32"][0].make
    wrong, right = Recipe("wrong", "model.onnx", opposite), Recipe("right", "model.onnx", good)
    monkeypatch.setitem(precision._RECIPES, ("onnx", "int8"), (wrong, right, wrong))
    manifest = exported(classifier, tmp_path / "out", request(precision="int8", texts=MANY))
    assert manifest.recipe == "right"
    assert [(own.recipe, own.labels) for own in manifest.tried] == [("wrong", 0), ("right", 1)]
    assert manifest.agreement.texts == len(MANY) - 128
    monkeypatch.setitem(precision._RECIPES, ("onnx", "int8"), (wrong,))
    with pytest.raises(ExportError, match=r"int8 keeps 0.0% of the labels of \d+ texts at best \(wrong\), and 99.0%"):
        exported(classifier, tmp_path / "refused", request(precision="int8", texts=MANY))
    told = exported(classifier, tmp_path / "told", request(precision="int8", texts=MANY, floor=None))
    assert (told.recipe, told.agreement.labels, told.agreement.floor) == ("wrong", 0, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "told"]
    with pytest.raises(ExportError, match="texts are too few to judge int8 by; give 228 or more"):
        exported(classifier, tmp_path / "few", request(precision="int8"))


def test_a_graph_in_float32_that_answers_otherwise_is_not_written(one_graph, tmp_path, monkeypatch):
    monkeypatch.setitem(precision._RECIPES, ("onnx", "fp32"), (Recipe("wrong", "model.onnx", opposite),))
    with pytest.raises(ExportError, match="answers otherwise than PyTorch"):
        exported(one_graph, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def not_a_number(source, target, _):
    """Write the graph so that it divides by zero."""
    opposite(source, target, _)
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(target / "model.onnx")
    own = model.graph.output[0].name
    model.graph.node[-1].output[:] = ["turned"]
    model.graph.initializer.append(helper.make_tensor("nan", TensorProto.FLOAT, [1], [float("nan")]))
    model.graph.node.append(helper.make_node("Mul", ["turned", "nan"], [own]))
    onnx.save(model, target / "model.onnx")


def test_a_graph_that_gives_no_numbers_keeps_no_label(one_graph, tmp_path, monkeypatch):
    classifier = one_graph
    bad, wrong = Recipe("bad", "model.onnx", not_a_number), Recipe("wrong", "model.onnx", opposite)
    monkeypatch.setitem(precision._RECIPES, ("onnx", "fp16"), (bad, wrong))
    manifest = exported(classifier, tmp_path / "out", request(precision="fp16", floor=None))
    assert manifest.recipe == "wrong"
    assert read_export(tmp_path / "out").tried[0].model_dump() == {
        "recipe": "bad",
        "labels": 0.0,
        "max_difference": 1.0,
    }
    monkeypatch.setitem(precision._RECIPES, ("onnx", "fp16"), (bad,))
    with pytest.raises(ExportError, match="fp16 gives no numbers for some texts"):
        exported(classifier, tmp_path / "deep" / "none", request(precision="fp16", floor=None))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_every_way_to_int8_multiplies_in_8_bits_also_where_layers_were_written_as_one_step(
    byte_tokenizer, tmp_path, monkeypatch
):
    # GPT-2's layers are a product and a sum in one node, which quantisers pass by.
    import onnx

    folder = tmp_path / "gpt2"
    make_causal(byte_tokenizer, "gpt2").save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    classifier = PromptClassifier(str(folder), "zero-shot", template="{text}{prompt: it was}{mask}").fit(X, Y)
    for number, recipe in enumerate(precision._RECIPES["onnx", "int8"]):
        monkeypatch.setitem(precision._RECIPES, ("onnx", "int8"), (recipe,))
        out = tmp_path / str(number)
        exported(classifier, out, request(precision="int8", texts=MANY, floor=None))
        graph = onnx.load(out / "model.onnx").graph
        weights = {own.name for own in graph.initializer if own.data_type == onnx.TensorProto.FLOAT}
        left = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in weights]
        narrowing = number == 2  # which leaves those in float32
        assert len(left) <= (2 if narrowing else 0) + 1, recipe.name


def test_a_weight_with_two_inputs_is_smoothed_for_each(tmp_path):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from cuecraft.export.quantise import quantise_rows

    chance = np.random.default_rng(0)
    weight = chance.normal(size=(32, 32)).astype(np.float32)
    wide = np.ones(32, np.float32)
    wide[:4] = 500.0
    table = chance.normal(size=(50, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["one"]),
        helper.make_node("Mul", ["one", "wide"], ["other"]),
        helper.make_node("MatMul", ["one", "weight"], ["a"]),
        helper.make_node("MatMul", ["other", "weight"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["probabilities"], axis=-1),
    ]
    held = [numpy_helper.from_array(v, n) for n, v in (("table", table), ("wide", wide), ("weight", weight))]
    sides = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "l"]) for n in ("input_ids", "attention_mask")]
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "g", sides, [out], held), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.save(model, tmp_path / "plain.onnx")
    ids = np.arange(48).reshape(4, 12)
    batches = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
    onnx.save(quantise_rows(tmp_path / "plain.onnx", batches, lambda *_: False), tmp_path / "rows.onnx")
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    plain, rows = (
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for name in ("plain.onnx", "rows.onnx")
    )
    for part in (slice(0, 32), slice(32, 64)):
        assert np.abs(rows - plain)[..., part].max() < 0.03 * np.abs(plain[..., part]).max()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(precision._RECIPES["onnx", "int8"])))
def test_every_way_to_int8_makes_a_graph_that_runs(number, causal, tmp_path, monkeypatch):
    recipe = precision._RECIPES["onnx", "int8"][number]
    monkeypatch.setitem(precision._RECIPES, ("onnx", "int8"), (recipe,))
    manifest = exported(classifiers(causal)["soft"], tmp_path / "out", request(precision="int8", texts=MANY, floor=0.8))
    assert manifest.recipe == recipe.name


@pytest.mark.parametrize(
    "wanted",
    [
        "fp32",
        pytest.param("fp16", marks=pytest.mark.slow),
        *(pytest.param(n, marks=pytest.mark.slow) for n in range(4)),
    ],
)
def test_weights_too_large_for_one_file_lie_next_to_the_graph(wanted, causal, graphs, tmp_path, monkeypatch):
    for module in (graph, precision, rows):
        monkeypatch.setattr(module, "ONE_FILE", 1000)
    if isinstance(wanted, int):
        recipe = precision._RECIPES["onnx", "int8"][wanted]
        monkeypatch.setitem(precision._RECIPES, ("onnx", "int8"), (recipe,))
        asked = request(precision="int8", texts=MANY, floor=None)
    else:
        asked = request(precision=wanted)
    with traced_once(classifiers(causal)["soft"], graphs) as classifier:
        manifest = exported(classifier, tmp_path / "out", asked)
    assert "model.onnx.data" in manifest.files
    found = ExportedClassifier.load(tmp_path / "out").predict_proba(TEXTS)
    assert np.abs(found - classifier.predict_proba(TEXTS)).max() < {"fp32": 1e-4, "fp16": 0.02}.get(wanted, 0.2)
    (tmp_path / "out" / "model.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"model\.onnx\.data is missing"):
        ExportedModel.load(tmp_path / "out")


def test_folders_that_are_damaged_are_told(soft, tmp_path):
    _, folder = soft
    graph = copied(folder, tmp_path / "graph")
    (graph / "model.onnx").write_bytes((graph / "model.onnx").read_bytes()[:-9])
    with pytest.raises(ExportError, match=r"model\.onnx is damaged"):
        ExportedModel.load(graph)
    missing = copied(folder, tmp_path / "missing")
    (missing / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer\.json is missing"):
        ExportedModel.load(missing)
    changed = copied(folder, tmp_path / "changed")
    text = (changed / "manifest.json").read_text()
    (changed / "manifest.json").write_text(text.replace('"padding": "left"', '"padding": "right"'))
    with pytest.raises(ExportError, match="was changed after it was written"):
        ExportedModel.load(changed)
    (changed / "manifest.json").write_text(text.replace('"export_version": 3', '"export_version": 9'))
    with pytest.raises(ExportError, match="has version 9"):
        ExportedModel.load(changed)
    (changed / "manifest.json").write_text(text.replace('"padding": "left"', '"padding": "up"'))
    with pytest.raises(ExportError, match="is damaged \\(at 'padding'\\)"):
        ExportedModel.load(changed)
    with pytest.raises(ExportError, match="no exported folder here"):
        ExportedModel.load(tmp_path / "nowhere")


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "tpu"])
def test_devices_that_are_not_there_are_told(soft, device):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    with pytest.raises(ExportError, match=r"onnxruntime-gpu|runs no exported graph"):
        ExportedModel.load(soft[1], RuntimeOptions(device=device))


KINDS_OF_ANSWERS = [kind for kind in CASES if kind in ANSWERS]


@pytest.fixture(params=KINDS_OF_ANSWERS)
def answering(request, causal, sequence, tmp_path):
    """An artifact of each kind of answers, with its rows and its backbone."""
    space, labels = CASES[request.param]()
    rows = records(labels, space)
    reader = sequence if space.at == "words" else causal
    template = "{prompt}{text}" if reader is sequence else TEMPLATE
    problem = make_problem(reader, Task(Template(template), space), rows, rows)
    method = make_method("deep-cue", {"epochs": 2, "learning_rate": 0.1})
    make_artifact(problem, method.fit(problem), method).save(tmp_path / "artifact")
    return load_artifact(tmp_path / "artifact"), rows, reader


def check_decisions(artifact, rows, reader, folder):
    """The graph decides as the artifact does, with its probabilities."""
    expected = Predictor.of(artifact, reader).decide(artifact.task.examples(rows))
    export_graph({"own": artifact}, reader, folder, request(texts=rows))
    found = ExportedClassifier.load(folder)
    for own, other in zip(found.decide(artifact.task.examples(rows)), expected, strict=True):
        assert own.value == (pytest.approx(other.value, abs=1e-3) if isinstance(other.value, float) else other.value)
        assert dict(own.options) == pytest.approx(dict(other.options), abs=1e-4)
        assert own.confidence == pytest.approx(other.confidence, abs=1e-3)


@pytest.mark.usefixtures("untraced")
def test_a_graph_decides_as_the_artifact_or_is_refused_for_every_kind_of_answers(answering, tmp_path):
    artifact, rows, reader = answering
    answers = artifact.task.answers
    if answers.asks_options or answers.at == "words":
        with pytest.raises(ExportError, match=r"brings options of its own|labels of its words"):
            export_graph({"own": artifact}, reader, tmp_path / "graph", request(texts=rows))
        return
    check_decisions(artifact, rows, reader, tmp_path / "graph")
    if not answers.adds_up:
        both = {"one": artifact, "two": artifact}
        with pytest.raises(ExportError, match="prompt 'one' answers with sets, each label by itself; export it alone"):
            export_graph(both, reader, tmp_path / "both", request(texts=rows))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("kind", ["multilabel", "ordinal", "open-set"])
def test_a_graph_with_a_class_head_decides_as_the_artifact(kind, sequence, tmp_path):
    """What a head says of a label has a level of its own, which shares of a whole would lose."""
    space, labels = CASES[kind]()
    rows = records(labels, space)
    problem = make_problem(sequence, Task(Template("{prompt}{text}"), space), rows, rows)
    method = make_method("linear-probe", {})
    artifact = make_artifact(problem, method.fit(problem), method)
    check_decisions(artifact, rows, sequence, tmp_path / "graph")
