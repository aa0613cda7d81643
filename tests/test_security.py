"""What strangers made is loaded as data: a pickle that would leave a mark is planted wherever weights and states are read."""

import asyncio
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.language.errors import LanguageModelError
from inference.safe_loading import UnsafeModelError, check_safe
from learner.checkpoint import CheckpointError, file_digest, load_policy, load_state, verify_checkpoint
from orchestration.configuration import load_config
from orchestration.configuration.keys import key_types
from orchestration.errors import ConfigError
from orchestration.jobs.package import PackageError, pack
from orchestration.traces.replay.verdict import UnreplayableError
from reward_server.models.base import RewardModelVersion, build_reward_model
from reward_server.models.offline import OfflineModelError, read_model
from reward_server.settings import ModelSettings
from reward_server.types import JudgeError
from tests.language_agents_support import tiny_model
from tests.test_checkpoint import save


@pytest.fixture
def mark(tmp_path):
    """A file that only the planted code makes."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "the planted code ran"


class Evil:
    """Executes a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def plain(mark: Path) -> bytes:
    return pickle.dumps(Evil(mark))


def as_torch_has_it(mark: Path, path: Path) -> bytes:
    torch.save({"lm_head.weight": Evil(mark)}, path)
    return path.read_bytes()


def test_the_planted_code_would_run(tmp_path):
    """Otherwise the tests below would say nothing."""
    pickle.loads(plain(tmp_path / "one"))
    as_torch_has_it(tmp_path / "two", tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()


def plant(checkpoint: Path, name: str, content: bytes) -> None:
    """Puts a file into a checkpoint, with all sums in order."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = file_digest(checkpoint / name)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    verify_checkpoint(checkpoint)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_strangers_checkpoint_executes_nothing(tmp_path, mark, kind):
    """Of a network: state (optimiser, estimators of credit, reward models, counters) and policy."""
    path = save(tmp_path / "checkpoints", 100)
    content = as_torch_has_it(mark, tmp_path / "x.pt") if kind == "torch" else plain(mark)
    plant(path, "policy.safetensors", content)
    with pytest.raises(CheckpointError, match=r"policy.safetensors is no file of weights"):
        load_policy(path)
    plant(path, "state.pt", content)
    with pytest.raises(CheckpointError, match=r"state.pt is not plain data .* nothing of it was executed"):
        load_state(path)


def test_a_checkpoint_names_no_file_outside_of_it(tmp_path):
    path = save(tmp_path / "checkpoints", 100)
    for name in ("../../secret", "/etc/hostname", "a/../../b", "..", "a\\..\\b", ""):
        manifest = {"format": 1, "env_steps": 100, "files": {name: "00"}}
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match="lies outside"):
            verify_checkpoint(path)
    for manifest in ("[]", '{"format": 1}', '{"format": 1, "files": ["state.pt"]}'):
        (path / "manifest.json").write_text(manifest)
        with pytest.raises(CheckpointError, match="is damaged"):
            verify_checkpoint(path)


def _load_learner(folder: str) -> None:
    from learner.language.loading import load_network

    load_network(folder, torch.float32)


def _load_agent(folder: str) -> None:
    from agents.language.engines.transformers_engine import TransformersGenerator
    from agents.language.template import load_tokenizer

    load_tokenizer(folder)
    engine = TransformersGenerator(folder, stop_ids=(0,), context=64)
    asyncio.run(engine.start())


def _load_agent_vllm(folder: str) -> None:
    from agents.language.engines.vllm_engine import VllmGenerator

    asyncio.run(VllmGenerator(folder, stop_ids=(0,), context=64).start())


def _load_judge(folder: str) -> None:
    from reward_server.judge.engines.transformers_engine import TransformersEngine

    TransformersEngine(folder)


def _load_judge_vllm(folder: str) -> None:
    from reward_server.judge.engines.vllm_engine import VllmEngine

    asyncio.run(VllmEngine(folder).start())


def _load_replay(folder: str) -> None:
    from orchestration.traces.replay.tokens import _load

    _load(Path(folder))


def _load_encoder(folder: str) -> None:
    from reward_server.models.ellm import Encoder

    Encoder(folder, ["open the door"], "cpu")


LOADERS: list[Callable[[str], None]] = [
    _load_learner, _load_agent, _load_agent_vllm, _load_judge, _load_judge_vllm, _load_replay, _load_encoder,
]  # fmt: skip
REFUSED = (LanguageModelError, JudgeError, UnreplayableError)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("kind", ["weights", "weights beside", "code", "tokenizer's code", "adapter"])
def test_a_strangers_language_model_executes_nothing(tmp_path, mark, load, kind):
    """Weights as a pickle, weights that are no safetensors, code that the configuration names, an adapter."""
    if "vllm" in load.__name__:
        pytest.importorskip("vllm")
    folder = tiny_model(tmp_path / "model")
    weights, said = folder / "model.safetensors", None
    match kind:
        case "weights":
            weights.unlink()
            as_torch_has_it(mark, folder / "pytorch_model.bin")
            said = r"a pickle \(pytorch_model.bin\), which executes code"
        case "weights beside":
            weights.write_bytes(as_torch_has_it(mark, tmp_path / "x.pt"))
        case "adapter":
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
            as_torch_has_it(mark, folder / "adapter_model.bin")
            said = "it is an adapter"
        case _:
            (folder / "modeling_evil.py").write_text(
                f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n"
            )
            name = "config.json" if kind == "code" else "tokenizer_config.json"
            config = json.loads((folder / name).read_text())
            config["auto_map"] = dict.fromkeys(
                ("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_evil.Evil"
            )
            config["auto_map"]["AutoTokenizer"] = ["modeling_evil.Evil", None]
            (folder / name).write_text(json.dumps(config))
            said = rf"{name} asks for code of the model's own \(auto_map\)"
    if kind == "weights beside" and "vllm" in load.__name__:
        pytest.skip("starts an engine")
    with pytest.raises(REFUSED, match=said) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)


def test_a_model_without_any_of_that_is_loaded(tmp_path):
    folder = tiny_model(tmp_path / "model")
    check_safe(folder)
    check_safe("owner/name")
    _load_learner(str(folder))
    (folder / "training_args.bin").write_bytes(b"what trainers leave behind; nobody reads it")
    check_safe(folder)
    shutil.copy(folder / "training_args.bin", folder / "pytorch_model.bin")
    check_safe(folder)  # not read where there are safetensors
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeModelError):
        check_safe(folder)


def test_a_strangers_reward_model_executes_nothing(tmp_path, mark):
    path = tmp_path / "reward.safetensors"
    for content in (plain(mark), as_torch_has_it(mark, tmp_path / "x.pt")):
        path.write_bytes(content)
        with pytest.raises(OfflineModelError, match="neither an annotation store nor a reward model"):
            read_model(path)
        settings = ModelSettings()
        model = build_reward_model("classification", settings)
        with pytest.raises(ValueError, match="are no safetensors"):
            RewardModelVersion(1, "classification", content, None, 0.0).load_into(model)


def test_no_key_of_the_configuration_holds_a_secret():
    """Names of variables and files do; a key itself is refused where somebody tries."""
    words = ("key", "token", "secret", "password", "credential")
    asked = [key for key in key_types() if any(word in key.rpartition(".")[2] for word in words)]
    assert sorted(asked) == ["agent.max_new_tokens", "judge.api_key_env", "judge.reason_tokens", "language.micro_batch_tokens",
                             "sft.micro_batch_tokens"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no such key; did you mean judge.api_key_env"):
        load_config("demo", ["judge.api_key=sk-planted"])
    with pytest.raises(ConfigError, match="never the key itself"):
        load_config(
            "demo", ["judge.engine=openai", "judge.url=http://x/v1", "judge.model=m", "judge.api_key_env=sk-planted"]
        )


@pytest.mark.parametrize(
    "given", ["judge.goal=${oc.env:YENDOR_PLANTED}", "judge.url=http://x/${oc.env:YENDOR_PLANTED}"]
)
def test_the_configuration_reads_no_environment(monkeypatch, given):
    """A stranger's config.yaml could send what it finds there to a judge of theirs."""
    monkeypatch.setenv("YENDOR_PLANTED", "sk-planted")
    with pytest.raises(ConfigError, match=r"oc.env") as caught:
        load_config("demo", [given])
    assert "sk-planted" not in str(caught.value)


def test_a_job_takes_along_nothing_from_outside(tmp_path):
    """Links are refused, hidden files stay here, and every name in the archive stays below the folder that it is unpacked into."""
    secret = tmp_path / "credentials"
    secret.write_text("sk-planted")

    def refused(link: Path) -> None:
        with pytest.raises(PackageError, match=f"{link}: is a link"):
            pack(tmp_path / "job.zip", root=project)
        link.unlink()

    project = tmp_path / "project"
    (project / "agents").mkdir(parents=True)
    (project / "agents" / "code.py").write_text("pass\n")
    for link in (project / "agents" / "link.py", project / "pyproject.toml", project / "agents" / "folder"):
        link.symlink_to(tmp_path if link.name == "folder" else secret)
        refused(link)
    (project / "agents" / ".env").write_text("sk-planted")
    package = pack(tmp_path / "job.zip", root=project, more={"presets/mine.yaml": project / "agents" / "code.py"})
    with zipfile.ZipFile(package.path) as archive:
        names = archive.namelist()
        assert sorted(names) == ["agents/code.py", "presets/mine.yaml"]
        assert all(b"sk-planted" not in archive.read(name) for name in names)
    assert not any(name.startswith("/") or ".." in Path(name).parts for name in names)
    with pytest.raises(PackageError, match="outside"):
        pack(tmp_path / "job.zip", root=project, more={"../escaped": project / "agents" / "code.py"})
