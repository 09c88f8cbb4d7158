"""A LangGraph agent, written for OpenAI's API, works unchanged through Foreserve."""

from __future__ import annotations

from typing import Any

import pytest

from tests.peer.compare import CALL
from tests.peer.conftest import Pair

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def answer(base_url: str, model: str) -> list[Any]:
    """Ask for the weather: the model must call the tool, the tool answers, the model says something about it."""
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    asked: list[str] = []

    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"It is sunny in {city}."

    llm = ChatOpenAI(
        base_url=base_url + "/v1", api_key="none", model=model, temperature=0, max_tokens=120, seed=1,
        extra_body={"cache_prompt": False}, streaming=True,
    )  # type: ignore[call-arg, arg-type]  # fmt: skip
    calling = llm.bind_tools([weather], tool_choice="required")

    def call(state: MessagesState) -> dict[str, Any]:
        return {"messages": [calling.invoke(state["messages"])]}

    def say(state: MessagesState) -> dict[str, Any]:
        return {"messages": [llm.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("call", call)
    graph.add_node("tools", ToolNode([weather]))
    graph.add_node("say", say)
    graph.add_edge(START, "call")
    graph.add_edge("call", "tools")
    graph.add_edge("tools", "say")
    messages = graph.compile().invoke({"messages": [("user", CALL)]})["messages"]
    assert asked
    calls = [{key: value for key, value in made.items() if key != "id"} for made in messages[1].tool_calls]
    return [calls, *(message.content for message in messages[2:])]


def test_an_agent_does_the_same_through_us(llamacpp: Pair) -> None:
    direct = answer(llamacpp.direct, llamacpp.model)
    through = answer(llamacpp.through, llamacpp.model)
    assert through == direct
    assert through[0][0]["name"] == "weather"
    assert through[1].startswith("It is sunny in ")
    assert through[-1]
