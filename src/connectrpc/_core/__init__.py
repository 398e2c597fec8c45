"""The protocols, without I/O: records, bytes and messages in, records, bytes and messages out."""
