"""Builds the embedded judge: `build(cache_dir)` gives a folder in Hugging Face format, made once and then found again.

Invariant: a folder of that name is complete (it is written beside and renamed), and its name says everything that its
content depends on: rules, prompt, code, seed and training settings.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from reward_server.embedded.corpus import Corpus, Example, make
from reward_server.embedded.rules import RuleBook
from reward_server.embedded.training import Encoded, TrainingSettings
from reward_server.judge.prompts import Prompt, PromptTemplate, quote
from reward_server.types import JudgeError

REPORT = "judge.json"
"""File of the model folder that says what the judge is and how far it agrees with the rules."""
_SOURCES = (
    "rules.yaml",
    "slots.yaml",
    "builder.py",
    "corpus.py",
    "rules.py",
    "tokenizer.py",
    "training.py",
    "messages.txt",
)
_ESCAPED = '"\\u003c \\u003e \\u005b \\" \\\\"'


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the judge agrees with the rules on a set of messages that training never saw."""

    messages: int
    accuracy: float
    balanced_accuracy: float
    """Mean of the two recalls: the trivial judge has 0.5."""
    recall_helpful: float
    recall_unhelpful: float


def build(
    cache_dir: str | Path,
    *,
    seed: int = 0,
    settings: TrainingSettings | None = None,
    held_size: int = 1500,
    threads: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder of the embedded judge, built if it is not there yet. Two processes that ask at once build it once.

    `threads`: CPU threads of the training. One by default: OpenMP threads that wait for a core that something else
    uses spin, and then two are several times slower than one. `progress` gets a line of text now and then. Raises
    `JudgeError` where the cache cannot be written.
    """
    settings = settings or TrainingSettings()
    digest = build_digest(seed, settings)
    folder = Path(cache_dir) / f"embedded-{digest}"
    if (folder / REPORT).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".embedded-{digest}.lock"):
            if not (folder / REPORT).is_file():
                _build_into(folder, seed, settings, held_size, threads, progress)
    except OSError as error:
        raise JudgeError(
            f"the embedded judge cannot be kept in {folder.parent}: {error}; set judge.cache_dir to a writable folder"
        ) from error
    return folder


def build_digest(seed: int, settings: TrainingSettings) -> str:
    """Twelve hexadecimal digits that stand for everything that the built model depends on."""
    code = resources.files("reward_server.embedded")
    content = hashlib.blake2b(digest_size=6)
    for part in (PromptTemplate.load().version, *(code.joinpath(name).read_text("utf-8") for name in _SOURCES)):
        content.update(part.encode() + b"\0")
    content.update(json.dumps([seed, asdict(settings)]).encode())
    return content.hexdigest()


def default_digest() -> str:
    """The digest of the judge that `build` makes without further arguments."""
    return build_digest(0, TrainingSettings())


def report(folder: Path) -> dict[str, Any]:
    """What `judge.json` says of a built judge."""
    return json.loads((folder / REPORT).read_text("utf-8"))


def encode(tokenizer: Any, prompt: Prompt, examples: Sequence[Example]) -> Encoded:
    """The examples' prompts as token ids, split into the prefix that all share and what follows it.

    Prefix and rest are tokenized apart, which is fast; raises `JudgeError` where that gives other tokens than the
    whole prompt.
    """
    rendered = [_render(tokenizer, prompt, text) for text in ("a", "")]
    shared = _common_start(*rendered).rpartition("\n")[0] + "\n"
    tail = rendered[1][len(shared) + len(quote("")) :]
    prefix = tokenizer(shared, add_special_tokens=False)["input_ids"]
    suffixes = tokenizer([quote(e.text) + tail for e in examples], add_special_tokens=False)["input_ids"]
    for example, suffix in list(zip(examples, suffixes, strict=True))[:: max(1, len(examples) // 50)]:
        whole = tokenizer(_render(tokenizer, prompt, example.text), add_special_tokens=False)["input_ids"]
        if whole != prefix + suffix:
            raise JudgeError(f"the prompt of {example.text!r} does not split into the shared prefix and the rest")
    return Encoded(prefix, suffixes, [e.label for e in examples])


def label_ids(tokenizer: Any, template: PromptTemplate) -> list[int]:
    """Token ids of the two labels, in the order of the labels."""
    return [tokenizer.convert_tokens_to_ids(text) for text in template.labels]


def _common_start(one: str, other: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:same]


def _render(tokenizer: Any, prompt: Prompt, text: str) -> str:
    chat = [{"role": m.role, "content": m.content} for m in prompt.chat(text)]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def _build_into(
    folder: Path, seed: int, settings: TrainingSettings, held_size: int, threads: int, progress: Callable[[str], None]
) -> None:
    started = time.monotonic()
    book, template = RuleBook.load(), PromptTemplate.load()
    prompt = template.prompt("default", "direct")
    corpus = make(book, seed=seed, train_size=settings.steps * settings.batch_size, held_size=held_size)
    progress(f"embedded judge: {len(corpus.train)} messages from {len(book.families)} families of rules")
    tokenizer = _tokenizer(corpus, template)
    with _threads(threads):
        model, data = _train(corpus, tokenizer, prompt, settings, seed, progress)
        agreement, by_family = _evaluate(model, tokenizer, prompt, corpus)
    overall = agreement["overall"]
    progress(
        f"embedded judge: agrees with the rules on {overall.accuracy:.1%} of {overall.messages} messages that its "
        "training never saw"
    )
    facts = {
        "what": "A small model taught by rules.yaml to label NetHack messages; it knows nothing else.",
        "digest": folder.name.removeprefix("embedded-"),
        "seed": seed,
        "settings": asdict(settings),
        "threads": threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompt_version": template.version,
        "rules_version": book.version,
        "families": len(book.families),
        "prefix_tokens": len(data.prefix),
        "train_examples": len(corpus.train),
        "train_helpful_share": sum(e.label for e in corpus.train) / len(corpus.train),
        "seconds": round(time.monotonic() - started, 1),
        "agreement": {k: asdict(v) for k, v in agreement.items()},
        "agreement_by_family": by_family,
    }
    _write(folder, model, tokenizer, facts)


def _tokenizer(corpus: Corpus, template: PromptTemplate) -> Any:
    from reward_server.embedded import tokenizer

    shown = [m.content for mode in ("direct", "reasoned") for m in template.prompt("default", mode).prefix]
    return tokenizer.train((json.dumps(e.text) for e in corpus.train[:20_000]), [*shown, _ESCAPED])


def _train(
    corpus: Corpus,
    tokenizer: Any,
    prompt: Prompt,
    settings: TrainingSettings,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[Any, Encoded]:
    from reward_server.embedded import training

    data = encode(tokenizer, prompt, corpus.train)
    model = training.new_model(settings, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, seed)
    ids = label_ids(tokenizer, prompt.template)
    mean = 0.7
    for step, loss in training.train(model, data, ids, settings, seed):
        mean += 0.05 * (loss - mean)
        if step % 50 == 0:
            progress(f"embedded judge: step {step} of {settings.steps}, loss {mean:.3f}")
    return model, data


def _evaluate(
    model: Any, tokenizer: Any, prompt: Prompt, corpus: Corpus
) -> tuple[dict[str, Agreement], dict[str, float]]:
    from reward_server.embedded import training

    agreement: dict[str, Agreement] = {}
    hits: dict[str, list[bool]] = {}
    judged: list[tuple[int, bool]] = []
    ids = label_ids(tokenizer, prompt.template)
    for name, examples in corpus.held_out.items():
        data = encode(tokenizer, prompt, examples)
        found = training.probabilities(model, data.prefix, data.suffixes, ids)
        part = [(e.label, (p > 0.5) == (e.label == 1)) for e, p in zip(examples, found, strict=True)]
        agreement[name] = _agreement(part)
        judged += part
        for example, (_, right) in zip(examples, part, strict=True):
            hits.setdefault(example.family, []).append(right)
    by_family = {name: round(sum(rights) / len(rights), 4) for name, rights in sorted(hits.items())}
    return {"overall": _agreement(judged), **agreement}, by_family


def _agreement(judged: Sequence[tuple[int, bool]]) -> Agreement:
    recall = [sum(r for y, r in judged if y == label) / max(1, sum(y == label for y, _ in judged)) for label in (0, 1)]
    accuracy = sum(r for _, r in judged) / max(1, len(judged))
    return Agreement(len(judged), accuracy, sum(recall) / 2, recall[1], recall[0])


def _write(folder: Path, model: Any, tokenizer: Any, facts: Mapping[str, Any]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".embedded-", dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / REPORT).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _threads(count: int) -> Generator[None]:
    """Torch's number of threads is set for the training and put back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
