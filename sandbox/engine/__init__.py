"""The engine seam: one guest in this process, whichever engine runs it. In reading order:

- `seam`: what an engine and a guest are, and the errors that leave them
- `reader`: WebAssembly's binary format: numbers, names and sections
- `binary`: a module as far as we read and rewrite it: imports, exports, limits
- `code`: what a module was compiled to, as a blob
- `memory`: a guest's memory through a cached view
- `shim`: a small module between guest and host that makes a host call cheap
- `wasmer`: the default engine
- `wasmtime`: the second engine
- `wasmtime_raw`: its C API by hand, the one module here that uses ctypes
- `text`: a program for authors, which makes a module from its text

The engine modules are imported by `load` alone, so that a worker loads only the one it uses.
"""
