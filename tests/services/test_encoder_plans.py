from __future__ import annotations

import pytest

from foreserve.errors import BadRequest
from foreserve.services.encoder_plans import Terms, terms_of


def test_terms_are_ours_among_the_parameters_of_the_protocol() -> None:
    assert terms_of({"min_accuracy": 0.5, "timeout": 3, "binary_data_output": True}) == Terms(min_accuracy=0.5)


def test_a_mistyped_parameter_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"'min_acuracy' is not known.*min_accuracy"):
        terms_of({"min_acuracy": 0.99})
