"""The page and its HTTP interface.

In: an index. Out: answers to requests. `security` checks the host, the token and the size of every
request. `api` answers requests about images and uploads, `session_api` requests about sessions.
A request for a round reads the session from `session_store` (SQLite), asks `service` for the index
that is open, lets `rounds` make the round by `feedback.engine`, adds the round to the session, and
writes the session back. `sessions` says what a session is, and how marks, rounds and steps back
change a session; `session_files` exports and replays sessions. `page/` is what the browser loads.
Read `api` first.
"""
