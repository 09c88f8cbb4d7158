import pytest
import typer

from foreserve.cli.ending import EXIT_FAILED, EXIT_WRONG, wrong


@pytest.mark.parametrize("code", [EXIT_WRONG, EXIT_FAILED])
def test_what_is_wrong_is_said_as_it_is_with_its_status(capsys, code):
    with pytest.raises(typer.Exit) as ended:
        wrong("chat[0]: [bold] is no name", code)
    assert ended.value.exit_code == code
    out, said = capsys.readouterr()
    assert (out, said) == ("", "foreserve: chat[0]: [bold] is no name\n")
