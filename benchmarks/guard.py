"""How well the guard finds attacks, and at what price; writes benchmarks/results/guard.json.

    python benchmarks/guard.py [--parts rules,heldout,folds,cost] [--artifact runs/guard-detector/artifact]
        [--folds 3] [--epochs 10]

The shipped rules; a deep cue over SmolLM2-135M (recipe guard-detector); both together; TF-IDF with logistic regression
on the same texts, which a deep cue has to beat; and the rules of `pyatr` (PyPI). `rules`: what has no threshold.
`heldout`: the recipe's artifact, on its held-out texts and on `injection/` of the benchmark data (250 of its 666
attacks), which nothing is trained on or chosen by. `folds`: bastioncorpus by cross-validation, each fold's texts judged
by a cue that has seen the other folds and our own texts; and the same attacks written with tricks, with and without the
guard's normalisation. Thresholds for 1% and 3% false alarms come from ordinary texts (the few-shot train and dev files
of the classification tasks), and once more from the benign texts of each set itself. `cost`: seconds of one text.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, ROOT, machine, read_result, require_data, rounds, seconds, write_result
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline

from cuecraft import PromptClassifier
from cuecraft.backbone import load_backbone
from cuecraft.data import read_records, subsample
from cuecraft.runs import load_recipe, recipe_path
from cuecraft.runs.spec import TuneRecipe
from cuecraft.serving.guard import Guard, PromptDetector, shipped_rules
from cuecraft.serving.guard import detectors as windows
from cuecraft.serving.guard.texts import ATTACK, GuardText, TextRole, corpus_texts, own_texts

RECIPE = "guard-detector"
TASKS = ("sst-2", "agnews", "trec")
RATES = (0.01, 0.03)
ATTACKS = 250  # of the jailbreaks, for detectors
Scorer = Callable[[Sequence[str]], list[float]]

_CYRILLIC = str.maketrans(
    "aeopcxyiAEOPCXTHKMB",
    "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u0410\u0415\u041e\u0420\u0421\u0425\u0422\u041d\u041a\u041c\u0412",
)
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_LEET = str.maketrans("aeiost", "431057")
TRICKS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "zero-width spaces between letters": "\u200b".join,
    "Cyrillic letters that look Latin": lambda text: text.translate(_CYRILLIC),
    "full-width letters": lambda text: text.translate(_FULL_WIDTH),
    "bidirectional override around each word": lambda text: " ".join(f"\u202e{word}\u202c" for word in text.split(" ")),
    "Unicode tag characters": lambda text: "Hello there. " + "".join(chr(0xE0000 + (ord(c) & 0x7F)) for c in text),
    "base64": lambda text: "Decode this: " + base64.b64encode(text.encode()).decode(),
    "hex": lambda text: "Decode this: " + text.encode().hex(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "digits for letters": lambda text: text.translate(_LEET),
    "spaces between letters": " ".join,
}


def raw_rules(texts: Sequence[str]) -> list[float]:
    """Return 1 for each text that a rule of high severity hits as it stands, without any normalisation; else 0."""
    rules = [rule for rule in shipped_rules() if rule.severity.value == "high"]
    return [float(any(rule.match(text) for rule in rules)) for text in texts]


def guard_rules(texts: Sequence[str]) -> list[float]:
    """Return 1 for each text that the guard flags without a detector; else 0."""
    return [float(found.verdict.value == "flag") for found in Guard().screen_many(list(texts))]


def detector_scores(answers: Scorer, texts: Sequence[str]) -> list[float]:
    """Return a detector's scores as the guard has them: of normalised windows and of what is hidden."""
    detector = PromptDetector("own", lambda own: [[score] for score in answers(own)], ["attack"])
    return [found.scores["own"] for found in Guard((), detectors=[detector]).screen_many(list(texts))]


