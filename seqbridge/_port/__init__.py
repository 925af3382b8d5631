"""Port."""

from seqbridge._port.port import port as port
