"""Which model `agent.model` means."""

from orchestration.config import Config


def acting_model(config: Config) -> str:
    """The folder or Hugging Face id of the model that acts."""
    assert config.agent.model is not None
    return config.agent.model
