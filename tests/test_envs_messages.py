"""Captions out of what NetHack says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.captions import normalise
from envs.messages import NOTHING, compose


def raw(text: str) -> bytes:
    return text.encode("latin-1").ljust(256, b"\0")


def caption(*statements: str, asked: tuple[str, ...] = ()) -> str:
    return compose(tuple(map(raw, statements)), tuple(map(raw, asked))).caption


@pytest.mark.parametrize(
    ("statements", "asked", "expected"),
    [
        ([], [], ""),
        (["The door opens."], [], "The door opens."),
        (["The door opens.", "Never mind."], ["In what direction? "], "The door opens."),
        (["You hit it.  It dies!", "You hit it.  It dies!"], [], "You hit it. It dies!"),
        ([], ["What do you want to eat? [fgh or ?*] "], "What do you want to eat? [fgh or ?*]"),
        (["Never mind."], ["What do you want to eat? [fgh or ?*] "], "Never mind."),
        (["Are you sure you want to pray? [yn] (n) y", "You feel better."], [], "You feel better."),
        (["# pray"], [], ""),
        ([], ["For what do you wish? blessed gr"], "For what do you wish?"),
        (["A scroll [unlabelled]"], [], "A scroll [unlabelled]"),
        (["Caf\xe9 \x07 noise"], [], "Café noise"),
        (
            [
                "Can't open 'rumors' file.  Program in disorder!",
                "The key named The Master Key of Thievery whispers: ",
                '"NetHack rumors file closed for renovation."',
                "You succeed in unlocking the door.",
                "The door opens.",
            ],
            ["Unlock it? [yn] (n) "],
            "You succeed in unlocking the door. The door opens.",
        ),
        (['It whispers: "They say that newts bite."'], [], 'It whispers: "They say that newts bite."'),
    ],
)
def test_captions(statements: list[str], asked: list[str], expected: str) -> None:
    assert caption(*statements, asked=tuple(asked)) == expected


@pytest.mark.parametrize(
    ("statements", "refused"),
    [
        (["It's a wall."], True),
        (["Never mind."], True),
        (["You can't go down here."], True),
        (["Unknown command '^M'."], True),
        (["You swap places with your kitten.", "It's a wall."], False),
        (["You succeed in unlocking the door.", "Never mind."], False),
        ([], False),
    ],
)
def test_a_step_is_refused_only_where_nothing_else_was_said(statements: list[str], refused: bool) -> None:
    assert compose(tuple(map(raw, statements)), ()).refused is refused


def test_kills_are_counted() -> None:
    said = compose((raw("You kill the newt!  You destroy the gas spore!"), raw("Your kitten kills the rat.")), ())
    assert said.kills == 2


def test_silence() -> None:
    assert compose((), ()) == NOTHING


@given(st.lists(st.binary(max_size=256), max_size=4), st.lists(st.binary(max_size=256), max_size=2))
def test_any_bytes_make_a_normal_caption(statements: list[bytes], questions: list[bytes]) -> None:
    said = compose(tuple(statements), tuple(questions))
    assert said.caption == normalise(said.caption)
    assert "\0" not in said.caption
