"""The keys that let clients in."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ddt_accel.errors import ArtifactError, ConfigError

_LEAST = 16  # characters


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Any of these, or everybody where there is none."""

    keys: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """One a line; empty lines and those that begin with # do not count. Raises ArtifactError for a file that cannot
        be read, ConfigError for one without a key or with one that is easily guessed."""
        if path is None:
            return cls()
        try:
            lines = path.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} could not be read as a file of keys: {error}.") from None
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"{path} has no key; write one a line, such as `openssl rand -hex 32` prints.")
        if short := [number for number, key in enumerate(keys, 1) if len(key) < _LEAST]:
            raise ConfigError(f"Key {short[0]} of {path} is shorter than {_LEAST} characters; give a longer one.")
        return cls(keys=tuple(key.encode() for key in keys))

    def admit(self, authorization: str | None) -> bool:
        """Whether a header `Authorization: Bearer KEY` has one of them; takes as long whichever it has."""
        if not self.keys:
            return True
        kind, _, given = (authorization or "").partition(" ")
        sent = given.strip().encode("latin-1")  # as headers are decoded
        found = [hmac.compare_digest(sent, key) for key in self.keys]
        return any(found) and kind.lower() == "bearer"

    def check_host(self, host: str) -> None:
        """Refuses to listen to other machines without a key."""
        if not self.keys and not _is_loopback(host):
            raise ConfigError(
                f"--host is {host}, which other machines reach, and there is no --api-key-file; give one, or leave "
                "--host out."
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
