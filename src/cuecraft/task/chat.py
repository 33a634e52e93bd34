"""Chat: the turns of a conversation, which the tokenizer's own chat template writes once as an ordinary template.

Each slot is written as a placeholder, the whole conversation goes through ``tokenizer.apply_chat_template``, and what
comes back is cut at the placeholders. So control tokens come from literals alone, and a text that holds some stays
text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from cuecraft.core.errors import TemplateError, named
from cuecraft.task.template import MASK, PROMPT, Conversation, Template, escaped, slot

#: As a user asks for a chat: whether at all, or turns by name.
ChatChoice = bool | Mapping[str, Any]
TURNS = ("system", "user", "assistant")
#: Some templates write the day. Always the same one, so that a run can be repeated; it is the default of Llama 3.1.
DAY = date(2024, 7, 26)

_PLACEHOLDER = re.compile(r"cuecraftslot(\d+)x")  # letters and digits: no template trims or escapes them
_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
#: Thinking is off, under the names that templates have for it.
_SWITCHES = {"enable_thinking": False, "thinking": False}
_THINK, _THOUGHT = "<think>", "</think>"
Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """The turns of a conversation, each in the syntax of templates.

    Args:
        user: the user's turn.
        assistant: the beginning of the assistant's turn, which ends with ``{mask}``.
        system: the system's turn; None for what the chat template says without one, "" for an empty one. Where a chat
            template has no such turn, it stands at the beginning of the user's, a blank line behind it.

    Raises:
        TemplateError: the turns together are no template, or ``{mask}`` does not stand in the assistant's.
    """

    user: str
    assistant: str
    system: str | None = None

    def __post_init__(self) -> None:
        Template("\n".join(filter(None, (self.system, self.user, self.assistant))))
        if MASK not in _slots(self.assistant):
            raise TemplateError(f"the assistant's turn {self.assistant!r} has no {{mask}}; write where the answer goes")

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields, in order of first use."""
        names = [name for own in (self.system or "", self.user, self.assistant) for name in _slots(own)]
        return tuple(dict.fromkeys(name for name in names if name not in (PROMPT, MASK)))

    def written(self, tokenizer: Any, name: str) -> Template:
        """Return the conversation as the chat template of a tokenizer writes it.

        Args:
            tokenizer: a Hugging Face tokenizer.
            name: of the model, for errors.

        Raises:
            TemplateError: the tokenizer has no chat template, or it cannot write these turns.
        """
        writer = _Writer(tokenizer, name)
        return Template(
            writer.once(self),
            Conversation(self.system, self.user, self.assistant, *writer.rounds(self)),
        )


def has_chat_template(tokenizer: Any) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def given_turns(chat: bool | None, turns: Mapping[str, str | None]) -> ChatChoice | None:
    """Return a chat as settings give it: a switch, and turns by name, of which those that are None are not given.

    Raises:
        TemplateError: turns are given and the switch is off.
    """
    given = {name: turn for name, turn in turns.items() if turn is not None}
    if given and chat is False:
        raise TemplateError(f"a chat's {next(iter(given))} turn is given and chat is off; leave one of them out")
    return given or chat


def asked_fields(template: str | None, chat: ChatChoice | None) -> tuple[str, ...] | None:
    """Return the fields that a template, or the turns of a chat, name; None where neither names any.

    Raises:
        TemplateError: they cannot be used.
    """
    if template:
        return Template(template).field_names
    turns = chat_of(chat, None, "{text}", "") if isinstance(chat, Mapping) and "user" in chat else None
    return None if turns is None else turns.field_names


def chat_of(choice: ChatChoice | None, template: str | None, text: str, cue: str) -> Chat | None:
    """Return the turns of a chat; None where none is asked for.

    A template is split: what stands before its tuned tokens is the user's turn, and the rest the assistant's; or all
    before the answer the user's, where the tuned tokens stand before a field.

    Args:
        choice: whether, or turns by name.
        template: as the user wrote it; None for none.
        text: what stands in the user's turn where neither is given.
        cue: words that the assistant's turn begins with, where neither is given.

    Raises:
        TemplateError: a turn has no such name or is no text, turns and a template were given, or they cannot be used.
    """
    if choice is None or choice is False:
        return None
    turns = {} if choice is True else dict(choice)
    for name, turn in turns.items():
        if name not in TURNS:
            raise TemplateError(f"a chat has no turn {name!r}; its turns are {', '.join(TURNS)}")
        if not isinstance(turn, str):
            raise TemplateError(f"the {name} turn of a chat is {turn!r}; give a text")
    if template is not None and {"user", "assistant"} & set(turns):
        raise TemplateError("a template and turns of a chat were given; give one of them")
    if template is not None:
        user, assistant = _split(template)
        return Chat(user, assistant, turns.get("system"))
    user = turns.get("user", text)
    others = (turns.get("system", ""), user)
    begins = "" if any(PROMPT in _slots(own) for own in others) else slot(PROMPT, cue)
    return Chat(user, turns.get("assistant", begins + slot(MASK, None)), turns.get("system"))


def _parsed(source: str) -> list[tuple[str, str | None, str | None]]:
    """Return the literals of a template's source, each with the name and the words of the slot behind it."""
    try:
        parts = list(string.Formatter().parse(source))
    except ValueError as error:
        raise TemplateError(f"turn {source!r} does not parse ({error}); write {{{{ and }}}} for braces") from error
    return [(literal, name, spec) for literal, name, spec, _ in parts]


def _slots(source: str) -> list[str]:
    return [name for _, name, _ in _parsed(source) if name is not None]


