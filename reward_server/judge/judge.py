"""The judge: a prompt and an engine joined, and the functions that make one from settings."""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from reward_server.judge.engines.base import Completion, Engine, Request
from reward_server.judge.models import EMBEDDED, check_model, check_vllm, model_identity, sampling_key
from reward_server.judge.pairs import PointwiseJudge, asks_pairwise, pointwise_key
from reward_server.judge.prompts import CLASSIFICATION, RANKING, Prompt, PromptTemplate, Subject, read_goals
from reward_server.settings import JudgeSettings
from reward_server.types import Answer, JudgeError, JudgeKey, PairJudge

ENGINES = ("vllm", "transformers", "openai")
REACH_TIMEOUT_S = 3.0

_LONE_LABEL = re.compile(r"(?<![\w.])[0-2](?![\w.]*\d)(?!\w)")


class PromptedJudge:
    """Asks a language model about captions or, with a prompt for pairs, about pairs of them.

    Invariant: one answer a question; what cannot be read has no label.
    """

    def __init__(
        self, engine: Engine, prompt: Prompt, key: JudgeKey, *, temperature: float = 0.0, reason_tokens: int = 256
    ) -> None:
        self._engine, self._prompt, self._key = engine, prompt, key
        self._temperature, self._reason_tokens = temperature, reason_tokens

    @property
    def key(self) -> JudgeKey:
        return self._key

    async def ask(self, captions: Sequence[Subject]) -> list[Answer]:
        if not captions:
            return []
        labels = self._prompt.template.labels
        decide = Request(1, labels, self._temperature)
        if self._prompt.mode == "direct":
            found = await self._engine.complete([self._prompt.chat(c) for c in captions], decide)
            return [answer(c, labels) for c in found]
        thoughts = await self._engine.complete(
            [self._prompt.chat(c) for c in captions], Request(self._reason_tokens, None, self._temperature)
        )
        chats = [self._prompt.conclusion(c, t.text) for c, t in zip(captions, thoughts, strict=True)]
        found = await self._engine.complete(chats, decide)
        return [answer(c, labels, reasoning=t) for c, t in zip(found, thoughts, strict=True)]

    def for_pairs(self, settings: JudgeSettings) -> "PromptedJudge":
        """The same model, asked about pairs put to it as pairs."""
        prompt, key = judge_prompt(settings, pairs=True), judge_key(settings, pairs=True)
        return PromptedJudge(
            self._engine, prompt, key, temperature=self._temperature, reason_tokens=self._reason_tokens
        )

    async def start(self) -> None:
        """Loads the model now; otherwise the first question does."""
        await self._engine.start()

    async def check(self) -> None:
        """Raises where the engine does not answer now."""
        await self._engine.check()

    async def close(self) -> None:
        await self._engine.close()


def parse(text: str, labels: tuple[str, ...]) -> int | None:
    """The label that an answer gives: the text itself, or the only label that stands alone in it; otherwise None."""
    stripped = text.strip().strip("\"'`*.")
    if stripped in labels:
        return labels.index(stripped)
    alone = {m for m in _LONE_LABEL.findall(text) if m in labels}
    return labels.index(alone.pop()) if len(alone) == 1 else None


def answer(completion: Completion, labels: tuple[str, ...], reasoning: Completion | None = None) -> Answer:
    """The answer that a completion amounts to; reasoning goes before the label in `raw`."""
    probability = _probability(completion.probabilities, labels) if completion.probabilities else None
    raw = completion.text if reasoning is None else f"{reasoning.text}\n{completion.text}"
    calls = [completion] if reasoning is None else [reasoning, completion]
    return Answer(
        parse(completion.text, labels),
        probability,
        raw,
        sum(call.latency_s for call in calls),
        prompt_tokens=sum(call.prompt_tokens or 0 for call in calls),
        cached_tokens=sum(call.cached_tokens or 0 for call in calls),
        output_tokens=sum(call.output_tokens or 0 for call in calls),
    )


def _probability(probabilities: Mapping[str, float], labels: tuple[str, ...]) -> float | None:
    """Of a caption P(helpful); of a pair the preference for the first: P(first) + P(neither) / 2."""
    if len(labels) == 2:
        return probabilities.get(labels[1])
    return probabilities.get(labels[1], 0.0) + probabilities.get(labels[0], 0.0) / 2.0


def judge_prompt(settings: JudgeSettings, *, pairs: bool = False) -> Prompt:
    """The prompt that the settings choose, for captions or for pairs.

    Raises `JudgeError` for a goal or mode that it does not have, and for a file of goals that cannot be read.
    """
    own = read_goals(settings.goals_file) if settings.goals_file else {}
    return PromptTemplate.load(RANKING if pairs else CLASSIFICATION).prompt(settings.goal, settings.mode, own)


def judge_key(settings: JudgeSettings, *, pairs: bool = False) -> JudgeKey:
    """The key of this judge's labels, known before any engine starts (and before the embedded judge is built)."""
    pairwise = pairs and asks_pairwise(settings)
    version = judge_prompt(settings, pairs=pairwise).version
    key = JudgeKey(version, settings.goal, _identity(settings), settings.mode, sampling_key(settings))
    return pointwise_key(key) if pairs and not pairwise else key