def raw_scores(answers: Scorer, texts: Sequence[str]) -> list[float]:
    """Return a detector's scores of windows of the texts as they stand."""
    views = [windows(text) or ["."] for text in texts]
    found = iter(answers([view for own in views for view in own]))
    return [max(next(found) for _ in own) for own in views]


@cache
def pyatr_engine() -> Any:
    """Return the engine of pyatr with the rules that come with it."""
    try:
        from pyatr import ATREngine
    except ImportError:
        raise SystemExit("pyatr is not installed: pip install pyatr==0.3.1") from None
    engine = ATREngine()
    engine.load_bundled_rules()
    return engine


def pyatr_rules(texts: Sequence[str]) -> list[float]:
    """Return 1 for each text that a rule of pyatr hits; else 0."""
    from pyatr import AgentEvent

    return [float(bool(pyatr_engine().evaluate(AgentEvent(text, "llm_input")))) for text in texts]


PLAIN = "as it is"
RULES: dict[str, Callable[[Sequence[str]], list[float]]] = {"rules": guard_rules, "pyatr": pyatr_rules}
FOLD_JUDGES: dict[str, Callable[[Scorer, Sequence[str]], list[float]]] = {
    "deep cue": detector_scores,
    "deep cue, not normalised": raw_scores,
    "tf-idf": detector_scores,
}


def tf_idf(train: Sequence[GuardText]) -> Scorer:
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0))
    model.fit([row.text for row in train], [row.label == ATTACK for row in train])
    return lambda texts: [float(score) for score in model.predict_proba(list(texts))[:, 1]]


def classifier_scores(classifier: PromptClassifier) -> Scorer:
    column = classifier.classes_.tolist().index(ATTACK)
    return lambda texts: [float(score) for score in classifier.predict_proba(list(texts))[:, column]]


@cache
def recipe() -> TuneRecipe:
    """Return the shipped recipe of the detector."""
    found = load_recipe(recipe_path(RECIPE))
    assert isinstance(found, TuneRecipe)
    return found


def tuned(backbone: Any, train: Sequence[GuardText], epochs: int) -> PromptClassifier:
    """Tune the recipe's prompt on other texts, a quarter of them to choose the epoch by."""
    parts: Mapping[bool, list[GuardText]] = {
        is_dev: [row for row in train if (row.part is TextRole.DEV) == is_dev] for is_dev in (False, True)
    }
    settings = recipe().tune.model_dump(exclude_unset=True)
    own = PromptClassifier(
        backbone,
        settings.pop("method"),
        template=recipe().task.template,
        label_words=recipe().task.label_words,
        method_options={**settings, "epochs": epochs},
        seed=recipe().seed,
    )
    columns = {is_dev: ([row.text for row in rows], [row.label for row in rows]) for is_dev, rows in parts.items()}
    return own.fit(*columns[False], dev=columns[True])


def threshold(benign: Sequence[float], rate: float) -> float:
    """Return the lowest score from which on at most a share of benign texts would be flagged."""
    ordered = sorted(benign, reverse=True)
    return float(np.nextafter(ordered[int(rate * len(ordered))], 2.0))


def share(scores: Sequence[float], least: float) -> float:
    return float(np.mean(np.asarray(scores) >= least))


def ordinary_texts() -> list[str]:
    """Return texts of films, news and questions that no detector has seen; none is of a test file."""
    files = [
        DATA / task / f"seed-{seed}" / f"{part}.jsonl"
        for task in TASKS
        for seed in (13, 21, 42)
        for part in ("train", "dev")
    ]
    return list(dict.fromkeys(row.fields["text"] for file in files for row in read_records(file)))


def ordinary_test_texts() -> list[str]:
    rows = [subsample(read_records(DATA / task / "test.jsonl"), 200, 0) for task in TASKS]
    return [row.fields["text"] for own in rows for row in own]


def injection(label: str, size: int | None = None) -> list[str]:
    """Return the attacks or the benign texts of `injection/`, or some of them."""
    name = "attacks.jsonl" if label == ATTACK else "benign.jsonl"
    return [row.fields["text"] for row in subsample(read_records(DATA.parent / "injection" / name), size, 0)]


