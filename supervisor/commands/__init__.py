"""What operators type: `capsuled` is the daemon, `capsulectl` asks it.

`capsulectl` imports neither Trio nor pydantic, to start quickly.

In reading order:

- `capsuled`: the daemon's command line
- `doctor`: what this machine can hold of the isolation
- `check`: manifests and configuration, without running anything
- `capsulectl`: the command line, and what each command does
- `asking`: commands that are one question and its answer
- `ends`: how an end is told
- `following`: commands that go on: logs, events, wait
- `top`: what capsules use and move, live; by `rates` (the numbers) and `screen` (the terminal)
- `authoring` and `trial`: for authors: new, build, run
- `completion`: scripts for shells; from `commandline`, a parser as data
- `manual`: the manual pages
- `client`: HTTP to the control socket
- `render`: tables and colour on a terminal, plain columns elsewhere
"""
