"""How a client of Kafka proves who it is and knows its broker: TLS, SASL, both or neither.

The files are read again for each new client, so that a renewed certificate is taken without a restart by the next one.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, kw_only=True)
class KafkaSecurity:
    """What the settings `KAFKA_...` say; the names are Kafka's own. Raises ValueError for what does not go together:
    a name and password that would not be used are an error, since the connection is then not what was meant.
    """

    protocol: Protocol = "PLAINTEXT"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    mechanism: Mechanism = "SCRAM-SHA-512"
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        said = f"KAFKA_SECURITY_PROTOCOL={self.protocol}"
        if self.by_password and not (self.username and self.password):
            raise ValueError(f"{said} needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
        if self.by_password and not self.by_tls and self.mechanism == "PLAIN":
            raise ValueError(f"{said} would send the password in the open: take SASL_SSL, or a SCRAM mechanism")
        if not self.by_password and (self.username or self.password):
            raise ValueError(f"KAFKA_SASL_USERNAME or KAFKA_SASL_PASSWORD is given, which {said} does not use")
        if not self.by_tls and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError(f"KAFKA_CA_FILE, KAFKA_CERT_FILE or KAFKA_KEY_FILE is given, which {said} does not use")
        if self.key_file and not self.cert_file:
            raise ValueError("KAFKA_KEY_FILE needs KAFKA_CERT_FILE")
        self.options()

    @property
    def by_tls(self) -> bool:
        """Whether the connection is encrypted, and the broker's certificate looked at."""
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def by_password(self) -> bool:
        """Whether a name and a password are shown."""
        return self.protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def options(self) -> dict[str, Any]:
        """What each client of aiokafka is given. Raises ValueError for a file that cannot be used."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.by_password:
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        if self.by_tls:
            options["ssl_context"] = self.context()
        return options

    def context(self) -> ssl.SSLContext:
        """The certificates' rules: the broker's has to be of the CA, and to name the host. Raises ValueError."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"KAFKA_CA_FILE {self.ca_file} cannot be used: {_reason(error)}") from None
        if self.cert_file is not None:
            try:
                # the callback keeps a locked key from asking for its pass phrase on the terminal
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_pass_phrase)
            except (OSError, ValueError) as error:
                files = f"KAFKA_CERT_FILE {self.cert_file}, KAFKA_KEY_FILE {self.key_file or '(in the same file)'}"
                raise ValueError(f"{files} cannot be used: {_reason(error)}") from None
        return context


def _no_pass_phrase() -> str:
    raise ValueError("the key has a pass phrase: give it without one")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(reason).splitlines()[0].replace("_", " ").lower() if reason else type(error).__name__
