"""The settings of pipelines. Users and the rest of the house find them in `settings`."""

from __future__ import annotations

from foreserve.settings_base import Settings, above, at_least


class PipelineSettings(Settings, frozen=True, kw_only=True):
    """How a pipeline is served.

    At most `max_running` requests of it run at once, others are refused; together they have `max_frames` children of
    one `map` in flight, in equal parts. `deadline_s` and `utility` are the terms of a request that brings none of its
    own. Without `streaming` a stage hands on what it makes only once it has made all. With `model` it is also a model
    of OpenAI's API: the last user message is its one input, and `answer` names the output that is the reply (`None`:
    the first one). A client that reads nothing for `stall_s` is cut off.
    """

    max_running: int = 256
    max_frames: int = 1024
    deadline_s: float | None = None
    utility: float = 1.0
    streaming: bool = True
    model: bool = False
    answer: str | None = None
    stall_s: float = 30.0

    def __post_init__(self) -> None:
        at_least("max_running", self.max_running, 1)
        at_least("max_frames", self.max_frames, 1)
        above("stall_s", self.stall_s, 0)
        if self.deadline_s is not None:
            above("deadline_s", self.deadline_s, 0)
        if self.answer is not None and not self.model:
            raise ValueError("`answer` names the reply of a model; set `model` to true too")