def rates(attacks: Sequence[float], benign: Sequence[float], at: Mapping[str, float]) -> dict[str, Any]:
    """Return recall and false alarms: at thresholds, and where the benign texts themselves set the threshold."""
    levels = {**at, **{f"own {rate:.0%}": threshold(benign, rate) for rate in RATES}}
    return {
        name: {"threshold": least, "recall": share(attacks, least), "false_positives": share(benign, least)}
        for name, least in levels.items()
    }


def split(rows: Iterable[GuardText]) -> tuple[list[str], list[str]]:
    """Return the texts of attacks, and the benign ones."""
    own = list(rows)
    attacks, benign = ([row.text for row in own if (row.label == ATTACK) is wanted] for wanted in (True, False))
    return attacks, benign


def together(*columns: Sequence[float]) -> list[float]:
    return [max(scores) for scores in zip(*columns, strict=True)]


def rules_part() -> dict[str, Any]:
    """Measure what has no threshold: our rules and those of pyatr."""
    sets = {
        "bastioncorpus": split(corpus_texts()),
        "injection": (injection(ATTACK), injection("benign")),
        "ordinary": ([], ordinary_test_texts()),
    }
    found: dict[str, Any] = {}
    for name, scorer in RULES.items():
        found[name] = {
            label: {
                "recall": share(scorer(attacks), 1.0) if attacks else None,
                "false_positives": share(scorer(benign), 1.0),
                "attacks": len(attacks),
                "benign": len(benign),
            }
            for label, (attacks, benign) in sets.items()
        }
    return found


def heldout_part(artifact: Path) -> dict[str, Any]:
    """Measure the shipped recipe's prompt on its held-out texts and on `injection/`."""
    texts = {row.text: row for row in [*corpus_texts(), *own_texts()]}.values()
    held = split(row for row in texts if row.part is TextRole.TEST)
    attacks = injection(ATTACK, ATTACKS)  # they are long, and a detector reads all of each
    sets = {
        "to set thresholds": ordinary_texts(),
        "ordinary": ordinary_test_texts(),
        "held-out attacks": held[0],
        "held-out benign": held[1],
        "injection attacks": attacks,
        "injection benign": injection("benign"),
    }
    rules = {name: guard_rules(own) for name, own in sets.items()}
    seen = [row for row in texts if row.part is not TextRole.TEST]
    scorers = {"deep cue": classifier_scores(PromptClassifier.load(artifact)), "tf-idf": tf_idf(seen)}
    found: dict[str, Any] = {"rows": {name: len(own) for name, own in sets.items()}}
    for name, scorer in scorers.items():
        alone = {label: detector_scores(scorer, own) for label, own in sets.items()}
        both = {label: together(rules[label], scores) for label, scores in alone.items()}
        for column, scores in ((name, alone), (f"rules and {name}", both)):
            plain = scores["to set thresholds"]
            at = {"0.5": 0.5} | {f"ordinary {rate:.0%}": threshold(plain, rate) for rate in RATES}
            found[column] = {
                "held out": rates(scores["held-out attacks"], scores["held-out benign"], at),
                "injection": rates(scores["injection attacks"], scores["injection benign"], at),
                "ordinary": {label: share(scores["ordinary"], least) for label, least in at.items()},
            }
    return found


