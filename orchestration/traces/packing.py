"""What the lines of a trace leave out because it follows from the lines before, and how it is put back.

An event may leave out

- `seq`: one more than the event before; `id`: `e` and the seq; `agent`: that of the event before,
- `parents`: the newest event of the trunk (`env_reset`, `env_step`, `weights_update`) before it,
- of an `env_step`: `step` (one more than the step before), `action_name` (the header has it), `policy_version` (that in
  force), and `screen` where it has `rows` instead: pairs of a row's number and its text, for those rows that differ from
  the screen before; `height` where the number of rows does.

An `env_step` with `paid` stands for two events: itself, and right after it the environment's `reward` of the same value.
A line with all its fields is as good. What the reader gives has them all.
"""

from typing import Any

from orchestration.errors import TraceError

_TRUNK = frozenset({"env_reset", "env_step", "weights_update"})


class Unpacker:
    """Completes the JSON objects of one file, in their order."""

    def __init__(self, header: dict[str, Any]) -> None:
        self._names = header.get("action_names") or []
        self._version = header.get("policy_version")
        self._seq = -1
        self._step = -1
        self._agent: Any = None
        self._trunk: Any = None
        self._screen: list[str] = []

    def unpack(self, tree: dict[str, Any]) -> list[dict[str, Any]]:
        """The complete objects that a line stands for. Raises `TraceError` where it does not fit to those before it."""
        if tree.get("record") != "event":
            return [tree]
        kind = tree.get("type")
        try:
            trees = [self._step_of(tree)] if kind == "env_step" else [tree]
        except (IndexError, TypeError, ValueError) as error:
            raise TraceError(f"env_step: its rows or its action do not fit: {error}") from error
        self._event(tree)
        if tree.pop("paid", False):
            trees.append(self._paid(tree))
        if kind == "weights_update" and tree.get("what", "policy") == "policy":
            self._version = tree.get("to_version")
        if kind == "env_reset" and isinstance(tree.get("screen"), str):
            self._screen = tree["screen"].split("\n")
        return trees

    def _event(self, tree: dict[str, Any]) -> None:
        seq = tree.setdefault("seq", self._seq + 1)
        if isinstance(seq, int):
            self._seq = seq
        tree.setdefault("id", f"e{seq}")
        if self._agent is not None:
            tree.setdefault("agent", self._agent)
        self._agent = tree.get("agent")
        tree.setdefault("parents", [] if self._trunk is None else [self._trunk])
        if tree.get("type") in _TRUNK:
            self._trunk = tree["id"]

    def _step_of(self, tree: dict[str, Any]) -> dict[str, Any]:
        step = tree.setdefault("step", self._step + 1)
        if isinstance(step, int):
            self._step = step
        if "action_name" not in tree:
            tree["action_name"] = self._names[tree["action"]]
        tree.setdefault("policy_version", self._version)
        rows = tree.pop("rows", None)
        if rows is not None:
            height = tree.pop("height", len(self._screen))
            screen = [*self._screen[:height], *[""] * (height - len(self._screen))]
            for number, text in rows:
                screen[number] = text
            self._screen = screen
            tree["screen"] = "\n".join(screen)
        elif tree.get("screen"):
            self._screen = tree["screen"].split("\n")
        return tree

    def _paid(self, step: dict[str, Any]) -> dict[str, Any]:
        reward = {
            "record": "event",
            "type": "reward",
            "t": step.get("t"),
            "family": "outcome",
            "value": step.get("reward"),
            "source": "environment",
            "version": None,
            "targets": [step["id"]],
        }
        self._event(reward)
        return reward


class Screens:
    """Makes the `rows` of screens that follow one another."""

    def __init__(self, first: str) -> None:
        self._rows = first.split("\n")

    def pack(self, screen: str, tree: dict[str, Any]) -> None:
        """Puts into `tree` what says how `screen` differs from the one before."""
        before, rows = self._rows, screen.split("\n")
        self._rows = rows
        if len(rows) == len(before):
            tree["rows"] = [(at, row) for at, row in enumerate(rows) if row != before[at]]
            return
        tree["height"] = len(rows)
        padded = [*before, *[""] * len(rows)]
        tree["rows"] = [(at, row) for at, row in enumerate(rows) if row != padded[at]]
