import numpy as np
from benchmarks.contexts import MOST_SHARING, same_context, template_parts

rng = np.random.default_rng(5)


def passage(words=40):
    return " ".join(f"w{index}" for index in rng.integers(0, 5000, words))


def test_prompts_of_one_passage_have_one_context():
    passages = [passage() for _ in range(30)]
    prompts = [f"Read this: {text} What is it about?" for text in passages]
    prompts += [f"Summarise {text}" for text in passages]
    contexts = same_context(prompts, ["app"] * 60)
    assert contexts == [*range(30), *range(30)]


def test_the_words_of_a_template_join_nothing():
    template = " ".join(f"t{index}" for index in range(30))
    prompts = [f"{template} {passage()}" for _ in range(MOST_SHARING + 1)]
    assert len(set(same_context(prompts, ["app"] * len(prompts)))) == len(prompts)
    assert len(set(same_context(prompts[:5], ["app"] * 5))) == 1


def test_groups_are_apart_and_short_prompts_compare_whole():
    assert same_context(["one two", "one two", "one", "one two", ""], ["a", "a", "a", "b", "a"]) == [0, 0, 2, 3, 4]


def test_a_template_is_told_from_its_text():
    prompts = ["Summarise the text: abc def. In one line?", "Summarise the text: xyz. In one line?", "Oh?", "No!"]
    assert template_parts(prompts, ["sum", "sum", "bare", "bare"]) == [
        ("Summarise the text:\nIn one line?", "abc def."),
        ("Summarise the text:\nIn one line?", "xyz."),
        ("", "Oh?"),
        ("", "No!"),
    ]
    assert template_parts(["always the same"] * 2, ["t", "t"]) == [("", "always the same")] * 2
