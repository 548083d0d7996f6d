"""One worker: a process of its own for one capsule. In reading order:

- `__main__`: the command line, which only starts `worker`
- `worker`: the life of the process, from the launch order to the last report
- `sealing`: what the process gives up before it reads a byte of the module, and before the guest runs
- `namespaces`, `landlock`, `seccomp`: three of its layers; `syscalls`: numbers by name; `kernel`: the raw calls
- `probing`: a program of its own, which tries for the supervisor what can be held
- `compiler`: a program of its own, sealed too, in which modules are verified, checked and compiled
- `loading`: what a module must be: its hash, its imports, its exports
- `engine`: the guest's engine behind one seam
- `host`, `wasi`, `system`: the functions that a guest may call
- `ipc`: publish, subscribe, receive: the rules below put to work on a real edge
- `outgoing`: what was published and not sent yet
- `inbox`, `subscription`: what was received and not taken yet; `answers`: to the guest's own requests
- `edge`: the ZeroMQ socket to the backbone
- `supervisor`: the control descriptor: reports out, cancellation in
- `logs`: log lines out, within their rate
- `page`: the ledger page, where the supervisor reads the worker's counters

`outgoing`, `inbox`, `subscription`, `answers`, `loading`, `landlock`, `seccomp` and `syscalls` are rules: they see no
socket and no clock.
"""
