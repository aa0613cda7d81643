"""The page: markup, style and program of this package, and the data of episodes as blocks that no browser executes.

Invariant: nothing of an episode is ever markup or program. Small data is JSON without `<`, `>`, `&`; episodes are base64;
the page's policy (CSP) lets nothing run but the one script whose hash it names, and nothing be loaded at all.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

_SCRIPTS = ("text.js", "store.js", "terminal.js", "lists.js", "lanes.js", "panels.js", "main.js")
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_LEVEL = 6


def inert_json(tree: object) -> str:
    """JSON, in ASCII, that is safe inside a script element: it cannot end it, nor begin a comment."""
    return json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def pack(tree: object) -> str:
    """A tree as base64 of zlib of JSON, which the page decodes when the episode is opened."""
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("ascii"), _LEVEL)).decode("ascii")


def unpack(block: str) -> Any:
    """What `pack` was given."""
    return json.loads(zlib.decompress(base64.b64decode(block)))


def build_page(index: Mapping[str, Any], blocks: Iterable[str]) -> bytes:
    """The file: `index` lists the episodes, whose `block` numbers one of `blocks` (each from `pack`)."""
    script, style = _program(), _asset("view.css")
    policy = (
        f"default-src 'none'; script-src 'sha256-{_digest(script)}'; style-src 'sha256-{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    data = [f'<script type="application/json" id="index">{inert_json(index)}</script>']
    data += [f'<script type="text/plain" id="block-{at}">{block}</script>' for at, block in enumerate(blocks)]
    parts = {
        "{{policy}}": policy,
        "{{style}}": f"<style>{style}</style>",
        "{{data}}": "\n".join(data),
        "{{script}}": f"<script>{script}</script>",
    }
    page = _asset("view.html")
    # Each part once and in order: the text of one is never searched for the place of another.
    out: list[str] = []
    for place, part in parts.items():
        before, page = page.split(place)
        out += [before, part]
    return "".join([*out, page]).encode()


@cache
def _program() -> str:
    bodies = "\n".join(_asset(name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{bodies}\n}})();\n'


@cache
def _asset(name: str) -> str:
    return (resources.files("orchestration.traces.view") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
