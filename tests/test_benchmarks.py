"""The benchmarks run, at sizes that say nothing, so that they do not rot."""

import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks import demo, startup
from benchmarks.plot import learning_curves


def test_curves_are_an_image_that_hides_nothing():
    svg = learning_curves({"a <b>": [[(0, 0.0), (50, None), (100, 1.0)]], "c": [[(0, 0.5), (100, 0.5)]]}, "success")
    root = ET.fromstring(svg)
    lines = [e.attrib["points"] for e in root.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 2 and lines[0].split() == ["56.0,294.0", "700.0,20.0"]
    assert any(e.text == "a <b>" for e in root.iter())


@pytest.mark.slow
def test_the_demo_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "KINDS", {"reward.w_int=0": ["reward.w_int=0"]})
    sizes = [
        "train.env_steps=512",
        "actors.envs=8",
        "actors.rollout_length=16",
        "learner.batch_size=128",
        "runtime=serial",
    ]
    demo.main(tmp_path, 1, *sizes)
    assert "| reward.w_int=0 |" in capsys.readouterr().out
    assert (tmp_path / "demo.svg").read_text().startswith("<svg")


def test_the_start_of_commands_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(startup, "TRAINING", {})
    startup.main(tmp_path, "--repeats", "1")
    assert "| `yendor --help` |" in capsys.readouterr().out
    assert all(0 < each[0] < 60 for each in json.loads((tmp_path / "startup.json").read_text()).values())
