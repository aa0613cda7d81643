"""Chat messages as token ids, with the model's own chat template. Nothing here tokenises an answer of the model again.

A conversation in token ids is taken apart so:

    begin(system, user)   <system> … <user> … <assistant>      the template's, up to where the model speaks
    the model's answer                                        ids as they were sampled, its end-of-turn token included
    follow(last, user)                     <end> <user> … <assistant>      what the template puts between two answers

`follow` leaves out what the model said itself (`<end>`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.language.errors import LanguageModelError
from inference.safe_loading import SAFE, check_safe

Message = Mapping[str, str]

_ANSWER, _USER = "\u2997answer\u2998", "\u2997user\u2998"
"""Stand for contents when the template is taken apart; no template writes them."""


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a folder or Hugging Face id. Raises `LanguageModelError` where there is none."""
    from transformers import AutoTokenizer

    check_folder(model)
    try:
        check_safe(model)
        return AutoTokenizer.from_pretrained(model, **SAFE)
    except (OSError, ValueError) as error:
        raise LanguageModelError(f"agent.model={model}: its tokenizer cannot be loaded: {_said(error)}") from error


def check_folder(model: str) -> None:
    """Raises `LanguageModelError` where `model` means a folder that is not there or holds no model. Loads nothing."""
    path = Path(model).expanduser()
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or path.is_dir()
    if is_path and not path.is_dir():
        raise LanguageModelError(
            f"agent.model={model}: there is no such folder; give one in Hugging Face format, or an id"
        )
    if is_path and not (path / "config.json").is_file():
        raise LanguageModelError(
            f"agent.model={model}: the folder holds no config.json, so it is no model in Hugging Face format"
        )
    if not is_path and ("/" not in model or " " in model):
        raise LanguageModelError(
            f"agent.model={model} is neither a folder that exists nor a Hugging Face id (owner/name)"
        )


class ChatTemplate:
    """Makes prompts for one model. `name` is what errors call it."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Raises `LanguageModelError` for a tokenizer without a chat template, and for one that can't be taken apart."""
        self.tokenizer = tokenizer
        self.name = name
        if not getattr(tokenizer, "chat_template", None):
            raise LanguageModelError(
                f"agent.model={name} has no chat template, so there is no telling how to speak to it; take a model that is "
                "tuned for chat, or set chat_template in its tokenizer_config.json"
            )
        self._special: tuple[str, ...] = tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
        self._system_role = self._knows_system()
        self._before_user, self._after_user = self._between()
        self.end_ids = self._end_of_turn()
        """[≥ 0] the token that ends a turn, as the template writes it; empty where it writes none."""
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*self.end_ids, *self._eos()]))
        """Tokens at which generation stops."""
        if not self.stop_ids:
            raise LanguageModelError(
                f"agent.model={name} has no token that ends a turn: set eos_token in its tokenizer"
            )

    def begin(self, system: str, user: str) -> list[int]:
        """Ids of the first prompt, up to where the model speaks."""
        return self.prompt([{"role": "system", "content": system}, {"role": "user", "content": user}])

    def follow(self, last: int, user: str) -> list[int]:
        """Ids between an answer, whose last token is `last`, and the next one: the user's message is in it."""
        ids = self._ids(f"{self._before_user}{self._plain(user)}{self._after_user}")
        begins_with_end = bool(self.end_ids) and ids[: len(self.end_ids)] == list(self.end_ids)
        return ids[1:] if begins_with_end and last == self.end_ids[0] else ids

    def answer(self, text: str) -> list[int]:
        """Ids of an answer as a model would give it, end of turn included: for demonstrations, never for what was sampled."""
        return [*self._ids(self._plain(text)), self.stop_ids[0]]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a whole conversation as the template has it, up to where the model speaks."""
        plain = [{"role": m["role"], "content": self._plain(m["content"])} for m in messages]
        return self._ids(self._render(plain))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _plain(self, text: str) -> str:
        """`text` with the spelling of special tokens broken: what a world says must not end a turn."""
        for special in self._special:
            if len(special) > 1 and special in text:
                text = text.replace(special, f"{special[0]} {special[1:]}")
        return text.strip()

    def _render(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        chat = list(messages) if self._system_role else _without_system(messages)
        # enable_thinking: models that would think by themselves (Qwen3) are told not to; the others ignore it.
        return str(
            self.tokenizer.apply_chat_template(
                chat, add_generation_prompt=open_turn, tokenize=False, enable_thinking=False
            )
        )

    def _knows_system(self) -> bool:
        import jinja2

        self._system_role = True
        try:
            return _USER in self._render([{"role": "system", "content": _USER}, {"role": "user", "content": "x"}])
        except jinja2.TemplateError:
            return False

    def _between(self) -> tuple[str, str]:
        """What the template writes between an answer and the next message, and between that and the next answer."""
        chat = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _USER},
        ]
        text = self._render(chat)
        if text.count(_ANSWER) != 1 or text.count(_USER) != 1 or text.index(_ANSWER) > text.index(_USER):
            raise LanguageModelError(
                f"agent.model={self.name}: its chat template does not write every message once and in order, so no "
                "conversation can be made with it"
            )
        between = text[text.index(_ANSWER) + len(_ANSWER) :]
        before, _, after = between.partition(_USER)
        return before, after

    def _end_of_turn(self) -> tuple[int, ...]:
        first = self._ids(self._before_user)[:1]
        special = self.tokenizer.get_added_vocab().values()
        return tuple(first) if first and first[0] in special else ()

    def _eos(self) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (int(eos),)


def _without_system(messages: Sequence[Message]) -> list[dict[str, str]]:
    """For templates that know no system role: its text goes to the head of the first user message."""
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
        turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
    return turns


def _said(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