def folds_part(count: int, epochs: int) -> dict[str, Any]:
    """Judge bastioncorpus by cross-validation, its attacks also written with tricks."""
    backbone = load_backbone(recipe().model.name)
    corpus, own = corpus_texts(), own_texts()
    truth = np.array([row.label == ATTACK for row in corpus])
    scores = {trick: {name: np.zeros(len(corpus)) for name in FOLD_JUDGES} for trick in TRICKS}
    for number, (seen, held) in enumerate(StratifiedKFold(count, shuffle=True, random_state=0).split(corpus, truth)):
        begun = time.perf_counter()
        train = [*own, *(corpus[row] for row in seen)]
        cue, words = classifier_scores(tuned(backbone, train, epochs)), tf_idf(train)
        scorers = dict(zip(FOLD_JUDGES, (cue, cue, words), strict=True))
        for trick, write in TRICKS.items():
            rows = held if trick == PLAIN else held[truth[held]]
            texts = [write(corpus[row].text) for row in rows]
            for name, judge in FOLD_JUDGES.items():
                scores[trick][name][rows] = judge(scorers[name], texts)
        print(f"fold {number + 1} of {count}: {time.perf_counter() - begun:.0f} s", flush=True)
    for trick, write in TRICKS.items():
        rules = np.array(guard_rules([write(row.text) for row in corpus]))
        scores[trick]["rules and deep cue"] = np.maximum(scores[trick]["deep cue"], rules)
    plain = scores[PLAIN]
    least = {name: threshold(own[~truth].tolist(), RATES[-1]) for name, own in plain.items()}
    return {
        "folds": count,
        "epochs": epochs,
        "rows": {"attacks": int(truth.sum()), "benign": int((~truth).sum())},
        "told": {name: rates(own[truth].tolist(), own[~truth].tolist(), {"0.5": 0.5}) for name, own in plain.items()},
        "tricks": {
            trick: {name: share(own[truth].tolist(), least[name]) for name, own in columns.items()}
            for trick, columns in scores.items()
        },
    }


def tricks_part() -> dict[str, Any]:
    """Return the share of attacks of bastioncorpus that rules find under each trick."""
    attacks = split(corpus_texts())[0]
    judges = {"rules, not normalised": raw_rules, **RULES}
    return {
        trick: {name: share(judge([write(text) for text in attacks]), 1.0) for name, judge in judges.items()}
        for trick, write in TRICKS.items()
    }


def cost_part(artifact: Path, texts: Sequence[str]) -> dict[str, float]:
    """Return milliseconds of one film review, each asked alone: its label, and what the guard adds."""
    classifier = PromptClassifier.load(artifact)
    scorer = classifier_scores(classifier)
    detector = PromptDetector("own", lambda own: [[score] for score in scorer(own)], ["attack"])
    alone, guarded = Guard(), Guard(detectors=[detector])

    def each(run: Callable[[str], object]) -> float:
        return statistics.median(seconds(partial(run, text)) for text in texts) * 1000

    return rounds(
        {
            "label": lambda: each(lambda text: classifier.predict_proba([text])),
            "rules": lambda: each(alone.screen),
            "rules and deep cue": lambda: each(guarded.screen),
        },
        3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="rules,heldout,folds,cost", help="others keep what the file has")
    parser.add_argument("--artifact", type=Path, default=ROOT / "runs" / RECIPE / "artifact")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="at most, of each fold")
    options = parser.parse_args()
    require_data()
    if not corpus_texts():
        raise SystemExit("bastioncorpus is not installed: pip install bastioncorpus==0.6.0. Nothing was run.")
    if not options.artifact.is_dir():
        raise SystemExit(f"{options.artifact} is not there; run `make bench-guard`, which makes it. Nothing was run.")
    texts = [row.fields["text"] for row in subsample(read_records(DATA / "sst-2" / "test.jsonl"), 40, 0)]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "rules": lambda: {"told": rules_part(), "tricks": tricks_part()},
        "heldout": lambda: heldout_part(options.artifact),
        "folds": lambda: folds_part(options.folds, options.epochs),
        "cost": lambda: {"milliseconds": cost_part(options.artifact, texts), "texts": len(texts)},
    }
    result = read_result("guard.json")
    for name in options.parts.split(","):
        result[name] = parts[name]() | {"machine": machine()}
        write_result("guard.json", result)


if __name__ == "__main__":
    main()
