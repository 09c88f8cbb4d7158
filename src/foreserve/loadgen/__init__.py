"""An open-loop load generator for any server that speaks OpenAI's API. It knows nothing of our own server."""
