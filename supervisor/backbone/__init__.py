"""The backbone: one process that carries all messages between capsules, and holds what they are granted.

It runs no guest and no Trio. In reading order:

- `outbox`: what waits for one capsule, bounded, oldest out first, counted exactly
- `members`: one attached capsule: who it is, what it may do, what it has done
- `origins`: who a message comes from, as its subscribers are told
- `delivery`: what every kind of message needs on its way
- `requests`, `conversations`: who waits for an answer, and how each request comes to an end
- `retained`, `traces`, `watchers`: what is kept of a message for those who come later, ask later, or look on
- `notes`: these three together
- `figures`: what the supervisor is told of a member's counts
- `router`: from one record in to the outboxes of its subscribers: the rule that decides every delivery
- `protocol`: what the supervisor and the backbone tell each other
- `channel`: the socket to the supervisor
- `edges`: the ZeroMQ sockets, one for each capsule
- `spine`, `display`: the ZeroMQ sockets of the operator's tools, and what these and the taps are shown
- `loop`: the epoll loop that drives them
"""
