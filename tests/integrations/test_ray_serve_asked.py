from types import SimpleNamespace

from foreserve.integrations.ray_serve_asked import asked

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is a queue?"}, {"type": "image_url"}]},
    ],
    "max_tokens": 50,
}


def test_a_chat_as_a_mapping_and_as_an_object():
    messages = [SimpleNamespace(**message) for message in CHAT["messages"]]
    for request in (CHAT, SimpleNamespace(messages=messages, max_tokens=50)):
        found, _ = asked([request], {}, 1024)
        assert (found.instruction, found.text, found.most) == ("Be brief.", "What is a queue?", 50)
        assert (found.input_tokens, found.prompt_tokens) == (4, 6)


def test_a_text_and_a_prompt():
    assert asked(["tell me"], {}, 7)[0].text == "tell me"
    assert asked([{"prompt": "tell me"}], {}, 7)[0].text == "tell me"
    assert asked([], {"prompt": "tell me", "max_tokens": 3}, 7)[0].most == 3
    assert asked(["tell me"], {"max_new_tokens": 9}, 7)[0].most == 9


def test_what_tells_nothing_is_an_empty_prompt_with_the_usual_limit():
    for args in ([], [b"a pickled scope"], [3], [None], [{"max_tokens": "many"}], [{"messages": []}], [object()]):
        found, prefix = asked(args, {}, 7)
        assert (found.text, found.prompt_tokens, found.most, prefix) == ("", 0, 7, None)


def test_long_prompts_are_counted_whole_and_begin_alike():
    one, prefix = asked(["x" * 1_000_000], {}, 7)
    other, same = asked(["x" * 70_000], {}, 7)
    assert (one.prompt_tokens, other.prompt_tokens) == (250_000, 17_500)
    assert len(one.text) == 65_536
    assert prefix == same
