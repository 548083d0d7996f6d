"""The supervisor: what holds authority, and touches no guest's bytes. In reading order:

- `quantities`, `faults`, `secrets`, `manifest`, `configuration`, `schema`: what people write, and what is wrong with it
- `catalogue`: the capsules that the configured folders hold
- `lifecycle`, `restart`, `exits`: what follows from what happens to a capsule, and `history`: what is kept of it
- `startorder`, `reload`: who starts after whom, and what follows from manifests that have changed
- `spawn`: the one module that starts processes, and `reaper`: what is ours to reap as process 1
- `compilation`, `blobs`, `compiling`: a module's native code, made in a process of its own
- `descriptors`, `instance`, `output`: one worker process, from its start to its reaping
- `probe`, `modes`: what the machine can hold, and whether it is enough
- `users`, `cgroup_layout`, `cgroups`, `confining`: what each worker is told, is, and is limited by
- `isolation`, `watchdog`: what is seen of it from outside
- `succession`, `capsule`: the tasks that carry a lifecycle's effects out, and `fleet`: all capsules together
- `backbone`: the process that carries messages, and `bus`: that process from the supervisor's side
- `balance`, `accounts`: whether every message is accounted for
- `clock`, `ownlog`: what the supervisor logs itself
- `logline`, `logtail`, `logdisk`, `logfiles`, `logbook`, `journal`, `logs`: what capsules log
- `control`: the control socket, `service`, `view`, `diagnostic`: what it answers from
- `notify`: what the init system is told
- `usage`, `metrics`: what is used and counted
- `folders`, `histories`, `daemon`: all of it together, in the order of starting
- `commands`: what operators type
"""
