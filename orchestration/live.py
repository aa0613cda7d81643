"""What a person sees of a run: a panel on a terminal, a line every few seconds elsewhere, a summary at the end."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.summary import CaptionScore, RewardWatchReport, Status, Summary

PLAIN_INTERVAL_S = 10.0
_REFRESH_PER_SECOND = 4
_EVENTS = 3
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 30
_NO_VALUE = "-"
_ACTIVITIES = {
    ("actor", "wait"): "waits for a call",
    ("learner", "wait"): "waits for trajectories",
    ("learner", "exchange"): "exchanges with its workers",
    ("coordinator", "wait"): "waits for results",
}
"""How activities that one word does not tell are shown."""

_JUDGE_STYLES = {"ready": "green", "off": "dim", "starting": "yellow", "exhausted": "yellow"}


class LiveView:
    """Shows snapshots of a run. A context manager: on a terminal the panel stays up in between.

    `plain` forces lines; None decides by whether the console is a terminal.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        plain: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self._plain = not self.console.is_terminal if plain is None else plain
        self._clock = clock
        self._next_line_at = clock()
        self._events: deque[Text] = deque(maxlen=_EVENTS)
        self._history = _History()
        self._summary: Summary | None = None
        self._live: Live | None = None
        self._unsaid: deque[Text] | None = None
        self._log: Path | None = None

    def log_to(self, path: Path) -> None:
        """Appends events to a file from now on: the panel forgets them."""
        self._log = path

    def __enter__(self) -> Self:
        if self._plain:
            self._unsaid = deque()
        else:
            self._live = Live(
                get_renderable=self._render,
                console=self.console,
                refresh_per_second=_REFRESH_PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.say()
        self._unsaid = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, summary: Summary) -> None:
        """Shows `summary`: with the panel's next refresh, or at most every `PLAIN_INTERVAL_S` seconds as a line.

        Cheap: loops may call it as often as they like.
        """
        self._history.add(summary)
        self._summary = summary
        self.say()
        if self._live is None and self._clock() >= self._next_line_at:
            self._next_line_at = self._clock() + PLAIN_INTERVAL_S
            self.console.print(plain_line(summary), soft_wrap=True, markup=False)

    def event(self, message: str, *, warning: bool = False) -> None:
        """Tells of something that happened once: a restart, a checkpoint, a judge that went away.

        Signal handlers may call it: while the view is open nothing is printed before the next `update`.
        """
        kind = "warning: " if warning else ""
        self._events.append(Text(f"{time.strftime('%H:%M:%S')} {message}", style="yellow" if warning else "dim"))
        if self._log is not None:
            # What a full disk does not take is shown all the same.
            with contextlib.suppress(OSError), self._log.open("ab", buffering=0) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {kind}{message}\n".encode())
        line = Text(f"{kind}{message}", style="yellow" if warning else "")
        if self._unsaid is not None:
            self._unsaid.append(line)
        elif self._live is None:
            self.console.print(line, soft_wrap=True)

    def say(self) -> None:
        """Prints the events that wait for the next `update`, where there is no panel to show them. Not for signal handlers."""
        while self._unsaid:
            self.console.print(self._unsaid.popleft(), soft_wrap=True)

    def _render(self) -> RenderableType:
        """The panel as of now; called by rich's refresh thread."""
        if self._summary is None:
            return Text("starting …", style="dim")
        return panel(self._summary, self._history.sparks(), tuple(self._events))


class _History:
    """Success (return where the task has no success) over the steps of the run, at most `_SPARK_WIDTH` points."""

    def __init__(self) -> None:
        self._points: dict[int, float] = {}

    def add(self, summary: Summary) -> None:
        value = summary.return_mean if summary.success_rate is None else summary.success_rate
        if value is not None and summary.target_env_steps:
            share = min(summary.env_steps / summary.target_env_steps, 1.0)
            self._points[min(int(share * _SPARK_WIDTH), _SPARK_WIDTH - 1)] = value

    def sparks(self) -> str:
        if not self._points:
            return ""
        values = [self._points[at] for at in sorted(self._points)]
        low, high = min(0.0, *values), max(values)
        if high <= low:
            return _SPARKS[0] * len(values)
        return "".join(_SPARKS[round((value - low) / (high - low) * (len(_SPARKS) - 1))] for value in values)


