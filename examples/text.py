"""A function that app.yaml serves. A worker process imports this file."""


def shout(text: str) -> str:
    return text.upper()
