from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from foreserve.app import App
from foreserve.appfile import load_app_file
from foreserve.errors import ConfigError

UPSTREAM = '{kind: upstream, urls: ["http://127.0.0.1:1"]}'


@pytest.fixture(autouse=True)
def _modules_as_before() -> Iterator[None]:
    for name in [name for name in sys.modules if name.startswith("foreserve_file_")]:
        del sys.modules[name]  # what other tests have loaded
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("foreserve_file_") or name == "beside":
            del sys.modules[name]


def write(tmp_path: Path, text: str, name: str = "app.yaml") -> str:
    file = tmp_path / name
    file.write_text(dedent(text))
    return str(file)


def words(path: str) -> str:
    """The error of loading `path`, with the file's folder taken away."""
    with pytest.raises(ConfigError) as caught:
        load_app_file(path)
    return str(caught.value).replace(f"{Path(path).parent}/", "")


# --- Python


def test_a_python_file(tmp_path: Path) -> None:
    app = load_app_file(
        write(
            tmp_path,
            """
            import foreserve as fs

            app = fs.App(up=fs.Upstream(["http://127.0.0.1:1"], max_running=3), server={"port": 0})
            """,
            "app.py",
        )
    )
    assert isinstance(app, App)
    assert list(app.services) == ["up"]
    assert app.services["up"].settings.max_running == 3  # type: ignore[attr-defined]
    assert app.settings.server.port == 0


def test_what_lies_beside_it_can_be_imported_and_its_module_is_known(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("URL = 'http://127.0.0.1:1'\n")
    path = write(tmp_path, "import beside, foreserve as fs\napp = fs.App(up=fs.Upstream(beside.URL))\n", "app.py")
    app = load_app_file(path)
    known = [module for name, module in sys.modules.items() if name.startswith("foreserve_file_app_")]
    assert [module.app for module in known] == [app]


def test_a_function_in_it_is_a_service(tmp_path: Path) -> None:
    text = """
        import foreserve as fs

        @fs.function
        def shout(text: str) -> str:
            return text.upper()

        app = fs.App(shout=shout)
        """
    app = load_app_file(write(tmp_path, text, "app.py"))
    target = app.services["shout"].settings.target  # type: ignore[attr-defined]
    assert target == f"{(tmp_path / 'app.py').resolve()}:shout"


TWO = """
    import foreserve as fs

    up = fs.Upstream("http://127.0.0.1:1")
    one = fs.App(a=up)
    two = fs.App(b=up)
    three = "no app"
    """


def test_one_of_several_is_chosen_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, TWO, "app.py")
    assert list(load_app_file(f"{path}:two").services) == ["b"]
    assert words(path) == "app.py: several apps (one, two); choose one, as in app.py:one"
    assert words(f"{path}:tow") == "app.py: there is no 'tow'; did you mean 'two'? valid: one, two"
    assert words(f"{path}:three").startswith("app.py: 'three' is str, not an App")


def test_one_app_under_two_names_is_one_and_app_goes_first(tmp_path: Path) -> None:
    assert list(load_app_file(write(tmp_path, dedent(TWO) + "del two\nagain = one\n", "a.py")).services) == ["a"]
    assert list(load_app_file(write(tmp_path, dedent(TWO) + "app = two\n", "b.py")).services) == ["b"]


def test_a_file_without_an_app_says_what_to_write(tmp_path: Path) -> None:
    expected = 'app.py: no app; write one, as in `app = foreserve.App(chat=foreserve.LLM("smollm2"))`'
    assert words(write(tmp_path, "x = 1\n", "app.py")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nclass\n", "app.py, line 2: invalid syntax in `class`"),
        ("def f():\nreturn 1\n", "app.py, line 2: expected an indented block"),
        ("\n\nimport nonesuch_package\n", "app.py, line 3: ModuleNotFoundError: No module named 'nonesuch_package'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "app.py, line 2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", "app.py, line 2: JSONDecodeError: "),
        (
            "import sys\nsys.exit(3)\n",
            "app.py, line 2: it exits while it is being read; keep what is run by",
        ),
        ("import foreserve as fs\n\napp = fs.App()\n", "app.py, line 3: App(): nothing to serve"),
        (
            "import foreserve as fs\nup = fs.Upstream('http://127.0.0.1:1',\n  max_runing=2)\n",
            "app.py, line 2: Upstream(...).max_runing: unknown key 'max_runing'; did you mean 'max_running'?",
        ),
        ("import foreserve as fs\nfs.Ap\n", "app.py, line 2: AttributeError: module 'foreserve' has no attribute 'Ap'"),
        ("import foreserve as fs\napp = fs.App(x=3)\n", "app.py, line 2: App(): 'x' is int, not a service; valid:"),
    ],
)
def test_what_goes_wrong_in_it_is_shown_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert words(write(tmp_path, text, "app.py")).startswith(expected)
    assert not any(name.startswith("foreserve_file_app_") for name in sys.modules)


