"""The server: answers over HTTP are the classifiers' own; mistakes in a request are reported in one line."""

import ast
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cuecraft.serving.http
from conftest import examples
from cuecraft.serving.requests import RequestLimits
from serving import X, classifiers
from serving_here import Server, classify


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
def everything(request):
    backbone = request.getfixturevalue(request.param)
    server = Server(backbone, tuple(classifiers(backbone)))
    yield server, {name: own.predict_proba(X) for name, own in classifiers(backbone).items()}
    server.engine.close()


@examples(20)
@given(data=st.data())
def test_answers_equal_predict_proba_whatever_the_batch(everything, data):
    server, expected = everything
    one = st.tuples(
        st.lists(st.integers(0, len(X) - 1), min_size=1, max_size=3),
        st.lists(st.sampled_from(list(expected)), min_size=1, max_size=3, unique=True),
    )
    asked = data.draw(st.lists(one, min_size=1, max_size=5))
    responses = server.all([classify([X[row] for row in rows], names) for rows, names in asked])
    for response, (rows, names) in zip(responses, asked, strict=True):
        assert response.status_code == 200
        results = response.json()["results"]
        assert len(results) == len(rows)
        for row, result in zip(rows, results, strict=True):
            assert [answer["prompt"] for answer in result["answers"]] == names
            for answer in result["answers"]:
                own = expected[answer["prompt"]][row]
                assert np.allclose(list(answer["probabilities"].values()), own, atol=1e-5)
                assert answer["label"] == list(answer["probabilities"])[int(own.argmax())]


def test_one_text_and_one_prompt_need_no_list_and_no_id(serve):
    server = serve(("hard",))
    plain = server.ask(*classify(X[0])).json()
    assert plain == server.ask(*classify([{"text": X[0]}], ["hard"])).json()
    assert plain["model"] == server.engine.shelf.backbone.name
    (answer,) = plain["results"][0]["answers"]
    names = {"prompt", "version", "value", "confidence", "options", "label", "probabilities", "truncated"}
    assert set(answer) == names


