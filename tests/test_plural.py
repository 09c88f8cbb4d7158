from foreserve.plural import counted


def test_one_has_no_s():
    assert [counted(n, "request") for n in (0, 1, 2000)] == ["0 requests", "1 request", "2,000 requests"]