def test_a_mistake_in_a_file_that_it_imports_is_placed_there(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("x = 1\nclass\n")
    message = words(write(tmp_path, "\nimport beside\n", "app.py"))
    assert message.startswith("app.py, line 2: ")
    assert "beside.py, line 2: invalid syntax" in message


def test_an_interrupt_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_app_file(write(tmp_path, "raise KeyboardInterrupt\n", "app.py"))


# --- which file


def test_a_missing_file_names_what_is_near(tmp_path: Path) -> None:
    for name in ("app.py", "other.yaml", "notes.txt"):
        (tmp_path / name).touch()
    folder = tmp_path.resolve()
    assert words(str(tmp_path / "ap.py")) == (
        f"ap.py: no such app file; in {folder}: did you mean '{tmp_path}/app.py'? there: app.py, other.yaml"
    ).replace(f"{tmp_path}/", "")
    assert words(str(tmp_path / "no" / "where" / "app.py")).endswith("there: app.py, other.yaml")
    with pytest.raises(ConfigError, match=r"is a folder, not an app file; in .*there: app.py, other.yaml"):
        load_app_file(str(tmp_path))
    assert words(str(tmp_path / "notes.txt")) == "notes.txt: an app file ends in .py, .yaml or .yml"


def test_a_missing_file_in_an_empty_folder(tmp_path: Path) -> None:
    assert words(str(tmp_path / "app.py")).endswith("no .py, .yaml or .yml file is there")


def test_a_list_of_neighbours_is_bounded(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"n{number:03}.yaml").touch()
    assert len(words(str(tmp_path / "zzz.py")).split(", ")) < 12


# --- YAML


def test_a_yaml_file_with_the_same_words(tmp_path: Path) -> None:
    app = load_app_file(
        write(
            tmp_path,
            f"""
            services:
              up: {UPSTREAM}
              chat:
                kind: llm
                model: simulated
                queue: {{max_waiting: 5}}
            server: {{port: 9000, api_keys: [{{key: a, tenant: ann}}]}}
            state: {{history: false}}
            """,
        )
    )
    assert list(app.services) == ["up", "chat"]
    assert app.services["chat"].settings.queue.max_waiting == 5
    assert app.settings.server.port == 9000
    assert app.settings.server.api_keys[0].tenant == "ann"
    assert not app.settings.state.history


def test_a_name_that_is_no_python_word(tmp_path: Path) -> None:
    assert list(load_app_file(write(tmp_path, f"services: {{my/model-3.5: {UPSTREAM}}}\n")).services) == [
        "my/model-3.5"
    ]


def test_empty_parts_are_defaults(tmp_path: Path) -> None:
    app = load_app_file(write(tmp_path, f"services: {{up: {UPSTREAM}}}\nserver:\nstate:\n"))
    assert app.settings.server.port == 8000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "app.yaml: an app file is keys and values; valid: services, server, state"),
        ("- 1\n", "app.yaml: an app file is keys and values"),
        ("servces: {}\n", "app.yaml, line 1: servces: unknown key 'servces'; did you mean 'services'? valid: services"),
        ("server: {}\n", "app.yaml: services: at least one service by name is needed, as in `services: {chat:"),
        ("services:\n", "app.yaml, line 1: services: at least one service by name is needed"),
        ("services: [1]\n", "app.yaml, line 1: services: at least one service by name is needed"),
        ("services:\n  a: 3\n", "app.yaml, line 2: services.a: a service is keys and values, `kind` among them; valid"),
        (
            "services:\n  a: {model: x}\n",
            "app.yaml, line 2: services.a: missing key 'kind'; valid: encoder, function, graph, llm",
        ),
        (
            "services:\n  a:\n    model: x\n    kind: lm\n",
            "app.yaml, line 4: services.a.kind: no kind is called 'lm'; did you mean 'llm'? valid: encoder, function",
        ),
        (
            "services:\n  a: {kind: 3}\n",
            "app.yaml, line 2: services.a.kind is 3; valid: encoder, function, graph, llm, upstream",
        ),
        (
            "services:\n  a:\n    kind: llm\n    model: simulated\n    queue:\n      max_request: 1\n",
            "app.yaml, line 6: services.a.queue.max_request: unknown key 'max_request'; valid: max_waiting",
        ),
        (
            "services:\n  a:\n    kind: llm\n    model: simulated\n    queue:\n      max_waiting: many\n",
            "app.yaml, line 6: services.a.queue.max_waiting is 'many': expected int, got str",
        ),
        (
            "services:\n  a:\n    kind: llm\n    model: simulated\n    queue:\n      max_waiting: 0\n",
            "app.yaml, line 5: services.a.queue: `max_waiting` is 0; it must be at least 1",
        ),
        (
            "services:\n  a:\n    kind: llm\n    model: simulated\n    launcher: remote\n",
            "app.yaml, line 5: services.a.launcher is 'remote'; valid: local, inline",
        ),
        ("services:\n  a: {kind: llm}\n", "app.yaml, line 2: services.a: missing key 'model'"),
        ("services:\n  a: {kind: upstream, urls: [3]}\n", "app.yaml, line 2: services.a.urls[0] is 3: expected str"),
        ("services:\n  a: {kind: function, target: x}\n", "app.yaml, line 2: services.a: `target` is 'x'; valid:"),
        (f"services:\n  3: {UPSTREAM}\n", 'app.yaml, line 1: services: the name 3 is not text; write "3"'),
        (f"services:\n  server: {UPSTREAM}\n", "app.yaml, line 2: services.server: no service can be called 'server'"),
        (
            f"services:\n  a b: {UPSTREAM}\n",
            "app.yaml, line 1: services: App(): 'a b' cannot name a service",
        ),
        (
            f"services:\n  a: {UPSTREAM}\nserver:\n  port: 0x1ffff\n",
            "app.yaml, line 3: server: `port` is 131071",
        ),
        (
            f"services:\n  a: {UPSTREAM}\nserver:\n  prt: 1\n",
            "app.yaml, line 4: server.prt: unknown key 'prt'",
        ),
        (
            f"services:\n  a: {UPSTREAM}\nserver: 8000\n",
            "app.yaml, line 3: server is 8000: expected keys",
        ),
        (
            f"services:\n  a: {UPSTREAM}\nstate: {{history: 'no'}}\n",
            "app.yaml, line 3: state.history is 'no'",
        ),
        (
            f"services:\n  a: {UPSTREAM}\n  a: {UPSTREAM}\n",
            "app.yaml, line 3: services.a: the key is here twice",
        ),
    ],
)
def test_what_is_wrong_in_it_names_line_key_and_choices(tmp_path: Path, text: str, expected: str) -> None:
    assert words(write(tmp_path, text)).startswith(expected)