def test_top_k_counts_the_likeliest(serve):
    server = serve(("hard",))
    for count in (1, 1.0):  # both are whole numbers to JSON
        (answer,) = server.ask(*classify(X[0], top_k=count)).json()["results"][0]["answers"]
        assert list(answer["probabilities"]) == [answer["label"]]
        assert answer["options"] == answer["probabilities"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "invalid json"),
        ({"inputs": 5}, "at 'inputs': input should be a valid string"),
        ({"inputs": [], "prompts": "hard"}, "inputs is empty"),
        ({"inputs": [" "], "prompts": "hard"}, "input 1: 'text' is empty"),
        ({"inputs": ["a", {"text": 5}], "prompts": "hard"}, "input 2: 'text' is int, not text"),
        ({"inputs": {"text": None}, "prompts": "hard"}, "input 1: 'text' is missing"),
        ({"inputs": {"text": ["a"]}, "prompts": "hard"}, "input 1: 'text' is list, not text"),
        (b'{"inputs": "a", "prompts": "hard", "inputs": "b"}', "the request's body has 'inputs' more than once"),
        (b'{"inputs": "a", "prompts": "hard", "prompts": "hard"}', "the request's body has 'prompts' more than once"),
        (b'{"inputs": {"text": "a", "t\\u0065xt": "b"}, "prompts": "hard"}', "input 1 has 'text' more than once"),
        (b'{"inputs": ["a", {"text": "a", "text": "a"}], "prompts": "hard"}', "input 2 has 'text' more than once"),
        ({"inputs": "a", "prompt": "hard"}, "at 'prompt': extra inputs are not permitted"),
        ({"inputs": "a"}, "name one of the prompts: hard, soft"),
        ({"inputs": "a", "prompts": ["hard", "hard"]}, "name each prompt once"),
        ({"inputs": "a", "prompts": []}, "nothing was asked for"),
        ({"inputs": ["a"] * 4, "prompts": "hard"}, "4 inputs, and a request may have 3"),
        ({"inputs": "a" * 101, "prompts": "hard"}, "input 1 has 101 characters, and 100 may be sent"),
        ({"inputs": "a", "prompts": "hard", "top_k": 0}, "at 'top_k'"),
        (b'{"inputs": "\\ud800", "prompts": "hard"}', "invalid json"),
        (b'{"inputs": NaN}', "at 'inputs': input should be a valid string"),
        (b"[" * 5000, "recursion limit"),
        ({"inputs": "a", "prompts": "hard", "top_k": True}, "at 'top_k'"),
        ({"inputs": "a", "prompts": "hard", "top_k": 1.5}, "at 'top_k'"),
        ({"inputs": "\u0000", "prompts": "hard", "timeout_ms": "5"}, "at 'timeout_ms'"),
    ],
)
def test_a_mistake_is_told_in_one_line(serve, body, told):
    response = serve(limits=RequestLimits(inputs=3, characters=100)).ask("POST", "/v1/classify", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert told in error
    assert "\n" not in error


UNREAD = ["", None, 5, 1.5, True, [], {}, ["a"], {"a": {"a": []}}, "a" * 200]


def test_fields_that_no_prompt_reads_are_not_looked_at(serve):
    server = serve(limits=RequestLimits(characters=100), logs_texts=True)
    expected = server.ask(*classify("a", ["hard", "soft"])).json()
    for value in UNREAD:
        fields = {"more": value, "text": "a", " ": value}
        assert server.ask(*classify([fields], ["hard", "soft"])).json() == expected
        assert server.ask("POST", "/v1/explain", {"input": fields, "prompt": "hard"}).status_code == 200
    for value in (b'{"a": 1, "a": 2}', b"9" * 4000):
        body = b'{"inputs": {"text": "a", "more": ' + value + b'}, "prompts": ["hard", "soft"]}'
        assert server.ask("POST", "/v1/classify", body).json() == expected
    twice = server.ask("POST", "/v1/explain", b'{"input": {"text": "a", "text": "b"}, "prompt": "hard"}')
    assert (twice.status_code, "input 1 has 'text'" in twice.json()["error"]) == (400, True)
    none = server.ask(*classify([{}], "hard"))
    assert (none.status_code, "input 1 has no fields;" in none.json()["error"]) == (409, True)


WRONG_FIELDS = [{"title": "a", "body": "b"}, {"body": "b"}, {"Text": "b"}, {"": "b"}]


@pytest.mark.parametrize("fields", WRONG_FIELDS)
@pytest.mark.parametrize("more", [{}, {"guard": "block"}, {"guard": "flag"}, {"top_k": 1}])
def test_fields_that_are_not_the_prompt_s(serve, fields, more):
    server = serve()
    for inputs in (fields, [fields], ["a", {"text": "b"}, fields]):
        for prompts in ("hard", ["soft", "hard"]):
            response = server.ask(*classify(inputs, prompts, **more))
            assert response.status_code == 409
            assert "names field 'text'" in response.json()["error"]
    response = server.ask("POST", "/v1/explain", {"input": fields, "prompt": "hard"})
    assert response.status_code == 409
    assert server.ask(*classify([{"text": "a", "more": "b"}, "a"], "hard")).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_may_be_asked_for_without_a_body(serve, path):
    server = serve()
    assert server.ask("HEAD", path).status_code == server.ask("GET", path).status_code == 200
    server.engine.close()
    assert server.ask("HEAD", path).status_code == server.ask("GET", path).status_code


def test_no_such_prompt_and_no_such_path(serve):
    server = serve()
    response = server.ask("OPTIONS", "/v1/prompts/hard")
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, PUT")
    response = server.ask(*classify("a", "nobody"))
    assert (response.status_code, response.json()["error"]) == (
        404,
        "there is no prompt 'nobody'; there are hard, soft",
    )
    for method, path, status in (("GET", "/v2", 404), ("DELETE", "/v1/classify", 405)):
        response = server.ask(method, path)
        assert response.status_code == status
        assert set(response.json()) == {"error"}


def test_odd_texts_are_texts(serve):
    texts = ["a\u0001b", "\u202e", "é" * 5000, "joy 🎬", "\ufeff x"]
    response = serve(("hard",)).ask(*classify(texts))
    assert response.status_code == 200
    assert len(response.json()["results"]) == len(texts)


def test_words_that_count_are_those_without_which_the_label_is_less_probable(serve, causal):
    server = serve(("hard",))
    text = X[0]
    found = server.ask("POST", "/v1/explain", {"input": text}).json()
    classifier = classifiers(causal)["hard"]
    whole = classifier.predict_proba([text])[0]
    at = int(whole.argmax())
    words = text.split()
    variants = [" ".join(words[:n] + words[n + 1 :]) for n in range(len(words))]
    drops = whole[at] - classifier.predict_proba(variants)[:, at]
    assert [own["word"] for own in found["words"]] == words
    assert np.allclose([own["drop"] for own in found["words"]], drops, atol=1e-5)
    assert found["probability"] == pytest.approx(float(whole[at]), abs=1e-5)
    many = server.ask("POST", "/v1/explain", {"input": "joy " * 50 + "bore " * 50}).json()
    assert len(many["words"]) == 50  # two at a time
    assert server.ask("POST", "/v1/explain", {"input": "joy"}).json()["words"][0]["word"] == "joy"


def test_a_closed_engine_is_not_ready(serve):
    server = serve()
    assert server.ask("GET", "/readyz").json() == {"status": "ready", "prompts": 2}
    server.engine.close()
    assert server.ask("GET", "/readyz").status_code == 503
    assert server.ask("GET", "/healthz").status_code == 200
    response = server.ask(*classify("a", "hard"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_the_page_and_all_that_it_loads_come_from_the_server(serve):
    server = serve()
    paths = ["/"]
    for path in paths:  # grows by what each file loads
        response = server.ask("GET", path)
        assert response.status_code == 200, path
        assert not re.search(r"https?:|//[a-z]|@import|\burl\(|\beval\(|innerHTML", response.text), path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
        assert "unsafe" not in policy
        named = re.findall(r'(?:src|href)="([^":]+)"|from "\./([^"]+)"', response.text)
        paths += [f"/{name}" for pair in named for name in pair if name and f"/{name}" not in paths]
    assert {"/page.css", "/look.js", "/page.js", "/answers.js"} <= set(paths)


def test_the_openapi_document_describes_what_is_sent_and_answered(serve):
    server = serve(("hard",))
    document = server.ask("GET", "/openapi.json").json()
    route = document["paths"]["/v1/classify"]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"inputs", "prompts", "top_k", "timeout_ms", "guard"}
    schema = {**document["components"]["schemas"]["ClassifyResponse"], "components": document["components"]}
    jsonschema.validate(server.ask(*classify(X[0])).json(), schema)
    assert {"200", "400", "401", "403", "404", "408", "413", "429", "503", "504"} <= set(route["responses"])
    for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    assert "$defs" not in json.dumps(document)


@pytest.mark.parametrize("path", sorted(Path(cuecraft.serving.http.__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_no_response_names_an_option_of_the_command_line(path):
    literals = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    texts = [node.value for node in literals if isinstance(node.value, str)]
    assert [text for text in texts if re.search(r"(?<!\S)--[a-z]", text)] == []
