"""What can go wrong with a language model that acts."""


class LanguageModelError(Exception):
    """A model that cannot act: not there, without a chat template, or with prompts that do not fit. One line that says
    what to do."""


class EngineDiedError(LanguageModelError):
    """The engine ended by itself; made again it may work."""
