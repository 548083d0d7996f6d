"""The engine seam: one guest in this process, whichever engine runs it. In reading order:

- `seam`: what an engine and a guest are, and the errors that leave them
- `binary`: the WebAssembly binary format as far as we read and rewrite it: imports, exports, limits
- `shim`: a small module between guest and host that makes a host call cheap
- `wasmer`: the default engine

The engine modules are imported by `load` alone, so that a worker loads only the one it uses.
"""
