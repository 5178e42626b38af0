"""The page and its HTTP interface.

In: an index. Out: answers to requests. A request for a round passes `security` (token, size),
`api` (its shape), `sessions` (what the person marked) and `rounds` (the engine); `session_store`
keeps sessions in SQLite. `page/` is what the browser loads. Read `api` first.
"""
