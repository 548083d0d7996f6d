"""`capsulectl completion`: a script for the shell, made from the command line's own parser.

Each script walks the words that are there already: which command they name, how many arguments it has got, and
whether an option waits for its value. Names of capsules are asked for when they are needed; where nobody answers there
are none.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from capsuled.proto.control import Exit
from capsuled.supervisor.commands import commandline
from capsuled.supervisor.commands.client import Client
from capsuled.supervisor.commands.commandline import Argument, Command

SOCKET = "--socket"
"""What names are asked with as well, when it stands there."""


class Table(NamedTuple):
    """What the scripts know. A command is its path below the program, with slashes; the program's own is empty.

    What completes an argument is a list of words, or one word with a colon: `:capsule`, `:file`, `:folder`, `:other`,
    or `:socket`, a file that is remembered.
    """

    children: Mapping[tuple[str, str], str]
    """Of a command and a word: the command that it names."""
    values: Mapping[tuple[str, str], tuple[str, ...]]
    """Of a command and an option that takes a value: what completes that."""
    options: Mapping[str, Mapping[str, str]]
    """Of a command: its options, and what they are for."""
    commands: Mapping[str, Mapping[str, str]]
    """Of a command that has others below it: those, and what they are for."""
    arguments: Mapping[tuple[str, str], tuple[str, ...]]
    """Of a command and a place, from 0, or `*` for all that follow: what completes the argument there."""


def completion(_client: Client, given: argparse.Namespace) -> Exit:
    from capsuled.supervisor.commands.capsulectl import parser

    print(script(given.shell, commandline.read(parser())), end="")
    return Exit.DONE


def script(shell: str, command: Command) -> str:
    """The script for `bash`, `zsh` or `fish`."""
    return SHELLS[shell](table(command), command.path[0])


def table(top: Command) -> Table:
    children: dict[tuple[str, str], str] = {}
    values: dict[tuple[str, str], tuple[str, ...]] = {}
    options: dict[str, dict[str, str]] = {}
    commands: dict[str, dict[str, str]] = {}
    arguments: dict[tuple[str, str], tuple[str, ...]] = {}
    for command in top.all():
        at = "/".join(command.path[1:])
        options[at] = {flag: option.help for option in command.options for flag in option.flags}
        for option in command.options:
            values.update({(at, flag): _words(option) for flag in option.flags if option.metavar})
        if command.commands:
            commands[at] = {each.path[-1]: each.summary for each in command.commands}
            children.update({(at, each.path[-1]): "/".join(each.path[1:]) for each in command.commands})
        for place, argument in enumerate(command.arguments):
            arguments[at, "*" if argument.repeated else str(place)] = _words(argument)
    return Table(children, values, options, commands, arguments)


def _words(argument: Argument) -> tuple[str, ...]:
    if argument.choices:
        return argument.choices
    return (":socket",) if SOCKET in argument.flags else (f":{argument.kind.value}",)


# bash and zsh have the same `case`.

_STEP = """\
        if [[ -n $value ]]; then
            [[ $value == :socket ]] && socket=({socket} "$word")
            value=
            continue
        fi
        case "$at $word" in
{children}
            *' {socket}='*) socket=({socket} "${{word#*=}}") ;;
            *' -'*) _{name}_value "$at" "$word" ;;
            *) place=$((place + 1)) ;;
        esac
"""

_NAMES = """\
_{name}_names() {{
    local LC_ALL=C word rest
    {name} "$@" list 2>/dev/null </dev/null | while read -r word rest; do
        case $word in
            '' | *[!abcdefghijklmnopqrstuvwxyz0123456789-]*) ;; # the heading, and what is no name
            *) printf '%s\\n' "$word" ;;
        esac
    done
}}

