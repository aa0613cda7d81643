"""What the small model reads while it is made."""

import random
import re

import torch

from agents.language.parsing import write
from agents.language.template import ChatTemplate
from learner.language.small import Transcript, drills, ordered_transcripts, transcript_tokens
from tests.language_agents_support import tiny_tokenizer

SAID = Transcript(
    objective="find the key",
    observations=("a room", "an open chest", "you have the key"),
    commands=("open chest", "take key"),
    listed=(("look", "open chest"), ("look", "take key"), ("look",)),
)


def test_all_of_a_transcript_is_predicted_or_its_commands_alone():
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer, "tiny")
    (whole,) = transcript_tokens(SAID, template, "command", 4096).sequences
    (commands,) = transcript_tokens(SAID, template, "command", 4096, commands=True).sequences
    assert torch.equal(whole.tokens, commands.tokens)
    assert not whole.action[0] and whole.action[1:].all()
    answers = [template.answer(write(command, "command")) for command in SAID.commands]
    assert commands.tokens[commands.action].tolist() == [token for answer in answers for token in answer]
    # Each answer stands in one piece after what was to be read before it.
    starts = (commands.action[1:] & ~commands.action[:-1]).sum().item()
    assert starts == len(SAID.commands)
    read = tokenizer.decode(commands.tokens.tolist())
    assert (
        read.index("a room") < read.index("open chest") < read.index("an open chest") < read.index("you have the key")
    )


def test_orders_name_what_was_done_in_a_piece_of_a_transcript():
    commands = tuple(f"do {n}" for n in range(6))
    observations = tuple(f"seen {n}" for n in range(7))
    lists = tuple((f"do {n}", "wait") for n in range(7))
    whole = Transcript("something else", observations, commands, lists)
    unlisted = Transcript("something else", observations, commands, (None,) * 7)
    short = Transcript("something else", observations[:2], commands[:1], lists[:2])
    pieces = ordered_transcripts([unlisted, whole, short], 40, random.Random(0))
    assert len(pieces) == 40 and len({piece.objective for piece in pieces}) > 20
    for piece in pieces:
        begin = commands.index(piece.commands[0])
        end = begin + len(piece.commands)
        assert len(piece.commands) >= 2 and piece.commands == commands[begin:end]
        assert piece.observations == observations[begin : end + 1] and piece.listed == lists[begin : end + 1]
        # Each command of the piece, once and in its order, and no other.
        assert re.findall(r"do \d", piece.objective) == list(piece.commands)


def test_drills_list_the_command_that_comes_next_among_others():
    said = [Transcript("", ("",) * 41, tuple(f"do {n:02d}" for n in range(40)), (None,) * 41)]
    found = drills(said, 50, random.Random(0))
    assert len(found) == 50 and len({drill.objective for drill in found}) == 50
    for drill in found:
        length = len(drill.commands)
        assert 3 <= length <= 8 and len(set(drill.commands)) == length
        assert re.findall(r"do \d\d", drill.objective) == list(drill.commands)
        assert len(drill.observations) == len(drill.listed) == length + 1
        for command, listed in zip(drill.commands, drill.listed, strict=False):
            assert listed is not None and command in listed and len(listed) >= 3
    assert drills([Transcript("", ("", ""), ("do",), (None, None))], 5, random.Random(0)) == [], "too few commands"
