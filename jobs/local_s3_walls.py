"""What keeps other users of this machine out of the parts behind the S3 server of `jobs.local_s3`.

Master, volume server and filer listen on ports of loopback, which every user reaches. Each side of a connection between
them shows a certificate of an authority that signs for this one server and is then forgotten. Their HTTP is closed in
the same way as their gRPC: the master's hands out tokens to whoever asks, and deletes buckets.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from pathlib import Path

# Both are for as long as the server may run; a clock that is set back must not make it fail.
_BEFORE, _AFTER = datetime.timedelta(days=30), datetime.timedelta(days=3650)
_TOKENS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_GRPC = ("master", "volume", "filer", "s3", "client")
_HTTPS = ("master", "volume", "filer")


def write_security(folder: Path) -> None:
    """Write security.toml, with tokens and certificates of its own, where its owner alone can read it."""
    authority, certificate, key = _certificates()
    paths = {"ca": folder / "authority.pem", "cert": folder / "certificate.pem", "key": folder / "key.pem"}
    for path, content in zip(paths.values(), (authority, certificate, key), strict=True):
        write_private(path, content.decode())
    of_ours = "".join(f'{name} = "{path}"\n' for name, path in paths.items())
    sections = {name: f'key = "{secrets.token_hex(20)}"\n' for name in _TOKENS}
    sections["grpc"] = f'ca = "{paths["ca"]}"\n'
    sections |= {f"grpc.{part}": of_ours for part in _GRPC}
    sections |= {f"https.{part}": of_ours for part in _HTTPS}
    sections["https.client"] = f"enabled = true\n{of_ours}"
    write_private(folder / "security.toml", "".join(f"[{name}]\n{text}" for name, text in sections.items()))


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _certificates() -> tuple[bytes, bytes, bytes]:
    """Return an authority's certificate, and a certificate by it with its key, for both ends of connections here."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def begin(subject: str, issuer: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        names = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer))
        builder = x509.CertificateBuilder().subject_name(next(names)).issuer_name(next(names))
        builder = builder.serial_number(x509.random_serial_number()).public_key(public_key)
        return builder.not_valid_before(now - _BEFORE).not_valid_after(now + _AFTER)

    signing, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = (
        begin("daskyard local authority", "daskyard local authority", signing.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(signing, hashes.SHA256())
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        begin("daskyard local part", "daskyard local authority", key.public_key())
        .add_extension(x509.SubjectAlternativeName([address, x509.DNSName("localhost")]), critical=False)
        .add_extension(usage, critical=False)
        .sign(signing, hashes.SHA256())
    )
    encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_bytes = key.private_bytes(encoding, private, serialization.NoEncryption())
    return authority.public_bytes(encoding), certificate.public_bytes(encoding), key_bytes
