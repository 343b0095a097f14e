"""A stand-in for the Hugging Face hub on this machine: an HTTP server, and tiny repositories laid out as the real ones.

Weights are random, vocabularies have a few hundred tokens, and rows are invented; what is real is the layout: names of
files, keys of configurations, formats, columns, splits, revisions, and what the hub answers. A program that is to use
it gets `HF_ENDPOINT`, and a test the fixture `hub`:

    hub.faults({"path": r"\\.bin$", "kind": "drop", "bytes": 1000, "times": 1})
    assert not [request for request in hub.requests if request["token"]]

`python -m tests.hub --help` makes the repositories in a folder, and serves them.
"""
