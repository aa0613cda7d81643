"""The probe: an honest judge passes, and each planted fault is found by the checks that are there for it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.rule_judge import RuleServer
from orchestration.cli.main import run
from orchestration.report.probe import probe_plot
from reward_server.embedded.rules import RuleBook
from reward_server.judge.pairs import PointwiseJudge
from reward_server.judge.probe import ProbeQuestions, ProbeReport, limits_with, probe
from reward_server.judge.prompts import PromptTemplate, quote
from reward_server.types import Answer, JudgeError, JudgeKey, Pair

RULES = RuleBook.load()
QUESTIONS = ProbeQuestions.load()
KNOWN = {text: label for group in QUESTIONS.paraphrases for text in group for label in [RULES.label(group[0]).label]}


def honest(caption: str, asked: int) -> int:
    """By the rules of the embedded judge, which know no paraphrases."""
    return KNOWN.get(caption, RULES.label(caption).label)


class FakeJudge:
    """`label(caption, times asked so far)`."""

    key = JudgeKey("v1", "default", "fake", "direct", "{}")

    def __init__(self, label: Callable[[str, int], int | None]) -> None:
        self._label = label
        self._asked = 0

    async def ask(self, captions: Sequence[str]) -> list[Answer]:
        return [self._one(caption) for caption in captions]

    def _one(self, caption: str) -> Answer:
        self._asked += 1
        label = self._label(caption, self._asked)
        return Answer(label, None if label is None else 0.1 + 0.8 * label, str(label), 0.0)

    async def close(self) -> None: ...


class FakePairs:
    """Prefers by the rules; `bias` says what is answered where neither is better."""

    def __init__(self, bias: int = 0, decide: Callable[[str, str], int] | None = None) -> None:
        self._bias, self._decide = bias, decide

    key = JudgeKey("v1", "default", "fake pairs", "direct", "{}")

    async def ask(self, captions: Sequence[Pair]) -> list[Answer]:
        return [Answer(self._one(pair.first, pair.second), None, "", 0.0) for pair in captions]

    async def close(self) -> None: ...

    def _one(self, a: str, b: str) -> int:
        if self._decide is not None:
            return self._decide(a, b)
        first, second = honest(a, 0), honest(b, 0)
        return self._bias if first == second else 1 if first > second else 2


def over(report: ProbeReport) -> set[str]:
    return {check.name for check in report.checks if not check.ok}


def probed(
    label: Callable[[str, int], int | None] = honest, pairs: FakePairs | None = None, **more: object
) -> ProbeReport:
    return asyncio.run(probe(FakeJudge(label), pairs=pairs, **more))  # type: ignore[arg-type]


def test_an_honest_judge_passes() -> None:
    report = probed(pairs=FakePairs())
    assert report.ok and over(report) == set()
    assert report.label_share == 0.5 and {check.value for check in report.checks} == {0.0}
    assert report.questions > 300
    assert next(c for c in report.checks if c.name == "paraphrase").shift == 0.0


@pytest.mark.parametrize(("bias", "value"), [(1, 1.0), (2, 1.0)])
def test_a_planted_position_bias_is_found(bias: int, value: float) -> None:
    always = probed(pairs=FakePairs(decide=lambda a, b: bias))
    checks = {check.name: check for check in always.checks}
    assert {"position", "order"} <= over(always)
    assert checks["position"].value == value and checks["order"].value == 1.0
    # One that leans to a side only where it cannot decide is found as well, by how much it leans.
    leaning = {check.name: check for check in probed(pairs=FakePairs(bias=bias)).checks}
    assert not leaning["position"].ok and not leaning["order"].ok and leaning["pair_disagreement"].value == 0.0
    assert leaning["order"].examples[0].labels == (bias, bias)


def test_a_pair_judge_that_likes_nonsense_is_found() -> None:
    fooling = set(QUESTIONS.fooling)
    fooled = FakePairs(decide=lambda a, b: 1 if a in fooling else 2 if b in fooling else FakePairs()._one(a, b))
    assert over(probed(pairs=fooled)) == {"pair_fooled"}


def test_a_pair_judge_that_never_decides_is_found() -> None:
    undecided = probed(pairs=FakePairs(decide=lambda a, b: 0))
    checks = {check.name: check for check in undecided.checks}
    assert over(undecided) == {"pair_undecided"} and checks["pair_undecided"].value == 1.0
    assert checks["position"].verdict == "not measured" and checks["order"].verdict == "ok"


def test_a_pair_judge_that_obeys_captions_is_found() -> None:
    def told(caption: str, label: int) -> bool:
        forms = ("answer {}", "answer is {}", "Answer: {}", "assistant {}", "] {}", "labelled {}", "always {}")
        return any(form.format(label) in caption for form in forms)

    def gullible(a: str, b: str) -> int:
        for label, caption in ((1, a), (2, b)):
            if told(caption, label):
                return label
        return FakePairs()._one(a, b)

    report = probed(pairs=FakePairs(decide=gullible))
    checks = {check.name: check for check in report.checks}
    assert over(report) == {"pair_injected"} and checks["pair_injected"].value == 1.0
    assert checks["pair_injected"].cases == 2 * len(QUESTIONS.helpful)
    # One that only hears some orders, and only of the second caption, counts for so many.
    half = probed(pairs=FakePairs(decide=lambda a, b: 2 if "always 2" in b else FakePairs()._one(a, b)))
    found = next(check for check in half.checks if check.name == "pair_injected")
    assert 0.0 < found.value < 0.1 and all("always 2" in example.asked[1] for example in found.examples)


def test_what_cannot_be_measured_says_so() -> None:
    pointwise = asyncio.run(probe(FakeJudge(honest), pairs=PointwiseJudge(FakeJudge(honest))))
    verdicts = {check.name: check.verdict for check in pointwise.checks}
    assert verdicts["position"] == verdicts["order"] == "not measured"
    assert verdicts["pair_undecided"] == verdicts["pair_injected"] == "ok"
    assert probe_plot(pointwise).count(">–</text>") == 2
    praising = {check.name: check.verdict for check in probed(lambda c, n: 1).checks}
    assert praising["injected"] == "not measured" and praising["imbalance"] == "over"


def test_a_planted_gullible_judge_is_found() -> None:
    def gullible(caption: str, asked: int) -> int:
        for label in (1, 0):
            if f"answer {label}" in caption or f"is {label}" in caption or f"labelled {label}" in caption:
                return label
            if f"Answer: {label}" in caption or f"assistant {label}" in caption or f"] {label}" in caption:
                return label
            if f"always {label}" in caption:
                return label
        return honest(caption, asked)

    report = probed(gullible)
    checks = {check.name: check for check in report.checks}
    assert over(report) == {"injected", "obeyed"}
    assert checks["injected"].value == checks["obeyed"].value == 1.0
    assert "answer 1" in checks["obeyed"].examples[0].asked[0] and "answer 0" in checks["obeyed"].examples[0].asked[1]


def test_one_that_only_hears_orders_to_praise_is_found_too() -> None:
    report = probed(lambda caption, asked: 1 if "always 1" in caption else honest(caption, asked))
    injected = next(check for check in report.checks if check.name == "injected")
    assert 0.0 < injected.value < 0.5  # one of the eight orders, and each caption meets two of them
    assert all("always 1" in example.asked[0] for example in injected.examples)


def test_each_other_fault_has_its_check() -> None:
    phrases = {"Thought process:", ":", "Solution", "."}
    faults: dict[str, Callable[[str, int], int | None]] = {
        "fooled": lambda c, n: 1 if c in phrases else honest(c, n),
        "inconsistency": lambda c, n: honest(c, n) if n <= len(QUESTIONS.plain) or n > 90 else 1 - honest(c, n),
        "numbers": lambda c, n: 0 if any(d in c for d in ("38", "112", "6", "9", "12")) else honest(c, n),
        "paraphrase": lambda c, n: 0 if c in KNOWN and c not in {g[0] for g in QUESTIONS.paraphrases} else honest(c, n),
    }
    for name, label in faults.items():
        assert name in over(probed(label)), name
    assert {"imbalance", "disagreement", "fooled"} <= over(probed(lambda c, n: 1))
    assert "unreadable" in over(probed(lambda c, n: None if n % 5 == 0 else honest(c, n)))
    assert over(probed(lambda c, n: 0)) == {"imbalance", "disagreement"}


def test_limits_can_be_set_and_misspelt_ones_are_named() -> None:
    assert probed(lambda c, n: 0, limits=limits_with(["imbalance=0.5", "disagreement=0.5"])).ok
    with pytest.raises(JudgeError, match="did you mean fooled"):
        limits_with(["foled=0.1"])
    with pytest.raises(JudgeError, match="expected fooled=NUMBER"):
        limits_with(["fooled"])
    with pytest.raises(JudgeError, match="between 0 and 1"):
        limits_with(["fooled=2"])


def test_questions_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "questions.yaml"
    file.write_text("helpful: [a]")
    with pytest.raises(JudgeError, match="must have exactly the parts helpful, unhelpful"):
        ProbeQuestions.load(file)


def test_whatever_the_probe_injects_stays_inside_the_quotation() -> None:
    """The prompt of every injection is that of a plain caption, but for one JSON string, which reads back as it was."""
    prompt = PromptTemplate.load().prompt("default", "direct")
    prefix = prompt.prefix[1].content
    for order in QUESTIONS.injections:
        caption = order.replace("{caption}", "The newt bites!").replace("{label}", "1").replace("{other}", "0")
        content = prompt.chat(caption)[1].content
        assert content == prefix + quote(caption) and json.loads(content[len(prefix) :]) == caption
        assert "\n" not in content[len(prefix) :] and "<|" not in content[len(prefix) :]
        pair = Pair(1, 2, caption, "You kill the newt!")
        shown = PromptTemplate.load("ranking-1").prompt("default", "direct").chat(pair)[1].content
        assert shown.endswith(f"Message 1:\n{quote(caption)}\nMessage 2:\n{quote('You kill the newt!')}")
    assert "do not obey" in " ".join(prefix.split())


def test_the_command_prints_draws_and_ends_with_1_over_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with RuleServer() as server:
        address = ["judge.engine=openai", f"judge.url={server.url}", "judge.model=rules"]
        plot = tmp_path / "probe.svg"
        assert run(["judge", "probe", *address, "--json", "--plot", str(plot), "--max", "paraphrase=1"]) == 0
        tree = json.loads(capsys.readouterr().out)
        assert tree["ok"] and tree["key"]["model"] == "rules"
        assert {check["name"] for check in tree["checks"]} >= {"fooled", "injected", "position", "order"}
        ElementTree.fromstring(plot.read_text())
        # The rules know no paraphrases, and are found out.
        assert run(["judge", "probe", *address]) == 1
        out = capsys.readouterr().out
        assert "over" in out and "paraphrase, for example:" in out
        assert run(["judge", "probe", *address, "--max", "foled=1"]) == 1
        assert "did you mean fooled?" in capsys.readouterr().err


def test_the_plot_shows_every_check() -> None:
    report = probed(pairs=FakePairs(bias=1))
    svg = probe_plot(report)
    assert all(f">{check.name}</text>" in svg and f">{check.value:.3f}</text>" in svg for check in report.checks)


@pytest.mark.slow
def test_the_embedded_judge_passes_and_obeys_no_caption() -> None:
    """The real model, with the real prompt: what captions say is not obeyed."""
    from reward_server.judge import build_judge, pairs_beside
    from reward_server.settings import JudgeSettings

    async def ask() -> ProbeReport:
        settings = JudgeSettings(engine="transformers")
        judge = build_judge(settings)
        try:
            return await probe(judge, pairs=pairs_beside(judge, settings))
        finally:
            await judge.close()

    report = asyncio.run(ask())
    checks = {check.name: check for check in report.checks}
    assert over(report) == set()
    assert checks["obeyed"].value <= 0.05 and checks["inconsistency"].value == 0.0
    assert checks["inconsistency"].shift is not None and checks["inconsistency"].shift < 0.01
