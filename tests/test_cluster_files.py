"""The files that make clusters: Ray's own code reads them, and the parts of a run find room on their machines."""

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.cluster_utils import Cluster

from orchestration import placement
from orchestration.cluster import start_patiently
from orchestration.config import ClusterSettings, Config
from orchestration.configuration import load_config, preset_names
from orchestration.errors import ResourceError
from orchestration.jobs.package import FILES, PACKAGES
from orchestration.placement import Group
from orchestration.preflight import check_cluster, preflight
from reward_server.settings import JudgeSettings

ROOT = Path(__file__).resolve().parent.parent
CLOUD = ROOT / "cluster.yaml"
ON_PREMISE = ROOT / "deploy/cluster-on-premise.yaml"
RAYCLUSTER = ROOT / "deploy/kubernetes/raycluster.yaml"
RAYJOB = ROOT / "deploy/kubernetes/rayjob.yaml"
VOLUME = ROOT / "deploy/kubernetes/volume.yaml"
KUBERNETES = "1.33"

# The fields of ray.io/v1 that these files may use; its schema is in no package.
CLUSTER_FIELDS = {
    "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
HEAD_FIELDS = {"rayStartParams", "template", "serviceType"}
WORKER_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
AUTOSCALER_FIELDS = {"idleTimeoutSeconds", "upscalingMode", "resources"}
JOB_FIELDS = {
    "entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec",
    "entrypointNumCpus", "activeDeadlineSeconds", "submissionMode",
}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


# What parts ask for, and whether Ray's autoscaler finds machines for them.


def demands(config: Config) -> dict[str, list[dict[str, float]]]:
    """What a run asks of the cluster, by the name of the group that is to have it."""

    def bundle(options: dict[str, Any]) -> dict[str, float]:
        asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
        return {name: amount for name, amount in asked.items() if amount}

    judge = bundle({"num_cpus": 0, "num_gpus": 1, "resources": placement.judge(config)})
    return {
        "actors": [bundle(placement.actor(config))] * config.actors.count,
        "learner": [bundle(placement.learner(config))] * config.learner.workers,
        "judge": [judge] * config.judge.replicas,
    }


def check_room(cluster: dict[str, Any], config: Config) -> None:
    """Fails unless Ray's autoscaler starts machines of the right group for each part of the run, and for all at once."""
    head, types = cluster["head_node_type"], cluster["available_node_types"]

    def started(resources: list[dict[str, float]]) -> tuple[set[str], int]:
        nodes, rest = get_nodes_for(
            types,
            {head: 1},
            head,
            cluster["max_workers"],
            [dict(bundle) for bundle in resources],
            lambda node, demand, name: _default_utilization_scorer(
                node, demand, name, node_availability_summary=NodeAvailabilitySummary({})
            ),
        )
        return set(nodes), len(rest)

    asked = demands(config)
    for group, resources in asked.items():
        assert started(resources) == ({group}, 0), f"{group}: {resources[0]} is not for machines of its group alone"
    together = [bundle for resources in asked.values() for bundle in resources]
    assert started(together) == (set(asked), 0), "max_workers leaves no room for all groups at once"


def check_names(custom: set[str]) -> None:
    asked = {group.value for group in Group}
    assert custom == asked, f"resources: {sorted(custom)}, the code asks for {sorted(asked)}"


def check_groups(cluster: dict[str, Any]) -> None:
    """Fails unless the files' groups fit a run of each preset, with its defaults and as the files' commands scale it."""
    types = cluster["available_node_types"]
    custom = {name for node in types.values() for name in node["resources"]} - {"CPU", "GPU", "memory"}
    check_names(custom)
    for name, node in types.items():
        groups = sorted({group.value for group in Group} & set(node["resources"]))
        assert len(groups) == (name != cluster["head_node_type"]), f"{name}: of the groups {groups}"
    head = types[cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0 and head["max_workers"] == 0, "the head offers processors"
    actors = types["actors"]["resources"]
    assert actors[Group.ACTOR] == actors["CPU"], "an actor takes as much of its group as of the processors"
    for preset in preset_names():
        check_room(cluster, load_config(preset, ["cluster.groups=true", "learner.device=cuda"]))


# The launcher's files.


def check_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` understands it. Raises what Ray raises."""
    # Ray converts and then ignores what it does not know in these; the schema of the file as written is stricter.
    assert not {"head_node", "worker_nodes"} & set(config), "legacy keys"
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert {"~/.ray/auth_token"} <= set(config["file_mounts"]), "machines without the head's token cannot join"
    return prepared


def check_cloud(config: dict[str, Any]) -> None:
    check_groups(check_launcher(config))


def check_on_premise(config: dict[str, Any]) -> None:
    prepared = check_launcher(config)
    (node,) = prepared["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(set(config["provider"]["worker_ips"])), "doubles"
    started = [resources_of(config, address) for address in config["provider"]["worker_ips"]]
    check_names({name for resources in started for name in resources})
    assert resources_of(config, "10.9.9.9") == {Group.ACTOR: 48}


def resources_of(config: dict[str, Any], address: str) -> dict[str, int]:
    """What a machine of that address is started with: the last command is run, with `ray` and what it asks played."""
    command = config["worker_start_ray_commands"][-1]
    played = f"""
        hostname() {{ echo "172.17.0.1 {address} "; }}; nproc() {{ echo 48; }}
        ray() {{ for word in "$@"; do echo "$word"; done; }}
        RAY_HEAD_IP=10.0.0.1 HOME=/nowhere
        {command}"""
    words = subprocess.run(["bash", "-ec", played], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:2] == ["start", "--address=10.0.0.1:6379"], words
    return json.loads(words[2].removeprefix("--resources="))


def test_the_launchers_files_are_valid() -> None:
    check_cloud(load(CLOUD))
    check_on_premise(load(ON_PREMISE))


Change = Callable[[dict[str, Any]], object]


def node_type(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config["available_node_types"][name]


CLOUD_MISTAKES: dict[str, tuple[str, Change]] = {
    "unknown key": ("idle_timeout_seconds", lambda c: c.update(idle_timeout_seconds=5)),
    "unknown key of a node type": ("instance", lambda c: node_type("actors")(c).update(instance="c6i")),
    "misspelt docker option": ("images", lambda c: c["docker"].update(images="x")),
    "no provider": ("provider", lambda c: c.pop("provider")),
    "resources as text": ("not of type .integer", lambda c: node_type("actors")(c)["resources"].update(actor="64")),
    "head that is not there": ("head_node_type", lambda c: c.update(head_node_type="heads")),
    "more kept than allowed": ("max_workers", lambda c: node_type("actors")(c).update(min_workers=40)),
    "group without its resource": ("the code asks for", lambda c: node_type("judge")(c)["resources"].pop("judge")),
    "resource under another name": (
        "the code asks for",
        lambda c: node_type("actors")(c)["resources"].update(actors=64),
    ),
    "learner without a GPU": (
        "learner: .* not for machines of its group",
        lambda c: node_type("learner")(c)["resources"].pop("GPU"),
    ),
    "fewer actors than processors": (
        "as much of its group",
        lambda c: node_type("actors")(c)["resources"].update(actor=8),
    ),
    "processors on the head": ("the head offers processors", lambda c: node_type("head")(c)["resources"].update(CPU=4)),
    "no machines for actors": (
        "actors: .* not for machines of its group",
        lambda c: node_type("actors")(c).update(max_workers=0),
    ),
    "too few machines for all groups": ("no room for all groups", lambda c: c.update(max_workers=2)),
    "two groups in one": ("learner: of the groups", lambda c: node_type("learner")(c)["resources"].update(judge=1)),
    "machines without the token": ("the head.s token", lambda c: c["file_mounts"].clear()),
}


@pytest.mark.parametrize("mistake", CLOUD_MISTAKES)
def test_a_mistake_in_the_clouds_file_is_found(mistake: str) -> None:
    config = load(CLOUD)
    message, change = CLOUD_MISTAKES[mistake]
    change(config)
    with pytest.raises(Exception, match=message):  # each of Ray's checks has a type of its own
        check_cloud(config)


def change_start(old: str, new: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        commands = config["worker_start_ray_commands"]
        assert old in commands[-1]
        commands[-1] = commands[-1].replace(old, new)

    return change


ON_PREMISE_MISTAKES: dict[str, tuple[str, Change]] = {
    "unknown key": ("workers", lambda c: c.update(workers=3)),
    "node types": (
        "available_node_types is not supported",
        lambda c: c.update(available_node_types={"a": {"node_config": {}, "resources": {}}}),
    ),
    "no head": ("head_ip", lambda c: c["provider"].pop("head_ip")),
    "learner at an address that is no machine's": ("the code asks for", change_start("192.168.1.11", "192.168.1.99")),
    "resource under another name": ("the code asks for", change_start('"judge"', '"judges"')),
    "resources that are no JSON": ("Expecting property name", change_start("'{\"judge\": 1}'", "'{judge: 1'")),
    "the same machine twice": ("doubles", lambda c: c["provider"]["worker_ips"].append(c["provider"]["worker_ips"][0])),
}


@pytest.mark.parametrize("mistake", ON_PREMISE_MISTAKES)
def test_a_mistake_in_the_on_premise_file_is_found(mistake: str) -> None:
    config = load(ON_PREMISE)
    message, change = ON_PREMISE_MISTAKES[mistake]
    change(config)
    with pytest.raises(Exception, match=message):  # each of Ray's checks has a type of its own
        check_on_premise(config)


# Kubernetes.


def check_kubernetes(spec: dict[str, Any]) -> None:
    """Checks a RayCluster's specification: its fields, its pods, and what Ray's autoscaler makes of it."""
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    check_fields(spec, CLUSTER_FIELDS)
    check_fields(head, HEAD_FIELDS)
    check_fields(spec["autoscalerOptions"], AUTOSCALER_FIELDS)
    assert spec["enableInTreeAutoscaling"] is True, "no autoscaling"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__, "another Ray"
    cluster = {"metadata": {"name": "yendor", "namespace": "default"}, "spec": spec}
    check_groups(_derive_autoscaling_config_from_ray_cr(copy.deepcopy(cluster)))
    for group in workers:
        check_fields(group, WORKER_FIELDS)
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        check_pod(group["template"])
    images = {group["template"]["spec"]["containers"][0]["image"] for group in (head, *workers)}
    assert len(images) == 1, "Ray has to be the same everywhere"


def check_fields(part: dict[str, Any], known: set[str]) -> None:
    assert set(part) <= known, f"unknown fields: {sorted(set(part) - known)}"


def check_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    spec = template["spec"]
    container = spec["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert set(mounts) == set(volumes), "volumes without a mount"
    claim = load(VOLUME)["metadata"]["name"]
    shared = [mounts[n] for n, volume in volumes.items() if volume.get("persistentVolumeClaim") == {"claimName": claim}]
    assert shared == [shared_folder(RAYJOB)], "the shared volume is not where run.dir lies"
    keys = [e["name"] for e in container["env"] if "secretKeyRef" in e.get("valueFrom", {})]
    assert keys == [JudgeSettings().api_key_env], "the judge does not find its key"
    memory = container["resources"]
    assert memory["requests"] == memory["limits"], "Ray counts the limits, the scheduler of pods the requests"


def test_the_manifests_are_valid() -> None:
    cluster, job, volume = load(RAYCLUSTER), load(RAYJOB), load(VOLUME)
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_kubernetes(cluster["spec"])
    check_fields(job["spec"], JOB_FIELDS)
    assert job["spec"]["rayClusterSpec"] == cluster["spec"], "the job's cluster is that of raycluster.yaml"
    assert set(yaml.safe_load(job["spec"]["runtimeEnvYAML"])) == {"env_vars"}
    kubernetes_validate.validate(volume, KUBERNETES, strict=True)
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]


def group_of(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda spec: next(group for group in spec["workerGroupSpecs"] if group["groupName"] == name)


def container_of(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda spec: group_of(name)(spec)["template"]["spec"]["containers"][0]


KUBERNETES_MISTAKES: dict[str, tuple[str, Change]] = {
    "unknown key": ("unknown fields: .*autoscaling", lambda s: s.update(autoscaling=True)),
    "unknown key of a group": ("unknown fields: .*maxReplica", lambda s: group_of("actors")(s).update(maxReplica=3)),
    "unknown key of a pod": (
        "'volume' was unexpected",
        lambda s: group_of("actors")(s)["template"]["spec"].update(volume=[]),
    ),
    "unknown key of a container": ("'envs' was unexpected", lambda s: container_of("judge")(s).update(envs=[])),
    "no minimum": ("minReplicas", lambda s: group_of("actors")(s).pop("minReplicas")),
    "no processors": ("failed to detect `CPU`", lambda s: container_of("actors")(s).pop("resources")),
    "group without its resource": ("the code asks for", lambda s: group_of("judge")(s)["rayStartParams"].clear()),
    "resources that are no JSON": (
        "Expecting property name",
        lambda s: group_of("actors")(s)["rayStartParams"].update(resources='"{actor: 16}"'),
    ),
    "resources without the second quotes": (
        "Extra data",
        lambda s: group_of("actors")(s)["rayStartParams"].update(resources='{"actor": 16}'),
    ),
    "resource under another name": (
        "the code asks for",
        lambda s: group_of("learner")(s)["rayStartParams"].update(resources='"{\\"learners\\": 1}"'),
    ),
    "learner without a GPU": (
        "Ray counts the limits",
        lambda s: container_of("learner")(s)["resources"]["limits"].pop("nvidia.com/gpu"),
    ),
    "no shared volume": ("volumes without a mount", lambda s: container_of("actors")(s)["volumeMounts"].pop(0)),
    "a claim of another name": (
        "not where run.dir lies",
        lambda s: s["headGroupSpec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"].update(claimName="x"),
    ),
    "another Ray": ("another Ray", lambda s: s.update(rayVersion="2.9.0")),
    "another image": ("Ray has to be the same", lambda s: container_of("judge")(s).update(image="rayproject/ray")),
    "processors on the head": (
        "the head offers processors",
        lambda s: s["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
    ),
    "no autoscaling": ("no autoscaling", lambda s: s.update(enableInTreeAutoscaling=False)),
    "the key under another name": (
        "does not find its key",
        lambda s: container_of("judge")(s)["env"][1].update(name="API_KEY"),
    ),
}


@pytest.mark.parametrize("mistake", KUBERNETES_MISTAKES)
def test_a_mistake_in_the_manifests_is_found(mistake: str) -> None:
    # YAML's aliases are one object in several places; a copy by way of text makes them several.
    spec = yaml.safe_load(yaml.dump(load(RAYCLUSTER)["spec"], Dumper=_NoAliases))
    message, change = KUBERNETES_MISTAKES[mistake]
    change(spec)
    with pytest.raises(Exception, match=message):  # each of Ray's checks has a type of its own
        check_kubernetes(spec)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


# The commands that the files tell.


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Presets and overrides of the `yendor submit` and `yendor train` of a file."""
    text = path.read_text()
    if path == RAYJOB:
        text = load(path)["spec"]["entrypoint"]
    for line in re.findall(r"yendor (?:submit|train) (.*)", text):
        words = shlex.split(line)
        yield words[0], [word for word in words[1:] if "=" in word and not word.startswith("-")]


def shared_folder(path: Path) -> str:
    """The folder that all machines of this file share."""
    ((_, overrides),) = commands(path)
    (folder,) = (word.removeprefix("run.dir=") for word in overrides if word.startswith("run.dir="))
    return str(Path(folder).parent)


@pytest.mark.parametrize("path", [CLOUD, ON_PREMISE, RAYCLUSTER, RAYJOB], ids=lambda path: path.name)
def test_the_commands_fit_their_cluster(path: Path) -> None:
    ((preset, overrides),) = commands(path)
    config = load_config(preset, overrides)
    assert config.cluster.groups and config.learner.device == "cuda"
    text = path.read_text()
    folder = shared_folder(path)
    if path is CLOUD:
        check_room(check_launcher(load(path)), config)
        assert f"-v {folder}:{folder}" in text and f"mountpoint -q {folder}" in text
    elif path is ON_PREMISE:
        assert not config.cluster.autoscaling and f"-v {folder}:{folder}" in text
    else:
        spec = load(path)["spec"]
        cluster = {"metadata": {"name": "y", "namespace": "d"}, "spec": spec.get("rayClusterSpec", spec)}
        check_room(_derive_autoscaling_config_from_ray_cr(cluster), config)
        assert f"mountPath: {folder}" in text


# The image.


def test_the_image_has_what_a_run_needs() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied == {*PACKAGES, *FILES}
    assert all((ROOT / name).exists() for name in copied)
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == copied
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)


def test_the_image_installs_what_make_installs() -> None:
    def installed(text: str, pip: str) -> set[str]:
        lines = re.findall(rf"{pip} install ([^|&;}}]*)", text.replace("\\\n", " "))
        plain = (re.sub(r"--quiet|-r requirements/dev.txt|-e(?= )", "", line) for line in lines)
        return {" ".join(re.sub(r"\"?\$\(?TORCH_INDEX\)?\"?", "INDEX", line).split()) for line in plain}

    make = installed((ROOT / "Makefile").read_text().replace("\n\t", "\n;"), r"\$\(PIP\)")
    image = installed((ROOT / "Dockerfile").read_text().replace("\nRUN", "\n;").replace("\n\n", ";"), "python -m pip")
    # What tests alone need is not in the image.
    make = {line.partition(" touch")[0] for line in make if "requirements/datasets.txt" not in line}
    assert len(make) == 6 and make <= image, make - image
    assert (ROOT / "Makefile").read_text().count(INDEX) == (ROOT / "Dockerfile").read_text().count(INDEX) == 1


INDEX = "https://download.pytorch.org/whl/cpu"


# What is checked before a run begins.


def grouped(**cluster: bool) -> Config:
    return replace(load_config("demo", ["actors.count=4"]), cluster=ClusterSettings(groups=True, **cluster))


def test_a_part_asks_for_its_group_only_where_there_are_groups() -> None:
    one, groups = load_config("demo"), grouped()
    for part in (placement.actor, placement.learner):
        assert part(one)["resources"] == {} and len(part(groups)["resources"]) == 1
    assert placement.judge(one) == {} and placement.judge(groups) == {"judge": 1}
    half = replace(groups, actors=replace(groups.actors, cpus=0.5))
    assert placement.actor(half)["resources"] == {"actor": 0.5}


def test_a_cluster_that_lacks_a_group_is_refused() -> None:
    there = {"CPU": 8.0, "GPU": 1.0, "actor": 4.0, "learner": 1.0}
    check_cluster(grouped(), there)
    with pytest.raises(ResourceError, match="actors need 4 of the resource 'actor', the Ray cluster has 3"):
        check_cluster(grouped(), {**there, "actor": 3.0})
    with pytest.raises(ResourceError, match="the learner needs 1 of the resource 'learner', the Ray cluster has 0"):
        check_cluster(grouped(), {"CPU": 8.0, "actor": 4.0})
    with pytest.raises(ResourceError, match="too few CPUs"):
        check_cluster(grouped(), {**there, "CPU": 2.0})
    check_cluster(load_config("demo"), {"CPU": 2.0})
    cuda = load_config("demo", ["learner.device=cuda"])
    with pytest.raises(ResourceError, match="the Ray cluster has no GPU"):
        check_cluster(cuda, {"CPU": 8.0})
    check_cluster(cuda, {"CPU": 8.0, "GPU": 1.0})


@pytest.mark.parametrize(
    ("count", "share", "device", "needed"),
    [
        (1, 0.5, "cuda", 1),  # beside the learner
        (2, 0.5, "cuda", 2),
        (3, 0.5, "cuda", 2),
        (4, 0.5, "cuda", 3),
        (4, 0.5, "cpu", 2),
        (3, 0.4, "cpu", 2),
        (3, 0.7, "cpu", 3),  # a share is of one GPU
        (2, 1.0, "cuda", 3),
        (2, 2.0, "cpu", 4),
    ],
)
def test_engines_count_among_the_gpus_that_a_run_needs(count: int, share: float, device: str, needed: int) -> None:
    keys = [f"actors.count={count}", f"actors.gpus={share}", f"learner.device={device}"]
    config = load_config("textworld_ppo", keys)
    check_cluster(config, {"CPU": 8.0, "GPU": float(needed)})
    with pytest.raises(ResourceError, match="GPU") as caught:
        check_cluster(config, {"CPU": 8.0, "GPU": needed - 1.0})
    if "fits" in str(caught.value):
        fits = int(str(caught.value).split("actors.count=")[-1].split()[0])
        assert 0 < fits < count
        fewer = load_config("textworld_ppo", [f"actors.count={fits}", *keys[1:]])
        check_cluster(fewer, {"CPU": 8.0, "GPU": needed - 1.0})


def test_too_few_gpus_say_what_would_fit() -> None:
    config = load_config("textworld_ppo", ["actors.gpus=1", "learner.device=cuda"])
    with pytest.raises(ResourceError, match=r"need 2, the Ray cluster has 1; actors.gpus=0.5 lets an engine share"):
        check_cluster(config, {"CPU": 8.0, "GPU": 1.0})


def test_the_coordinator_of_a_cluster_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = load_config("demo", ["learner.device=cuda", "reward.w_int=0", f"run.dir={tmp_path}"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ResourceError, match="finds no GPU"):
        preflight(config, lambda _: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    preflight(config, lambda _: None)


class Where:
    """Stands in for the reward server."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.mark.long
def test_the_reward_server_stays_with_the_coordinator() -> None:
    cluster = Cluster()
    try:
        start_patiently(lambda: cluster.add_node(num_cpus=0, object_store_memory=10**8, include_dashboard=False))
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        here = ray.get_runtime_context().get_node_id()
        resources = {Group.ACTOR.value: 2}
        start_patiently(lambda: cluster.add_node(num_cpus=2, object_store_memory=10**8, resources=resources))
        # What asks for nothing goes anywhere, so one of them may be here by chance.
        servers = [ray.remote(Where).options(**placement.reward_server(grouped())).remote() for _ in range(6)]
        answers = [server.node.remote() for server in servers]
        # A handle that is dropped takes an actor with it that has not begun, calls and all.
        assert set(ray.get(answers)) == {here}, servers
    finally:
        ray.shutdown()
        cluster.shutdown()
