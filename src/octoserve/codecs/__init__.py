"""Wire forms <-> tensors, one protocol a module. Pure: bytes in, values out; no sockets, no models."""
