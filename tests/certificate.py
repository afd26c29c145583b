"""A key and a certificate for 127.0.0.1 and localhost that no authority signed, valid from 2020 for a hundred years."""

from __future__ import annotations

from pathlib import Path

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZEgI4XC0hMrsKama
elqySQ/ifGms0J6UEaz9SLz/v5+hRANCAASWEtQeMn/M0i3a3F4JgWqBStMM703r
4vsF16S3DOeQD9Xwqwv9vWbPF3mwUcjgOk4NEg+r/J+8hK6Y36s0gUKl
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdzCCARygAwIBAgIQfTHgSTDV2vtw8/oLqKZQnjAKBggqhkjOPQQDAjAUMRIw
EAYDVQQDDAlsb2NhbGhvc3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAw
MDBaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABJYS1B4yf8zSLdrcXgmBaoFK0wzvTevi+wXXpLcM55AP1fCrC/29Zs8XebBR
yOA6Tg0SD6v8n7yErpjfqzSBQqWjTjBMMA8GA1UdEwEB/wQFMAMBAf8wGgYDVR0R
BBMwEYcEfwAAAYIJbG9jYWxob3N0MB0GA1UdDgQWBBTt9BTxBoAMbb9rDMzVrstT
lB4FzzAKBggqhkjOPQQDAgNJADBGAiEAsTZTQlwObVpAMiO0K1kCLymyJn5YVeMf
/1jn/4L49QsCIQC01rN/jQ2p9lUxep68WiajoZWXX3HRNW5YdV/4W0AD0A==
-----END CERTIFICATE-----
"""


def write(folder: Path) -> tuple[Path, Path]:
    """The two files in a folder: (certificate, key)."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    return certificate, key