# What completes the value of an option: sets `value`, which stays empty for one that takes none.
_{name}_value() {{
    case "$1 $2" in
{values}
    esac
}}
"""

_BASH = """\
# Completion of {name} for bash: `source <({name} completion bash)`, or put it where bash-completion looks,
# as ~/.local/share/bash-completion/completions/{name}. Made by `{name} completion bash` from its own parser.

{names}
_{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} at='' place=0 value='' word i kind=:other
    local -a socket=()
    COMPREPLY=()
    # bash makes three words of --wait=ready.
    [[ $current == = ]] && current=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        [[ $word == = ]] && continue
{step}    done
    if [[ -n $value ]]; then
        kind=$value
    elif [[ $current == -* ]]; then
        case $at in
{options}
        esac
    else
        case "$at $place" in
{arguments}
        esac
    fi
    case $kind in
        :capsule) kind=$(_{name}_names ${{socket[@]+"${{socket[@]}}"}}) ;;
        :file | :socket)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
        :folder)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            return
            ;;
        :*) return ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$kind" -- "$current")
}}

complete -F _{name} {name}
"""

_ZSH = """\
#compdef {name}
# Completion of {name} for zsh: `source <({name} completion zsh)` behind compinit, or put it as _{name} into a folder
# of $fpath. Made by `{name} completion zsh` from its own parser.

{names}
_{name}() {{
    local current=${{words[CURRENT]}} at='' place=0 value='' word i kind=:other
    local -a socket described
    for ((i = 2; i < CURRENT; i++)); do
        word=${{(Q)words[i]}}
{step}    done
    if [[ -z $value && $current == --*=* ]]; then
        _{name}_value "$at" "${{current%%=*}}"
        compset -P 1 '*='
    fi
    if [[ -n $value ]]; then
        kind=$value
    elif [[ $current == -* ]]; then
        case $at in
{options}
        esac
        _describe -o option described
        return
    else
        case "$at $place" in
{arguments}
        esac
    fi
    if (($#described)); then
        _describe -t commands command described
        return
    fi
    case $kind in
        :capsule) compadd -- ${{(f)"$(_{name}_names $socket)"}} ;;
        :file | :socket) _files ;;
        :folder) _files -/ ;;
        :*) return 1 ;;
        *) compadd -- ${{=kind}} ;;
    esac
}}

if [[ $funcstack[1] == _{name} ]]; then
    _{name} "$@"
else
    compdef _{name} {name}
fi
"""

_FISH = """\
# Completion of {name} for fish: `{name} completion fish | source`, or put it as {name}.fish into
# ~/.config/fish/completions. Made by `{name} completion fish` from its own parser.

function __{name}_names
    for line in ({name} $argv list 2>/dev/null </dev/null)
        string match --regex '^[a-z0-9-]+(?= |$)' -- $line
    end
end

# What completes the value of an option: nothing for one that takes none.
function __{name}_value
    switch "$argv"
{values}
    end
end

function __{name}_complete
    set -l current (commandline --current-token)
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l at ''
    set -l place 0
    set -l value
    set -l socket
    set -l before ''
    set -e words[1]
    for word in $words
        if set -q value[1]
            test "$value" = :socket; and set socket {socket} $word
            set value
            continue
        end
        switch "$at $word"
{children}
            case '* {socket}=*'
                set socket {socket} (string replace {socket}= '' -- $word)
            case '* -*'
                set value (__{name}_value $at $word)
            case '*'
                set place (math $place + 1)
        end
    end
    if not set -q value[1]; and string match -q -- '--*=*' $current
        set before (string replace --regex '=.*' '' -- $current)
        set value (__{name}_value $at $before)
        set before $before=
    end
    if not set -q value[1]
        if string match -q -- '-*' $current
            switch "$at"
{options}
            end
            return
        end
        switch "$at $place"
{arguments}
        end
    end
    switch "$value"
        case :capsule
            printf "$before%s\\n" (__{name}_names $socket)
        case :file :socket
            __fish_complete_path $current
        case :folder
            __fish_complete_directories $current
        case ':*' ''
        case '*'
            printf "$before%s\\n" $value
    end
