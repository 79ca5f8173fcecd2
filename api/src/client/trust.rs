//! Whom we talk to: TLS 1.3 to the one certificate that was pinned.
//!
//! An appliance sends its own certificate and the one of its authority. The authority's fingerprint is what it shows:
//! it stays when addresses change and the host's certificate is made anew. Either of the two may be pinned; with the
//! authority pinned, the host's certificate must be signed by it. Names are not compared: the pin is the identity.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::ClientError;
use super::connection::Dial;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits, colons between them do not matter")]
pub struct FingerprintError;

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| {
                c.to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
                    .ok_or(FingerprintError)
            })
            .collect::<Result<_, _>>()?;
        let bytes: Vec<u8> = digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect();
        if digits.len() != 64 {
            return Err(FingerprintError);
        }
        bytes.try_into().map(Self).map_err(|_| FingerprintError)
    }
}

/// What a handshake found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// This and no other.
    Pinned(Fingerprint),
    /// Whatever comes is recorded: trust on first use, after a person has compared it.
    Anything,
}

/// Checks the other end; remembers whom it saw.
#[derive(Debug)]
pub(super) struct Verifier {
    expect: Expect,
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Option<Fingerprint>>,
}

impl Verifier {
    pub(super) fn new(expect: Expect) -> Arc<Self> {
        Arc::new(Self {
            expect,
            algorithms: provider().signature_verification_algorithms,
            seen: Mutex::new(None),
        })
    }

    pub(super) fn seen(&self) -> Option<Fingerprint> {
        self.seen.lock().ok().and_then(|seen| *seen)
    }

    /// The client's side of TLS: 1.3 only, HTTP/1.1.
    pub(super) fn config(self: &Arc<Self>) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn signed_by(
        &self,
        leaf: &CertificateDer<'_>,
        authority: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &[], now, self.algorithms.all)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let own = Fingerprint::of(leaf);
        let authority = others
            .last()
            .filter(|authority| self.signed_by(leaf, authority, now).is_ok());
        let identity = authority.map_or(own, |authority| Fingerprint::of(authority));
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some(identity);
        }
        match self.expect {
            Expect::Pinned(pin) if pin != own && pin != identity => Err(
                rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure),
            ),
            Expect::Pinned(_) | Expect::Anything => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(
            "TLS 1.2 is not spoken here".to_owned(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The fingerprint that the appliance at `address` shows, from a handshake that trusts anybody and sends nothing.
/// To be compared with the one on the machine's console.
pub async fn fetch_fingerprint(address: &str) -> Result<Fingerprint, ClientError> {
    let (dial, verifier) = Dial::tls_any(address)?;
    dial.connect().await?;
    verifier
        .seen()
        .ok_or_else(|| ClientError::Protocol("a handshake without a certificate".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_with_and_without_colons() {
        let plain = "00ff".repeat(16);
        let parsed: Fingerprint = plain.parse().expect("64 digits");
        assert_eq!(parsed.to_string(), plain);
        let colons = ["00", "FF"].repeat(16).join(":");
        assert_eq!(colons.parse(), Ok(parsed));
        assert_eq!("00ff".parse::<Fingerprint>(), Err(FingerprintError));
        assert_eq!("x".repeat(64).parse::<Fingerprint>(), Err(FingerprintError));
    }
}
