"""The control socket: HTTP/1.1 with JSON over a Unix stream socket, as any init script can ask with curl.

In reading order:

- `shapes`: JSON as it travels, and `durations`: lengths of time as operators write them
- `limits`: every bound and deadline, each with its reason
- `access`: which peer may do what, and `peers`: who the kernel says a peer is
- `operations`: what the socket can ask of the daemon, and how the daemon says no
- `errors`: every refusal with its status and code
- `streams`: lines for many followers, of whom none can hold the publisher up
- `parameters`: what stands behind the question mark of a request
- `reloading`: the plan that a reload answers
- `messages`: a request, and what is answered: a document or a stream
- `routes`: the table of routes, and what each does
- `schemas` and `openapi`: the document of all of this, for programs
- `connection`: one peer, one request after the other, each step with its deadline
- `counts`: how many connections there are, and were refused
- `server`: who gets past accept, and how many
- `listening`: the socket's file

`access`, `parameters` and `errors` are rules; `connection`, `server`, `peers` and `listening` are shells.
The daemon implements `Operations`, opens the file with `listening.control_socket` and starts `server.serve`.
"""
