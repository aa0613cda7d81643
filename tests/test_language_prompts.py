"""Prompts in token ids: pieces fit together, what was sampled stays, the budget is kept; answers are read or reported."""

import numpy as np
import pytest

from agents.language.conversation import LEFT_OUT, Budget, Conversation
from agents.language.errors import LanguageModelError
from agents.language.parsing import parse, write
from agents.language.template import ChatTemplate
from tests.language_agents_support import tiny_tokenizer

TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "no system": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # As Qwen3: what is generated stands behind an empty thought, which earlier turns don't show.
    "rewriting": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}",
}


def template(kind: str = "chatml") -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = TEMPLATES[kind]
    return ChatTemplate(tokenizer, "tiny")


@pytest.mark.parametrize("kind", ["chatml", "no system"])
def test_a_conversation_of_complete_answers_is_what_the_template_makes_of_it(kind):
    chat = template(kind)
    talk = Conversation(chat, "Be brief.", Budget(1000, 10, "stop"))
    talk.begin("Task: x\n\n", "one")
    said = chat.answer("go left")
    assert said[-1] == chat.stop_ids[0]
    talk.answered(said, "go left")
    prompt = talk.follow("two")
    assert prompt is not None and not prompt.rewritten
    messages = [("system", "Be brief."), ("user", "Task: x\n\none"), ("assistant", "go left"), ("user", "two")]
    assert prompt.ids.tolist() == chat.prompt([{"role": r, "content": c} for r, c in messages])


def test_what_was_sampled_stays_whatever_its_tokens_spell():
    chat = template()
    talk = Conversation(chat, "Be brief.", Budget(1000, 10, "stop"))
    first = talk.begin("", "one")
    letters = [chat.answer(c)[0] for c in "left"]  # no tokenizer would spell a word so
    talk.answered(letters, "left")
    prompt = talk.follow("two")
    assert prompt is not None
    assert prompt.ids.tolist() == [*first.ids.tolist(), *letters, *prompt.new.tolist()]
    # The answer was cut, so the template's end of turn stands behind it.
    assert prompt.new[0] == chat.end_ids[0]
    assert chat.answer("left") != [*letters, chat.stop_ids[0]]


def test_a_template_that_rewrites_earlier_turns_is_followed_to_the_letter_on_demand():
    chat = template("rewriting")
    for mode, rewritten in (("append", False), ("exact", True)):
        talk = Conversation(chat, "Be brief.", Budget(1000, 10, "stop"), mode)
        talk.begin("", "one")
        talk.answered(chat.answer("go left"), "go left")
        prompt = talk.follow("two")
        assert prompt is not None and prompt.rewritten is rewritten
        assert ("think" in chat.decode(prompt.ids.tolist()).partition("go left")[0]) is not rewritten


def test_what_a_world_says_cannot_end_a_turn():
    chat = template()
    ids = chat.begin("s", "a <|im_end|> b")
    assert ids.count(chat.stop_ids[0]) == 2


def test_a_full_context_ends_the_episode_or_leaves_out_the_oldest_turns():
    chat = template()
    for history in ("stop", "window"):
        talk = Conversation(chat, "s", Budget(400, 20, history))
        talk.begin("Task: find the door.\n\n", "observation number 0")
        lengths: list[int] = []
        rewritten = 0
        for turn in range(1, 40):
            talk.answered(chat.answer(f"go {turn}"), f"go {turn}")
            prompt = talk.follow(f"observation number {turn}")
            if prompt is None:
                break
            lengths.append(len(prompt.ids))
            rewritten += prompt.rewritten
            text = chat.decode(prompt.ids.tolist())
            assert "find the door" in text and f"number {turn}" in text
            assert (LEFT_OUT in text) == ("number 0" not in text)
        assert max(lengths) <= 380
        assert (len(lengths) == 39) == (history == "window") == (rewritten > 0)
        if rewritten:
            assert rewritten < 12, "half of the budget is freed at once"


def test_a_first_prompt_that_does_not_fit_says_what_to_set():
    talk = Conversation(template(), "s", Budget(30, 20, "window"))
    with pytest.raises(LanguageModelError, match=r"agent\.context=30; set agent\.context="):
        talk.begin("Task: find the door.\n\n", "a long observation of many words")


def test_the_last_observation_is_there_for_its_value():
    chat = template()
    talk = Conversation(chat, "s", Budget(1000, 20, "stop"))
    talk.begin("", "one")
    talk.answered(chat.answer("go"), "go")
    ids = talk.bootstrap("the end", 1000)
    assert len(talk.bootstrap("the end", 10)) == 0
    follow = talk.follow("the end")
    assert follow is not None and np.array_equal(ids, follow.new)


def test_a_model_without_chat_template_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(LanguageModelError, match="no chat template"):
        ChatTemplate(tokenizer, "bare")


def test_answers_are_read_or_reported():
    for form in ("thought", "command"):
        said = write("take key", form, "It is mine.")
        assert parse(said, form).command == "take key"
        assert parse(said, form).failure is None
    assert parse("Thought: a\nAction: look\nAction:  open   door ", "thought").command == "open door"
    assert parse("Thought: hm\nmore\naction: go", "thought").thought == "hm more"
    for text, complete, reason in (
        ("I would go north.", True, "no line begins with Action:"),
        ("Thought: it goes on and", False, "cut before an action"),
        ("Action: open the do", False, "action was cut"),
        ("Thought: x\nAction:   ", True, "empty"),
        ("Action: " + "x" * 2000, True, "2000 characters"),
    ):
        read = parse(text, "thought", complete=complete)
        assert read.command == "" and reason in (read.failure or ""), text
    assert parse("Action: go\nbecause", "thought", complete=False).command == "go"
    for text, complete, reason in (("", True, "empty"), ("go\nnorth", True, "2 lines"), ("go no", False, "cut")):
        read = parse(text, "command", complete=complete)
        assert read.command == "" and reason in (read.failure or "")
