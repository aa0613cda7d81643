"""Traces as one HTML file that opens from disk: screens, rewards, the judge's answers, agents and what connects them.

`render` writes the page of some traces, `render_traces` that of traces in memory, `follow` rewrites it as episodes
finish; `command` is the command line's. `document` says what of an episode is shown, `page` how it gets into a file that
executes none of it, `assets` is the program that shows it all.
"""

from orchestration.traces.view.document import Divergence, episode_document
from orchestration.traces.view.render import Page, default_page, follow, render, render_traces

__all__ = ["Divergence", "Page", "default_page", "episode_document", "follow", "render", "render_traces"]
