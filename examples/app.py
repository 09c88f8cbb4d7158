"""A language model and a function behind one API: `foreserve serve examples/app.py`.

    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \
      -d '{"model": "chat", "messages": [{"role": "user", "content": "Say hello."}]}'

    curl http://127.0.0.1:8000/v1/functions/shout -H 'content-type: application/json' -d '{"text": "hello"}'
"""

import foreserve as fs


@fs.function
def shout(text: str) -> str:
    return text.upper()


app = fs.App(chat=fs.LLM("smollm2", max_running=8), shout=shout)
