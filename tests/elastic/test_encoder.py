from unittest import mock

import pytest
import torch
from torch.nn import functional

from foreserve.elastic import families
from foreserve.elastic.encoder import ElasticEncoder, Encoded
from foreserve.elastic.setting import Merge, Plain, Prompts, Setting
from foreserve.errors import ConfigError
from tests.elastic.tiny import IMAGES, TEXT, images, model, texts

EVERY = (*TEXT, *IMAGES)


def inputs(kind: str) -> dict[str, torch.Tensor]:
    return texts(12, 5, 2, 9) if kind in TEXT else images(kind, 3)


def prompts(encoder: ElasticEncoder, batch: int, p: int, depth: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(9)
    return torch.randn(batch, depth, p, encoder.width, generator=made, dtype=torch.double)


@pytest.mark.parametrize("kind", EVERY)
def test_plain_is_the_model(kind: str) -> None:
    given = inputs(kind)
    out = ElasticEncoder(model(kind))(given)
    assert torch.equal(out.tokens, model(kind)(**given).last_hidden_state)


@pytest.mark.parametrize("kind", EVERY)
def test_the_walk_over_its_layers_is_the_model_where_nothing_merges(kind: str) -> None:
    given = inputs(kind)
    with mock.patch("foreserve.elastic.encoder.merge", lambda given, keys, fixed, most: given):
        walked = ElasticEncoder(model(kind))(given, Merge(1))
    plain = ElasticEncoder(model(kind))(given)
    torch.testing.assert_close(walked.first, plain.first, atol=1e-9, rtol=0)
    torch.testing.assert_close(walked.mean(), plain.mean(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("setting", [Merge(1), Merge(3), Merge(50), Prompts(2)])
def test_who_stands_beside_a_row_never_changes_it(kind: str, setting: Setting) -> None:
    encoder = ElasticEncoder(model(kind))
    given = inputs(kind)
    batch = len(next(iter(given.values())))
    sets = prompts(encoder, batch, 2, encoder.depth) if isinstance(setting, Prompts) else None
    together = encoder(given, setting, sets)
    for row in range(batch):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        if kind in TEXT:
            length = int(alone["attention_mask"].sum())
            alone = {name: value[:, :length] for name, value in alone.items()}
        found = encoder(alone, setting, None if sets is None else sets[row : row + 1])
        torch.testing.assert_close(found.first[0], together.first[row], atol=1e-9, rtol=0)
        torch.testing.assert_close(found.mean()[0], together.mean()[row], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("r", [1, 2, 5, 100])
def test_sizes_still_count_every_token_of_the_input(kind: str, r: int) -> None:
    given = inputs(kind)
    plain, merged = ElasticEncoder(model(kind))(given), ElasticEncoder(model(kind))(given, Merge(r))
    assert torch.equal(merged.sizes.sum(1), plain.sizes.sum(1))
    assert merged.tokens.shape[1] < plain.tokens.shape[1]
    assert torch.equal(merged.sizes[:, 0], torch.ones(len(merged.sizes)))


@pytest.mark.parametrize("lengths", [(1,), (2,), (3,), (4,), (1, 2, 3, 64), (64,), (2, 2)])
def test_texts_of_any_length(lengths: tuple[int, ...]) -> None:
    encoder = ElasticEncoder(model("bert"))
    for r in (1, 7, 60):
        out = encoder(texts(*lengths), Merge(r))
        assert torch.isfinite(out.mean()).all()
        assert out.sizes.sum(1).tolist() == [float(length) for length in lengths]
    assert encoder(texts(64), Merge(60)).tokens.shape[1] == 2 + 8  # 62 words halved three times


def test_where_one_patch_is_left_nothing_merges_any_more() -> None:
    out = ElasticEncoder(model("deit"))(images("deit", 2), Merge(99))  # nine patches: five, three, two
    assert out.tokens.shape[1] == 2 + 2


def test_identical_tokens_merged_change_nothing() -> None:
    """Proportional attention: two tokens that are the same count as one twice as heavy."""
    vit = model("vit")
    encoder = ElasticEncoder(vit)
    same = images("vit", 2)
    twin = torch.zeros_like(vit.embeddings.position_embeddings)
    with mock.patch.object(vit.embeddings, "position_embeddings", torch.nn.Parameter(twin)):
        same["pixel_values"][:] = same["pixel_values"][:, :, :1, :1]  # every patch alike
        plain, merged = encoder(same), encoder(same, Merge(4))
    assert merged.tokens.shape[1] == 17 - 3 * 4
    torch.testing.assert_close(merged.first, plain.first, atol=1e-7, rtol=0)  # sizes are in single precision
    torch.testing.assert_close(merged.mean(), plain.mean(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", EVERY)
def test_attention_stays_fused(kind: str) -> None:
    with mock.patch.object(
        families, "scaled_dot_product_attention", wraps=functional.scaled_dot_product_attention
    ) as fused:
        ElasticEncoder(model(kind))(inputs(kind), Merge(2))
    assert fused.call_count == 3


@pytest.mark.parametrize("kind", EVERY)
def test_prompts_change_the_answer_and_are_not_part_of_it(kind: str) -> None:
    encoder = ElasticEncoder(model(kind))
    given = inputs(kind)
    batch = len(next(iter(given.values())))
    plain = encoder(given)
    for depth in (1, 3):
        out = encoder(given, Prompts(2), prompts(encoder, batch, 2, depth))
        assert not torch.allclose(out.first, plain.first)
        assert torch.equal(out.sizes.sum(1), plain.sizes.sum(1))
        assert out.tokens.shape[1] == plain.tokens.shape[1] + 2


def test_deep_prompts_act_in_every_layer_and_shallow_ones_in_the_first() -> None:
    encoder = ElasticEncoder(model("vit"))
    given = images("vit", 1)
    deep = prompts(encoder, 1, 2, 3).requires_grad_()
    encoder(given, Prompts(2), deep).first.sum().backward()
    assert deep.grad is not None
    assert deep.grad.abs().sum(dim=(0, 2, 3)).gt(0).all()
    same = torch.cat([deep[:, :1]] * 3, dim=1)
    shallow = encoder(given, Prompts(2), deep[:, :1]).first
    assert not torch.allclose(encoder(given, Prompts(2), same).first, shallow)


@pytest.mark.parametrize("shape", [(3, 1, 3, 24), (2, 1, 2, 24), (3, 2, 2, 24), (3, 1, 2, 23)])
def test_prompts_that_do_not_fit_are_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 or 3, 2, 24"):
        ElasticEncoder(model("vit"))(images("vit", 3), Prompts(2), torch.zeros(shape))


def test_a_model_that_is_not_known_serves_as_plain_alone() -> None:
    with mock.patch.dict(families.FAMILIES, clear=True):
        encoder = ElasticEncoder(model("bert"))
    assert not encoder.elastic
    assert isinstance(encoder(texts(4), Plain()), Encoded)
    with pytest.raises(ConfigError, match="'bert' serve as plain alone"):
        encoder(texts(4), Merge(2))


def test_rows_padded_on_the_left_are_refused() -> None:
    given = texts(4, 6)
    given["attention_mask"] = given["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padded on the right"):
        ElasticEncoder(model("bert"))(given, Merge(2))


def test_a_model_with_a_head_is_served_by_its_encoder() -> None:
    from transformers import ViTForImageClassification

    headed = ViTForImageClassification(model("vit").config)
    assert ElasticEncoder(headed).model is headed.vit