end

complete -c {name} -f -a '(__{name}_complete)'
"""


def _bash(found: Table, name: str) -> str:
    return _of_cases(_BASH, found, name, lambda offered: f"kind={_q(' '.join(offered))}")


def _zsh(found: Table, name: str) -> str:
    return _of_cases(_ZSH, found, name, lambda offered: f"described=({_described(offered)})")


def _of_cases(template: str, found: Table, name: str, offer: Callable[[Mapping[str, str]], str]) -> str:
    """The script of a shell that has the `case` of sh; `offer` says how it sets what it offers."""
    options = [f"            {_q(at)}) {offer(each)} ;;" for at, each in found.options.items()]
    arguments = [f"            {_q(f'{at} 0')}) {offer(each)} ;;" for at, each in found.commands.items()]
    return template.format(
        name=name,
        names=_names(found, name),
        step=_step(found, name),
        options="\n".join(options),
        arguments="\n".join([*arguments, *_kinds(found)]),
    )


def _names(found: Table, name: str) -> str:
    values = [
        f"        {pattern}) value={_q(' '.join(words))} ;;" for pattern, words in _by_words(found.values, _q)
    ]
    return _NAMES.format(name=name, values="\n".join(values))


def _step(found: Table, name: str) -> str:
    children = [
        f"            {_q(f'{at} {word}')}) at={_q(child)} ;;" for (at, word), child in found.children.items()
    ]
    return _STEP.format(name=name, socket=SOCKET, children="\n".join(children))


def _kinds(found: Table) -> Iterator[str]:
    for (at, place), words in found.arguments.items():
        pattern = f"{_q(f'{at} ')}*" if place == "*" else _q(f"{at} {place}")
        yield f"            {pattern}) kind={_q(' '.join(words))} ;;"


def _described(words: Mapping[str, str]) -> str:
    return " ".join(_q(f"{word}:{told}") for word, told in words.items())


def _by_words(
    values: Mapping[tuple[str, str], tuple[str, ...]], quote: Callable[[str], str], between: str = " | "
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Patterns that mean the same are one."""
    patterns: dict[tuple[str, ...], list[str]] = {}
    for (at, flag), words in values.items():
        patterns.setdefault(words, []).append(quote(f"{at} {flag}"))
    yield from ((between.join(found), words) for words, found in patterns.items())


def _fish(found: Table, name: str) -> str:
    def told(words: Mapping[str, str]) -> str:
        return " ".join(_fish_q(f"{word}\t{said}") for word, said in words.items())

    def cases(entries: Iterator[tuple[str, str]], indent: int) -> str:
        pad = " " * indent
        return "\n".join(f"{pad}case {pattern}\n{pad}    {action}" for pattern, action in entries)

    def arguments() -> Iterator[tuple[str, str]]:
        for at, commands in found.commands.items():
            yield _fish_q(f"{at} 0"), f"printf '%s\\n' {told(commands)}"
        for (at, place), words in found.arguments.items():
            yield _fish_q(f"{at} {place}"), f"set value {' '.join(words)}"

    return _FISH.format(
        name=name,
        socket=SOCKET,
        values=cases(
            (
                (pattern, f"printf '%s\\n' {' '.join(words)}")
                for pattern, words in _by_words(found.values, _fish_q, " ")
            ),
            8,
        ),
        children=cases(
            (
                (_fish_q(f"{at} {word}"), f"set at {_fish_q(child)}")
                for (at, word), child in found.children.items()
            ),
            12,
        ),
        options=cases(
            ((_fish_q(at), f"printf '%s\\n' {told(options)}") for at, options in found.options.items()), 16
        ),
        arguments=cases(arguments(), 12),
    )


def _q(text: str) -> str:
    return shlex.quote(text)


def _fish_q(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Table, str], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
