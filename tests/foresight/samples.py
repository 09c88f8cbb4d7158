"""Made-up requests with answers that follow a rule, for tests of what learns from them."""

import numpy as np

from foreserve.foresight.length import Asked, Ended
from foreserve.foresight.length_features import featurise
from foreserve.foresight.length_history import History
from foreserve.foresight.length_verdict import Sample

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def asked(text="hello", instruction="", tenant="default", tokens=10, most=4096):
    return Asked(
        instruction=instruction, text=text, input_tokens=tokens, prompt_tokens=tokens + 5, most=most, tenant=tenant
    )


def linear(count, seed, slope=1.5, noise=6.0):
    """Answers are `slope` times as long as the input, whatever is said, with noise."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 300, count)
    answers = np.maximum(1, np.round(slope * tokens + rng.normal(0, noise, count))).astype(int)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(count)]
    batch = [asked(text, tokens=int(n)) for text, n in zip(texts, tokens, strict=True)]
    return samples(batch, answers)


def worded(count, seed, most=4096):
    """Answers are long where the text says so, short where it says that; some 15 percent either way."""
    rng = np.random.default_rng(seed)
    long = rng.random(count) < 0.5
    answers = np.maximum(1, np.round(np.where(long, 400, 20) * np.exp(rng.normal(0, 0.15, count)))).astype(int)
    texts = [f"{' '.join(rng.choice(WORDS, 9))} {'essay' if one else 'brief'}" for one in long]
    batch = [asked(text, tokens=int(n), most=most) for text, n in zip(texts, rng.integers(5, 50, count), strict=True)]
    return samples(batch, answers, most)


def samples(batch, answers, most=None):
    """As they are told of by a server: features of when they came, answers cut at `most`."""
    history, found = History(), []
    for one, tokens in zip(batch, answers, strict=True):
        cut = most is not None and tokens >= most
        ended = Ended(tokens=most if cut else int(tokens), censored=cut)
        found.append(Sample(featurise([one], None, history)[0], ended))
        history.learn(one, ended)
    return found


def tokens_of(found):
    return np.array([sample.ended.tokens for sample in found], float)


def features_of(found):
    return [sample.features for sample in found]
