"""The registry of recurrent policies: to add one is to add one file and one line here."""

from agents.networks.base import RecurrentPolicy
from agents.networks.fast import FastPolicy
from agents.networks.oni import OniPolicy

NETWORKS: dict[str, type[FastPolicy] | type[OniPolicy]] = {"fast": FastPolicy, "oni": OniPolicy}


def build_policy(network: str, actions: int) -> RecurrentPolicy:
    """The policy named `network` for so many actions, with freshly initialised weights (torch's global generator).

    Raises ValueError where there is no such network.
    """
    if network not in NETWORKS:
        raise ValueError(f"agent.network={network}: no such network; there are {', '.join(sorted(NETWORKS))}")
    return NETWORKS[network](actions)
