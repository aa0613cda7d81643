"""The report itself: sections about learning, rewards, the judge, captions and the machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources

from orchestration.live import duration
from orchestration.report.data import MINUTES, STEPS, Axis, Group, RunData, Spread, differences, mean_and_spread
from orchestration.report.html import Cell, card, charts, details, figure, legend, number, page, section, table
from orchestration.report.svg import CHART_STYLE, Series, line_chart, stacked_bars
from orchestration.summary import CaptionScore, Summary

_SHARE = (0.0, 1.0)
_COMPONENTS = "reward/"
_SHOWN = (
    "episode/", "reward/", "reward_model/", "captions/", "hacking/", "policy/lag_mean", "policy/lag_max", "policy/version",
    "episodes",
)  # fmt: skip
"""Metrics that the sections show, or that tell nothing; all others are in detail."""
_KNOWN_EPISODE = ("episode/return", "episode/success", "episode/intrinsic_return", "episode/length")


def render(groups: Sequence[Group]) -> str:
    """The page for groups of runs."""
    runs = [run for group in groups for run in group.runs]
    envs = _envs(runs)
    title = f"Yendor: {', '.join(group.label for group in groups)}"
    made = time.strftime("%Y-%m-%d %H:%M")
    head = (
        f"<h1>{escape(envs)}</h1>"
        f'<p class="note">{len(runs)} run{"s" if len(runs) != 1 else ""}, {made}. A line is the mean over the seeds of one '
        "configuration, its band reaches from the least to the most of them. Success and returns are means of the last 100 "
        "episodes.</p>"
    )
    style = resources.files("orchestration.report").joinpath("page.css").read_text("utf-8") + CHART_STYLE
    content = [
        head,
        legend([_named(group) for group in groups]) if len(groups) > 1 else "",
        section("Results", _results(groups)),
        section("Learning", charts(_learning(groups))),
        section(
            "Rewards",
            charts([*_components(groups), *_concentration(groups)]),
            note="What the learner adds up, per step: each component after its weight.",
        ),
        _watch(runs),
        section("Labels and reward model", charts(_labels(groups)), charts(_quality(groups))),
        section("Judge", _judge_health(runs), charts(_judge(groups))),
        section("Captions", _captions(runs)),
        section(
            "Lag and speed",
            charts([*_system(groups), *_budget(groups)]),
            note="The time budget says what each part of the system spent its time on; the rest is idle, or not measured.",
        ),
        section(
            "In detail", details("losses, policy, value, and whatever else is measured", charts(_diagnostics(groups)))
        ),
        section("Configuration", _configuration(groups)),
    ]
    return page(title, style, "".join(content))


def _named(group: Group) -> str:
    n = len(group.runs)
    return f"{group.label} ({n} seed{'s' if n != 1 else ''})"


# -- charts over groups -------------------------------------------------------------------------------------------------


def _chart(
    groups: Sequence[Group],
    title: str,
    value: Callable[[Group], Spread],
    *,
    axis: Axis = STEPS,
    y_range: tuple[float, float] | None = None,
    note: str = "",
) -> str:
    series = [_series(group.label, at, value(group)) for at, group in enumerate(groups)]
    return figure(title, line_chart(series, x_label=axis.label, y_range=y_range), note)


def _series(name: str, colour: int, found: Spread, *, dashed: bool = False) -> Series:
    return Series(name, colour, found.x, found.mean, found.low, found.high, dashed)


def _metric(groups: Sequence[Group], title: str, name: str, y_range: tuple[float, float] | None = None) -> str:
    return _chart(groups, title, lambda group: group.metric(name), y_range=y_range)


def _all_names(groups: Sequence[Group], prefix: str) -> list[str]:
    return list(dict.fromkeys(name for group in groups for run in group.runs for name in run.names(prefix)))


def _learning(groups: Sequence[Group]) -> list[str]:
    measured = [
        name for name in _all_names(groups, "episode/") if name not in _KNOWN_EPISODE and _changes(groups, name)
    ]
    return [
        _metric(groups, "Success", "episode/success", _SHARE),
        _metric(groups, "Return", "episode/return"),
        _metric(groups, "Intrinsic return", "episode/intrinsic_return"),
        _metric(groups, "Episode length", "episode/length"),
        *(_metric(groups, _words(name.removeprefix("episode/")), name) for name in measured),
    ]


def _changes(groups: Sequence[Group], name: str) -> bool:
    """Whether a metric is not the same everywhere and always: then there is nothing to look at."""
    return len({line.metrics.get(name) for group in groups for run in group.runs for line in run.lines} - {None}) > 1


def _components(groups: Sequence[Group]) -> list[str]:
    """One chart for each group, its lines the components."""
    names = list(_all_names(groups, _COMPONENTS))
    shown: list[str] = []
    for group in groups:
        series = [
            _series(name.removeprefix(_COMPONENTS), at, group.metric(name), dashed=name == "reward/total")
            for at, name in enumerate(names)
        ]
        title = f"Components: {group.label}" if len(groups) > 1 else "Components"
        shown.append(
            figure(title, line_chart(series, x_label=STEPS.label), names=[n.removeprefix(_COMPONENTS) for n in names])
        )
    return shown


def _concentration(groups: Sequence[Group]) -> list[str]:
    return [
        _metric(groups, "Share of the intrinsic return from one caption", "hacking/top_share", _SHARE),
        _metric(groups, "Captions flagged", "hacking/flags"),
    ]


def _labels(groups: Sequence[Group]) -> list[str]:
    series: list[Series] = []
    for at, group in enumerate(groups):
        series.append(_series(f"{group.label}, labelled", at, group.metric("captions/labelled", MINUTES)))
        series.append(_series(f"{group.label}, met", at, group.metric("captions/unique", MINUTES), dashed=True))
    labelled = figure("Captions met (dashed) and labelled", line_chart(series, x_label=MINUTES.label))
    return [
        labelled,
        _chart(groups, "Labels a second", lambda g: g.timing("labels_per_second", MINUTES), axis=MINUTES),
        _chart(groups, "Captions that wait", lambda g: g.metric("captions/queued", MINUTES), axis=MINUTES),
    ]


def _quality(groups: Sequence[Group]) -> list[str]:
    shares = ("accuracy", "auc", "ece", "share")
    return [
        _metric(
            groups,
            f"Reward model: {_words(name.removeprefix('reward_model/')).lower()}",
            name,
            _SHARE if name.endswith(shares) else None,
        )
        for name in _all_names(groups, "reward_model/")
        if name != "reward_model/version"
    ]


def _judge(groups: Sequence[Group]) -> list[str]:
    return [
        _chart(groups, title, lambda g, name=name: g.timing(f"annotator/{name}", MINUTES), axis=MINUTES)
        for title, name in (
            ("Seconds until an answer, 95th percentile", "latency_p95_s"),
            ("Requests without an answer", "request_failures"),
            ("Answers that could not be read", "unreadable"),
        )
        if any(line.time.get(f"annotator/{name}") for g in groups for run in g.runs for line in run.lines)
    ]


def _system(groups: Sequence[Group]) -> list[str]:
    return [
        _metric(groups, "Policy lag, mean (versions)", "policy/lag_mean"),
        _metric(groups, "Policy lag, most", "policy/lag_max"),
        _chart(groups, "Steps a second", lambda g: g.timing("steps_per_second", MINUTES), axis=MINUTES),
    ]


def _diagnostics(groups: Sequence[Group]) -> list[str]:
    names = [name for name in _all_names(groups, "") if not name.startswith(_SHOWN) and _changes(groups, name)]
    return [_metric(groups, _words(name), name) for name in names]


def _words(name: str) -> str:
    text = name.replace("_", " ").replace("/", ": ")
    return text[:1].upper() + text[1:]


# -- tables -----------------------------------------------------------------------------------------------------------


def _results(groups: Sequence[Group]) -> str:
    columns = (
        "configuration", "seeds", "steps", "success", "first tenth", "last tenth", "return", "intrinsic", "labels",
        "steps/s", "time", "status", "flags",
    )  # fmt: skip
    several = len({run.summary.env for group in groups for run in group.runs}) > 1
    rows = [
        [
            Cell(group.label, "text", swatch=at, small=_envs(group.runs) if several else ""),
            number(str(len(group.runs))),
            _over(group, lambda s: s.env_steps, "{:,.0f}"),
            _over(group, lambda s: s.success_rate, "{:.2f}"),
            _over(group, lambda s: s.success_first_tenth, "{:.2f}"),
            _over(group, lambda s: s.success_last_tenth, "{:.2f}"),
            _over(group, lambda s: s.return_mean, "{:,.2f}"),
            _over(group, lambda s: s.intrinsic_return_mean, "{:,.2f}"),
            _over(group, lambda s: s.captions_labelled, "{:,.0f}"),
            _over(group, lambda s: s.env_steps / s.wall_s if s.wall_s else None, "{:,.0f}"),
            number(duration(max(run.summary.wall_s for run in group.runs))),
            _statuses(group),
            _flag_count(group),
        ]
        for at, group in enumerate(groups)
    ]
    return table(columns, rows)


def _envs(runs: Sequence[RunData]) -> str:
    return ", ".join(dict.fromkeys(run.summary.env for run in runs))


def _over(group: Group, value: Callable[[Summary], float | None], shape: str) -> Cell:
    found = mean_and_spread(group.over_seeds(value))
    if found is None:
        return number("–")
    mean, low, high = found
    several = len(group.runs) > 1 and shape.format(low) != shape.format(high)
    return number(shape.format(mean), f"{shape.format(low)} to {shape.format(high)}" if several else "")


def _statuses(group: Group) -> Cell:
    words = [str(run.summary.status) for run in group.runs]
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    text = ", ".join(word if len(counts) == 1 else f"{n} {word}" for word, n in counts.items())
    return Cell(text, "good" if counts.keys() == {"done"} else "bad" if {"failed", "died"} & counts.keys() else "warn")


def _flag_count(group: Group) -> Cell:
    flags = sum(len(run.summary.reward_watch.flags) for run in group.runs)
    return Cell(str(flags), "n warn" if flags else "n")


def _watch(runs: Sequence[RunData]) -> str:
    rows = [
        [
            Cell(run.name),
            Cell(flag.text, "text"),
            Cell(", ".join(flag.reasons), "warn"),
            number(f"{flag.share:.0%}"),
            number(f"{flag.earned_before:.2f} → {flag.earned_now:.2f}"),
            number(f"{flag.goal_before:.2f} → {flag.goal_now:.2f}", flag.goal),
        ]
        for run in runs
        for flag in run.summary.reward_watch.flags
    ]
    if not rows:
        return ""
    columns = ("run", "caption", "flag", "share of intrinsic return", "it earns an episode", "the task")
    note = (
        "Captions from which the intrinsic return of the last quarter of the run comes, while the task got no better than "
        "in the quarter before: the agent may earn reward there instead of solving the task."
    )
    return section("Reward hacking watch", table(columns, rows), note=note)


def _judge_health(runs: Sequence[RunData]) -> str:
    judged = [run for run in runs if run.summary.judge_status != "off"]
    columns = (
        "run", "judge", "labels", "reused", "failed", "dropped", "requests", "without an answer", "unreadable",
        "mean latency", "p95",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for run in judged:
        s = run.summary
        trouble = f": {s.judge_error}" if s.judge_error else ""
        rows.append(
            [
                Cell(run.name),
                Cell(s.judge_status + trouble, "good" if s.judge_status == "ready" else "warn"),
                *(
                    number(f"{count:,}")
                    for count in (
                        s.captions_labelled,
                        s.captions_reused,
                        s.captions_failed,
                        s.captions_dropped,
                        s.judge_requests,
                        s.judge_request_failures,
                        s.judge_unreadable,
                    )
                ),
                number(_seconds(s.judge_latency_mean_s)),
                number(_seconds(s.judge_latency_p95_s)),
            ]
        )
    return table(columns, rows) if rows else ""


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _captions(runs: Sequence[RunData]) -> str:
    shown: list[str] = []
    for run in runs:
        s = run.summary
        if not s.liked and not s.disliked:
            continue
        tables = card("Liked most", _scores(s.liked)) + card("Liked least", _scores(s.disliked))
        block = f'<div class="two">{tables}</div>'
        shown.append(details(run.name, block) if len(runs) > 1 else block)
    return "".join(shown)


def _scores(scores: Sequence[CaptionScore]) -> str:
    rows = [[number(f"{c.probability:.2f}"), Cell(c.text, "text"), number(f"{c.count:,}")] for c in scores]
    return table(("score", "caption", "times"), rows)


def _budget(groups: Sequence[Group]) -> list[str]:
    """What each part spent its time on, one chart for each group, mean over its runs."""
    rows: list[list[tuple[str, list[tuple[str, float]]]]] = []
    for group in groups:
        shares = [_shares(run) for run in group.runs]
        parts = list(dict.fromkeys(part for of_run in shares for part in of_run))
        rows.append([(part, _mean_shares([of_run.get(part, {}) for of_run in shares])) for part in parts])
    kinds = list(dict.fromkeys(kind for of_group in rows for _, shares in of_group for kind, _ in shares))
    return [
        figure(
            f"Time budget: {group.label}" if len(groups) > 1 else "Time budget",
            stacked_bars(of_group, kinds),
            names=kinds,
        )
        for group, of_group in zip(groups, rows, strict=True)
        if of_group
    ]


def _mean_shares(shares: Sequence[Mapping[str, float]]) -> list[tuple[str, float]]:
    kinds = dict.fromkeys(kind for of_run in shares for kind in of_run)
    return [(kind, sum(of_run.get(kind, 0.0) for of_run in shares) / len(shares)) for kind in kinds]


def _shares(run: RunData) -> Mapping[str, Mapping[str, float]]:
    """Mean shares by part, weighted by the time between lines."""
    parts: dict[str, dict[str, float]] = {}
    before, total = 0.0, 0.0
    for line in run.lines:
        wall = line.time.get("wall_s")
        if wall is None or wall <= before:
            continue
        for name, share in line.time.items():
            part, slash, what = name.partition("/")
            if slash and share is not None and part in run.summary.waits:
                kinds = parts.setdefault(part, {})
                kinds[what] = kinds.get(what, 0.0) + share * (wall - before)
        total += wall - before
        before = wall
    return {part: {what: spent / total for what, spent in kinds.items()} for part, kinds in parts.items()}


def _configuration(groups: Sequence[Group]) -> str:
    first = [group.runs[0] for group in groups]
    differing = differences(first)
    compared = ""
    if differing:
        rows = [[Cell(key), *(Cell(str(run.settings[key])) for run in first)] for key in differing]
        compared = table(("key", *(group.label for group in groups)), rows)
    whole = table(
        ("key", "value"),
        [[Cell(key), Cell(str(value), "text")] for key, value in first[0].settings.items() if key not in differing],
    )
    title = "what all have in common" if len(groups) > 1 else "all keys"
    seeds = ", ".join(f"{run.name}: {run.seed}" for group in groups for run in group.runs)
    return compared + details(title, whole) + details("seeds", f"<p>{escape(seeds)}</p>")
