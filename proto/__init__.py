"""What capsuled's processes say to each other, and the rules that both sides must agree on.

Pure: no I/O, no clock, no Trio, no ZeroMQ. In reading order:

- `topics`, `grants`: names of messages, and who may use them
- `subscriptions`: which subscribers a topic reaches
- `bucket`: how much may be published
- `items`, `payloads`, `envelopes`: what a guest sends and what it gets, in CBOR
- `records`: the frames between a worker and the backbone
- `ledger`: the page of counters that a worker keeps and the supervisor reads
- `order`, `reports`, `loglines`: what the supervisor hands a worker at launch, and what they tell each
  other then
- `spine`: what the operator's ZeroMQ programs see
- `abi`, `refusals`, `header`: the guest's view: functions, errors, and the C header of both
- `control`: the operator's vocabulary
"""
