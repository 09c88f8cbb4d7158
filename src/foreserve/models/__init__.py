"""What a model on disk is, and turning it once into the form an engine wants. Knows only errors and settings.

Read in this order: `catalog` (which model is meant), `facts` (what is known of it), `prepare` (its form for an engine,
made once and kept by `cache`), then what a gateway needs of it: `tokenizer` and `chat_template`.
"""
