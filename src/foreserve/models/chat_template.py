"""Messages to the text a model was trained on, by the Jinja template that comes with the model.

The template is a stranger's program: see `template_sandbox` for what it may say and `template_budget` for how much it
may do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from foreserve import clock
from foreserve.errors import BadRequest, ConfigError
from foreserve.models.template_budget import Budget, OverBudget, Refused, Size, current
from foreserve.models.template_sandbox import TemplateEnvironment

_USER: Final = {"role": "user", "content": "Hello"}
_PROBES: Final[tuple[list[dict[str, Any]], ...]] = (
    [{"role": "system", "content": "Be brief."}, _USER, {"role": "assistant", "content": "Hello."}, _USER],
    [_USER, {"role": "assistant", "content": "Hello."}, _USER],
    [_USER],
    [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
)
_MAX_INPUT: Final = 10**9


class ChatTemplate:
    """A model's chat template, known at load to stay within its budget. Safe to share between threads.

    `wall` gives the time for templates that write the date: seconds since the epoch, by default the event loop's.
    Raises ConfigError where the template is not valid, or cannot render a plain conversation within its budget.
    """

    def __init__(
        self, source: str, bos_token: str = "", eos_token: str = "", *, wall: Callable[[], float] = clock.wall
    ) -> None:
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._wall = wall
        try:
            self._template = TemplateEnvironment().compiled(source)
        except Exception as error:
            raise ConfigError(f"the model's chat template cannot be used: {_words(error)}") from None
        self._probe()

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt for `messages` (as in OpenAI's API), with `extra` names for the template.

        Raises BadRequest with the template's own words where it refuses the messages, and where it fails on them or
        would do more than its budget, which grows with their length.
        """
        known = {"tools": tools, "add_generation_prompt": add_generation_prompt, **extra}
        try:
            return self._render(list(messages), known, self._wall)
        except Refused as refusal:
            raise BadRequest(_words(refusal), param="messages") from None
        except Exception as error:
            raise BadRequest(
                f"the model's chat template cannot render these messages: {_words(error)}", param="messages"
            ) from None

    def _render(self, messages: list[dict[str, Any]], known: dict[str, Any], wall: Callable[[], float]) -> str:
        size = _input_size(messages, known)
        token = current.set(Budget.for_input(size, wall))
        try:
            return str(self._template.render({**self._tokens, **known, "messages": messages}))
        finally:
            current.reset(token)

    def _probe(self) -> None:
        """Render plain conversations. One that it refuses in words is as good as one that it renders."""
        failed, refused = None, False
        for messages in _PROBES:
            try:
                self._render(messages, {"tools": None, "add_generation_prompt": True}, lambda: 0.0)
                return
            except Refused:
                refused = True
            except OverBudget as error:
                raise ConfigError(f"the model's chat template cannot be used: {error}") from None
            except Exception as error:
                failed = failed or error
        if failed and not refused:
            raise ConfigError(f"the model's chat template cannot render a plain conversation: {_words(failed)}")


def _input_size(messages: list[dict[str, Any]], known: dict[str, Any]) -> Size:
    return Budget(_MAX_INPUT, _MAX_INPUT, lambda: 0.0).measure([messages, list(known.values())])


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:500]
