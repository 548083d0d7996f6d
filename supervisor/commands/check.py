"""`capsuled check`: manifests, their modules and the configuration, read as the daemon reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from capsuled.proto.control import Exit
from capsuled.supervisor import catalogue, configuration, startorder
from capsuled.supervisor.catalogue import Catalogue
from capsuled.supervisor.configuration import Configuration, ConfigurationInvalid
from capsuled.supervisor.faults import Fault
from capsuled.supervisor.manifest import CONFIGURATION


def check(paths: Sequence[Path], config: Path | None) -> Exit:
    """Print a line for each finding, by file, and a summary. `Exit.FAILED` on any finding, else `Exit.DONE`.

    A path is what `catalogue.load` takes, or a file `capsuled.toml`. Without a path the configured folders
    are read. `config` is the configuration, None the one in its usual place, which need not be there.
    """
    base = configuration.defaults(os.environ, os.getuid())
    usual = configuration.default_file(os.environ, os.getuid())
    findings: list[Fault] = []
    using = base
    if config is not None or usual.exists():
        using = _read(config or usual, base, findings)
    files = [path for path in paths if path.name == CONFIGURATION]
    for file in files:
        if config is None or file.absolute() != config.absolute():
            _read(file, base, findings)
    folders = [path for path in paths if path not in files] if paths else using.capsules
    found = catalogue.load(folders, using, check=True)
    findings.extend(found.faults)
    findings.extend(_never_started(found))
    for fault in sorted(findings, key=lambda each: each.file):
        print(fault)
    print(_summary(len(found.entries), findings))
    return Exit.FAILED if findings else Exit.DONE


def _never_started(found: Catalogue) -> Iterator[Fault]:
    order = startorder.order({name: entry.manifest for name, entry in found.entries.items()})
    for unmet in order.unmet:
        yield Fault(str(found.entries[unmet.capsule].manifest_path), unmet.key, unmet.sentence)


def _read(file: Path, base: Configuration, findings: list[Fault]) -> Configuration:
    """The configuration in `file`; of one with faults, which are findings, `base`."""
    try:
        return catalogue.read_configuration(file.absolute(), base)
    except ConfigurationInvalid as exc:
        findings.extend(exc.faults)
        return base


def _summary(capsules: int, findings: Sequence[Fault]) -> str:
    good = f"{capsules} capsule{'s' * (capsules != 1)} without a fault"
    if not findings:
        return f"{good}, no findings"
    files = len({each.file for each in findings})
    count = len(findings)
    return f"{good}, {count} finding{'s' * (count != 1)} in {files} file{'s' * (files != 1)}"