def panel(summary: Summary, sparks: str = "", events: tuple[Text, ...] = ()) -> Panel:
    """The live panel: 80 columns and 24 lines are enough for it."""
    rows: list[RenderableType] = [_progress(summary), Text()]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("speed", _speed(summary))
    if summary.success_rate is not None or sparks:
        table.add_row("success", Text.assemble((_share(summary.success_rate), "bold green"), "  ", (sparks, "green")))
    table.add_row("return", _returns(summary))
    if summary.episode_metrics:
        # Without the score, of which the return tells enough: one line for the rest.
        told = {name: value for name, value in summary.episode_metrics.items() if name != "score"}
        table.add_row("episode", measured(told))
    table.add_row("captions", _captions(summary))
    table.add_row("judge", _judge(summary))
    if summary.reward_watch.flags:
        table.add_row("watch", Text(watch_line(summary.reward_watch), style="yellow"))
    table.add_row("policy", _policy(summary))
    for name, words in list(summary.running_out.items())[:1]:
        more = f" (+{len(summary.running_out) - 1})" if len(summary.running_out) > 1 else ""
        table.add_row("short", Text(_short(f"{name}: {words}", 60) + more, style="yellow"))
    if summary.standing_still:
        table.add_row("still", Text(still_line(summary), style="yellow"))
    for part, shares in summary.waits.items():
        table.add_row(part, _waits(part, shares))
    rows.append(table)
    if events:
        rows += [Text(), *(event.copy() for event in events)]
    return Panel(
        Group(*rows),
        title=Text.assemble(" ", (summary.run, "bold"), f" · {summary.env} · {summary.status} "),
        subtitle=Text(" Ctrl-C writes a checkpoint and ends the run ", style="dim"),
        title_align="left",
        subtitle_align="right",
        border_style="cyan",
        padding=(0, 1),
    )


def _progress(summary: Summary) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    target = max(summary.target_env_steps, 1)
    eta = "" if summary.eta_s is None else f" · {duration(summary.eta_s)} left"
    text = f"{summary.env_steps:,} of {summary.target_env_steps:,} steps{eta}"
    grid.add_row(ProgressBar(total=target, completed=min(summary.env_steps, target)), text)
    return grid


def _speed(summary: Summary) -> str:
    restarts = f", {summary.actor_restarts} restarted" if summary.actor_restarts else ""
    restarts += f", learner restarted {summary.learner_restarts}×" if summary.learner_restarts else ""
    restarts += f", reward server {summary.reward_server_restarts}×" if summary.reward_server_restarts else ""
    restarts += f", judge {summary.judge_restarts}×" if summary.judge_restarts else ""
    errors = f", {summary.env_errors} environments replaced" if summary.env_errors else ""
    waiting = f" ({summary.actors_waiting} wait for a machine)" if summary.actors_waiting else ""
    actors = f"{summary.actors} actor{'s' if summary.actors != 1 else ''}{waiting}{restarts}{errors}"
    return f"{summary.steps_per_second:,.0f} steps/s · {summary.episodes:,} episodes · {actors}"


def _returns(summary: Summary) -> str:
    length = "" if summary.episode_length_mean is None else f" · {summary.episode_length_mean:,.0f} steps an episode"
    return f"{_number(summary.return_mean)} · intrinsic {_number(summary.intrinsic_return_mean)}{length}"


_SHORT = {"dungeon_level": "depth", "experience_level": "level"}


def measured(metrics: Mapping[str, float]) -> str:
    """What the environment measures of an episode, in few words."""
    words = ((_SHORT.get(name, name.replace("_", " ")), value) for name, value in metrics.items())
    return " · ".join(f"{name} {value:,.0f}" if abs(value) >= 100 else f"{name} {value:.1f}" for name, value in words)


def watch_line(watch: RewardWatchReport) -> str:
    """The first flag of the reward hacking watch, in one line."""
    flag = watch.flags[0]
    more = f" (+{len(watch.flags) - 1})" if len(watch.flags) > 1 else ""
    return (
        f"{flag.share:.0%} of intrinsic return from {_short(flag.text, 28)!r}, {flag.earned_before:.2f} → "
        f"{flag.earned_now:.2f}; {flag.goal} {flag.goal_before:.2f} → {flag.goal_now:.2f}{more}"
    )


def still_line(summary: Summary) -> str:
    """The parts that stand still, and for how long."""
    since = sorted(summary.standing_still.items(), key=lambda item: item[1])
    shown = [f"{name} for {duration(summary.updated - at)}" for name, at in since[:2]]
    more = f" and {len(since) - 2} more" if len(since) > 2 else ""
    return ", ".join(shown) + more


def _captions(summary: Summary) -> str:
    dropped = f" · {summary.captions_dropped:,} dropped" if summary.captions_dropped else ""
    return (
        f"{summary.captions_unique:,} seen · {summary.captions_labelled:,} labelled · "
        f"{summary.captions_failed:,} failed{dropped}"
    )


def _judge(summary: Summary) -> Text:
    text = Text(summary.judge_status, style=_JUDGE_STYLES.get(summary.judge_status, "red"))
    if summary.judge_error and summary.judge_status not in ("ready", "off"):
        text.append(f" ({summary.judge_error})", style="dim")
    if summary.judge_status != "off":
        text.append(f" · {summary.labels_per_second:.1f} labels/s · reward model ", style="default")
        text.append(_reward_model(summary), style="default")
    return text


def _reward_model(summary: Summary) -> str:
    if not summary.reward_model_version:
        return "not trained yet"
    accuracy = "" if summary.reward_model_accuracy is None else f", {summary.reward_model_accuracy:.0%} right"
    return f"v{summary.reward_model_version}{accuracy}"


