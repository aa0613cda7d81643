"""The language of `--where`: comparisons of columns and values, joined by `and`, `or`, `not` and brackets.

    question   = conjunction ("or" conjunction)*
    conjunction = negation ("and" negation)*
    negation   = "not" negation | "(" question ")" | comparison
    comparison = operand [("<" | "<=" | ">" | ">=" | "==" | "=" | "!=" | "in" | "not in" | "~") operand]
    operand    = NUMBER | "text" | 'text' | true | false | null | COLUMN | "[" operand ("," operand)* "]"

`~` asks whether a text contains another. A comparison with a value that is missing is false, except `== null` and
`!= null`. Nothing of a question is ever run as code.
"""

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestration.errors import UsageError


class Row(Protocol):
    """Values by column name; None where one is missing."""

    def __getitem__(self, name: str, /) -> Any: ...


Question = Callable[[Row], bool]
Operand = Callable[[Row], Any]

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>"[^"]*"|'[^']*')"""
    r"""|(?P<word>[A-Za-z_][\w.\-]*)|(?P<sign><=|>=|==|!=|[<>=~()\[\],]))"""
)
_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
_CONSTANTS: Mapping[str, Any] = {"true": True, "false": False, "null": None, "none": None}
_MOST_TOKENS = 1000
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse_where(text: str, columns: Sequence[str], aliases: Mapping[str, str]) -> Question:
    """The question that `text` asks of a row. Raises `UsageError`, naming place and near miss, where it asks nothing."""
    parser = _Parser(_tokens(text), text, columns, aliases)
    question = parser.question(0)
    parser.expect_end()
    return question


def column_named(name: str, columns: Sequence[str], aliases: Mapping[str, str]) -> str:
    """The column that `name` means. Raises `UsageError`, with the near miss, where it means none."""
    name = name if name in columns else aliases.get(name, name)
    if name in columns:
        return name
    near = difflib.get_close_matches(name, [*columns, *aliases], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(columns)}"
    raise UsageError(f"no column {name!r}; {hint}")


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise UsageError(f"--where: cannot be read from character {at + 1}: {text[at:].strip()[:20]!r}")
        tokens.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        at = match.end()
        if len(tokens) > _MOST_TOKENS:
            raise UsageError(f"--where: longer than {_MOST_TOKENS} words")
    return tokens


class _Parser:
    def __init__(self, tokens: list[_Token], text: str, columns: Sequence[str], aliases: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._text = text
        self._columns = columns
        self._aliases = aliases
        self._at = 0

    def question(self, depth: int) -> Question:
        if depth > _DEEPEST:
            raise UsageError(f"--where: brackets deeper than {_DEEPEST}")
        parts = [self._conjunction(depth)]
        while self._takes("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else lambda row: any(part(row) for part in parts)

    def _conjunction(self, depth: int) -> Question:
        parts = [self._negation(depth)]
        while self._takes("and"):
            parts.append(self._negation(depth))
        if len(parts) == 2:  # the usual question; a hundred thousand rows are asked
            one, other = parts
            return lambda row: one(row) and other(row)
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def _negation(self, depth: int) -> Question:
        if self._takes("not"):
            asked = self._negation(depth + 1) if depth < _DEEPEST else self.question(depth + 1)
            return lambda row: not asked(row)
        if self._takes("("):
            inner = self.question(depth + 1)
            if not self._takes(")"):
                raise self._error("a closing bracket is missing")
            return inner
        return self._comparison()

    def _comparison(self) -> Question:
        left = self._operand()
        sign = self._peek()
        if sign in _SIGNS:
            self._at += 1
            return _compared(left, self._operand(), sign)
        if sign == "~":
            self._at += 1
            right = self._operand()
            return lambda row: isinstance(left(row), str) and str(right(row)) in left(row)
        if sign == "in" or (sign == "not" and self._peek(1) == "in"):
            self._at += 1 if sign == "in" else 2
            return _contained(left, self._operand(), sign == "in")
        return lambda row: bool(left(row))

    def _operand(self) -> Operand:
        if self._at >= len(self._tokens):
            raise self._error("a column or a value is missing")
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "number":
            number = float(token.text)
            return lambda row: number
        if token.kind == "text":
            text = token.text[1:-1]
            return lambda row: text
        if token.text == "[":
            return self._list()
        if token.kind == "sign" or token.text in ("and", "or", "not", "in"):
            self._at -= 1
            raise self._error("a column or a value is missing")
        if token.text.lower() in _CONSTANTS:
            constant = _CONSTANTS[token.text.lower()]
            return lambda row: constant
        try:
            name = column_named(token.text, self._columns, self._aliases)
        except UsageError as error:
            raise UsageError(f"--where: {error}") from None
        return lambda row: row[name]

    def _list(self) -> Operand:
        parts: list[Operand] = []
        while not self._takes("]"):
            if parts and not self._takes(","):
                raise self._error("a comma or a closing bracket is missing")
            parts.append(self._operand())
        return lambda row: [part(row) for part in parts]

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        if at >= len(self._tokens) or self._tokens[at].kind in ("text", "number"):
            return ""
        return self._tokens[at].text

    def _takes(self, text: str) -> bool:
        if self._peek() != text:
            return False
        self._at += 1
        return True

    def expect_end(self) -> None:
        if self._at < len(self._tokens):
            raise self._error("`and`, `or` or nothing was expected")

    def _error(self, what: str) -> UsageError:
        if self._at >= len(self._tokens):
            return UsageError(f"--where: {what} at its end: {self._text!r}")
        token = self._tokens[self._at]
        return UsageError(f"--where: {what} at character {token.at + 1}, before {token.text!r}")


def _compared(left: Operand, right: Operand, sign: str) -> Question:
    compare = _SIGNS[sign]
    about_null = sign in ("==", "=", "!=") and (_is_null(left) or _is_null(right))

    def asked(row: Row) -> bool:
        one, other = left(row), right(row)
        if one is None or other is None:
            return about_null and compare(one, other)
        try:
            return compare(one, other)
        except TypeError as error:
            raise UsageError(f"--where: {one!r} and {other!r} cannot be compared by {sign}") from error

    return asked


def _is_null(operand: Operand) -> bool:
    """Whether an operand is the constant null: it needs no row for that."""
    try:
        return operand({}) is None
    except KeyError:
        return False


def _contained(left: Operand, right: Operand, wanted: bool) -> Question:
    def asked(row: Row) -> bool:
        one, others = left(row), right(row)
        if one is None:
            return False
        if not isinstance(others, list | str):
            raise UsageError("--where: `in` needs a list, such as [1, 2], or a text at its right")
        return (one in others) == wanted

    return asked
