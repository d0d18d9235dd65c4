"""What mutual TLS costs this machine: the cipher, measured between two ends in memory. Knows no network and no gRPC."""

from __future__ import annotations

import ssl

from prfaas.clock import Clock
from prfaas.config import TlsSettings
from prfaas.errors import ConfigError

RECORD_BYTES = 16 * 1024  # the largest TLS record
SAMPLE_BYTES = 32 * 1024**2


def tls_s_per_gbyte(tls: TlsSettings, clock: Clock, sample_bytes: int = SAMPLE_BYTES) -> float:
    """Seconds to seal and open a GB, both ends together, with the certificate of `tls`; 0 where TLS is off.

    Raises ConfigError when the certificate cannot be used.
    """
    if not tls.enabled:
        return 0.0
    try:
        sealing, opening = _joined(tls)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS certificate cannot be used: {error}") from error
    record = bytes(RECORD_BYTES)
    began_s = clock.now_s()
    for _ in range(max(1, sample_bytes // RECORD_BYTES)):
        sealing.end.write(record)
        opening.incoming.write(sealing.outgoing.read())
        opened = 0
        while opened < RECORD_BYTES:
            opened += len(opening.end.read(RECORD_BYTES))
    return (clock.now_s() - began_s) / sample_bytes * 1e9


class _End:
    """One end of a TLS connection and its two queues of bytes."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side)

    def advance(self) -> bool:
        """Take the handshake as far as it goes. True when it is done."""
        try:
            self.end.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


def _joined(tls: TlsSettings) -> tuple[_End, _End]:
    # Whom the certificates name does not matter to the cipher's speed.
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    server.load_cert_chain(str(tls.cert_file), str(tls.key_file))
    ends = _End(client, server_side=False), _End(server, server_side=True)
    done = [False, False]
    while not all(done):
        for at, (here, there) in enumerate((ends, ends[::-1])):
            done[at] = done[at] or here.advance()
            there.incoming.write(here.outgoing.read())
    return ends
