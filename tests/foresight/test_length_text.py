import numpy as np

from foreserve.foresight.length_text import MOST_HASHES, SHARES, hashed


def test_a_batch_gives_what_each_text_gives_alone():
    texts = ["Sort a list, please!", "", "ünï ({", "a" * 5000, "x y " * 3000, "\ud800 half", "\0\0 1 2"]
    together, shares = hashed(texts)
    for index, text in enumerate(texts):
        alone, share = hashed([text])
        assert np.array_equal(together[index], alone[0])
        assert np.array_equal(shares[index], share[0])
    assert max(map(len, together)) <= MOST_HASHES
    assert len(together[4]) == MOST_HASHES


def test_words_count_without_case_and_marks_and_pairs_and_ends_count():
    (one, same, turned, other), _ = hashed(["Hello, World", "hello world", "world hello", "hello there"])
    assert np.array_equal(one, same)
    assert set(one) != set(turned)
    assert len(set(one) & set(turned)) >= 2
    assert len(set(one) & set(other)) >= 1


def test_the_hash_is_the_same_everywhere():
    assert hashed(["hello world"])[0][0].tolist() == [62216, 49867, 10293, 25725, 61114]


def test_shares_are_of_bytes():
    _, shares = hashed(["ab 12?{}é"])
    named = dict(zip(SHARES, shares[0], strict=False))
    counted = {name: round(float(share) * 11) for name, share in named.items() if share}
    assert counted == {"digits": 2, "spaces": 2, "questions": 1, "code": 2, "foreign": 2}
