"""A program: WebAssembly's text format on standard input, the module on standard output. For authors.

Exit status 1 with a sentence on standard error where the text is none. In a process of its own, for the supervisor's
side imports no engine.
"""

from __future__ import annotations

import sys


def main() -> int:
    import wasmtime

    text = sys.stdin.buffer.read()
    try:
        module = wasmtime.wat2wasm(text)
    except wasmtime.WasmtimeError as exc:
        print(str(exc), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(bytes(module))
    return 0


if __name__ == "__main__":
    sys.exit(main())
