"""Rules: regular expressions with a name and a reason, from a file that people read and add to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cuecraft.core.errors import GuardError
from cuecraft.core.yaml_files import Settings, explained, keys_of, parse_yaml, read_yaml
from cuecraft.serving.guard.findings import Finding, Kind, Severity, Where, excerpt

_SPACE = r"\s{1,8}"  # what a space of a pattern stands for
# A repetition without bound of a group that repeats without bound: the commonest way to take exponential time.
_NESTED = re.compile(r"\((?:[^()\\]|\\.){0,500}(?:[+*]|\{\d{0,4},\})(?:[^()\\]|\\.){0,500}\)(?:[+*]|\{\d{0,4},\})")


class _Entry(BaseModel):
    """A rule as its file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=60)
    reason: str = Field(min_length=1)
    pattern: str | list[str] = Field(min_length=1)
    severity: Severity = Severity.HIGH
    examples: list[str] = Field(min_length=1)
    not_: list[str] = Field(default_factory=list, alias="not")

    @field_validator("pattern")
    @classmethod
    def _is_usable(cls, pattern: str | list[str]) -> str | list[str]:
        for one in _listed(pattern):
            if _NESTED.search(one):
                raise ValueError("repeats what repeats, which can take very long; give the inner repetition a bound")
            try:
                found = _compiled(one)
            except (re.error, OverflowError) as error:
                raise ValueError(f"no regular expression ({error})") from None
            if found.search(""):
                raise ValueError("matches the empty text, and so every text; let it ask for something")
        return pattern


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[_Entry] = Field(min_length=1)


@dataclass(frozen=True)
class Rule:
    """A regular expression that tells an attack.

    Args:
        id: its name in what is reported.
        reason: why it is reported, in a sentence.
        patterns: what it looks for in a normalised text; one of them will do.
        severity: whether a match flags the text.
        examples: texts that it matches.
        counterexamples: texts that it does not match, though one may think so.
    """

    id: str
    reason: str
    patterns: tuple[re.Pattern[str], ...]
    severity: Severity
    examples: tuple[str, ...]
    counterexamples: tuple[str, ...]

    def match(self, text: str) -> re.Match[str] | None:
        """Return where a text matches; None for nowhere."""
        # One after the other: joined into one expression, they take three times as long.
        return next(filter(None, (pattern.search(text) for pattern in self.patterns)), None)

    def finding(self, text: str, where: Where = Where.TEXT) -> Finding | None:
        """Return what to report of a text that matches; None for one that does not."""
        match = self.match(text)
        if match is None:
            return None
        shown = excerpt(text, match.start(), match.end())
        return Finding(Kind.RULE, self.id, self.reason, shown, where, self.severity)


@cache
def shipped_rules() -> tuple[Rule, ...]:
    """Return the rules that come with the package."""
    text = resources.files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8")
    return _rules(parse_yaml(text, "rules.yaml", GuardError))


def read_rules(path: str | Path) -> tuple[Rule, ...]:
    """Read a file of rules, written as the shipped ``rules.yaml`` is.

    Raises:
        GuardError: the file cannot be read, has an unknown key, a pattern that is no regular expression or can take
            very long, an id twice, or a rule that its own examples speak against.
    """
    return _rules(read_yaml(Path(path), GuardError))


def all_rules(paths: Sequence[str | Path]) -> tuple[Rule, ...]:
    """Return the shipped rules and those of further files.

    Raises:
        GuardError: as `read_rules`, or two files have a rule of the same id.
    """
    found = {rule.id: rule for rule in shipped_rules()}
    for path in paths:
        for rule in read_rules(path):
            if rule.id in found:
                raise GuardError(f"{path}: rule {rule.id!r}: there is another rule of this id; name it otherwise")
            found[rule.id] = rule
    return tuple(found.values())


def _rules(settings: Settings) -> tuple[Rule, ...]:
    try:
        entries = _File.model_validate(settings.values).rules
    except ValidationError as error:
        raise GuardError(_explained(error, settings)) from None
    rules: dict[str, Rule] = {}
    for number, entry in enumerate(entries):
        where = f"{settings.where(('rules', number, 'id'))}rule {entry.id!r}: "
        if entry.id in rules:
            raise GuardError(f"{where}there is another rule of this id; name it otherwise")
        rules[entry.id] = rule = _rule(entry)
        for problem in _contradictions(rule):
            raise GuardError(where + problem)
    return tuple(rules.values())


def _rule(entry: _Entry) -> Rule:
    patterns = tuple(map(_compiled, _listed(entry.pattern)))
    return Rule(entry.id, entry.reason, patterns, entry.severity, tuple(entry.examples), tuple(entry.not_))


def _explained(error: ValidationError, settings: Settings) -> str:
    """Return the one line about a file's first error, with the rule's id where it has one."""
    message = explained(error, settings, _plain, lambda place: keys_of(_Entry if place else _File))
    place = _plain(error.errors()[0]["loc"])
    rules = settings.values.get("rules")
    if len(place) > 1 and isinstance(rules, list) and isinstance(place[1], int) and isinstance(rules[place[1]], dict):
        message += f" (rule {rules[place[1]].get('id', 'without id')!r})"
    return message


def _plain(place: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return pydantic's place without the names of the shapes that a pattern may have."""
    return tuple(part for part in place if not (isinstance(part, str) and ("[" in part or part == "str")))


def _contradictions(rule: Rule) -> Iterator[str]:
    for text in rule.examples:
        if not rule.match(text):
            yield f"does not match its example {text!r}; fix the pattern or the example"
    for text in rule.counterexamples:
        if rule.match(text):
            yield f"matches {text!r}, which it has under 'not'; fix the pattern or the text"


def _listed(pattern: str | list[str]) -> list[str]:
    return [pattern] if isinstance(pattern, str) else pattern


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace(" ", _SPACE), re.IGNORECASE)