def _split(template: str) -> tuple[str, str]:
    """Return the user's turn and the assistant's of a plain template."""
    Template(template)
    names = _slots(template)
    if MASK not in names:
        raise TemplateError(f"template {template!r} has no {{mask}}; write where the label word goes")
    starts_at_prompt = set(names[names.index(PROMPT) :]) <= {PROMPT, MASK}
    sides = ["", ""]
    for literal, name, spec in _parsed(template):
        side = int(bool(sides[1]))
        sides[side] += escaped(literal)
        if name == (PROMPT if starts_at_prompt else MASK) and not side:
            sides[1] = slot(name, (spec or "").lstrip())
        elif name is not None:
            sides[side] += slot(name, spec)
    return sides[0].rstrip(), sides[1]


class _Writer:
    """Writes conversations by a tokenizer's chat template, and cuts them.

    Args:
        tokenizer: a Hugging Face tokenizer.
        name: of the model, for errors.

    Raises:
        TemplateError: it has no chat template.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        if not has_chat_template(tokenizer):
            raise TemplateError(
                f"{name}: its tokenizer has no chat template, which {named('task.chat')} needs; leave it out, or "
                "take a model that was trained on conversations"
            )
        self._tokenizer, self._name = tokenizer, name
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:  # several by name, and none of them the usual one
            raise self._error(str(error)) from error
        self._template = _NOW.sub(lambda found: repr(DAY.strftime(found[2])), template)

    def once(self, chat: Chat) -> str:
        """Return the source of a template of one round."""
        marks: list[str] = []
        messages = _messages(chat, marks, 0)
        return self._open(messages, marks) + chat.assistant

    def rounds(self, chat: Chat) -> tuple[str, str, str]:
        """Return the sources of the first round, of each later one, and of the last one."""
        marks: list[str] = []
        written = self._open(_messages(chat, marks, 2), marks, cuts=True)
        first, later, last = written.split("\0")
        return first, later, last + chat.assistant

    def _open(self, messages: Sequence[Message], marks: Sequence[str], cuts: bool = False) -> str:
        """Return a conversation up to where the assistant's last turn begins, slots in place of their marks."""
        reason = "it leaves out, changes or repeats a turn"
        for own in _variants(messages):
            try:
                written = self._with_header(own)
            except Exception as error:  # templates raise whatever they like where a turn is not to their taste
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                continue
            pieces = _PLACEHOLDER.split(written)
            if sorted(map(int, pieces[1::2])) == list(range(len(marks))):
                return "".join(marks[int(one)] if n % 2 else escaped(one) for n, one in enumerate(pieces))
        raise self._error(reason)

    def _with_header(self, messages: Sequence[Message]) -> str:
        """Return a conversation with the beginning of the assistant's next turn, where it does not think."""
        written, closed = (self._rendered(messages, header) for header in (True, False))
        if written == closed:
            return written + self._opening(messages[-1])
        header = written.removeprefix(closed)
        if header.rfind(_THINK) > header.rfind(_THOUGHT):
            written += f"\n{_THOUGHT}\n\n" if header.endswith("\n") else f"\n\n{_THOUGHT}\n\n"
        return written

    def _opening(self, like: Message) -> str:
        """Return what stands before an answer, of a template that has no header for answers to come.

        Args:
            like: a message with its content in the form that the template wants.
        """
        user, answer = ({"role": role, "content": _content(like, f"cuecraft{role}x")} for role in TURNS[1:])
        alone, answered = (self._rendered(own, False) for own in ([user], [user, answer]))
        behind = alone.partition("cuecraftuserx")[2]
        between = answered.partition("cuecraftuserx")[2].partition("cuecraftassistantx")[0]
        return between.removeprefix(behind)

    def _rendered(self, messages: Sequence[Message], header: bool) -> str:
        found: str = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=header,
            date_string=DAY.strftime("%d %b %Y"),
            **_SWITCHES,
        )
        return found

    def _error(self, reason: str) -> TemplateError:
        return TemplateError(
            f"{self._name}: its tokenizer's chat template cannot write this conversation ({reason}); give other turns, "
            "or a plain template"
        )


def _messages(chat: Chat, marks: list[str], answered: int) -> list[Message]:
    """Return the messages of some answered rounds and one more user's turn; `marks` gets what each mark stands for."""
    messages = [] if chat.system is None else [{"role": "system", "content": _marked(chat.system, marks)}]
    for _ in range(answered):
        messages.append({"role": "user", "content": _marked(chat.user, marks)})
        messages.append({"role": "assistant", "content": _marked(chat.assistant, marks) + _mark(marks, "\0")})
    return [*messages, {"role": "user", "content": _marked(chat.user, marks)}]


def _marked(source: str, marks: list[str]) -> str:
    """Return a turn with a mark for each slot, and one in front; `marks` gets what each stands for."""
    text = _mark(marks, "") if source else ""
    for literal, name, spec in _parsed(source):
        text += literal + ("" if name is None else _mark(marks, slot(name, spec)))
    return text


def _mark(marks: list[str], meaning: str) -> str:
    marks.append(meaning)
    return f"cuecraftslot{len(marks) - 1}x"


def _variants(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the messages as they are, and in the ways in which some templates want them.

    Without a turn of the system's, which then begins the user's first; and with contents in parts.
    """
    found = [list(messages)]
    if messages[0]["role"] == "system":
        system, user, *rest = messages
        begun = "\n\n".join(filter(None, (system["content"], user["content"])))
        found.append([{"role": "user", "content": begun}, *rest])
    in_parts = [[{**one, "content": [{"type": "text", "text": one["content"]}]} for one in own] for own in found]
    return found + in_parts


def _content(like: Message, text: str) -> Any:
    """Return a message's content in the form of another message's."""
    return text if isinstance(like["content"], str) else [{"type": "text", "text": text}]
