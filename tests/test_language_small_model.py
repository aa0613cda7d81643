"""What the small model reads while it is made."""

import random
import re

import torch

from agents.language.parsing import write
from agents.language.template import ChatTemplate
from learner.language.instructions import drills, hindsight_instructions, instruction, paraphrased
from learner.language.transcripts import Transcript, transcript_tokens
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


WORLD = (
    "take lamp from chest",
    "take stick of butter from table",
    "unlock red chest with brass key",
    "insert lamp into chest",
    "put lamp on table",
    "take lamp",
)
NOUNS = ("stick of butter", "red chest", "brass key", "lamp", "chest", "table")
"""Those with others in them first."""


def test_hindsight_names_what_was_done_in_a_piece_of_a_transcript():
    commands = tuple(f"do {n}" for n in range(6))
    observations = tuple(f"seen {n}" for n in range(7))
    lists = tuple((f"do {n}", "wait") for n in range(7))
    whole = Transcript("something else", observations, commands, lists)
    unlisted = Transcript("something else", observations, commands, (None,) * 7)
    short = Transcript("something else", observations[:2], commands[:1], lists[:2])
    pieces = hindsight_instructions([unlisted, whole, short], 40, random.Random(0))
    assert len(pieces) == 40 and len({piece.objective for piece in pieces}) > 20
    for piece in pieces:
        begin = commands.index(piece.commands[0])
        end = begin + len(piece.commands)
        assert len(piece.commands) >= 2 and piece.commands == commands[begin:end]
        assert piece.observations == observations[begin : end + 1] and piece.listed == lists[begin : end + 1]
        # Each command of the piece, once and in its order, and no other: of this form there is no paraphrase.
        assert re.findall(r"do \d", piece.objective) == list(piece.commands)


def _named(text: str) -> list[str]:
    return re.findall("|".join(NOUNS), text)


def test_a_paraphrase_names_the_same_things_and_is_one_of_no_other_command():
    for command in (*WORLD, "drop lamp", "go west"):
        said = {paraphrased(command, random.Random(n)) for n in range(60)}
        assert len(said) >= 3 and command not in said
        assert all(sorted(_named(text)) == sorted(_named(command)) for text in said)
    assert paraphrased("sing a song", random.Random(0)) == "sing a song"
    commands = [
        "take lamp",
        "drop lamp",
        "put lamp on table",
        "insert lamp into table",
        "take lamp from table",
        "eat lamp",
    ]
    commands += ["open lamp", "close lamp", "examine lamp", "lock table with lamp", "unlock table with lamp", "look"]
    meant: dict[str, str] = {}
    for command in commands:
        for text in {paraphrased(command, random.Random(n)) for n in range(60)}:
            assert meant.setdefault(text, command) == command, "one wording, two commands"


def test_an_instruction_says_its_commands_one_after_the_other():
    commands = ("take lamp from chest", "go west", "put key on table")
    texts = {instruction(commands, random.Random(n)) for n in range(200)}
    assert len(texts) > 100
    verbatim = [text for text in texts if all(command in text for command in commands)]
    assert len(verbatim) == 3, "three ways to list them"
    for text in texts:
        assert text.index("lamp") < text.index("west") < text.index("key") < text.index("table")


def test_drills_list_the_command_that_comes_next_among_others_about_the_same():
    said = [Transcript("", ("",) * (len(WORLD) + 1), WORLD, (None,) * (len(WORLD) + 1))]
    found = drills(said, 50, random.Random(0))
    assert len(found) == 50 and len({drill.objective for drill in found}) == 50
    assert found == drills(said, 50, random.Random(0)) != drills(said, 50, random.Random(1))
    things, places = {"lamp", "stick of butter", "brass key"}, {"chest", "table", "red chest"}
    met, verbatim = set[str](), 0
    for drill in found:
        length = len(drill.commands)
        assert 3 <= length <= 8 and len(set(drill.commands)) == length
        assert len(drill.observations) == len(drill.listed) == length + 1
        for command, listed in zip(drill.commands, drill.listed, strict=False):
            assert listed is not None and command in listed and len(listed) >= 3
        # What the task says, in its order, is what is done, and all of it.
        at = 0
        for command in drill.commands:
            said_so = (command, *(paraphrased(command, random.Random(n)) for n in range(60)))
            ways = [drill.objective.find(way, at) for way in said_so]
            assert max(ways) >= 0, command
            at = min(way for way in ways if way >= 0) + 1
        verbatim += all(command in drill.objective for command in drill.commands)
        # All that is listed is about the same few, none of which the worlds do not have.
        words = " ".join(line for listed in drill.listed for line in listed or ())
        named = set(_named(words))
        assert len(named & things) <= 3 and len(named & places) <= 3 and named <= things | places
        met |= named
    assert met == things | places and 8 < verbatim < 30, "one in three"
    alone = [Transcript("", ("", ""), ("look",), (None, None))]
    assert drills(alone, 5, random.Random(0)) == [], "no command of two parts, so nothing to drill with"
