"""Which engine runs a language model here, and what it needs to be installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from foreserve.errors import ConfigError
from foreserve.settings import LLMSettings

SIMULATED = "simulated"
"""The name of the model without weights and of the engine that runs it."""


def engine_name(settings: LLMSettings) -> str:
    """`auto`: what runs such a model here.

    Simulated for the model of that name; transformers for a Hugging Face folder, and where it alone is installed;
    else OpenVINO, the embedded default.
    """
    if settings.engine != "auto":
        return settings.engine
    if settings.model == SIMULATED:
        return SIMULATED
    folder = Path(settings.model).expanduser()
    if (folder / "config.json").is_file() and not (folder / "openvino_model.xml").is_file():
        return "transformers"
    other = find_spec("openvino_genai") is None and find_spec("torch") is not None
    return "transformers" if other or settings.python is not None else "openvino"


def need_packages(engine: str, where: str) -> None:
    """Raises ConfigError with the command that installs what reads model files, where it is missing here."""
    missing = [name for name in ("gguf", "jinja2", "tokenizers") if find_spec(name) is None]
    if missing:
        extra = {"transformers": "torch", "vllm": "vllm"}.get(engine, "openvino")
        raise ConfigError(
            f"{where}: engine {engine!r} needs {', '.join(missing)}; install with: pip install 'foreserve[{extra}]'"
        )