def test_a_yaml_file_has_one_app(tmp_path: Path) -> None:
    path = write(tmp_path, f"services: {{up: {UPSTREAM}}}\n")
    assert "a YAML file has one app" in words(f"{path}:app")


def test_paths_are_meant_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "rank.py").write_text("def rank(x: int) -> int:\n    return x\n")
    app = load_app_file(
        write(
            tmp_path,
            """
            services:
              rank: {kind: function, target: "rank.py:rank", python: venv/bin/python}
              module: {kind: function, target: "package.module:rank", python: /usr/bin/python3}
              here: {kind: function, target: "./sub/rank.py:Rank.call", python: python3}
              chat: {kind: llm, model: simulated, env: {python: a/b, target: "c.py:d"}}
            state: {folder: state/here}
            """,
        )
    )
    folder = tmp_path.resolve()
    settings = {name: kind.settings for name, kind in app.services.items()}
    assert settings["rank"].target == f"{folder}/rank.py:rank"  # type: ignore[attr-defined]
    assert settings["rank"].python == f"{folder}/venv/bin/python"
    assert settings["module"].target == "package.module:rank"  # type: ignore[attr-defined]
    assert settings["module"].python == "/usr/bin/python3"
    assert settings["here"].target == f"{folder}/sub/rank.py:Rank.call"  # type: ignore[attr-defined]
    assert settings["here"].python == "python3"
    assert settings["chat"].model == "simulated"  # type: ignore[attr-defined]
    assert settings["chat"].env == {"python": "a/b", "target": "c.py:d"}
    assert app.settings.state.folder == f"{folder}/state/here"


def test_a_model_beside_it_is_meant_before_a_packaged_one(tmp_path: Path) -> None:
    from foreserve.appfile import _located

    (tmp_path / "mine").mkdir()
    assert _located("mine", tmp_path) == str(tmp_path / "mine")
    assert _located("smollm2", tmp_path) == "smollm2"
    assert _located("not-yet.gguf", tmp_path) == str(tmp_path / "not-yet.gguf")
    assert _located("~/m.gguf", tmp_path) == str(Path.home() / "m.gguf")


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    text = "services: {chat: {kind: llm, model: simulated, foresight: {predictor: off}}}"
    assert load_app_file(write(tmp_path, text)).services["chat"].settings.foresight.predictor == "off"  # type: ignore[attr-defined]
