"""The page and its HTTP interface.

In: an index. Out: answers to requests. A request for a round passes `security` (host, token, size),
`session_api` (its shape), `service` (the index that is open now), `rounds` (the engine) and
`sessions` (what the person marked); `session_store` keeps sessions in SQLite, `session_files`
exports and replays them. `page/` is what the browser loads. Read `api` first.
"""