def _policy(summary: Summary) -> str:
    lag = "" if summary.policy_lag_mean is None else f" · lag {summary.policy_lag_mean:.1f}, at most "
    most = "" if not lag else _NO_VALUE if summary.policy_lag_max is None else f"{summary.policy_lag_max}"
    dropped = f" · {summary.samples_dropped:,} samples too old" if summary.samples_dropped else ""
    return f"v{summary.policy_version:,}{lag}{most}{dropped}"


def _waits(part: str, shares: Mapping[str, float]) -> str:
    largest = sorted(shares.items(), key=lambda item: -item[1])
    return " · ".join(f"{_ACTIVITIES.get((part, what), what)} {share:.0%}" for what, share in largest) or _NO_VALUE


def plain_line(summary: Summary) -> str:
    """The same in one line, for logs."""
    parts = [
        f"[{duration(summary.wall_s)}] {summary.env_steps:,}/{summary.target_env_steps:,} steps",
        f"{summary.steps_per_second:,.0f}/s",
        *([] if summary.success_rate is None else [f"success {summary.success_rate:.2f}"]),
        f"return {_number(summary.return_mean)}",
        f"intrinsic {_number(summary.intrinsic_return_mean)}",
        f"captions {_captions(summary).replace(' · ', ', ')}",
        f"judge {summary.judge_status}",
        *([] if summary.judge_status == "off" else [f"reward model {_reward_model(summary)}"]),
        f"policy {_policy(summary).replace(' · ', ', ')}",
        *([] if not summary.standing_still else [f"stands still: {still_line(summary)}"]),
        *([] if not summary.reward_watch.flags else [f"watch {watch_line(summary.reward_watch)}"]),
        *(f"{part}: {_waits(part, shares).replace(' · ', ', ')}" for part, shares in summary.waits.items()),
    ]
    return " | ".join(parts)


_ENDINGS = {
    Status.DONE: ("done", "green"),
    Status.INTERRUPTED: ("interrupted", "yellow"),
    Status.FAILED: ("failed", "red"),
}


def final_summary(summary: Summary, folder: str, handle: str, resume: str = "") -> RenderableType:
    """What came of a run: `folder` is where it lies, `handle` what commands call it, `resume` goes on with it."""
    ending, style = _ENDINGS.get(summary.status, (str(summary.status), "red"))
    rows: list[RenderableType] = [
        Text.assemble(
            (f"{summary.run}: {ending}", f"bold {style}"),
            f" · {summary.env_steps:,} steps of {summary.env} in {duration(summary.wall_s)}",
        )
    ]
    if summary.error:
        rows.append(Text(summary.error, style="red"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    if summary.success_first_tenth is not None or summary.success_last_tenth is not None:
        table.add_row("success", _rise(summary.success_first_tenth, summary.success_last_tenth, _share))
    table.add_row("return", _rise(summary.return_first_tenth, summary.return_last_tenth, _number))
    if summary.episode_metrics:
        table.add_row("episode", measured(summary.episode_metrics))
    table.add_row("captions", _captions(summary))
    if summary.reward_watch.flags:
        table.add_row("watch", Text(watch_line(summary.reward_watch), style="yellow"))
    if summary.judge_status != "off":
        table.add_row("judge", f"{summary.judge_status} · reward model {_reward_model(summary)}")
    if summary.liked:
        table.add_row("liked most", _scores(summary.liked))
    if summary.disliked:
        table.add_row("liked least", _scores(summary.disliked))
    table.add_row("all in", folder)
    table.add_row("next", Text("\n".join(next_commands(summary, folder, handle, resume)), style="cyan"))
    return Group(*rows, table)


def next_commands(summary: Summary, folder: str, handle: str, resume: str = "") -> list[str]:
    """Commands to type after a run."""
    return [
        *([resume] if resume and summary.checkpoint and summary.status is not Status.DONE else []),
        f"yendor status {handle}",
        *([f"yendor eval {handle}"] if summary.checkpoint else []),
        f"yendor trace ls {handle}",
        f"tensorboard --logdir {folder}/tensorboard",
    ]


def _rise(first: float | None, last: float | None, show: Callable[[float | None], str]) -> Text:
    text = Text.assemble(show(first), " in the first tenth of the run, ", (show(last), "bold"), " in the last")
    if first is not None and last is not None:
        text.append(f" ({last - first:+.2f})", style="green" if last > first else "red")
    return text


def _scores(scores: tuple[CaptionScore, ...]) -> Text:
    lines = [f"{score.probability:.2f}  {_short(score.text)}  ({score.count:,} times)" for score in scores]
    return Text("\n".join(lines))


def _short(text: str, width: int = 48) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _share(value: float | None) -> str:
    return _NO_VALUE if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return _NO_VALUE if value is None else f"{value:,.2f}"


def duration(seconds: float) -> str:
    """`75` as `1:15`, `4000` as `1:06:40`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