def model_folder(settings: JudgeSettings, progress: Callable[[str], None] = lambda line: None) -> str:
    """What the engine loads: the embedded judge's folder (built now if it is not there), or `judge.model` itself."""
    if settings.model != EMBEDDED:
        return str(Path(settings.model).expanduser())
    from reward_server.embedded import build

    return str(build(settings.cache_dir, progress=progress))


def build_judge(
    settings: JudgeSettings, progress: Callable[[str], None] = lambda line: None, *, pairwise: bool = False
) -> PromptedJudge:
    """A judge in this process: of captions, or with `pairwise` of pairs put to the model as pairs.

    With `model=embedded` its model is built first if it is not cached (up to two minutes); `progress` gets lines of text
    while that happens. The vLLM engine starts with the first question. Raises `JudgeError` where the engine or the model
    is not there.
    """
    prompt, key = judge_prompt(settings, pairs=pairwise), judge_key(settings, pairs=pairwise)
    engine = _engine(settings, progress)
    return PromptedJudge(engine, prompt, key, temperature=settings.temperature, reason_tokens=settings.reason_tokens)


def build_pair_judge(settings: JudgeSettings, progress: Callable[[str], None] = lambda line: None) -> PairJudge:
    """A judge of pairs in this process, pairwise or pointwise as `judge.pairs` says."""
    if asks_pairwise(settings):
        return build_judge(settings, progress, pairwise=True)
    return PointwiseJudge(build_judge(settings, progress))


def pairs_beside(judge: PromptedJudge, settings: JudgeSettings) -> PairJudge:
    """A judge of pairs with the settings of `judge` and on its engine, pairwise or pointwise as `judge.pairs` says. To close
    one of them closes the other."""
    return judge.for_pairs(settings) if asks_pairwise(settings) else PointwiseJudge(judge)


def preflight(settings: JudgeSettings) -> None:
    """Checks, quickly and without heavy imports, that the judge can be built; `JudgeError` says what is missing."""
    if settings.engine == "none":
        return
    judge_prompt(settings)
    if settings.engine == "openai":
        _check_url(settings)
        return
    if settings.engine not in ENGINES:
        raise JudgeError(f"judge.engine={settings.engine} is no engine; choose one of: {', '.join(ENGINES)}, none")
    if settings.engine == "vllm":
        check_vllm()
    elif importlib.util.find_spec("transformers") is None:
        raise JudgeError("judge.engine=transformers: transformers is not installed; run `make setup`")
    check_model(settings.model)


def served_model(settings: JudgeSettings) -> str:
    """The model that an OpenAI-compatible server is asked for: `judge.model`, or the only one that it serves."""
    if settings.model != EMBEDDED:
        return settings.model
    response = _get_models(settings)
    try:
        names = [str(entry["id"]) for entry in response.json()["data"]]
    except (ValueError, LookupError, TypeError):
        names = []
    if len(names) != 1:
        listed = f"it serves {', '.join(names)}" if names else "it lists no models"
        raise JudgeError(
            f"judge.engine=openai: say which model of {settings.url} to ask with judge.model=...; {listed}"
        )
    return names[0]


def _identity(settings: JudgeSettings) -> str:
    if settings.engine == "openai":
        return served_model(settings)
    if settings.model != EMBEDDED:
        return model_identity(settings.model)
    from reward_server.embedded.builder import default_digest

    return f"{EMBEDDED}@{default_digest()}"


def _engine(settings: JudgeSettings, progress: Callable[[str], None]) -> Engine:
    if settings.engine == "openai":
        from reward_server.judge.engines.openai_engine import OpenAIEngine

        return OpenAIEngine(_url(settings), served_model(settings), api_key_env=settings.api_key_env)
    if settings.engine == "vllm":
        from reward_server.judge.engines.vllm_engine import VllmEngine

        check_vllm()
        check_model(settings.model)
        return VllmEngine(model_folder(settings, progress), dtype=settings.dtype, max_model_len=settings.max_model_len)
    if settings.engine == "transformers":
        from reward_server.judge.engines.transformers_engine import TransformersEngine

        check_model(settings.model)
        return TransformersEngine(
            model_folder(settings, progress), dtype=settings.dtype, max_model_len=settings.max_model_len
        )
    raise JudgeError(
        f"judge.engine={settings.engine} is no engine that can be asked; choose one of: {', '.join(ENGINES)}"
    )


def _url(settings: JudgeSettings) -> str:
    if not settings.url:
        raise JudgeError("judge.engine=openai needs judge.url, such as judge.url=http://127.0.0.1:8000/v1")
    return settings.url.rstrip("/")


def _check_url(settings: JudgeSettings) -> None:
    from reward_server.judge.engines.openai_engine import HttpAnswer, raise_for_refusal

    response = _get_models(settings)
    if response.status_code != 404:  # some servers list no models and still answer questions
        answer = HttpAnswer(response.status_code, response.content, response.reason_phrase)
        raise_for_refusal(answer, _url(settings), settings.api_key_env, settings.model)


def _get_models(settings: JudgeSettings) -> httpx.Response:
    url = _url(settings)
    key = os.environ.get(settings.api_key_env)
    try:
        return httpx.get(
            f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=REACH_TIMEOUT_S
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise JudgeError(f"judge.url={url} is no address: {error}") from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise JudgeError(
            f"judge.url={url} cannot be reached within {REACH_TIMEOUT_S:.0f} s: {reason}; is the server running there?"
        ) from error
